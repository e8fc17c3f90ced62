"""Bars and tables on a terminal, drawn by rich."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.table import Table as RichTable

from citrus_tool.progress import Progress
from citrus_tool.tables import Table, clock


class Bars(Progress):
    """A live bar on stderr with amount, rate, time left and the latest note."""

    def __init__(self) -> None:
        self._bars: RichProgress | None = None
        self._task: Any = None

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.finish()
        self._bars = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn(f"{unit}{{task.fields[rate]}}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bars.add_task(stage, total=total, note="", rate="", left="")
        self._bars.start()

    def advance(self, amount: int = 1, note: str = "") -> None:
        if self._bars is None:
            return
        task = self._bars.tasks[0]
        speed = f", {task.speed:.3g}/s" if task.speed else ""
        left = f"{clock(task.time_remaining)} left" if task.time_remaining else ""
        self._bars.update(self._task, advance=amount, rate=speed, left=left, note=note or task.fields["note"])

    def finish(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = None


def draw(table: Table) -> None:
    """A table on a terminal. Numbers are set flush right."""
    drawn = RichTable(box=box.SIMPLE_HEAD, header_style="bold")
    for column, right in zip(table.columns, table.numeric, strict=True):
        drawn.add_column(column, justify="right" if right else "left", overflow="fold", style=_style(column))
    for row in table.rows:
        drawn.add_row(*row, style=_style("failed" if "failed" in row else row[0]))
    Console(markup=False, highlight=False).print(drawn)


COLOURS: Mapping[str, str] = {"certified UAP": "green", "attacked UAP": "yellow", "failed": "red"}
"""The colour of a column, or row, with this heading."""


def _style(heading: str) -> str:
    return COLOURS.get(heading, "none")
