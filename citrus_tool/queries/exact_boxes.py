"""Exact bounds of inputs and their float64 and float32 boxes, rounded outward for proofs, inward for witnesses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from citrus_tool.errors import UsageError
from citrus_tool.queries.constraint import Constraint, Variable


def enclose(exact: Fraction) -> tuple[float, float]:
    """The greatest float64 at most `exact` and the least at least `exact`."""
    try:
        near = exact.numerator / exact.denominator
    except OverflowError:
        return (math.nextafter(math.inf, 0.0), math.inf) if exact > 0 else (-math.inf, math.nextafter(-math.inf, 0.0))
    top, bottom = near.as_integer_ratio()
    difference = exact.numerator * bottom - top * exact.denominator
    if difference == 0:
        return near, near
    return (near, math.nextafter(near, math.inf)) if difference > 0 else (math.nextafter(near, -math.inf), near)


@dataclass(frozen=True, kw_only=True, eq=False)
class InputBox:
    """Bounds of one input tensor, float64, (*shape,) as the tensor.

    [lower, upper] contains every point of the exact box: use it for proofs. [inner_lower, inner_upper] holds exactly
    the float64 points of the exact box (none where it is inverted): use it for witnesses. Infinite where unbounded.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    inner_lower: NDArray[np.float64]
    inner_upper: NDArray[np.float64]

    def float32(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The least and greatest float32 of the exact box per entry; least > greatest where it holds none.

        VNN-COMP's scorer casts a witness to float32 before its strict box check, and float32(0.1) > 0.1.
        """
        with np.errstate(over="ignore"):
            least, greatest = self.inner_lower.astype(np.float32), self.inner_upper.astype(np.float32)
            below, above = least < self.inner_lower, greatest > self.inner_upper
            least[below] = np.nextafter(least[below], np.float32(np.inf))
            greatest[above] = np.nextafter(greatest[above], np.float32(-np.inf))
        return least, greatest

    def clamp(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """`values` cast to float32 and moved inward onto the nearest float32 of the exact box.

        Raises UsageError naming the first entry whose exact interval holds no float32 (see `Spec.rounded`).
        """
        least, greatest = self.float32()
        if (least > greatest).any():
            index = int(np.flatnonzero(least > greatest)[0])
            raise UsageError(
                f"no float32 lies between the bounds of entry {index}; clamp to the box of Spec.rounded(), "
                "whose bounds are read as float64, as the competition's scorer reads them."
            )
        with np.errstate(over="ignore"):
            cast = np.asarray(values).astype(np.float32).reshape(least.shape)
        return np.clip(cast, least, greatest)


def copy_box(box: InputBox) -> InputBox:
    """A box with arrays of its own."""
    return InputBox(
        lower=box.lower.copy(),
        upper=box.upper.copy(),
        inner_lower=box.inner_lower.copy(),
        inner_upper=box.inner_upper.copy(),
    )


def unbounded_box(shape: tuple[int, ...]) -> InputBox:
    """The whole space."""
    below, above = np.full(shape, -np.inf), np.full(shape, np.inf)
    return InputBox(lower=below, upper=above, inner_lower=below.copy(), inner_upper=above.copy())


def write_bounds(boxes: Mapping[str, InputBox], bounds: Bounds) -> None:
    """Rounds `bounds` into arrays of `boxes`, of which cases share some: read-only from then on."""
    for variable, (exact, strict) in bounds.lower.items():
        below, above = enclose(exact)
        box = boxes[variable.tensor]
        box.lower.flat[variable.flat] = below
        box.inner_lower.flat[variable.flat] = math.nextafter(above, math.inf) if strict and above == below else above
    for variable, (exact, strict) in bounds.upper.items():
        below, above = enclose(exact)
        box = boxes[variable.tensor]
        box.upper.flat[variable.flat] = above
        box.inner_upper.flat[variable.flat] = math.nextafter(below, -math.inf) if strict and above == below else below
    for box in boxes.values():
        for array in (box.lower, box.upper, box.inner_lower, box.inner_upper):
            array.flags.writeable = False


def propagate(bounds: Bounds, rows: Iterable[Constraint]) -> None:
    """Finds missing bounds of inputs through linear constraints between inputs, such as X2 - X1 == c, in linear time.

    A row sum c_i v_i <= b bounds v_k by (b - sum of the least other terms) / c_k. Bounds that exist are not tightened.
    """
    halves: list[tuple[list[tuple[Variable, Fraction]], Fraction]] = []
    for row in rows:
        halves.append((list(row.terms), row.bound))
        if row.relation == "==":
            halves.append(([(v, -c) for v, c in row.terms], -row.bound))

    def side(positive: bool) -> dict[Variable, tuple[Fraction, bool]]:
        return bounds.lower if positive else bounds.upper

    waiting: defaultdict[tuple[Variable, bool], list[int]] = defaultdict(list)
    missing = [0] * len(halves)
    for number, (terms, _) in enumerate(halves):
        for variable, coefficient in terms:
            if variable not in side(coefficient > 0):
                missing[number] += 1
                waiting[variable, coefficient > 0].append(number)
    ready = [number for number, count in enumerate(missing) if count <= 1]
    while ready:
        number = ready.pop()
        terms, bound = halves[number]
        least = {v: side(c > 0)[v][0] * c for v, c in terms if v in side(c > 0)}
        if len(least) < len(terms) - 1:
            continue
        total = sum(least.values(), Fraction(0))
        targets = terms if len(least) == len(terms) else [term for term in terms if term[0] not in least]
        for variable, coefficient in targets:
            known = side(coefficient < 0)
            if variable not in known:
                known[variable] = ((bound - total + least.get(variable, Fraction(0))) / coefficient, False)
                for other in waiting.pop((variable, coefficient < 0), ()):
                    missing[other] -= 1
                    if missing[other] <= 1:
                        ready.append(other)


class Bounds:
    """Exact bounds of input variables: (value, strict) per variable and side."""

    def __init__(self) -> None:
        self.lower: dict[Variable, tuple[Fraction, bool]] = {}
        self.upper: dict[Variable, tuple[Fraction, bool]] = {}

    def add(self, row: Constraint) -> None:
        """Tightens by a constraint of one variable."""
        variable, coefficient = row.terms[0]
        strict = row.relation == "<"
        if coefficient.numerator < 0:  # the coefficient is 1 or -1
            self.tighten_lower(variable, -row.bound, strict)
            return
        self.tighten_upper(variable, row.bound, strict)
        if row.relation == "==":
            self.tighten_lower(variable, row.bound, strict)

    def tighten_upper(self, variable: Variable, bound: Fraction, strict: bool) -> None:
        """Lowers the upper bound of `variable` to `bound` where that is tighter."""
        old = self.upper.get(variable)
        if old is None or (bound, not strict) < (old[0], not old[1]):
            self.upper[variable] = bound, strict

    def tighten_lower(self, variable: Variable, bound: Fraction, strict: bool) -> None:
        """Raises the lower bound of `variable` to `bound` where that is tighter."""
        old = self.lower.get(variable)
        if old is None or (bound, strict) > old:
            self.lower[variable] = bound, strict

    def empty(self, variable: Variable) -> bool:
        """Whether no value of `variable` meets its bounds."""
        lower, upper = self.lower.get(variable), self.upper.get(variable)
        if lower is None or upper is None:
            return False
        return lower[0] > upper[0] or (lower[0] == upper[0] and (lower[1] or upper[1]))
