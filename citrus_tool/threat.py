"""The threat model: one perturbation u, |u|_inf <= eps in pixel space [0, 1], added to every input.

x + u is not clipped to [0, 1], as in Zeng et al. (ICLR 2023), RaVeN, RACoon, RABBit and the CITRUS paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from citrus_tool.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Box:
    """Axis-aligned region {z : |z - centre| <= radius}, elementwise; `radius` >= 0 and of the centre's shape."""

    centre: Tensor
    radius: Tensor

    @staticmethod
    def from_bounds(lower: Tensor, upper: Tensor) -> Box:
        """The box [lower, upper]. Rounding of the centre is not compensated here (see bounds/rounding.py)."""
        return Box(centre=(upper + lower) / 2, radius=(upper - lower) / 2)

    @property
    def lower(self) -> Tensor:
        return self.centre - self.radius

    @property
    def upper(self) -> Tensor:
        return self.centre + self.radius


@dataclass(frozen=True, kw_only=True)
class Threat:
    """Every u with |u|_inf <= `eps` (pixel space). Raises UsageError for eps outside [0, 1] or not a number."""

    eps: float

    def __post_init__(self) -> None:
        if not (isinstance(self.eps, int | float) and math.isfinite(self.eps) and 0.0 <= self.eps <= 1.0):
            raise UsageError(f"eps is {self.eps!r}; it must lie in [0, 1] (pixel space, e.g. 0.1 or 2/255).")

    def box(self, x: Tensor) -> Box:
        """The region of x + u: centre x, radius eps everywhere (not clipped)."""
        return Box(centre=x, radius=x.new_full(x.shape, self.eps))


def parse_eps(text: str) -> float:
    """Reads `0.1`, `2/255` or `1e-2` as a float in [0, 1]; raises UsageError with the text otherwise."""
    try:
        value = float(Fraction(text.strip())) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"eps {text!r} is not a number; write 0.1 or 2/255.") from None
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise UsageError(f"eps {text!r} lies outside [0, 1]; eps is in pixel space [0, 1], write 0.1 or 2/255.")
    return value
