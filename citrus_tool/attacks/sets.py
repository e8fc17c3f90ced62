"""One perturbation that fools every input of a set at once: signed steps on a soft maximum of the margins.

After Madry et al. (ICLR 2018) for the signed steps, Dong et al. (CVPR 2018) for their momentum and Wang et al.,
"Adversarial attack generation empowered by min-max optimization" (NeurIPS 2021), for the aim: the largest margin
of the set is lowered. Differs from the latter in: (1) the weights are the softmax of the margins themselves, without a
step of their own; (2) margins are in units of each input's clean margin; (3) the iterate with the lowest largest margin
is kept, and a set stops once that is clearly below 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from citrus_tool.attacks.effort import Effort
from citrus_tool.attacks.margin import margins, reach
from citrus_tool.network import Network
from citrus_tool.threat import Threat

SHARPNESS: Final = 10.0
"""Inverse temperature of the soft maximum, per unit of clean margin."""
MOMENTUM: Final = 0.75
"""Weight of the past gradient."""
ENOUGH: Final = 0.02
"""A set is done when all its margins are this far below 0, in units of the clean margins."""
NEAR: Final = 0.25
"""First step from a point that is nearly best already, in units of eps."""
LOOK: Final = 5
"""Steps after which sets that are done leave the batch."""
ONE_SET: Final = Effort(steps=40, restarts=3)
"""Default of `attack_set`: further starts are drawn around the first one if that does not fool all."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """The steps of one attack: how many, the first one's length in units of eps, and the weight of past gradients.

    Steps shrink linearly to 0.
    """

    steps: int
    first: float = 1.0
    momentum: float = MOMENTUM


def attack_set(
    network: Network,
    images: Float[Tensor, "s C H W"],
    labels: Int[Tensor, " s"],
    threat: Threat,
    effort: Effort = ONE_SET,
    *,
    start: Float[Tensor, "C H W"],
    wrong: Int[Tensor, " s"] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "C H W"], Bool[Tensor, " s"]]:
    """Tries to fool all inputs of one set with one perturbation of the threat.

    Args:
        network: of the images' dtype and device; x + u is not clipped (threat/clip.py does that).
        start: the first point tried, projected into the threat.
        wrong: the wrong class that each input is to get; then only that one counts. None: any.
        generator: on the CPU; of these draws. None: seed 0.

    Returns: the u that fools most of the set, and among those the one with the lowest largest margin; which inputs it
    fools by the network's own arithmetic (margin <= 0).
    """
    generator = generator or torch.Generator().manual_seed(0)
    size, device = len(images), images.device
    start = threat.projected(start.to(images))
    best, fooled, worst = start, torch.zeros(size, dtype=torch.bool, device=device), torch.inf
    for count in (1, effort.restarts) if effort.steps else (1,):
        if bool(fooled.all()) or not count:
            break
        starts = start.expand(count, *start.shape) if count == 1 else around(start, count, threat, generator)
        u, margin = attack_sets(
            network,
            images.repeat(count, 1, 1, 1),
            labels.repeat(count),
            torch.arange(count, device=device).repeat_interleave(size),
            starts,
            threat,
            Descent(steps=effort.steps),
            wrong=None if wrong is None else wrong.repeat(count),
        )
        for candidate, row in zip(u, margin.reshape(count, size), strict=True):
            score, known = (int((row <= 0).sum()), -float(row.max())), (int(fooled.sum()), -worst)
            if score > known:
                best, fooled, worst = candidate, row <= 0, float(row.max())
    return best, fooled


def around(
    start: Float[Tensor, "C H W"], count: int, threat: Threat, generator: torch.Generator
) -> Float[Tensor, "b C H W"]:
    """`count` starting points: `start` with ever more of its pixels at random corners, all of them in the last."""
    share = torch.arange(1, count + 1).reshape(-1, 1, 1, 1) / count
    drawn = torch.rand(count, *start.shape, generator=generator) < share
    corner = torch.randint(0, 2, (count, *start.shape), generator=generator) * 2.0 - 1.0
    return torch.where(drawn.to(start.device), threat.corners(corner).to(start), start)


def attack_near(
    network: Network,
    images: Float[Tensor, "s C H W"],
    labels: Int[Tensor, " s"],
    threat: Threat,
    *,
    points: Float[Tensor, "b C H W"],
    wrong: Int[Tensor, "b s"],
    steps: int,
) -> Float[Tensor, "b C H W"]:
    """Tries to give all inputs of a set wrong labels, from b points that a relaxation thinks are best, by short steps.

    `wrong` is the class that each input is to get, from each point.
    """
    u, _ = attack_sets(
        network,
        images.repeat(len(points), 1, 1, 1),
        labels.repeat(len(points)),
        torch.arange(len(points), device=points.device).repeat_interleave(len(images)),
        points,
        threat,
        Descent(steps=steps, first=NEAR),
        wrong=wrong.flatten(),
    )
    return u


def attack_sets(
    network: Network,
    images: Float[Tensor, "n C H W"],
    labels: Int[Tensor, " n"],
    of_set: Int[Tensor, " n"],
    start: Float[Tensor, "b C H W"],
    threat: Threat,
    descent: Descent,
    *,
    wrong: Int[Tensor, " n"] | None = None,
    unit: Float[Tensor, " n"] | None = None,
) -> tuple[Float[Tensor, "b C H W"], Float[Tensor, " n"]]:
    """Attacks b sets of any sizes side by side; row i of the images belongs to set `of_set[i]`.

    Args:
        wrong: (n,) the wrong class that each input is to get; None: any, or the threat's target.
        unit: (n,) clean margins, where they are known.

    Returns: for each set the u with the lowest largest margin, and all inputs' margins there in units of `unit`.
    """
    count, steps, longest = len(start), descent.steps, threat.inner * descent.first
    if unit is None:
        unit = reach(network, images, labels, threat, wrong=wrong)
    best, kept = threat.projected(start), torch.full_like(unit, torch.inf)
    lowest = torch.full((count,), torch.inf, dtype=unit.dtype, device=unit.device)
    live, rows = torch.arange(count, device=start.device), torch.arange(len(images), device=start.device)
    u, trend, place = best, torch.zeros_like(best), of_set  # of the live sets; place: a row's set among these
    for step in range(steps + 1):
        u = u.detach().requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            margin = margins(
                network,
                images[rows] + u[place],
                labels[rows],
                threat.target,
                wrong=None if wrong is None else wrong[rows],
            )
            relative = margin / unit[rows]
        value = relative.detach()
        worst = torch.full_like(lowest[live], -torch.inf).scatter_reduce(0, place, value, "amax")
        better = worst < lowest[live]
        lowest[live[better]] = worst[better]
        best = best.index_copy(0, live[better], u.detach()[better])
        kept[rows[better[place]]] = value[better[place]]
        if step == steps:
            break
        (gradient,) = torch.autograd.grad((relative * torch.exp(SHARPNESS * (value - worst[place]))).sum(), u)
        length = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
        trend = descent.momentum * trend + gradient / length
        u = threat.stepped(u.detach(), trend, longest * (1 - step / steps))
        if step % LOOK == LOOK - 1:
            going = lowest[live] > -ENOUGH
            if not bool(going.any()):
                break
            if not bool(going.all()):
                stays = going[place]
                number = going.cumsum(0) - 1
                live, u, trend = live[going], u[going], trend[going]
                rows, place = rows[stays], number[place[stays]]
    return best, kept
