"""The result of one trial of `tune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from citrus_tool.choices.space import Scalar


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One recipe that was tried.

    Attributes:
        state: `complete`, `pruned` (given up) or `failed`; reason: why it failed.
        parameters: what it set of the recipe, by field.
        standard, certified: percent of the validation split and, under one perturbation a group, of its first inputs;
            None unless it is complete.
        best_epoch, epochs: the epoch that was judged and how many were trained.
        validations: (share of the epochs, standard accuracy, certified accuracy of single inputs) of every validated
            epoch at full eps.
    """

    number: int
    state: Literal["complete", "pruned", "failed"]
    parameters: Mapping[str, Scalar]
    standard: float | None
    certified: float | None
    best_epoch: int
    epochs: int
    seconds: float
    validations: Sequence[tuple[float, float, float]]
    reason: str = ""

    def figures(self) -> tuple[float, float]:
        """Standard and certified accuracy of a complete trial."""
        if self.standard is None or self.certified is None:
            raise ValueError(f"trial {self.number} is {self.state}")
        return self.standard, self.certified
