"""The reader of VNN-LIB 1.0: meaning, errors, time."""

from __future__ import annotations

import gzip
import itertools
import math
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from citrus_tool.errors import InputFileError
from citrus_tool.queries import Spec, VnnlibError, parse, read
from tests.queries.literal_queries import unsafe

HEAD = "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOX = "(assert (>= X_0 0)) (assert (<= X_0 1)) (assert (>= X_1 -0.5)) (assert (<= X_1 .5e1))\n"
NAMES = ("X_0", "X_1", "Y_0", "Y_1")


def at(spec: Spec, *entries: float | Fraction) -> bool:
    return spec.evaluate({"X": list(entries[:2]), "Y": list(entries[2:])})


def expressions() -> st.SearchStrategy[str]:
    numbers = st.sampled_from(["0", "1", "-0.5", "2.", ".25", "1e-1", "-3E0"])
    leaves = st.one_of(st.sampled_from(NAMES), numbers)
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds("({} {} {})".format, st.sampled_from("+-"), inner, inner),
            st.builds("(- {})".format, inner),
            st.builds("(* {} {})".format, numbers, inner),
            st.builds("(* {} {})".format, inner, numbers),
            st.builds("(/ {} {})".format, inner, st.sampled_from(["2", "-4", "3"])),
            st.builds("(+ {} {} {})".format, inner, inner, inner),
        ),
        max_leaves=5,
    )


