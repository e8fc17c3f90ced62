"""Strong attack with one shared perturbation per group: signed-gradient descent on hinged margins, many restarts.

After Moosavi-Dezfooli et al., "Universal adversarial perturbations" (CVPR 2017) for the aim, Madry et al. (ICLR 2018)
for the signed steps and Dong et al. (CVPR 2018) for their momentum. Differs from them in:
  1. every input is first attacked alone; an input that resists on its own cannot be fooled by a shared u either, so
     the shared steps pull on the others only and start from their individual perturbations;
  2. the loss is the sum over those inputs of max(margin / clean margin, -HINGE): an input that is fooled already no
     longer pulls, and inputs with large logits do not dominate;
  3. restarts differ in start (given points, individual perturbations, zero, random corners), weights and momentum;
  4. what is kept is the best COUNT over all steps and restarts, not the last iterate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from citrus_tool.attacks.margin import float32_at_most, margins
from citrus_tool.network import Network

HINGE: Final = 0.1
"""An input stops pulling once its margin is this far below 0, in units of its clean margin."""
DECISIVE: Final = 1e-4
"""Among equal counts, inputs fooled by more than this (same units) are preferred: they survive a float32 replay."""
MOMENTUM: Final = 0.75
"""Weight of the past gradient, in every second restart."""
ROWS: Final = 1024
"""Images in one forward pass."""


def attack_groups(
    network: Network,
    images: Float[Tensor, "g k C H W"],
    labels: Int[Tensor, "g k"],
    present: Bool[Tensor, "g k"],
    eps: float,
    *,
    steps: int,
    restarts: int,
    generator: torch.Generator,
    starts: Float[Tensor, "s g C H W"] | None = None,
    target: int | None = None,
) -> tuple[Float[Tensor, "g C H W"], Int[Tensor, " g"]]:
    """The perturbation found that fools most of each group's `present` inputs.

    Args:
        network: of the images' dtype and device; read in evaluation mode with constant weights.
        images: pixel space; x + u is not clipped.
        present: inputs that count; the others are neither attacked nor counted.
        eps: |u|_inf bound in pixel space.
        steps: gradient steps per restart; 0 only judges the starts.
        restarts: own starts, of each input alone and then of each group; 0 attacks from `starts` only.
        generator: CPU generator; the result is a function of its state.
        starts: further starting points for every group, clamped to eps.
        target: an input counts as fooled where this class wins; None: where any class but its label does.

    Returns: u with |u| <= eps, also after a cast to float32, and how many present inputs each fools by the network's
    own arithmetic (margin <= 0; ties count as fooled). A group without present inputs gets u = 0 and count 0.
    """
    attack = _Attack(
        network=network, images=images, labels=labels, radius=float32_at_most(eps), steps=steps, target=target
    )
    best = _Best(u=torch.zeros_like(images[:, 0]), score=torch.full((len(images),), -1.0, dtype=torch.float64))
    total = present.sum(dim=1).cpu()
    every = torch.nonzero(total > 0).flatten()
    attack.improve(best, every, present, best.u[every], present.double(), steps=0)
    for start in starts if starts is not None else []:
        attack.improve(best, every, present, start[every], present.double())
    if restarts > 0:
        alone, foolable = attack.individually(present, restarts, generator)
        for r in range(int(foolable.sum(dim=1).amax())) if len(every) else []:
            attack.improve(best, every, present, _choose(alone, foolable, r)[every], present.double(), steps=0)
        for r in range(restarts):
            # done: nobody left to fool, all fooled decisively, or only one input can be fooled at all
            left = torch.nonzero((foolable.sum(dim=1).cpu() > 1) & (best.score < foolable.sum(dim=1).cpu())).flatten()
            start, weight = best.u[left], foolable.double()
            if r % 3 == 0:
                start = _choose(alone, foolable, r // 3)[left]
            elif r % 3 == 1:
                start = attack.corners(start, generator)
            if r >= 3:
                weight = weight * torch.rand(weight.shape, generator=generator).to(weight)
            attack.improve(best, left, foolable, start, weight, momentum=MOMENTUM * (r % 2))
        # the count over all present inputs: one that resisted alone may still fall to a shared u
        attack.improve(best, every, present, best.u[every], present.double(), steps=0)
    return best.u, best.score.clamp_min(0).floor().long()


@dataclass(frozen=True, kw_only=True)
class _Best:
    """The best perturbation of each group so far and its score (see _Attack.descend), both updated in place."""

    u: Tensor
    score: Tensor


def _choose(alone: Tensor, foolable: Tensor, r: int) -> Tensor:
    """The individual perturbation (g, C, H, W) of each group's r-th foolable input, counted round."""
    order = foolable.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    column = r % foolable.sum(dim=1).clamp_min(1)
    return alone[torch.arange(len(alone)), order[torch.arange(len(alone)), column]]


