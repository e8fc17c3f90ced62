"""The result of `harden`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from citrus_tool import __version__
from citrus_tool.choices.recipe import Recipe
from citrus_tool.results.evaluation import Figures, figure_rows
from citrus_tool.results.record import JsonRecord, about
from citrus_tool.results.train import read_history, read_recipe
from citrus_tool.tables import Table, Tabular


@dataclass(frozen=True, kw_only=True)
class SpecVerdict(JsonRecord):
    """A property that was trained for: how many images it speaks of, its radius (pixel space), and its verdicts.

    Verdicts are before and after training; unsat: it holds.
    """

    file: Path
    images: int
    eps: float
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, repr=False)
class HardenReport(JsonRecord, Tabular):
    """The result of `harden`: where the new file is, how training went, and the figures before and after.

    `eps` is in pixel space; `arithmetic` is what is certified, as in Certificate; `spec` has an entry for each property
    that was trained for.
    """

    model: Path
    out: Path
    method: str
    eps: float
    epochs: int
    seconds: float
    best_epoch: int
    data: str
    group_size: int
    inputs: int
    before: Figures
    after: Figures
    spec: Sequence[SpecVerdict] = ()
    recipe: Recipe | Mapping[str, Any] = about(read=read_recipe)
    history: Sequence[Mapping[str, Any]] = about(read=read_history)
    arithmetic: str = about(default_factory=lambda: "real")
    version: str = __version__

    def table(self) -> Table:
        """Before and after, in percent."""
        about = f"{self.method} at eps {self.eps:g}, groups of {self.group_size}, {self.inputs} inputs"
        rows = figure_rows(self.before, self.after)
        return Table(title=about, columns=[f"accuracy in % ({self.arithmetic})", "before", "after"], rows=rows)