def formulas() -> st.SearchStrategy[str]:
    comparisons = st.builds(
        "({} {} {})".format, st.sampled_from(["<=", ">=", "<=", ">=", "="]), expressions(), expressions()
    )
    return st.recursive(
        comparisons,
        lambda inner: st.builds(
            lambda head, parts: f"({head} {' '.join(parts)})",
            st.sampled_from(["and", "or"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
        max_leaves=6,
    )


@settings(max_examples=70, deadline=None)
@given(formulas())
def test_means_what_the_text_says(formula: str) -> None:
    text = HEAD + BOX + f"(assert {formula})"
    spec = parse(text)
    grid = [Fraction(0), Fraction(1, 2), Fraction(1)]
    for point in itertools.product(grid, grid, grid, [Fraction(-1), Fraction(0), Fraction(1)]):
        assert at(spec, *point) == unsafe(text, dict(zip(NAMES, point, strict=True)))
    # the listed cases are the same set
    for point in itertools.product(grid[:2], repeat=4):
        exact = spec.exact({"X": list(point[:2]), "Y": list(point[2:])})
        cases = any(
            all(row.holds(exact) for row in (*spec.common, *itertools.chain(*choice)))
            for choice in itertools.product(*spec.clauses)
        )
        assert cases == at(spec, *point)


def test_numbers_are_exact() -> None:
    spec = parse(HEAD + BOX + "(assert (<= Y_0 0.1))")
    assert at(spec, 0, 0, Fraction(1, 10), 0)
    assert not at(spec, 0, 0, 0.1, 0)  # the float64 0.1 is more than 1/10
    assert not at(spec, 0, 0, float("nan"), 0)


def test_any_order_comments_layout_and_gzip(tmp_path: Path) -> None:
    shuffled = (
        "; é and \xff in a comment ( are fine\r\n(declare-const Y_1 Real)(declare-const X_1 Real)\n"
        "\t(declare-const X_0 Real)"
        "(declare-const Y_0 Real)(assert\n(and (<= X_0 1)(>= X_0 0) ; half a line\n (<= 0 (- X_1 -0.5)) (<= X_1 5)))"
    )
    plain, packed = tmp_path / "q.vnnlib", tmp_path / "q.vnnlib.gz"
    plain.write_bytes(shuffled.encode("latin-1"))
    packed.write_bytes(gzip.compress(shuffled.encode("utf-8-sig")))
    assert read(plain) == read(packed)
    assert set(read(plain).common) == set(parse(HEAD + BOX).common)


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("(assert (<= X_0 1)\n(assert (<= X_1 1))", 7, 2, "a ')' is missing in the form that starts on line 6"),
        ("(assert (<= X_0 1)", 6, 1, "never closed"),
        ("(assert (<= X_0 1)))", 6, 20, "without its '('"),
        ("(assert (<= X_7 1))", 6, 13, "X_0 to X_1 are"),
        ("(assert (<= x0 1))", 6, 13, "did you mean X_0"),
        ("(assert (<= Z_0 1))", 6, 13, "Z_0 is not declared"),
        ("(assert (< Y_0 1))", 6, 10, "write <="),
        ("(assert (> Y_0 1))", 6, 10, "write >="),
        ("(assert (== Y_0 1))", 6, 10, "equality is written ="),
        ("(assert (not (<= Y_0 1)))", 6, 10, "turn the comparison around"),
        ("(assert (AND (<= Y_0 1)))", 6, 10, "did you mean and"),
        ("(assert (Y_0 <= 1))", 6, 10, "write the operator first"),
        ("(assert ((<= Y_0 1)))", 6, 10, "where an operator should stand"),
        ("(assert (<= Y_0 <=))", 6, 17, "operator <= where a number"),
        ("(assert (<= Y_0 1.2.3))", 6, 17, "is not a number"),
        ("(assert (<= Y_0 inf))", 6, 17, "write a finite bound"),
        ("(assert (<= Y_0 1e999))", 6, 17, "too large"),
        ("(assert (<= Y_0 1e9999999999))", 6, 17, "too many digits"),
        ("(assert (<= Y_0))", 6, 9, "compares two expressions, not 1"),
        ("(assert (<= 0 Y_0 1))", 6, 9, "compares two expressions, not 3"),
        ("(assert (<= Y_0 (* Y_0 Y_1)))", 6, 17, "a product of variables"),
        ("(assert (<= Y_0 (/ 1 Y_1)))", 6, 17, "division by a variable"),
        ("(assert (<= Y_0 (/ Y_1 0)))", 6, 17, "division by zero"),
        ("(assert (<= Y_0 (+)))", 6, 17, "(+) of nothing"),
        ("(assert (and))", 6, 9, "(and) of nothing"),
        ("(assert (and Y_0 Y_1))", 6, 9, "of a number or variable"),
        ("(assert (<= Y_0 (<= Y_1 1)))", 6, 9, "of a formula"),
        ("(assert Y_0)", 6, 1, "of a number or variable"),
        ("(assert (<= Y_0 1) (<= Y_1 1))", 6, 1, "holds 2 formulas"),
        ("(assert)", 6, 1, "holds 0 formulas"),
        ("(<= Y_0 1)", 6, 2, "outside of an assertion"),
        ("Y_0", 6, 1, "outside of parentheses"),
        ("()", 6, 1, "empty parentheses"),
        ("(check-sat)", 6, 2, "remove it"),
        ("(declare-fun X_2 () Real)", 6, 2, "write (declare-const X_0 Real)"),
        ("(declare-const X_2 Int)", 6, 1, "declare it Real"),
        ("(declare-const X_2 Bool)", 6, 1, "the only sort is Real"),
        ("(declare-const X_2)", 6, 1, "with 1 words"),
        ("(declare-const X_02 Real)", 6, 1, "is not a variable of VNN-LIB 1.0"),
        ("(declare-const input Real)", 6, 1, "is not a variable of VNN-LIB 1.0"),
        ("(declare-const X_1 Real)", 6, 1, "the first time is on line 2"),
        ("(declare-const X_3 Real)", 6, 1, "X_2 is not declared, but X_3 is"),
        ("(declare-const X_2 Real)", 6, 1, "X_2 is not bounded from both sides"),
        ("(assert (or (<= Y_0 0) (and " + "(or (<= Y_0 1) (<= Y_0 2)) " * 30 + ")))", 6, 1, "1073741825 conjunctions"),
    ],
)
def test_errors_name_the_place_and_guess(text: str, line: int, column: int, says: str) -> None:
    with pytest.raises(VnnlibError) as caught:
        parse(HEAD + BOX + text, name="query.vnnlib")
    assert (caught.value.line, caught.value.column) == (line, column), str(caught.value)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"query.vnnlib:{line}:{column}: ")


def test_errors_about_the_whole_file(tmp_path: Path) -> None:
    with pytest.raises(VnnlibError, match="no input X_0 is declared"):
        parse("")
    with pytest.raises(VnnlibError, match="no output Y_0 is declared"):
        parse("(declare-const X_0 Real)(assert (<= X_0 1))(assert (>= X_0 1))")
    with pytest.raises(VnnlibError, match="cannot be read"):
        read(tmp_path / "absent.vnnlib")
    broken = tmp_path / "broken.vnnlib.gz"
    broken.write_bytes(gzip.compress((HEAD + BOX).encode())[:-9])
    with pytest.raises(VnnlibError, match="damaged gzip data"):
        read(broken)
    assert issubclass(VnnlibError, InputFileError)


