"""The threat model: one perturbation u, |u|_inf <= eps in pixel space [0, 1], added to every input.

x + u is not clipped to [0, 1], as in Zeng et al. (ICLR 2023), RaVeN, RACoon, RABBit and the CITRUS paper. Two variants:
f(clip(x + u, 0, 1)), by an exact clip layer in front of the network (clip.py); and a target class, to which the
attacker wants to drive the inputs (the targeted UAP of RaVeN, Banerjee et al., PLDI 2024).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from citrus_tool.errors import UsageError
from citrus_tool.threat.box import Box

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Threat:
    """Every u with |u|_inf <= `eps` (pixel space), shared by the inputs of a group.

    Attributes:
        clip: the network sees clip(x + u, 0, 1) instead of x + u.
        target: an input is lost where this class wins (its logit is at or above every other one); None: where any
            wrong class does.

    Raises UsageError for eps outside [0, 1] or not a number, and for a target below 0.
    """

    eps: float
    clip: bool = False
    target: int | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.eps, int | float) and math.isfinite(self.eps) and 0.0 <= self.eps <= 1.0):
            raise UsageError(f"eps is {self.eps!r}; it must lie in [0, 1] (pixel space, e.g. 0.1 or 2/255).")
        if self.target is not None and not (isinstance(self.target, int) and self.target >= 0):
            raise UsageError(f"target is {self.target!r}; it must be a class, counted from 0.")

    @property
    def words(self) -> str:
        """The threat in a few words, for tables."""
        seen = "clip(x + u, 0, 1)" if self.clip else "x + u"
        return f"{seen}, |u| <= {self.eps:g}" + ("" if self.target is None else f", driven to class {self.target}")

    def require_target(self, classes: int) -> None:
        """Raises UsageError for a target that a network with `classes` classes does not have."""
        if self.target is not None and self.target >= classes:
            raise UsageError(
                f"target is {self.target}; the network has {classes} classes, choose one of 0 to {classes - 1}."
            )

    @property
    def inner(self) -> float:
        """The largest float32 that is not above eps: what an attack may use of the radius."""
        (single,) = struct.unpack("f", struct.pack("f", self.eps))
        if single > self.eps:
            (bits,) = struct.unpack("I", struct.pack("f", single))
            (single,) = struct.unpack("f", struct.pack("I", bits - 1))
        return float(single)

    @property
    def outer(self) -> float:
        """The float64 above eps, 0 for 0: what a proof has to cover, since eps may be a rounded decimal or fraction."""
        return math.nextafter(self.eps, math.inf) if self.eps > 0.0 else 0.0

    def box(self, x: Tensor) -> Box:
        """The region of x + u in the arithmetic of `x`: centre x, radius eps everywhere (not clipped)."""
        return Box(centre=x, radius=x.new_full(x.shape, self.eps))

    def enclosure(self, x: Tensor) -> Box:
        """The float64 box that contains every x + u for pixels `x` (n, ...), read as exact."""
        centre = x.double()
        return Box(centre=centre, radius=centre.new_full(centre.shape, self.outer))

    def projected(self, u: Tensor) -> Tensor:
        """The perturbation nearest to `u` that the threat allows, also after a cast to float32."""
        return u.clamp(-self.inner, self.inner)

    def stepped(self, u: Tensor, gradient: Tensor, length: float) -> Tensor:
        """`u` a step of `length` (pixel space) down the gradient, as far as the threat allows (Madry et al. 2018)."""
        return self.projected(u - length * gradient.sign())

    def corners(self, signs: Tensor) -> Tensor:
        """The extreme perturbations in the directions `signs`, whose entries are -1 and 1."""
        return self.inner * signs

    def allows(self, u: Tensor) -> bool:
        """Whether `u` (..., C, H, W) is a perturbation of the threat, read as exact; NaN is none."""
        return bool((u.double().abs() <= self.eps).all())

    def inputs(self, x: Tensor, u: Tensor) -> Tensor:
        """What the ONNX file gets in pixel space."""
        return (x + u).clamp(0, 1) if self.clip else x + u

    def to_json(self) -> dict[str, float | bool | int | None]:
        """Every field."""
        return {"eps": self.eps, "clip": self.clip, "target": self.target}


def parse_eps(text: str) -> float:
    """Reads `0.1`, `2/255` or `1e-2` as a float in [0, 1]; raises UsageError with the text otherwise."""
    try:
        value = float(Fraction(text.strip())) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"eps {text!r} is not a number; write 0.1 or 2/255.") from None
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise UsageError(f"eps {text!r} lies outside [0, 1]; eps is in pixel space [0, 1], write 0.1 or 2/255.")
    return value


def spelled(eps: float) -> str:
    """`eps` as people write it, and so that it reads back equal: 2/255 where it is that, 0.1 otherwise."""
    whole = round(eps * 255)
    return f"{whole}/255" if whole and eps == whole / 255 and len(repr(eps)) > 6 else f"{eps!r}"
