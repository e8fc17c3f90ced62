"""The result of `harden`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from citrus_tool import __version__
from citrus_tool.choices.recipe import Recipe
from citrus_tool.results.evaluation import Figures, figure_rows
from citrus_tool.tables import Table, Tabular


@dataclass(frozen=True, kw_only=True)
class SpecVerdict:
    """A property that was trained for: how many images it speaks of, its radius (pixel space), and its verdicts.

    Verdicts are before and after training; unsat: it holds.
    """

    file: Path
    images: int
    eps: float
    before: str
    after: str

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {**dataclasses.asdict(self), "file": str(self.file)}


@dataclass(frozen=True, kw_only=True, repr=False)
class HardenReport(Tabular):
    """The result of `harden`: where the new file is, how training went, and the figures before and after.

    `spec` has an entry for each property that was trained for.
    """

    model: Path
    out: Path
    recipe: Recipe
    seconds: float
    best_epoch: int
    history: Sequence[Mapping[str, Any]]
    before: Figures
    after: Figures
    data: str
    group_size: int
    inputs: int
    spec: Sequence[SpecVerdict] = ()

    def to_json(self) -> dict[str, Any]:
        """DESIGN's fields and what is needed to repeat the run."""
        return {
            "model": str(self.model),
            "out": str(self.out),
            "method": self.recipe.method,
            "eps": self.recipe.eps,
            "epochs": self.recipe.epochs,
            "seconds": self.seconds,
            "best_epoch": self.best_epoch,
            "data": self.data,
            "group_size": self.group_size,
            "inputs": self.inputs,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "spec": [entry.to_json() for entry in self.spec],
            "recipe": self.recipe.to_json(),
            "history": [dict(entry) for entry in self.history],
            "version": __version__,
        }

    def table(self) -> Table:
        """Before and after, in percent."""
        about = f"{self.recipe.method} at eps {self.recipe.eps:g}, groups of {self.group_size}, {self.inputs} inputs"
        rows = figure_rows(self.before, self.after)
        return Table(title=about, columns=["accuracy in %", "before", "after"], rows=rows)
