"""The paper's Figs. 4 and 5 from the journal, at scale cpu. A figure shows the runs that there are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from citrus_tool import plots
from citrus_tool.bench.claims import mean
from citrus_tool.bench.contests import FIG5, SCALES, TABLES, Contest, Job
from citrus_tool.results.measurements import BoxLosses, Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def fig4(entries: Sequence[Entry], losses: Sequence[BoxLosses]) -> Figure | None:
    """Bars of the box losses: same input, sum and largest of the cross-input ones; None when they are not measured."""
    (contest,) = (contest for contest in SCALES["cpu"].contests if contest.name in TABLES["fig4"].contests)
    digest = Job(contest=contest, method="citrus", seed=0).digest
    mine = [each for each in losses if (each.contest, each.method, each.recipe) == (contest.name, "citrus", digest)]
    if not mine:
        return None
    figure = plots.new(5.0, 3.5)
    axes = figure.subplots()
    heights = [statistics.mean(getattr(each, field) for each in mine) for field in ("own", "total", "largest")]
    bars = axes.bar(["same input", "sum of cross-input", "largest cross-input"], heights, width=0.6)
    axes.bar_label(bars, fmt="%.2f")
    axes.margins(x=0.1, y=0.12)
    axes.set_ylabel("mean box loss, last epoch")
    axes.set_title(f"{contest.data}, eps {contest.eps}, {contest.architecture}, citrus")
    return figure


def fig5(entries: Sequence[Entry], losses: Sequence[BoxLosses]) -> Figure | None:
    """Standard and certified UAP accuracy over tau / eps, and over the group's size; None until each has two."""
    middle = next(contest for contest in FIG5 if contest.name == "fig5-tau-0.7")
    ratios = [contest for contest in FIG5 if contest.recipe.group_size == middle.recipe.group_size]
    sizes = [contest for contest in FIG5 if contest.recipe.tau_ratio == middle.recipe.tau_ratio]
    done = [contest for contest in FIG5 if mean(entries, (contest.name, "citrus"), "standard") is not None]
    if min(sum(contest in sweep for contest in done) for sweep in (ratios, sizes)) < 2:
        return None
    figure = plots.new(9.0, 3.5)
    left, right = figure.subplots(1, 2, sharey=True)
    _line(left, entries, ratios, lambda contest: contest.recipe.tau_ratio)
    _line(right, entries, sizes, lambda contest: contest.recipe.group_size)
    left.set_xlabel(f"tau / eps (groups of {middle.recipe.group_size})")
    right.set_xlabel(f"group size (tau / eps {middle.recipe.tau_ratio:g})")
    left.set_ylabel("accuracy (%)")
    left.legend()
    figure.suptitle(f"citrus, {middle.data}, eps {middle.eps}, {middle.architecture}, {middle.recipe.epochs} epochs")
    return figure


def _line(axes: Axes, entries: Sequence[Entry], contests: Sequence[Contest], place: Callable[[Contest], float]) -> None:
    for field, label in (("standard", "standard"), ("certified", "certified UAP")):
        found = [(place(contest), mean(entries, (contest.name, "citrus"), field)) for contest in contests]
        points = sorted((x, y) for x, y in found if y is not None)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label)


PLOTS: Mapping[str, Callable[[Sequence[Entry], Sequence[BoxLosses]], Figure | None]] = {"fig4": fig4, "fig5": fig5}
"""The plots by table."""


def draw(folder: Path, entries: Sequence[Entry], losses: Sequence[BoxLosses]) -> dict[str, Path]:
    """Writes every plot that has runs as `folder`/TABLE.svg; the files by table. Raises as `plots.save`."""
    written: dict[str, Path] = {}
    for name, plot in PLOTS.items():
        figure = plot(entries, losses)
        if figure is not None:
            written[name] = folder / f"{name}.svg"
            folder.mkdir(parents=True, exist_ok=True)
            plots.save(figure, written[name])
    return written
