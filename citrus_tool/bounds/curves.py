"""Lines below and above functions of one number, their images and their float32 errors: one table, `CURVES`.

Zhang et al. 2018, "Efficient Neural Network Robustness Certification with General Activation Functions" (CROWN), for
functions with any number of inflection points.
Differs from the paper in: slopes are those of the lines of least area, and offsets follow from them.

A curve is cut where it stops being convex or concave. Slopes come first and may be any numbers. The offset that a slope
needs is the extremum of g(z) = f(z) - slope z, and over a piece [a, b] on which f is concave, for any p in [a, b],

    g(z)  <=  g(p) + g'(p) (z - p)  <=  g(p) + max(g'(p) (a - p), g'(p) (b - p)),    g(z)  >=  min(g(a), g(b)),

and likewise mirrored where f is convex: so lines are sound wherever a search for the touching point p ended. Slopes are
those of the lines of least area: on a convex piece the chord above and the tangent at the middle below; where a box
holds several pieces, the line that supports the concave envelope at the middle, found on a grid.

Boxes that leave a function's domain, and values that float64 does not hold, give NaN, of which nothing is proven.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from citrus_tool.elementwise import FUNCTIONS, GELU_CUBE, GELU_SCALE, Function, softplus

BISECTIONS = 52
"""Halvings of the interval of a touching point: to float64's precision, since what is left is paid by the offset."""

GRID = 65
"""Points at which a curve of several pieces is looked at for its envelope, the middle of the box among them."""

ENVELOPE_BISECTIONS = 30
"""Halvings of the range of a supporting line's slope: 2^-30 of it."""

NARROW = 1e-6
"""Width of a box, relative to 1 + |z|, up to which the tangent at the middle replaces a chord, which would be noise."""

ROUNDINGS = 64
"""Units of rounding by which an offset is moved outward: evaluating f and f' costs some ten, the products a few."""

LEAST = 1e-6
"""Where training stops at the edge of a domain: boxes that leave it are cut there, which certifies nothing."""

GREATEST = 80.0
"""Where training stops exp: what float32 still holds."""