def test_a_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("citrus_tool.queries.query_file.MAX_BYTES", 1 << 20)
    bomb = tmp_path / "bomb.vnnlib.gz"
    bomb.write_bytes(gzip.compress(b" " * (1 << 21)))
    with pytest.raises(VnnlibError, match="holds more than 1 MiB of text"):
        read(bomb)


def test_a_bound_in_some_cases_only_is_no_bound() -> None:
    half = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1))(assert (or (>= X_0 0) (<= Y_0 1)))"
    with pytest.raises(VnnlibError, match="X_0 is not bounded"):
        parse(half)
    parse(half.replace("(<= Y_0 1)", "(and (<= Y_0 1) (>= X_0 0.5))"))


def wide(count: int) -> str:
    names = "".join(f"(declare-const X_{i} Real)\n" for i in range(count)) + "(declare-const Y_0 Real)\n"
    return names + "".join(f"(assert (<= X_{i} 0.{i}7123))\n(assert (>= X_{i} -1.{i}2321))\n" for i in range(count))


@pytest.mark.timeout(60)
def test_thirty_thousand_assertions_in_two_seconds() -> None:
    text, seconds = wide(15_000), []
    for _ in range(3):  # the best of three, and processor time, as the machine may be busy
        start = time.process_time()
        spec = parse(text)
        seconds.append(time.process_time() - start)
    assert len(spec.common) == 30_000
    assert min(seconds) < 2.0


def test_a_disjunction_of_ten_thousand_boxes() -> None:
    rows = [f"(and (>= X_0 0.{i}) (<= X_0 0.{i}5) (>= X_1 {i}) (<= X_1 {i + 1}) (<= Y_0 {i}))" for i in range(10_000)]
    spec = parse(HEAD + f"(assert (or {' '.join(rows)}))")
    assert spec.case_count == 10_000
    last = list(spec.cases())[-1]
    assert last.boxes["X"].lower.tolist() == [math.nextafter(0.9999, 0), 9999.0]  # outward: 0.9999 rounds up
    assert last.boxes["X"].inner_lower.tolist() == [0.9999, 9999.0]
    assert not spec.is_box()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("opening", "core", "closing", "refused"),
    [
        ("(and ", "(<= Y_0 1)", ")", ""),
        ("(or (<= Y_1 1) ", "(<= Y_0 1)", ")", ""),
        ("(and (<= Y_1 1) ", "(<= Y_0 1)", ")", ""),
        ("(and (<= Y_1 1) (or (<= Y_0 0) ", "(<= Y_0 1)", "))", "30001 conjunctions with 450045000"),
        ("(<= (- ", "Y_0", ")", ""),
        ("(<= (+ X_0 ", "Y_0", ")", ""),
        ("(<= (- X_0 ", "Y_0", ")", ""),
        ("(<= (* 1.5 ", "Y_0", ")", "too large"),
    ],
)
def test_deep_nesting_neither_overflows_nor_slows_down(opening: str, core: str, closing: str, refused: str) -> None:
    depth = 30_000
    arithmetic = opening.startswith("(<= ")
    inner = opening.removeprefix("(<= ") * depth + core + closing * depth
    text = HEAD + BOX + (f"(assert (<= {inner} 1))" if arithmetic else f"(assert {inner})")
    start = time.process_time()
    if refused:
        with pytest.raises(VnnlibError, match=refused):
            parse(text)
    else:
        parse(text)
    assert time.process_time() - start < 5


def test_deep_nesting_keeps_its_meaning() -> None:
    depth = 5_001
    spec = parse(HEAD + BOX + f"(assert (<= {'(- X_0 ' * depth}Y_0{')' * depth} 0.25))")
    # x - (x - (... - y)) alternates: after an odd number of steps it is x - y
    assert at(spec, Fraction(1, 2), 0, Fraction(1, 4), 0)
    assert not at(spec, Fraction(1, 2), 0, Fraction(1, 8), 0)
