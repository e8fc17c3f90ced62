"""The result of `train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from citrus_tool import __version__
from citrus_tool.choices.recipe import Recipe
from citrus_tool.tables import Table, Tabular, percent


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainReport(Tabular):
    """The result of `train`: the file, how training went, and its standard accuracy on the test split (percent)."""

    architecture: str
    out: Path
    recipe: Recipe
    seconds: float
    best_epoch: int
    history: Sequence[Mapping[str, Any]]
    standard_accuracy: float
    data: str

    def to_json(self) -> dict[str, Any]:
        """Every field, plain."""
        return {
            "architecture": self.architecture,
            "out": str(self.out),
            "method": self.recipe.method,
            "eps": self.recipe.eps,
            "epochs": self.recipe.epochs,
            "seconds": self.seconds,
            "best_epoch": self.best_epoch,
            "data": self.data,
            "standard_accuracy": self.standard_accuracy,
            "recipe": self.recipe.to_json(),
            "history": [dict(entry) for entry in self.history],
            "version": __version__,
        }

    def table(self) -> Table:
        """Standard accuracy, best epoch and time."""
        row = [self.architecture, percent(self.standard_accuracy), str(self.best_epoch), f"{self.seconds:.1f}"]
        columns = ["network", "standard accuracy in %", "best epoch", "seconds"]
        return Table(title=f"{self.recipe.method} training on {self.data}", columns=columns, rows=[row])
