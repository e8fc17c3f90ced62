"""write(read(s)) means the same, in both languages."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from citrus_tool.errors import InputFileError, UsageError
from citrus_tool.queries import Constraint, Spec, Variable, parse, read, text1, text2, write1, write2
from citrus_tool.queries.constraint import Clause, constraint
from citrus_tool.queries.prefix_notation import decimal
from citrus_tool.queries.spec import NetworkVariable, TensorVariable
from tests.queries.literal_queries import unsafe

VARIABLES = [Variable("X", 0), Variable("X", 1), Variable("Y", 0), Variable("Y", 1), Variable("Y", 2)]
NETWORK = NetworkVariable(
    name="N", inputs=(TensorVariable(name="X", shape=(2,)),), outputs=(TensorVariable(name="Y", shape=(3,)),)
)
BOX: list[Clause] = [
    ((row,),)
    for v in VARIABLES[:2]
    for sign in (1, -1)
    if isinstance(row := constraint({v: Fraction(sign)}, "<=", Fraction(2)), Constraint)
]


def rows(relations: list[str]) -> st.SearchStrategy[Constraint]:
    numbers = st.one_of(st.sampled_from([Fraction(1), Fraction(-1)]), st.fractions(-4, 4, max_denominator=12))
    return st.builds(
        constraint,
        st.dictionaries(st.sampled_from(VARIABLES), numbers.filter(bool), min_size=1, max_size=3),
        st.sampled_from(relations),
        st.one_of(st.just(Fraction(0)), numbers),
    )


def specs(relations: list[str]) -> st.SearchStrategy[Spec]:
    conjunctions = st.lists(rows(relations), min_size=1, max_size=3).map(tuple)
    clauses = st.lists(conjunctions, min_size=0, max_size=3).map(tuple)
    return st.builds(lambda extra: Spec.of((NETWORK,), [*BOX, *extra]), st.lists(clauses, max_size=4))


def agree(spec: Spec, text: str, word: dict[Variable, str], seed: int) -> None:
    """The written text, read by the literal evaluator, holds where the Spec does, also on its own boundaries."""
    rng = random.Random(seed)
    grid = [Fraction(n, 4) for n in range(-8, 9)]
    for _ in range(20):
        point = {v: rng.choice(grid) for v in VARIABLES}
        values = {"X": [point[v] for v in VARIABLES[:2]], "Y": [point[v] for v in VARIABLES[2:]]}
        assert spec.evaluate(values) == unsafe(text, {word[v]: number for v, number in point.items()})


@settings(max_examples=60, deadline=None)
@given(specs(["<=", "=="]), st.integers(0, 99))
def test_round_trip_1(spec: Spec, seed: int) -> None:
    text = text1(spec)
    assert parse(text) == spec
    agree(spec, text, {v: f"{v.tensor}_{v.flat}" for v in VARIABLES}, seed)


@settings(max_examples=60, deadline=None)
@given(specs(["<=", "<", "=="]), st.integers(0, 99))
def test_round_trip_2(spec: Spec, seed: int) -> None:
    text = text2(spec)
    assert parse(text) == spec
    agree(spec, text, {v: f"{v.tensor}[{v.flat}]" for v in VARIABLES}, seed)


def test_the_two_languages_translate_into_each_other() -> None:
    text = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= 0.1 X_0))(assert (<= (/ X_0 3) 1e-1))"
    spec = parse(text)
    assert parse(text2(spec)) == spec
    assert parse(text1(parse(text2(spec)))) == spec
    assert "(<= (* 1.0" not in text2(spec)


@pytest.mark.parametrize("suffix", ["vnnlib", "vnnlib.gz"])
def test_files_are_whole_plain_or_gzipped(tmp_path: Path, suffix: str) -> None:
    spec = parse("(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= 0.1 X_0))(assert (<= X_0 0.3))")
    for write, text in ((write1, text1), (write2, text2)):
        path = tmp_path / f"query.{suffix}"
        write(spec, path)
        assert read(path) == spec
        data = path.read_bytes()
        assert (gzip.decompress(data) if suffix.endswith("gz") else data).decode() == text(spec)
        write(spec, path)
        assert path.read_bytes() == data  # no time stamp
        assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputFileError, match="cannot be written"):
        write1(spec, tmp_path / "absent" / "query.vnnlib")


def test_exact_decimals() -> None:
    for number, text in (
        (Fraction(0), "0.0"),
        (Fraction(-1, 4), "-0.25"),
        (Fraction(120), "120.0"),
        (Fraction(3, 500), "0.006"),
    ):
        assert decimal(number) == text
    value = 0.1
    assert Fraction(decimal(Fraction(value))) == Fraction(value)
    tiny = Fraction(5e-324)
    assert Fraction(decimal(tiny)) == tiny
    with pytest.raises(UsageError, match="no short decimal form"):
        decimal(Fraction(1, 3))


def test_what_1_cannot_state_is_refused() -> None:
    two = (
        "(vnnlib-version <2.0>)(declare-network f (declare-input X real [1]) (declare-output Y real [1]))"
        "(declare-network g (equal-to f) (declare-input Z real [1]) (declare-output W real [1]))"
        + "".join(f"(assert (>= {x}[0] 0.0))(assert (<= {x}[0] 1.0))" for x in "XZ")
    )
    with pytest.raises(UsageError, match="the query has 2 networks and 4 tensors"):
        text1(parse(two))
    one = Spec.of(
        (NETWORK,), [*BOX, ((Constraint(terms=((VARIABLES[2], Fraction(1)),), relation="<", bound=Fraction(1)),),)]
    )
    with pytest.raises(UsageError, match="no strict relation"):
        text1(one)


def test_integer_tensors_get_integer_literals() -> None:
    text = (
        "(vnnlib-version <2.0>)(declare-network f (declare-input X int32 [1]) (declare-output Y int32 [1]))"
        "(assert (>= X[0] 0))(assert (<= X[0] 9))(assert (<= (* 2 Y[0]) (+ X[0] -3)))"
    )
    spec = parse(text)
    assert parse(text2(spec)) == spec
    rows = [dataclasses.replace(row, bound=row.bound + Fraction(1, 2)) for row in spec.common[:1]]
    with pytest.raises(UsageError, match="not a whole number"):
        text2(dataclasses.replace(spec, common=tuple(rows)))


def test_hand_built_specs_are_written_too() -> None:
    always = Spec(networks=(NETWORK,), common=tuple(itertools.chain(*(c[0] for c in BOX))), clauses=(((),),))
    assert parse(text1(always)) == Spec.of((NETWORK,), BOX)
