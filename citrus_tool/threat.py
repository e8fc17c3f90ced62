"""The threat model: one perturbation u, |u|_inf <= eps in pixel space [0, 1], added to every input.

x + u is not clipped to [0, 1], as in Zeng et al. (ICLR 2023), RaVeN, RACoon, RABBit and the CITRUS paper. Two variants:
f(clip(x + u, 0, 1)), by an exact clip layer in front of the network (`clipped`); and a target class, to which the
attacker wants to drive the inputs (the targeted UAP of RaVeN, Banerjee et al., PLDI 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from citrus_tool.errors import UsageError
from citrus_tool.network import INPUT, Affine, GraphBuilder, Network


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

    def box(self, x: Tensor) -> Box:
        """The region of x + u: centre x, radius eps everywhere (not clipped)."""
        return Box(centre=x, radius=x.new_full(x.shape, self.eps))

    def network(self, network: Network) -> Network:
        """The network as a function of x + u: with the clip layer in front where the threat has one."""
        return clipped(network) if self.clip else network

    def inputs(self, x: Tensor, u: Tensor) -> Tensor:
        """What the ONNX file gets in pixel space."""
        return (x + u).clamp(0, 1) if self.clip else x + u

    def to_json(self) -> dict[str, float | bool | int | None]:
        """Every field."""
        return {"eps": self.eps, "clip": self.clip, "target": self.target}


def clipped(network: Network) -> Network:
    """f(clip(z, 0, 1)) of z: the layers 1 - relu(1 - relu(z)) in front of `network`, whose layers are shared.

    In real arithmetic this is the clip exactly; in float64 it is off by at most 2^-53.
    """
    builder = GraphBuilder(network.input_shape)
    parameter = next((t for t in network.state_dict().values() if t.is_floating_point()), torch.zeros(()))
    one = torch.ones((1,) * len(network.input_shape), dtype=parameter.dtype, device=parameter.device)
    flip = Affine(-one, one)
    builder.add(nn.ReLU(), name="clip_low")
    builder.add(flip, name="clip_flip")
    builder.add(nn.ReLU(), name="clip_high")
    names = {INPUT: builder.add(flip)}
    for node in network.nodes:
        names[node.name] = builder.add(node.layer, *(names[name] for name in node.inputs), name=node.name)
    return builder.build(names[network.output_name]).train(network.training)


def parse_eps(text: str) -> float:
    """Reads `0.1`, `2/255` or `1e-2` as a float in [0, 1]; raises UsageError with the text otherwise."""
    try:
        value = float(Fraction(text.strip())) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"eps {text!r} is not a number; write 0.1 or 2/255.") from None
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise UsageError(f"eps {text!r} lies outside [0, 1]; eps is in pixel space [0, 1], write 0.1 or 2/255.")
    return value