class FileError(NamedTuple):
    """|a float32 run's value - f(z)| <= of_value |f(z)| + of_input |z| + constant, of onnxruntime's CPU kernels and of
    the usual compositions; at least four times what was measured over all exponents (tests/bounds/test_curves.py).
    """

    of_value: float = 0.0
    of_input: float = 0.0
    constant: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A function f of one number, cut into pieces.

    Attributes:
        value: f, elementwise on tensors of any shape.
        derivatives: f' on each of the pieces, from left to right; one for all where it is continuous.
        breaks: where one piece ends and the next one begins, ascending.
        bends: for each piece 1 where f is convex, or straight, and -1 where it is concave.
        turns: where f' is 0 and changes sign.
        domain: which boxes are bounded: all, those above 0, or those without 0.
        absolute: whether f and f' are computed with an error relative to 1 + |z|, not to their own size.
        file_error: of a float32 run.
    """

    value: Function
    derivatives: tuple[Function, ...]
    bends: tuple[int, ...]
    breaks: tuple[float, ...] = ()
    turns: tuple[float, ...] = ()
    domain: Literal["all", "positive", "nonzero"] = "all"
    absolute: bool = False
    file_error: FileError

    def derivative(self, z: Tensor, piece: int) -> Tensor:
        """f' (shape of z) as piece number `piece` has it."""
        return self.derivatives[min(piece, len(self.derivatives) - 1)](z)

    def leaves_domain(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Whether a box (n, *shape) holds points outside the domain; bool."""
        if self.domain == "positive":
            return ~(lower > 0)
        if self.domain == "nonzero":
            return ~((lower > 0) | (upper < 0))
        return torch.zeros_like(lower, dtype=torch.bool)

    def pieces(self, lower: Tensor, upper: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """(number, a, b), a and b (n, *shape): what each piece shares with a box; a > b where that is nothing."""
        ends = (-math.inf, *self.breaks, math.inf)
        return [
            (number, lower.clamp(min=ends[number]), upper.clamp(max=ends[number + 1]))
            for number in range(len(self.bends))
        ]


def image(curve: Curve, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest value over boxes (n, *shape), up to rounding; NaN where a box leaves the domain.

    Differentiable: the extremes are at an end or at a point that is known.
    """
    points = [lower, upper] + [torch.minimum(lower.clamp(min=turn), upper) for turn in curve.turns]
    values = torch.stack([curve.value(point) for point in points])
    outside = curve.leaves_domain(lower, upper)
    return values.amin(0).masked_fill(outside, math.nan), values.amax(0).masked_fill(outside, math.nan)


def steepest(curve: Curve, lower: Tensor, upper: Tensor) -> Tensor:
    """The greatest |f'| over boxes (n, *shape), up to rounding: f' is monotone on every piece, so at an end of one."""
    found = torch.zeros_like(lower)
    for number, a, b in curve.pieces(lower, upper):
        ends = torch.maximum(curve.derivative(a, number).abs(), curve.derivative(b, number).abs())
        found = torch.where(a <= b, torch.maximum(found, ends), found)
    return found.masked_fill(curve.leaves_domain(lower, upper), math.nan)


def reach(curve: Curve, lower: Tensor, upper: Tensor) -> Tensor:
    """|f| + |f'| |z| at most over boxes (n, *shape): the size of a line's terms, and of what rounding z may do."""
    low, high = image(curve, lower, upper)
    size = torch.maximum(lower.abs(), upper.abs())
    own = 1 + size if curve.absolute else 0.0
    return torch.maximum(low.abs(), high.abs()) + steepest(curve, lower, upper) * size + own


class CurveLines(NamedTuple):
    """Slopes and offsets of the lines below and above, all (n, *shape)."""

    lower_slope: Tensor
    upper_slope: Tensor
    lower_offset: Tensor
    upper_offset: Tensor


def curve_lines(curve: Curve, lower: Tensor, upper: Tensor) -> CurveLines:
    """Lines of nearly least area over boxes (n, *shape), points included; slopes are constants to autograd."""
    with torch.no_grad():
        limit = steepest(curve, lower, upper)
        below, above = (
            torch.maximum(torch.minimum(_slope(curve, lower, upper, above=side), limit), -limit)
            for side in (False, True)
        )
    return CurveLines(
        below,
        above,
        curve_offset(curve, lower, upper, below, above=False),
        curve_offset(curve, lower, upper, above, above=True),
    )


def curve_offset(curve: Curve, lower: Tensor, upper: Tensor, slope: Tensor, *, above: bool) -> Tensor:
    """An offset that puts slope * z + offset above f on [lower, upper], or below; nearly the best one, of any slope.

    Elementwise, all (n, *shape); NaN where a box leaves the domain.
    """
    worst = -1.0 if above else 1.0
    size = torch.maximum(lower.abs(), upper.abs())
    found, guard = torch.full_like(lower, worst * math.inf), torch.zeros_like(lower)
    for number, a, b in curve.pieces(lower, upper):
        here = a <= b
        inner_a, inner_b = torch.where(here, a, lower), torch.where(here, b, lower)
        at_a, at_b = curve.value(inner_a), curve.value(inner_b)
        gaps, terms = [at_a - slope * inner_a, at_b - slope * inner_b], at_a.abs() + at_b.abs()
        if curve.bends[number] == (-1 if above else 1):
            with torch.no_grad():
                p = _touching(curve, number, inner_a, inner_b, slope)
            rise = curve.derivative(p, number) - slope
            middle, ends = curve.value(p), (rise * (inner_a - p), rise * (inner_b - p))
            gaps = [middle - slope * p + (torch.maximum(*ends) if above else torch.minimum(*ends))]
            terms = terms + middle.abs() + size * rise.abs()
        best = torch.stack(gaps).amax(0) if above else torch.stack(gaps).amin(0)
        best = torch.where(here, best, worst * math.inf)
        found = torch.maximum(found, best) if above else torch.minimum(found, best)
        guard = torch.maximum(guard, torch.where(here, terms, 0.0))
    own = 1 + size if curve.absolute else torch.zeros_like(size)
    guard = ROUNDINGS * torch.finfo(lower.dtype).eps / 2 * (guard + size * slope.abs() + own)
    guard = guard + torch.finfo(lower.dtype).tiny
    return (found - worst * guard).masked_fill(curve.leaves_domain(lower, upper), math.nan)


def _touching(curve: Curve, number: int, a: Tensor, b: Tensor, slope: Tensor) -> Tensor:
    """The p in [a, b] where f' comes nearest to the slope, on one piece, where f' is monotone."""
    low, high = a, b
    for _ in range(BISECTIONS):
        p = low + (high - low) / 2
        right = (curve.derivative(p, number) - slope) * curve.bends[number] < 0
        low, high = torch.where(right, p, low), torch.where(right, high, p)
    return low + (high - low) / 2


def _slope(curve: Curve, lower: Tensor, upper: Tensor, *, above: bool) -> Tensor:
    """The slope of a line of little area; finite wherever the curve's values are."""
    width, middle = upper - lower, lower + (upper - lower) / 2
    narrow = ~(width > NARROW * (1 + lower.abs() + upper.abs()))
    chord = (curve.value(upper) - curve.value(lower)) / torch.where(narrow, 1.0, width)
    slope, mixed = torch.zeros_like(lower), ~narrow
    for number, (bend, (start, stop)) in enumerate(zip(curve.bends, _ends(curve), strict=True)):
        within = (lower >= start) & (upper <= stop)
        tangent = curve.derivative(middle, number)
        slope = torch.where((middle >= start) & (middle <= stop) & narrow, tangent, slope)
        slope = torch.where(within & ~narrow, chord if (bend > 0) == above else tangent, slope)
        mixed = mixed & ~within
    if bool(mixed.any()):
        slope[mixed] = _supporting(curve, lower[mixed], upper[mixed], 1.0 if above else -1.0)
    return slope


def _ends(curve: Curve) -> list[tuple[float, float]]:
    """Where each piece begins and ends."""
    return list(zip((-math.inf, *curve.breaks), (*curve.breaks, math.inf), strict=True))


def _supporting(curve: Curve, lower: Tensor, upper: Tensor, side: float) -> Tensor:
    """Slopes (E,) of the lines that support the envelope of `side` f at the middles of boxes (E,), on a grid.

    The line v + k (z - m) is above all points left of m where v >= L(k) = max f(z) + k (m - z), right of it where
    v >= R(k) = max f(z) - k (z - m). The least v is where the increasing L meets the decreasing R.
    """
    share = torch.linspace(0, 1, GRID, dtype=lower.dtype, device=lower.device)[:, None]
    values, width = side * curve.value(lower + share * (upper - lower)), upper - lower
    half = GRID // 2
    left, right = values[: half + 1], values[half:]
    to_left, to_right = (0.5 - share[: half + 1]), (share[half:] - 0.5)  # in widths
    steps = values.diff(dim=0) * (GRID - 1)
    low, high = steps.amin(0), steps.amax(0)
    for _ in range(ENVELOPE_BISECTIONS):
        k = (low + high) / 2
        flat = (left + k * to_left).amax(0) < (right - k * to_right).amax(0)
        low, high = torch.where(flat, k, low), torch.where(flat, high, k)
    return side * (low + high) / 2 / width


def training_domain(curve: Curve, kind: str, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (n, *shape) cut at the edge of the function's domain, so that training has finite values."""
    if kind == "exp":
        return lower.clamp(max=GREATEST), upper.clamp(max=GREATEST)
    if curve.domain == "positive":
        return lower.clamp(min=LEAST), upper.clamp(min=LEAST)
    if curve.domain == "nonzero":
        right = lower + upper > 0
        return torch.where(right, lower.clamp(min=LEAST), lower.clamp(max=-LEAST)), torch.where(
            right, upper.clamp(min=LEAST), upper.clamp(max=-LEAST)
        )
    return lower, upper


def _normal_density(z: Tensor) -> Tensor:
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


def _gelu_slope(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-math.sqrt(0.5) * z) + z * _normal_density(z)


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    t = 2 * GELU_SCALE * z * (1 + GELU_CUBE * z.square())
    inner = 2 * GELU_SCALE * (1 + 3 * GELU_CUBE * z.square())
    return torch.sigmoid(t) + z * torch.sigmoid(t) * torch.sigmoid(-t) * inner


def _silu_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * (1 + z * torch.sigmoid(-z))


def _mish_slope(z: Tensor) -> Tensor:
    t = torch.tanh(softplus(z))
    return t + z * (1 - t.square()) * torch.sigmoid(z)


def _straight(slope: float) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.full_like(z, slope)


UNIT = 2.0**-24
"""The unit roundoff of float32."""

CURVES: Mapping[str, Curve] = {
    "exp": Curve(
        value=FUNCTIONS["exp"], derivatives=(torch.exp,), bends=(1,), file_error=FileError(of_value=16 * UNIT)
    ),
    "log": Curve(
        value=FUNCTIONS["log"],
        derivatives=(torch.reciprocal,),
        bends=(-1,),
        domain="positive",
        file_error=FileError(of_value=24 * UNIT),
    ),
    "sqrt": Curve(
        value=FUNCTIONS["sqrt"],
        derivatives=(lambda z: 0.5 * torch.rsqrt(z),),
        bends=(-1,),
        domain="positive",
        file_error=FileError(of_value=16 * UNIT),
    ),
    "reciprocal": Curve(
        value=FUNCTIONS["reciprocal"],
        derivatives=(lambda z: -torch.reciprocal(z * z),),
        bends=(-1, 1),
        breaks=(0.0,),
        domain="nonzero",
        file_error=FileError(of_value=16 * UNIT),
    ),
    "rsqrt": Curve(
        value=FUNCTIONS["rsqrt"],
        derivatives=(lambda z: -0.5 * torch.rsqrt(z) / z,),
        bends=(1,),
        domain="positive",
        file_error=FileError(of_value=16 * UNIT),
    ),
    "square": Curve(
        value=FUNCTIONS["square"],
        derivatives=(lambda z: 2 * z,),
        bends=(1,),
        turns=(0.0,),
        file_error=FileError(of_value=16 * UNIT),
    ),
    "cube": Curve(
        value=FUNCTIONS["cube"],
        derivatives=(lambda z: 3 * z * z,),
        bends=(-1, 1),
        breaks=(0.0,),
        file_error=FileError(of_value=16 * UNIT),
    ),
    "erf": Curve(
        value=FUNCTIONS["erf"],
        derivatives=(lambda z: 2 / math.sqrt(math.pi) * torch.exp(-z * z),),
        bends=(1, -1),
        breaks=(0.0,),
        absolute=True,
        file_error=FileError(constant=32 * UNIT),
    ),
    "softplus": Curve(
        value=FUNCTIONS["softplus"],
        derivatives=(torch.sigmoid,),
        bends=(1,),
        absolute=True,
        file_error=FileError(of_value=16 * UNIT, constant=32 * UNIT),
    ),
    "elu": Curve(
        value=FUNCTIONS["elu"],
        derivatives=(lambda z: torch.exp(z.clamp(max=0)),),
        bends=(1,),
        absolute=True,
        file_error=FileError(of_value=16 * UNIT, constant=32 * UNIT),
    ),
    "silu": Curve(
        value=FUNCTIONS["silu"],
        derivatives=(_silu_slope,),
        bends=(-1, 1, -1),
        breaks=(-2.3993572805154676678, 2.3993572805154676678),
        turns=(-1.2784645427610737951,),
        absolute=True,
        file_error=FileError(of_input=2.0**-19, of_value=16 * UNIT),
    ),
    "gelu": Curve(
        value=FUNCTIONS["gelu"],
        derivatives=(_gelu_slope,),
        bends=(-1, 1, -1),
        breaks=(-math.sqrt(2.0), math.sqrt(2.0)),
        turns=(-0.75179152469356445746,),
        absolute=True,
        file_error=FileError(of_input=32 * UNIT, of_value=16 * UNIT),
    ),
    "gelu_tanh": Curve(
        value=FUNCTIONS["gelu_tanh"],
        derivatives=(_gelu_tanh_slope,),
        bends=(-1, 1, -1),
        breaks=(-1.4185040087908283555, 1.4185040087908283555),
        turns=(-0.75246142207101625849,),
        absolute=True,
        file_error=FileError(of_input=2.0**-19, of_value=16 * UNIT),
    ),
    "hardswish": Curve(
        value=FUNCTIONS["hardswish"],
        derivatives=(_straight(0.0), lambda z: z / 3 + 0.5, _straight(1.0)),
        bends=(1, 1, 1),
        breaks=(-3.0, 3.0),
        turns=(-1.5,),
        absolute=True,
        file_error=FileError(of_input=32 * UNIT),
    ),
    "mish": Curve(
        value=FUNCTIONS["mish"],
        derivatives=(_mish_slope,),
        bends=(-1, 1, -1),
        breaks=(-2.25637639636079312, 1.4905711794854284593),
        turns=(-1.1924312145154952121,),
        absolute=True,
        file_error=FileError(of_input=2.0**-19, of_value=16 * UNIT),
    ),
}
"""Kind -> curve. Inflection points and turns are those of the exact functions, rounded to float64."""
