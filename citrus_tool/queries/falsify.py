"""Looks for a point of the unsafe set: signed-gradient descent on the violated rows of a query's formula.

Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks" (PGD).
Differs from the paper in: (1) the loss is a sum of hinges over the rows of one case of the query's disjunction, each in
units of its size at the centre, so that rows that hold already do not pull; (2) every restart takes one case, the
nearest ones first; (3) steps are fractions of each entry's own range and shrink linearly, every second restart has
momentum; (4) every iterate is judged, not the last one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from citrus_tool.attacks.pgd import ATTACKED
from citrus_tool.bounds.rounding import enclosures, exact_products, widen
from citrus_tool.network import Network, walk
from citrus_tool.queries.formula import Formula
from citrus_tool.queries.question import Question
from citrus_tool.threat import Box

MOMENTUM: Final = 0.75
"""Weight of the past step in every second restart."""
HINGE: Final = 1e-2
"""A row stops pulling once it holds by this much, in units of its size at the centre."""
RESTARTS: Final = 48
"""Points that descend together."""
SAMPLES: Final = 256
"""Points judged without a gradient before anything else: corners, the centre, uniform ones."""
SCATTERED: Final = 2.0
"""Seconds of drawing points until one is found where float32 rounding may decide."""
NEAREST: Final = 16
"""Such points of one draw that are run on the files."""

Confirm = Callable[[Tensor], bool]
"""Whether a point z (input_shape), float64, is a witness on the files themselves."""


@dataclass(frozen=True, kw_only=True)
class Falsifier:
    """Searches one question's box in float32; a point counts once `confirm` agrees.

    Attributes:
        network: in float32.
        generator: on the CPU; the search is a function of its state.
    """

    question: Question
    network: Network
    confirm: Confirm
    generator: torch.Generator

    @staticmethod
    def of(question: Question, confirm: Confirm, seed: int) -> Falsifier:
        """With a generator of its own."""
        return Falsifier(
            question=question,
            network=question.network.frozen(dtype=torch.float32),
            confirm=confirm,
            generator=torch.Generator().manual_seed(seed),
        )

    def sample(self) -> bool:
        """Judges the centre, random corners and uniform points."""
        return self.judge(torch.cat([self._middle()[None], self._starts(SAMPLES)]))

    def judge(self, z: Tensor) -> bool:
        """Whether a point of z (n, *input_shape) is a witness; those that look like one are confirmed, best first."""
        z = self._inside(z)
        with torch.no_grad():
            value = self._value(self.question.formula, z)
        return self._confirmed(z, value)

    def descend(
        self, formula: Formula, *, steps: int, deadline: float, starts: Tensor | None = None, restarts: int = RESTARTS
    ) -> bool:
        """One round of restarts towards the cases that `formula` still leaves; True once a witness is confirmed.

        `starts` (n, *input_shape) take the place of as many random ones.
        """
        masks = self._masks(formula, restarts)
        z = self._starts(restarts)
        if starts is not None:
            z[: len(starts)] = starts[:restarts].to(z)
        z = self._inside(z)
        radius = (self.question.greatest - self.question.least).float() / 2
        unit = self._unit()
        trend = torch.zeros_like(z)
        momentum = torch.full((len(z), *[1] * (z.dim() - 1)), MOMENTUM)
        momentum[::2] = 0.0
        for step in range(steps):
            if time.monotonic() >= deadline:
                return False
            z = z.detach().requires_grad_(True)
            with torch.enable_grad():
                y = walk(self.network, ATTACKED, z)
                rows = formula.rows(y, z.flatten(1)) / unit
                loss = (masks * (rows + HINGE).clamp(min=0)).sum()
                (gradient,) = torch.autograd.grad(loss, z)
            with torch.no_grad():
                if self._confirmed(z, formula.value(y, z.flatten(1))):
                    return True
                length = gradient.abs().flatten(1).mean(1).clamp_min(torch.finfo(z.dtype).tiny)
                trend = momentum * trend + gradient / length.reshape(momentum.shape)
                z = self._inside(z - radius * (1 - step / steps) * trend.sign())
        return self.judge(z)

    def by_rounding(self, deadline: float) -> bool:
        """Judges points where the files' own float32 rounding may decide; True once a witness is confirmed.

        Ends after SCATTERED seconds without such a point, and where arithmetic is real.
        """
        exact, patience = self.question.network, time.monotonic() + SCATTERED
        if exact.evaluation.arithmetic == "real":
            return False
        span = (self.question.greatest - self.question.least).float()
        while time.monotonic() < min(deadline, patience):
            z = self._starts(SAMPLES)
            with torch.no_grad(), exact_products():
                point = widen(Box(centre=z.double(), radius=torch.zeros_like(z, dtype=torch.float64)))
                box = enclosures(exact, point).boxes[exact.output_name]
                near = z[self.question.formula.value(box.centre, z.double().flatten(1), box.radius) <= 0][:NEAREST]
            if not len(near):
                continue
            patience = deadline
            reach = (10.0 ** -torch.randint(1, 8, (8, *near.shape), generator=self.generator)) * span
            noise = reach * torch.randn(reach.shape, generator=self.generator)
            if any(self.confirm(one.double()) for one in near) or self.judge((near + noise).flatten(0, 1)):
                return True
        return False

    def _confirmed(self, z: Tensor, value: Tensor) -> bool:
        found = torch.nonzero(value <= 0).flatten()
        order = found[value[found].argsort()]
        return any(self.confirm(z[number].detach().double()) for number in order[:4].tolist())

    def _value(self, formula: Formula, z: Tensor) -> Tensor:
        return formula.value(walk(self.network, ATTACKED, z), z.flatten(1))

    def _middle(self) -> Tensor:
        return ((self.question.least + self.question.greatest) / 2).float()

    def _inside(self, z: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(z.float(), self.question.least.float()), self.question.greatest.float())

    def _starts(self, count: int) -> Tensor:
        """Half of them corners, half uniform."""
        low, high = self.question.least.float(), self.question.greatest.float()
        share = torch.rand(count, *low.shape, generator=self.generator)
        share[::2] = share[::2].round()
        return low + (high - low) * share

    def _unit(self) -> Tensor:
        """(R,) size of each row at the centre."""
        middle = self._middle()[None]
        with torch.no_grad():
            y = walk(self.network, ATTACKED, middle)
            size = y.abs() @ self.question.formula.outputs.abs().float().T
            size = size + self.question.formula.bound.abs().float()
        return size[0].clamp_min(1e-6)

    def _masks(self, formula: Formula, count: int) -> Tensor:
        """(count, R) the rows that each restart wants to hold: one conjunction of every clause."""
        middle = self._middle()[None]
        with torch.no_grad():
            rows = formula.rows(walk(self.network, ATTACKED, middle), middle.flatten(1)) / self._unit()
        masks = torch.zeros(count, len(formula.bound))
        for clause in formula.clauses:
            far = torch.tensor([float(rows[0, list(part)].clamp(min=0).sum()) if part else 0.0 for part in clause])
            order = far.argsort().tolist()
            for number in range(count):
                if number < len(order) or len(formula.clauses) == 1:
                    choice = order[number % len(order)]
                else:  # near conjunctions are drawn more often
                    weight = 1.0 / (far - far.min() + 0.1)
                    choice = int(torch.multinomial(weight, 1, generator=self.generator))
                masks[number, list(clause[choice])] = 1.0
        return masks
