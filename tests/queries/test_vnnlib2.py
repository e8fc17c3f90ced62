"""The reader of VNN-LIB 2.0: meaning and errors."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

from citrus_tool.queries import Variable, VnnlibError, parse
from citrus_tool.queries.spec import NetworkVariable, TensorVariable
from citrus_tool.queries.vnnlib2 import MAX_DEPTH
from tests.queries.literal_queries import unsafe

HEAD = (
    "(vnnlib-version <2.0>)\n(declare-network f (declare-input X real [1,2]) (declare-output Y real [2]))\n"
    "(declare-network g (declare-input Z real [1,2]) (declare-output W real []))\n"
)
BOX = "".join(f"(assert (>= {n} 0.0))(assert (<= {n} 1.0))" for n in ("X[0,0]", "X[0,1]", "Z[0,0]", "Z[0,1]")) + "\n"
NAMES = ("X[0,0]", "X[0,1]", "Y[0]", "Y[1]", "Z[0,0]", "Z[0,1]", "W")


def test_declarations() -> None:
    spec = parse(
        "(vnnlib-version <2.0>)(declare-network f (declare-input X float32 [1,2]) (declare-output Y float32 []))"
        "(declare-network g (isomorphic-to f) (declare-input Z float32 [1,2]) (declare-output W float32 []))"
        "(declare-network h (equal-to f) (declare-input U float32 [1,2]) (declare-output V float32 []))"
        + "".join(f"(assert (>= {x}[0,{i}] 0.0))(assert (<= {x}[0,{i}] 1.0))" for x in "XZU" for i in (0, 1))
    )
    f, g, h = spec.networks
    assert f == NetworkVariable(
        name="f",
        inputs=(TensorVariable(name="X", shape=(1, 2), element_type="float32"),),
        outputs=(TensorVariable(name="Y", shape=(), element_type="float32"),),
    )
    assert (g.isomorphic_to, g.equal_to) == ("f", None)
    assert (h.isomorphic_to, h.equal_to) == (None, "f")
    assert spec.network_of("W") is g
    assert list(spec.tensors) == ["X", "Y", "Z", "W", "U", "V"]
    assert spec.version == "2.0"


@pytest.mark.parametrize(
    "formula",
    [
        "(<= Y[0] 0.5)",
        "(> Y[0] 0.5)",
        "(!= Y[0] Y[1])",
        "(== (- X[0,1] Z[0,1]) 0.5)",
        "(or (< Y[0] 0.5) (and (>= Y[1] 1.0) (!= W 0.0)))",
        "(and (or (== W 0.0) (== W 1.0)) (or (> X[0,0] Y[0]) (<= (+ X[0,0] X[0,1] Y[0]) 1.0)))",
        "(<= (- Y[0] Y[1] W 0.5) (- (* 2.0 X[0,0] -0.5)))",
        "(>= (* (- 1.5 0.5) Y[0]) (+ 0.5))",
    ],
)
def test_means_what_the_text_says(formula: str) -> None:
    text = HEAD + BOX + f"(assert {formula})"
    spec = parse(text)
    for point in itertools.product((Fraction(0), Fraction(1, 2), Fraction(1)), repeat=7):
        values = {"X": point[:2], "Y": point[2:4], "Z": point[4:6], "W": point[6:]}
        assert spec.evaluate(values) == unsafe(text, dict(zip(NAMES, point, strict=True)))


def test_row_major_indices() -> None:
    spec = parse(
        "(vnnlib-version <2.0>)(declare-network f (declare-input X real [2,3]) (declare-output Y real [1]))"
        + "".join(
            f"(assert (<= X[{i},{j}] 1.0))(assert (>= X[{i},{j}] 0.{3 * i + j}))" for i in (0, 1) for j in range(3)
        )
    )
    assert spec.common_bounds(Variable("X", 5)) == (Fraction(1, 2), 1)
    assert spec.common_case.boxes["X"].lower.shape == (2, 3)
    assert spec.describe(Variable("X", 5)) == "X[1,2]"


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("(assert (<= Y[0] 1e-3))", 5, 19, "scientific notation (1e-3)"),
        ("(assert (<= Y[0] 0.5E2))", 5, 21, "VNN-LIB 2.0 forbids it"),
        ("(assert (<= Y[0] 4))", 5, 0, "write 4.0"),
        ("(assert (= Y[0] 4.0))", 5, 10, "equality is written =="),
        ("(assert (not (<= Y[0] 4.0)))", 5, 10, "turn the comparison around"),
        ("(assert (<= Y[0] .5))", 5, 18, "numbers start with a digit"),
        ("(assert (<= Y[0] 0.5)", 5, 0, "a ')' is missing"),
        ("(assert (<= Q[0] 0.5))", 5, 0, "undeclared variable Q"),
        ("(assert (<= Y[7] 0.5))", 5, 0, "out of bounds"),
        ("(assert (<= Y[-1] 0.5))", 5, 14, "[-1] is not a shape or index"),
        ("(assert (<= Y[0.5] 0.5))", 5, 14, "[0.5] is not a shape or index"),
        ("(assert (<= Y[0,0] 0.5))", 5, 0, "too many indices"),
        ("(assert (<= Y[0] 99999999999999999999))", 0, 0, "the VNN-LIB parser fails"),
        ("(assert (<= Y[0] 1" + "0" * 302 + ".0))", 5, 0, "too large"),
        ("(assert (<= Y[0] 0." + "3" * 5000 + "))", 5, 0, "too many digits"),
        ("(assert (<= Y[0]\n (* Y[0] Y[1])))", 6, 0, "polynomials are not supported"),
        ("(assert (<= Y[0] 0.5)) \0 (assert (<= Y[1] 0.5))", 5, 24, "is not part of VNN-LIB 2.0"),
        ("(assert (<= Y[0] é))", 5, 18, "is not part of VNN-LIB 2.0"),
        ("(assert " + "(and " * 5000, 5, 9 + 5 * (MAX_DEPTH - 1), "nest deeper than 1000"),
        ("(assert (or (<= Y[0] 0.5) (and " + "(or (<= Y[0] 1.0) (<= Y[0] 2.0)) " * 30 + ")))", 5, 0, "1073741825 conj"),
    ],
)
def test_errors_name_the_place_and_guess(text: str, line: int, column: int, says: str) -> None:
    with pytest.raises(VnnlibError) as caught:
        parse(HEAD + BOX + text, name="query.vnnlib")
    assert says in str(caught.value)
    assert caught.value.line == line, str(caught.value)
    if column:
        assert caught.value.column == column, str(caught.value)
    assert str(caught.value).startswith("query.vnnlib:")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("real [1,2]", "flot [1,2]", "the element type of X is not supported"),
        ("real [2])", "real [9,999999999])", "Y has 8999999991 entries"),
        ("real [1,2]", "real [1,99999999999999999999999]", "the VNN-LIB parser fails"),
        ("network g", "network g (isomorphic-to h)", "'h' not found"),
        ("<2.0>", "<3.0>", "incompatible vnnlib version"),
        ("(declare-output Y", '(declare-hidden H real [1] "n") (declare-output Y', "declares the hidden tensor H"),
        ("(assert (>= Z[0,1] 0.0))", "", "input Z[0,1] is not bounded from both sides"),
        ("(vnnlib-version <2.0>)", "", "start the file with (vnnlib-version <2.0>)"),
    ],
)
def test_errors_of_declarations(old: str, new: str, says: str) -> None:
    with pytest.raises(VnnlibError) as caught:
        parse((HEAD + BOX).replace(old, new, 1))
    assert says in str(caught.value)


def test_foreign_characters_in_comments_are_harmless() -> None:
    assert parse("; naïve é ; ü\n" + HEAD + BOX + "; \xff (((") == parse(HEAD + BOX)


def test_nesting_up_to_the_limit_is_read() -> None:
    depth = MAX_DEPTH - 2
    spec = parse(HEAD + BOX + f"(assert {'(and ' * depth}(<= Y[0] 0.5){')' * depth})")
    assert spec == parse(HEAD + BOX + "(assert (<= Y[0] 0.5))")