@dataclass(frozen=True, kw_only=True)
class _Attack:
    network: Network
    images: Tensor
    labels: Tensor
    radius: float
    steps: int
    target: int | None

    def corners(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Random corners of the box."""
        return (torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1) * self.radius

    def individually(self, present: Tensor, restarts: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Each present input attacked alone: perturbations (g, k, C, H, W) and which inputs fell (g, k)."""
        x, y = self.images[present], self.labels[present]
        single = _Attack(
            network=self.network,
            images=x[:, None],
            labels=y[:, None],
            radius=self.radius,
            steps=self.steps,
            target=self.target,
        )
        best = _Best(u=torch.zeros_like(x), score=torch.full((len(x),), -1.0, dtype=torch.float64))
        one = torch.ones_like(y[:, None], dtype=torch.bool)
        for r in range(restarts):
            left = torch.nonzero(best.score < 1).flatten()
            start = torch.zeros_like(x[left]) if r == 0 else self.corners(x[left], generator)
            single.improve(best, left, one, start, one.double(), momentum=MOMENTUM * (r % 2))
        alone = torch.zeros_like(self.images)
        foolable = torch.zeros_like(present)
        alone[present] = best.u
        foolable[present] = (best.score >= 1).to(present.device)
        return alone, foolable

    def improve(
        self,
        best: _Best,
        groups: Tensor,
        present: Tensor,
        start: Tensor,
        weight: Tensor,
        *,
        momentum: float = 0.0,
        steps: int | None = None,
    ) -> None:
        """One restart of `groups` from `start` (len(groups), C, H, W); `best` keeps what got better.

        present, weight (g, k): the inputs that count, and their weights in the loss.
        """
        position = 0
        for batch in _batches(groups, present):
            u, score = self.descend(
                batch,
                present[batch],
                start[position : position + len(batch)],
                weight[batch],
                momentum=momentum,
                steps=self.steps if steps is None else steps,
            )
            position += len(batch)
            better = score > best.score[batch]
            best.score[batch[better]] = score[better]
            best.u[batch[better]] = u[better.to(u.device)]

    def descend(
        self, batch: Tensor, present: Tensor, start: Tensor, weight: Tensor, *, momentum: float, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Best u (g, C, H, W) seen, and its score: count fooled, plus 0.5 times the share of it fooled decisively."""
        of_group = torch.nonzero(present)[:, 0]
        x, y = self.images[batch][present], self.labels[batch][present]
        pull = weight[present].to(x)
        with torch.no_grad():
            unit = margins(self.network, x, y, self.target).clamp_min(1e-6)
        count = torch.zeros(len(batch), dtype=torch.float64, device=x.device)
        u, trend = start.clamp(-self.radius, self.radius), torch.zeros_like(start)
        best, best_score = u, count - 1
        for step in range(steps + 1):
            u = u.detach().requires_grad_(step < steps)
            relative = margins(self.network, x + u[of_group], y, self.target) / unit
            fooled = count.index_add(0, of_group, (relative <= 0).double())
            decisive = count.index_add(0, of_group, (relative <= -DECISIVE).double())
            score = fooled + 0.5 * decisive / fooled.clamp_min(1)
            better = score > best_score
            best_score = torch.where(better, score, best_score)
            best = torch.where(better[:, None, None, None], u.detach(), best)
            if step == steps:
                break
            (gradient,) = torch.autograd.grad((pull * relative.clamp_min(-HINGE)).sum(), u)
            length = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
            trend = momentum * trend + gradient / length
            u = (u.detach() - self.radius * (1 - step / steps) * trend.sign()).clamp(-self.radius, self.radius)
        return best, best_score.cpu()


def _batches(groups: Tensor, present: Tensor) -> list[Tensor]:
    """`groups` cut into runs of at most ROWS present inputs (at least one group each)."""
    batches: list[list[int]] = []
    rows = ROWS
    for group, count in zip(groups.tolist(), present[groups].sum(dim=1).tolist(), strict=True):
        if rows + count > ROWS:
            batches.append([])
            rows = 0
        batches[-1].append(group)
        rows += count
    return [torch.tensor(batch) for batch in batches]
