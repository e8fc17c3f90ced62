"""Strong attack with one shared perturbation per group.

After Moosavi-Dezfooli et al., "Universal adversarial perturbations" (CVPR 2017) for the aim. Differs from it in:
  1. the COUNT of fooled inputs is what is maximised, and the best one over everything tried is kept;
  2. every input is first attacked alone, towards one wrong label after the other; an input that resists on its own
     cannot be fooled by a shared u either;
  3. sets of the others are grown one input at a time (growth.py), each attacked on its largest margin (sets.py): a loss
     summed over all foolable inputs fools fewer, for most of them cannot be fooled together;
  4. the sum of hinged margins is descended too, from each input's own u, from random corners of the box and from given
     starts (the certifier's proposals); it is cheap, and gives the growth sets to begin with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from citrus_tool.attacks.effort import Effort
from citrus_tool.attacks.growth import DECISIVE, Found, Growth, grow
from citrus_tool.attacks.margin import margins, reach
from citrus_tool.attacks.sets import MOMENTUM, Descent, attack_sets
from citrus_tool.network import Network
from citrus_tool.threat import Threat

HINGE: Final = 0.1
"""An input stops pulling once its margin is this far below 0, in units of its clean margin."""
WITHIN_REACH: Final = 0.5
"""An input whose own attacks leave it above this (same units) is not attacked again."""
ROWS: Final = 1024
"""Images in one forward pass."""


def attack_groups(
    network: Network,
    images: Float[Tensor, "g k C H W"],
    labels: Int[Tensor, "g k"],
    present: Bool[Tensor, "g k"],
    threat: Threat,
    effort: Effort,
    generator: torch.Generator,
    *,
    starts: Float[Tensor, "s g C H W"] | None = None,
) -> tuple[Float[Tensor, "g C H W"], Int[Tensor, " g"]]:
    """The perturbation found that fools most of each group's `present` inputs.

    Args:
        network: of the images' dtype and device; read in evaluation mode with constant weights.
        images: pixel space; x + u is not clipped (threat/clip.py does that).
        present: inputs that count; the others are neither attacked nor counted.
        effort: restarts are attacks on each input alone, and descents for each group; 0 attacks from `starts` only.
        generator: CPU generator; the result is a function of its state.
        starts: further starting points for every group, projected into the threat.

    Returns: u within the threat, also after a cast to float32, and how many present inputs each fools by the network's
    own arithmetic (margin <= 0; ties count as fooled). A group without present inputs gets u = 0 and count 0.
    """
    unit = torch.ones(labels.shape, dtype=images.dtype, device=images.device)
    for group, member in _cells(present):
        unit[group, member] = reach(network, images[group, member], labels[group, member], threat)
    attack = _Attack(
        network=network,
        images=images,
        labels=labels,
        present=present,
        unit=unit,
        threat=threat,
        steps=effort.steps,
    )
    best = _Best(u=torch.zeros_like(images[:, 0]), score=torch.full((len(images),), -1.0, dtype=torch.float64))
    every = torch.nonzero(present.any(dim=1).cpu()).flatten()
    attack.improve(best, every, best.u[every], steps=0)
    for start in starts if starts is not None else []:
        attack.improve(best, every, start[every], steps=effort.steps)
    if effort.restarts and effort.steps:
        alone, lowest = attack.individually(effort.restarts, generator)
        easiest = lowest.argmin(dim=1)
        attack.improve(best, every, alone[torch.arange(len(alone), device=alone.device), easiest][every], steps=0)
        attack.summed(best, alone, lowest <= 0, effort.restarts, generator)
        attack.jointly(best, alone, lowest, effort.sets * effort.restarts, generator)
    return best.u, best.score.clamp_min(0).floor().long()


@dataclass(frozen=True, kw_only=True)
class _Best:
    """The best perturbation of each group so far and its score (see _Attack.descend), both updated in place."""

    u: Tensor
    score: Tensor


@dataclass(frozen=True, kw_only=True)
class _Attack:
    network: Network
    images: Tensor
    labels: Tensor
    present: Tensor
    unit: Tensor  # (g, k) |clean margin|
    threat: Threat
    steps: int

    def individually(self, restarts: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Each present input attacked alone: perturbations (g, k, C, H, W) and their margins (g, k), absent ones +inf.

        First from 0, then from a random corner of the box, towards any label. Inputs that came close go on from other
        corners with twice the steps, towards one label after the other, the likely ones first, and then towards any.
        """
        alone, lowest = torch.zeros_like(self.images), torch.full_like(self.unit, torch.inf)
        ranked = torch.zeros(*self.labels.shape, 0, dtype=torch.int64, device=self.labels.device)
        if self.threat.target is None and bool(self.present.any()):
            with torch.no_grad():
                logits = [self.network(self.images[group, member]) for group, member in _cells(self.present)]
            own = torch.cat(logits).scatter(1, self.labels[self.present][:, None], -torch.inf)
            ranked = torch.zeros(*self.labels.shape, own.shape[1] - 1, dtype=torch.int64, device=self.labels.device)
            ranked[self.present] = own.argsort(dim=1, descending=True)[:, :-1]
        for r in range(restarts):
            promising = (lowest < WITHIN_REACH) | (lowest >= 1)  # at 1 no step had any effect: another start may
            left = self.present & (lowest > -DECISIVE) & (promising | (r < 2))
            for group, member in _cells(left):
                x, y = self.images[group, member], self.labels[group, member]
                labelled = 2 <= r < 2 + ranked.shape[2]
                u, margin = attack_sets(
                    self.network,
                    x,
                    y,
                    torch.arange(len(x), device=x.device),
                    torch.zeros_like(x) if r == 0 else self.corners(x, generator),
                    self.threat,
                    Descent(steps=self.steps if r < 2 else 2 * self.steps, momentum=MOMENTUM * ((r + 1) % 2)),
                    wrong=ranked[group, member, r - 2] if labelled else None,
                    unit=self.unit[group, member],
                )
                better = margin < lowest[group, member]
                alone[group[better], member[better]] = u[better]
                lowest[group[better], member[better]] = margin[better]
        return alone, lowest

    def summed(self, best: _Best, alone: Tensor, foolable: Tensor, restarts: int, generator: torch.Generator) -> None:
        """Descends the sum of hinged margins over the inputs that fall alone, from their own u and random corners."""
        alike = replace(self, present=foolable)
        order = foolable.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        count = foolable.sum(dim=1)
        for r in range(restarts):
            left = torch.nonzero((count > 1).cpu() & (best.score < count.cpu())).flatten().to(order.device)
            turn = order[left, (r // 2) % count[left].clamp_min(1)]
            start = alone[left, turn] if r % 2 == 0 else self.corners(best.u[left], generator)
            alike.improve(best, left, start, steps=self.steps)

    def jointly(self, best: _Best, alone: Tensor, lowest: Tensor, budget: int, generator: torch.Generator) -> None:
        """Grows sets of inputs that fall together, from each input alone and from the best u so far."""
        falls = lowest <= -DECISIVE
        groups = torch.nonzero(falls.sum(dim=1) > 1).flatten()
        if not len(groups):
            return
        searches = []
        for group in groups.tolist():
            members = torch.nonzero(falls[group]).flatten()
            with torch.no_grad():
                margin = margins(
                    self.network,
                    self.images[group, members] + best.u[group],
                    self.labels[group, members],
                    self.threat.target,
                )
            at = margin / self.unit[group, members]
            found = {i: Found(u=alone[group, i], worst=float(lowest[group, i])) for i in members.tolist()}
            search = Growth(alone=found, budget=budget)
            together = at <= -DECISIVE
            if int(together.sum()) > 1:
                search.note(
                    frozenset(members[together].tolist()), Found(u=best.u[group], worst=float(at[together].max()))
                )
            searches.append(search)
        grow(
            self.network,
            self.images[groups],
            self.labels[groups],
            self.unit[groups],
            searches,
            self.threat,
            steps=self.steps,
            generator=generator,
        )
        self.improve(best, groups, torch.stack([search.found[search.best].u for search in searches]), steps=0)

    def corners(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Random corners of the box."""
        return self.threat.corners(torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1)

    def improve(self, best: _Best, groups: Tensor, start: Tensor, *, steps: int) -> None:
        """One run for `groups` from `start` (len(groups), C, H, W); `best` keeps what got better."""
        position = 0
        for batch in _batches(groups, self.present):
            u, score = self.descend(batch, start[position : position + len(batch)], steps)
            position += len(batch)
            better = score > best.score[batch]
            best.score[batch[better]] = score[better]
            best.u[batch[better]] = u[better.to(u.device)]

    def descend(self, batch: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Best u (g, C, H, W) seen, and its score: count fooled, plus 0.5 times the share of it fooled decisively."""
        present = self.present[batch]
        of_group = torch.nonzero(present)[:, 0]
        x, y, unit = self.images[batch][present], self.labels[batch][present], self.unit[batch][present]
        count = torch.zeros(len(batch), dtype=torch.float64, device=x.device)
        u = self.threat.projected(start)
        best, best_score = u, count - 1
        for step in range(steps + 1):
            u = u.detach().requires_grad_(step < steps)
            with torch.set_grad_enabled(step < steps):
                relative = margins(self.network, x + u[of_group], y, self.threat.target) / unit
            fooled = count.index_add(0, of_group, (relative <= 0).double())
            decisive = count.index_add(0, of_group, (relative <= -DECISIVE).double())
            score = fooled + 0.5 * decisive / fooled.clamp_min(1)
            better = score > best_score
            best_score = torch.where(better, score, best_score)
            best = torch.where(better[:, None, None, None], u.detach(), best)
            if step == steps:
                break
            (gradient,) = torch.autograd.grad(relative.clamp_min(-HINGE).sum(), u)
            u = self.threat.stepped(u.detach(), gradient, self.threat.inner * (1 - step / steps))
        return best, best_score.cpu()


def _cells(flags: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(groups, members) of the true entries of (g, k) flags, at most ROWS of them together."""
    return [(part[:, 0], part[:, 1]) for part in torch.split(torch.nonzero(flags), ROWS) if len(part)]


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
