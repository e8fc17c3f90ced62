"""The Spec: outward and inward rounding, bounds through equalities, views, limits."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from citrus_tool.errors import InputFileError, UsageError
from citrus_tool.queries import Spec, Variable, parse
from citrus_tool.queries.constraint import constraint
from citrus_tool.queries.exact_boxes import enclose

HEAD = "(declare-const X_0 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)"


def one_input(lower: str, upper: str, rest: str = "") -> Spec:
    return parse(f"{HEAD}(assert (>= X_0 {lower}))(assert (<= X_0 {upper})){rest}")


@settings(deadline=None)
@given(st.fractions(-(10**6), 10**6), st.integers(-1100, 1000))
def test_enclosing_floats_are_the_tightest(number: Fraction, power: int) -> None:
    exact = number * Fraction(2) ** power
    below, above = enclose(exact)
    assert Fraction(below) <= exact <= Fraction(above)
    assert above in (below, math.nextafter(below, math.inf))
    assert (below == above) == (Fraction(below) == exact)


def test_enclosing_what_float64_cannot_hold() -> None:
    huge, largest = Fraction(2) ** 1030, sys.float_info.max
    assert enclose(huge) == (largest, math.inf)
    assert enclose(-huge) == (-math.inf, -largest)
    assert enclose(Fraction(1, 2**1200)) == (0.0, 5e-324)


@settings(deadline=None)
@given(st.decimals("-9", "9", places=12), st.decimals("0", "2", places=9))
def test_boxes_round_outward_and_witness_boxes_inward(lower: object, width: object) -> None:
    low = Fraction(str(lower))
    high = low + Fraction(str(width))
    box = one_input(f"{lower}", f"(+ {lower} {width:f})").common_case.boxes["X"]  # type: ignore[str-bytes-safe]
    assert Fraction(box.lower[0]) <= low <= Fraction(box.inner_lower[0])
    assert Fraction(box.inner_upper[0]) <= high <= Fraction(box.upper[0])
    least, greatest = box.float32()
    assert low <= Fraction(float(least[0]))
    assert Fraction(float(greatest[0])) <= high
    assert Fraction(float(np.nextafter(least, np.float32(-np.inf))[0])) < low
    assert Fraction(float(np.nextafter(greatest, np.float32(np.inf))[0])) > high


def test_the_clamp_survives_the_cast_that_breaks_a_witness() -> None:
    spec = one_input("0", "0.1")
    outside = np.float32(0.1)
    assert Fraction(float(outside)) > Fraction(1, 10)
    clamped = spec.common_case.boxes["X"].clamp(np.array([0.1]))
    assert clamped.dtype == np.float32
    assert clamped[0] == np.nextafter(outside, np.float32(0))
    assert spec.evaluate({"X": clamped, "Y": [0.0, 0.0]})
    assert not spec.evaluate({"X": [float(outside)], "Y": [0.0, 0.0]})


def test_a_degenerate_box_needs_the_scorers_reading() -> None:
    text = np.format_float_positional(np.float64(np.float32(0.03)), unique=True)  # a float32 pixel as files print it
    spec = one_input(text, text)
    with pytest.raises(UsageError, match="no float32 lies between the bounds of entry 0"):
        spec.common_case.boxes["X"].clamp(np.array([0.03]))
    value = spec.rounded().common_case.boxes["X"].clamp(np.array([0.03]))
    assert value[0] == np.float32(0.03)
    assert spec.rounded().evaluate({"X": value, "Y": [0.0, 0.0]})


STRICT = (
    "(vnnlib-version <2.0>)(declare-network f (declare-input X real [1]) (declare-output Y real []))"
    "(assert (> X[0] 0.5))(assert (< X[0] 0.75))(assert (!= Y 1.0))"
)


def test_strict_bounds_are_closed_for_proofs_and_open_for_witnesses() -> None:
    spec = parse(STRICT)
    box = spec.common_case.boxes["X"]
    assert (box.lower[0], box.upper[0]) == (0.5, 0.75)
    assert (box.inner_lower[0], box.inner_upper[0]) == (math.nextafter(0.5, 1), math.nextafter(0.75, 0))
    assert spec.evaluate({"X": [0.6], "Y": [0.0]})
    assert not spec.evaluate({"X": [0.5], "Y": [0.0]})
    assert not spec.evaluate({"X": [0.6], "Y": [1.0]})
    assert spec.case_count == 2


def test_contradicting_bounds_are_an_empty_case() -> None:
    spec = parse(
        f"{HEAD}(assert (>= X_0 0))(assert (<= X_0 1))(assert (or (and (<= X_0 0.5) (<= Y_0 0)) (>= X_0 2) (<= X_0 0)))"
    )
    assert [case.empty for case in spec.cases()] == [False, True, False]
    assert one_input("0.3", "0.2999999999999999999999").common_case.empty  # too close for float64 to tell
    assert not one_input("0.3", "0.3").common_case.empty
    assert parse(STRICT + "(assert (<= X[0] 0.5))").common_case.empty
    assert parse(STRICT + "(assert (>= X[0] 0.75))").common_case.empty


def test_cases_tighten_the_common_box_and_split_by_subject() -> None:
    spec = parse(
        f"{HEAD}(assert (>= X_0 0))(assert (<= X_0 1))(assert (<= Y_1 9))"
        "(assert (or (and (<= X_0 0.5) (<= Y_0 X_0)) (and (>= X_0 0.25) (<= X_0 3) (<= Y_0 Y_1))))"
    )
    first, second = spec.cases()
    assert (first.boxes["X"].lower[0], first.boxes["X"].upper[0]) == (0.0, 0.5)
    assert (second.boxes["X"].lower[0], second.boxes["X"].upper[0]) == (0.25, 1.0)
    assert (len(first.outputs), len(first.mixed)) == (1, 1)
    assert (len(second.outputs), len(second.mixed)) == (2, 0)
    assert not spec.is_box()
    assert not spec.common_case.boxes["X"].lower.flags.writeable


def test_is_box() -> None:
    assert one_input("0", "1", "(assert (or (<= Y_0 0) (and (<= Y_1 0) (<= Y_0 Y_1))))").is_box()
    assert not one_input("0", "1", "(assert (or (<= Y_0 0) (<= X_0 0.5)))").is_box()
    assert not one_input("0", "1", "(assert (<= Y_0 X_0))").is_box()


def test_half_spaces_contain_the_exact_ones() -> None:
    spec = one_input("0", "1", "(assert (= (+ Y_0 (* 0.1 Y_1)) 0.3))(assert (<= Y_1 Y_0))")
    rows = spec.common_case.half_spaces()
    assert rows.coefficients.tolist() == [[1.0, 0.1], [-1.0, -0.1], [-1.0, 1.0]]
    assert Fraction(rows.bounds[0]) >= Fraction(3, 10)
    assert Fraction(rows.bounds[1]) >= Fraction(-3, 10)
    exact = Fraction(1, 10)
    assert 0 < abs(exact - Fraction(0.1)) <= Fraction(rows.error[0, 1]) < Fraction(1, 10**16)
    assert rows.error[2].tolist() == [0.0, 0.0]


def chain(links: list[int]) -> str:
    """Inputs a_0..a_n with a_0 in [0,1] and a_(i+1) - a_i == 0.5, the equalities in the given order."""
    declarations = "".join(
        f"(declare-network f{i} {'(equal-to f0)' if i else ''}"
        f"(declare-input A{i} real [1]) (declare-output B{i} real [1]))"
        for i in range(len(links) + 1)
    )
    rows = "".join(f"(assert (== (- A{i + 1}[0] A{i}[0]) 0.5))" for i in links)
    return f"(vnnlib-version <2.0>){declarations}(assert (<= A0[0] 1.0))(assert (>= A0[0] 0.0)){rows}"


@pytest.mark.parametrize("links", [list(range(200)), list(range(199, -1, -1))])
def test_bounds_follow_equalities_in_any_order(links: list[int]) -> None:
    spec = parse(chain(links))
    assert spec.common_bounds(Variable("A200", 0)) == (Fraction(100), Fraction(101))
    assert spec.common_case.boxes["A200"].upper.tolist() == [101.0]


def test_bounds_follow_sums_only_as_far_as_they_must() -> None:
    spec = parse(
        "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const X_2 Real)(declare-const Y_0 Real)"
        "(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= X_1 -1))(assert (>= X_2 0))"
        "(assert (<= (+ X_0 (* 2 X_1) (* 4 X_2)) 6))"
    )
    assert spec.common_bounds(Variable("X", 1)) == (-1, 3)
    assert spec.common_bounds(Variable("X", 2)) == (0, 2)


def test_listing_too_many_cases_is_refused_with_their_number() -> None:
    spec = one_input("0", "1", "(assert (or (<= Y_0 0) (<= Y_1 0)))" * 60)
    with pytest.raises(InputFileError, match=r"about 10\^18 conjunctions"):
        next(spec.cases())
    with pytest.raises(InputFileError, match="a disjunction of 4 conjunctions, more than the 3"):
        next(one_input("0", "1", "(assert (or (<= Y_0 0) (<= Y_1 0)))" * 2).cases(limit=3))


def test_truth_values() -> None:
    always = one_input("0", "1", "(assert (or (<= Y_0 0) (<= 1 2)))")
    assert always == one_input("0", "1")
    never = one_input("0", "1", "(assert (and (<= Y_0 0) (<= 2 1)))")
    assert never.clauses == ((),)
    assert never.case_count == 0
    assert not never.evaluate({"X": [0.5], "Y": [-1.0, 0.0]})


def test_evaluation_refuses_incomplete_assignments() -> None:
    spec = one_input("0", "1")
    with pytest.raises(UsageError, match="the assignment lacks Y"):
        spec.evaluate({"X": [0.5]})
    with pytest.raises(UsageError, match="2 values for X, not 1"):
        spec.evaluate({"X": [0.5, 0.5], "Y": [0.0, 0.0]})


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(OverflowError):
        constraint({Variable("X", 0): Fraction(1)}, "<=", Fraction(2) ** 1001)
    with pytest.raises(OverflowError):
        constraint({Variable("X", 0): Fraction(1)}, "<=", Fraction(1, 3**3000))
