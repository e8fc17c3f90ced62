"""Which inputs are judged, in which groups: by protocol, target class and limit (CertifySettings)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from citrus_tool.certification.individual import Clean, clean_stage, judged
from citrus_tool.certification.setup import Setup
from citrus_tool.errors import DataError
from citrus_tool.progress import Progress
from citrus_tool.records import joined, select

CLEAN_INPUTS: Final = 500
"""Inputs that are run without a perturbation between two reports of progress: a fraction of a second's work."""


@dataclass(frozen=True, kw_only=True)
class JudgedInputs:
    """The inputs that are judged, in consecutive groups.

    Attributes:
        candidates: (n,) indices into the data of what was looked at; `clean`: what these are without a perturbation.
        chosen: (m,) positions of the judged inputs among the candidates, ascending.
        group_size: inputs that share one perturbation; the last group may be smaller.
    """

    candidates: Tensor
    clean: Clean
    chosen: Tensor
    group_size: int

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """Each group's inputs, as indices into the data."""
        return [tuple(part.tolist()) for part in torch.split(self.candidates[self.chosen], self.group_size)]

    def of(self, groups: range) -> tuple[Tensor, Clean]:
        """Indices into the data of the inputs of consecutive groups, and what they are without a perturbation."""
        some = self.chosen[groups.start * self.group_size : groups.stop * self.group_size]
        return self.candidates[some], select(self.clean, some)

    def rows(self, inputs: Sequence[int]) -> Clean:
        """What these judged inputs, as indices into the data, are without a perturbation."""
        row = dict(zip(self.candidates[self.chosen].tolist(), self.chosen.tolist(), strict=True))
        return select(self.clean, torch.tensor([row[index] for index in inputs], dtype=torch.long))

    def examined(self, groups: Sequence[int]) -> Tensor:
        """(n,) which candidates were looked at for the inputs of these groups.

        A candidate is looked at for the next chosen input, or for the last one of all.
        """
        next_chosen = torch.searchsorted(self.chosen, torch.arange(len(self.candidates)))
        group = next_chosen.clamp(max=len(self.chosen) - 1) // self.group_size
        return torch.isin(group, torch.tensor(groups))


def judged_inputs(setup: Setup, progress: Progress) -> JudgedInputs:
    """Runs the candidates without a perturbation and chooses by protocol.

    Raises DataError where there is none to judge.
    """
    data, settings, target = setup.data, setup.settings, setup.threat.target
    candidates = judged(data, target)
    if settings.limit is not None:
        candidates = candidates[: settings.limit if settings.protocol == "all" else 3 * settings.limit]
    progress.start("clean", len(candidates), "inputs")
    parts = []
    for part in torch.split(candidates, CLEAN_INPUTS):
        parts.append(clean_stage(setup.bounded, setup.runner, data.pixels(part), data.labels[part], target))
        progress.advance(len(part))
    clean = joined(parts)
    chosen = torch.arange(len(candidates))
    if settings.protocol == "correct":
        chosen = torch.nonzero(clean.correct).flatten()[: settings.limit]
        if len(chosen) == 0:
            raise DataError(
                f"data {data.name} ({data.split}): none of the first {len(candidates)} inputs is classified"
                " correctly, so protocol correct has nothing to judge; check --mean/--std or use --protocol all."
            )
    return JudgedInputs(candidates=candidates, clean=clean, chosen=chosen, group_size=settings.group_size)
