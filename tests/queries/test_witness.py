"""Witnesses: both formats, reading back, and the scorer's strict check after the cast to float32."""

from __future__ import annotations

import numpy as np
import pytest

from citrus_tool.errors import InputFileError, UsageError
from citrus_tool.queries import Spec, check, format_witness, parse, parse_witness

ONE = (
    "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)"
    "(assert (>= X_0 0))(assert (<= X_0 0.1))(assert (>= X_1 0.25))(assert (<= X_1 0.5))"
    "(assert (or (<= Y_0 0) (>= Y_0 2)))"
)
TWO = (
    "(vnnlib-version <2.0>)(declare-network f (declare-input X float32 [1,2]) (declare-output Y float32 [1]))"
    "(declare-network g (declare-input U float32 []) (declare-output V float32 [1]))"
    "(assert (>= U 0.0))(assert (<= U 1.0))"
    + "".join(f"(assert (>= X[0,{i}] 0.0))(assert (<= X[0,{i}] 1.0))" for i in (0, 1))
)


def test_format_of_1() -> None:
    text = format_witness(parse(ONE), {"X": [0.0625, 1e-7], "Y": [-3.0]})
    assert text == "((X_0 0.0625)\n (X_1 0.00000010000000116860974)\n (Y_0 -3.0))\n"


def test_format_of_2() -> None:
    text = format_witness(parse(TWO), {"X": np.array([[0.5, 0.25]]), "Y": [1.0], "U": [0.75], "V": [-2.0]})
    assert text == "X float32 [1,2]\n0.5\n0.25\nY float32 [1]\n1.0\nU float32 []\n0.75\nV float32 [1]\n-2.0\n"


@pytest.mark.parametrize("text", [ONE, TWO])
def test_what_is_written_is_read_back_bit_for_bit(text: str) -> None:
    spec, rng = parse(text), np.random.default_rng(0)
    values = {t.name: rng.normal(size=t.shape).astype(np.float32) for t in spec.tensors.values()}
    values["X"].flat[0] = np.float32(1e-42)  # a denormal
    back = parse_witness(spec, "sat\n" + format_witness(spec, values))
    for name, array in values.items():
        assert back[name].shape == array.shape
        assert np.array_equal(back[name].astype(np.float32), array)


def test_other_tools_layouts_are_read() -> None:
    back = parse_witness(parse(ONE), "sat\n((X_0  1e-2) (X_1 .5)\n\n(Y_0\t-1))")
    assert (back["X"].tolist(), back["Y"].tolist()) == ([0.01, 0.5], [-1.0])


def test_the_check_is_strict_after_the_cast() -> None:
    spec = parse(ONE)
    assert check(spec, {"X": [0.05, 0.25], "Y": [0.0]}).holds
    late = check(spec, {"X": [0.1, 0.25], "Y": [0.0]})  # float32(0.1) > 0.1
    assert not late.holds
    assert late.reason == "a constraint on X_0 does not hold for 0.10000000149011612 (after the cast to float32)."
    assert check(spec, {"X": [0.05, 0.5 + 1e-9], "Y": [0.0]}).holds  # the cast lands on the bound
    assert check(spec, {"X": [0.05, 0.3], "Y": [1.0]}).reason == "none of the 2 cases of a disjunction holds."
    assert "not a finite float32" in check(spec, {"X": [0.05, 0.3], "Y": [1e39]}).reason
    with pytest.raises(UsageError, match="lacks Y"):
        check(spec, {"X": [0.05, 0.3]})


def test_a_float32_pixel_holds_as_the_scorer_reads_it() -> None:
    text = repr(float(np.float32(0.03)))
    spec = parse(ONE.replace("(<= X_0 0.1)", f"(<= X_0 {text})"))
    values = {"X": [float(np.float32(0.03)), 0.3], "Y": [0.0]}
    assert not check(spec, values).holds  # the printed decimal lies below the float32 it stands for
    assert check(spec.rounded(), values).holds


@pytest.mark.parametrize(
    ("query", "text", "says"),
    [
        (ONE, "((X_0 1) (Y_0 1))", "1 of the 2 values of X"),
        (ONE, "((X_0 1) (X_0 2) (X_1 1) (Y_0 1))", "assigns X_0 twice"),
        (ONE, "((X_0 1) (X_7 2) (X_1 1) (Y_0 1))", "assigns X_7, which"),
        (ONE, "((X_0 one) (X_1 1) (Y_0 1))", "gives X_0 the value 'one'"),
        (ONE, "", "0 of the 2 values of X"),
        (TWO, "0.5\nX float32 [1,2]", "starts with '0.5'"),
        (TWO, "X float32 [1,2]\n1\n2\nX float32 [1,2]", "assigns X, which"),
        (TWO, "X float32 [1,2]\n1\nzwei", "gives X[1] the value 'zwei'"),
        (TWO, "X float32 [1,2]\n1\n2\n3", "3 of the 2 values of X"),
    ],
)
def test_errors(query: str, text: str, says: str) -> None:
    spec: Spec = parse(query)
    with pytest.raises(InputFileError) as caught:
        parse_witness(spec, text)
    assert says in str(caught.value)
