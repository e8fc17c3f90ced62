"""One perturbation that fools every input of a set at once: signed steps on a soft maximum of the margins.

After Madry et al. (ICLR 2018) for the signed steps, Dong et al. (CVPR 2018) for their momentum and Wang et al.,
"Adversarial attack generation empowered by min-max optimization" (NeurIPS 2021), for the aim: the largest margin
of the set is lowered. Differs from the latter in: (1) the weights are the softmax of the margins themselves, without a
step of their own; (2) margins are in units of each input's clean margin; (3) the iterate with the lowest largest margin
is kept, and a set stops once that is clearly below 0.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from citrus_tool.attacks.margin import float32_at_most, margins, reach
from citrus_tool.network import Network

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


def attack_set(
    network: Network,
    images: Float[Tensor, "s C H W"],
    labels: Int[Tensor, " s"],
    eps: float,
    *,
    start: Float[Tensor, "C H W"],
    targets: Int[Tensor, " s"] | None = None,
    target: int | None = None,
    steps: int = 40,
    restarts: int = 3,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "C H W"], Bool[Tensor, " s"]]:
    """Tries to fool all inputs of one set with one |u|_inf <= eps.

    Args:
        network: of the images' dtype and device; x + u is not clipped (threat/clip.py does that).
        eps: radius of u, in pixel space.
        start: the first point tried, clamped to eps.
        targets: the wrong label that each input is to get; then only that label counts. None: any.
        target: the class that is to win for every input (Threat.target).
        steps: gradient steps for each start; 0 only judges `start`.
        restarts: further starts, drawn around `start`, if the first does not fool all.
        generator: on the CPU; of these draws. None: seed 0.

    Returns: the u that fools most of the set, and among those the one with the lowest largest margin; which inputs it
    fools by the network's own arithmetic (margin <= 0).
    """
    generator = generator or torch.Generator().manual_seed(0)
    radius = float32_at_most(eps)
    size, device = len(images), images.device
    start = start.to(images).clamp(-radius, radius)
    best, fooled, worst = start, torch.zeros(size, dtype=torch.bool, device=device), torch.inf
    for count in (1, restarts) if steps else (1,):
        if bool(fooled.all()) or not count:
            break
        starts = start.expand(count, *start.shape) if count == 1 else around(start, count, radius, generator)
        u, margin = attack_sets(
            network,
            images.repeat(count, 1, 1, 1),
            labels.repeat(count),
            torch.arange(count, device=device).repeat_interleave(size),
            starts,
            radius,
            steps=steps,
            target=target,
            wrong=None if targets is None else targets.repeat(count),
        )
        for candidate, row in zip(u, margin.reshape(count, size), strict=True):
            score, known = (int((row <= 0).sum()), -float(row.max())), (int(fooled.sum()), -worst)
            if score > known:
                best, fooled, worst = candidate, row <= 0, float(row.max())
    return best, fooled


def around(
    start: Float[Tensor, "C H W"], count: int, radius: float, generator: torch.Generator
) -> Float[Tensor, "b C H W"]:
    """`count` starting points: `start` with ever more of its pixels at random corners, all of them in the last."""
    share = torch.arange(1, count + 1).reshape(-1, 1, 1, 1) / count
    drawn = torch.rand(count, *start.shape, generator=generator) < share
    corner = torch.randint(0, 2, (count, *start.shape), generator=generator) * 2.0 - 1.0
    return torch.where(drawn.to(start.device), (radius * corner).to(start), start)


def attack_near(
    network: Network,
    images: Float[Tensor, "s C H W"],
    labels: Int[Tensor, " s"],
    radius: float,
    *,
    points: Float[Tensor, "b C H W"],
    wrong: Int[Tensor, "b s"],
    steps: int,
    target: int | None = None,
) -> Float[Tensor, "b C H W"]:
    """Tries to give all inputs of a set wrong labels, from b points that a relaxation thinks are best, by short steps.

    Args:
        radius: in pixel space, as a float32.
        target: as in `attack_set`.
        wrong: the label that each input is to get, from each point.
    """
    u, _ = attack_sets(
        network,
        images.repeat(len(points), 1, 1, 1),
        labels.repeat(len(points)),
        torch.arange(len(points), device=points.device).repeat_interleave(len(images)),
        points,
        radius,
        steps=steps,
        target=target,
        wrong=wrong.flatten(),
        first=NEAR,
    )
    return u


def attack_sets(
    network: Network,
    images: Float[Tensor, "n C H W"],
    labels: Int[Tensor, " n"],
    of_set: Int[Tensor, " n"],
    start: Float[Tensor, "b C H W"],
    radius: float,
    *,
    steps: int,
    target: int | None = None,
    wrong: Int[Tensor, " n"] | None = None,
    unit: Float[Tensor, " n"] | None = None,
    momentum: float = MOMENTUM,
    first: float = 1.0,
) -> tuple[Float[Tensor, "b C H W"], Float[Tensor, " n"]]:
    """Attacks b sets of any sizes side by side; row i of the images belongs to set `of_set[i]`.

    Args:
        radius: in pixel space, as a float32, see `margin.float32_at_most`.
        unit: (n,) clean margins, where they are known.
        first: length of the first step, in units of the radius; steps shrink linearly.

    Returns: for each set the u with the lowest largest margin, and all inputs' margins there in units of `unit`.
    """
    count = len(start)
    if unit is None:
        unit = reach(network, images, labels, radius, target, wrong=wrong)
    best, kept = start.clamp(-radius, radius), torch.full_like(unit, torch.inf)
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
                target,
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
        trend = momentum * trend + gradient / length
        u = (u.detach() - radius * first * (1 - step / steps) * trend.sign()).clamp(-radius, radius)
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
