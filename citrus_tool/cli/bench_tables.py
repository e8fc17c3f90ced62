"""What `citrus bench` does: the runs of a table that the journal lacks, the table itself, and the page of all."""

from __future__ import annotations

from pathlib import Path

import click

from citrus_tool import plots
from citrus_tool.bench import contests, page
from citrus_tool.bench.contests import Contest
from citrus_tool.bench.plots import PLOTS, draw
from citrus_tool.bench.run import Bench
from citrus_tool.choices import BenchScale
from citrus_tool.cli import terminal
from citrus_tool.cli.gathered import ContestChoice, Outputs, Places
from citrus_tool.context import RunContext
from citrus_tool.devices import resolved
from citrus_tool.errors import UsageError
from citrus_tool.files import require_writable_file, write_text
from citrus_tool.results.measurements import read, read_boxes
from citrus_tool.threat import parse_eps


def show_table(
    name: str,
    scale: BenchScale,
    contest: ContestChoice,
    places: Places,
    context: RunContext,
    outputs: Outputs,
    *,
    only_list: bool,
) -> None:
    """Does the runs of table `name`, unless `only_list`, and prints it as the journal has it.

    Raises UsageError where there is nothing of what is asked for.
    """
    if outputs.plot is not None:
        plots.require(outputs.plot)
    about = tuple(one for one in contests.SCALES[scale].contests if contests.jobs(name, one))
    if not about:
        raise UsageError(f"{name} has no contest at scale {scale}; choose another --scale.")
    chosen = _chosen(about, contest.data_name, contest.eps)
    wanted = _methods(contests.TABLES[name].methods, contest.methods)
    context = resolved(context)
    if not only_list:
        for one in chosen:
            bench = Bench(
                journal=places.journal,
                runs=places.runs,
                data_root=places.data_root,
                context=context,
                certifier=contests.certifier(name, scale, one),
            )
            base = f"citrus bench {name} --scale {scale} --data {one.data} --eps {one.eps}"
            for published in one.published if places.models is not None else ():
                bench.run_published(one, published, places.models or Path(), f"{base} --models DIR")
            do = bench.measure_boxes if contests.TABLES[name].layout == "boxes" else bench.run
            for job in contests.jobs(name, one):
                if job.method in wanted and job.seed < (contest.seeds or job.seed + 1):
                    do(job, f"{base} --methods {job.method} --seeds {job.seed + 1}")
    entries, losses = read(places.journal), read_boxes(places.journal)
    for section in page.sections(name, scale, chosen, entries, losses):
        setting = f"{section.contest.data}, eps {section.contest.eps}, {section.contest.architecture}"
        click.echo("minutes of training" if section.header is page.TIME_HEADER else setting)
        terminal.table(section.header, section.rows)
    if outputs.plot is not None:
        figure = PLOTS[name](entries, losses)
        if figure is None:
            raise UsageError(
                f"{outputs.plot}: nothing of {name} is measured at scale cpu yet; leave out --list, or --plot."
            )
        plots.save(figure, outputs.plot)


def write_page(journal: Path, out: Path, *, with_plots: bool) -> None:
    """Writes the page of results from the journal, and the plots beside it."""
    require_writable_file(out)
    entries, losses = read(journal), read_boxes(journal)
    drawn = draw(out.parent / "images", entries, losses) if with_plots else {}
    links = {name: path.relative_to(out.parent).as_posix() for name, path in drawn.items()}
    write_text(out, page.page(entries, losses, links))


def _chosen(contests: tuple[Contest, ...], data_name: str | None, eps: str | None) -> list[Contest]:
    found = [
        contest
        for contest in contests
        if data_name in (None, contest.data) and (eps is None or parse_eps(eps) == parse_eps(contest.eps))
    ]
    if not found:
        known = ", ".join(f"{contest.data} at {contest.eps}" for contest in contests)
        raise UsageError(f"no contest is on {data_name or 'any data'} at {eps or 'any eps'}; contests are {known}.")
    return found


def _methods(known: tuple[str, ...], text: str | None) -> tuple[str, ...]:
    if text is None:
        return known
    names = tuple(text.split(","))
    for name in names:
        if name not in known:
            raise UsageError(f"{name!r} is no method of this table; its methods are {', '.join(known)}.")
    return names
