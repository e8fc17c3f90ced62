"""The boxes that bounds are about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Box:
    """Axis-aligned region {z : |z - centre| <= radius}, elementwise, of a batch: `centre` (n, *shape), `radius` alike
    or (1, *shape), >= 0 and in the units of the centre.
    """

    centre: Tensor
    radius: Tensor

    @staticmethod
    def from_bounds(lower: Tensor, upper: Tensor) -> Box:
        """The box [lower, upper]. Rounding of the centre is not compensated here (see bounds/rounding.py)."""
        return Box(centre=(upper + lower) / 2, radius=(upper - lower) / 2)

    @property
    def lower(self) -> Tensor:
        """centre - radius, (n, *shape)."""
        return self.centre - self.radius

    @property
    def upper(self) -> Tensor:
        """centre + radius, (n, *shape)."""
        return self.centre + self.radius
