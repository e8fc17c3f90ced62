"""`citrus bench`: the paper's tables, trained and certified, from one journal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from citrus_tool.choices import BENCH_SCALES, BenchScale
from citrus_tool.cli import options, parameters, terminal
from citrus_tool.cli.gathered import ContestChoice, Outputs, gathered
from citrus_tool.context import RunContext
from citrus_tool.errors import UsageError
from citrus_tool.threat import parse_eps

if TYPE_CHECKING:
    from citrus_tool.bench.contests import Contest

_JOURNAL = Path("results") / "journal.jsonl"

_PLOTTED = ("fig4", "fig5")

_journal_option = click.option(
    "--journal",
    type=parameters.PATH,
    default=_JOURNAL,
    show_default=True,
    metavar="FILE",
    help="Where finished runs stand; what stands there is not done again.",
)


@click.group()
def bench() -> None:
    """Trains, certifies and prints the paper's tables.

    \b
    Example:
      citrus bench table1 --data mnist --eps 0.1
    """


def _table(name: str, about: str) -> click.Command:
    plotting = (
        [
            click.option(
                "--plot",
                type=parameters.PATH,
                metavar="FILE.svg",
                help="Draw the figure, as SVG or PNG; needs matplotlib.",
            )
        ]
        if name in _PLOTTED
        else []
    )

    @options.stacked(
        click.option(
            "--scale",
            type=parameters.Choice(BENCH_SCALES),
            default="cpu",
            show_default=True,
            help="cpu: ConvSmall, short recipes, 1000 test inputs; gpu: CNN7, the published recipes, all;"
            " smoke: three epochs on digits.",
        ),
        click.option("--data", "data_name", metavar="NAME", help="Only contests on this data set."),
        click.option("--eps", metavar="EPS", help="Only contests at this radius, as in 0.1 or 2/255."),
        click.option("--methods", metavar="A,B", help="Only these methods [default: the table's]."),
        click.option("--seeds", type=click.IntRange(min=1), help="At most this many seeds of a method."),
        click.option(
            "--models", type=parameters.PATH, metavar="DIR", help="Also judge the published networks in this folder."
        ),
        click.option("--list", "only_list", is_flag=True, help="Print the table as the journal has it; run nothing."),
        _journal_option,
        click.option(
            "--runs",
            type=parameters.PATH,
            default=Path("runs") / "bench",
            show_default=True,
            metavar="DIR",
            help="Checkpoints and certificates of the runs.",
        ),
        options.data_root_option(),
        options.device_option,
        options.threads_option(),
        *plotting,
        options.quiet_option(),
    )
    @gathered
    def command(
        scale: BenchScale,
        contest: ContestChoice,
        models: Path | None,
        only_list: bool,
        journal: Path,
        runs: Path,
        data_root: Path | None,
        context: RunContext,
        outputs: Outputs,
    ) -> None:
        from citrus_tool import plots
        from citrus_tool.bench import contests, page
        from citrus_tool.bench.plots import PLOTS
        from citrus_tool.bench.run import Bench
        from citrus_tool.devices import resolved
        from citrus_tool.results.measurements import read, read_boxes

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
                    journal=journal,
                    runs=runs,
                    data_root=data_root,
                    context=context,
                    certifier=contests.certifier(name, scale, one),
                )
                base = f"citrus bench {name} --scale {scale} --data {one.data} --eps {one.eps}"
                for published in one.published if models is not None else ():
                    bench.run_published(one, published, models or Path(), f"{base} --models DIR")
                do = bench.measure_boxes if contests.TABLES[name].layout == "boxes" else bench.run
                for job in contests.jobs(name, one):
                    if job.method in wanted and job.seed < (contest.seeds or job.seed + 1):
                        do(job, f"{base} --methods {job.method} --seeds {job.seed + 1}")
        entries, losses = read(journal), read_boxes(journal)
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

    command.__doc__ = f"""{about}

    Finished runs stand in the journal and are never done again; a run that was stopped goes on where it stood.

    \b
    Example:
      citrus bench {name}
    """
    return click.command(name)(command)


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


for _name, _about in (
    ("table1", "Certified training methods on MNIST and CIFAR-10."),
    ("table2", "Adversarial training against universal perturbations, beside CITRUS."),
    ("table3", "CITRUS with and without boxes around an input's own perturbation."),
    ("table4", "Training time of CITRUS, and of SABR beside it."),
    ("fig4", "Losses of same-input and cross-input boxes at the end of a CITRUS run."),
    ("fig5", "CITRUS for several box sizes and group sizes."),
    ("published", "CITRUS and citrus-plus, 45 minutes each, beside the paper group's own networks."),
):
    bench.add_command(_table(_name, _about))


@bench.command()
@_journal_option
@click.option("--out", type=parameters.PATH, metavar="FILE.md", required=True, help="The page to write.")
@click.option(
    "--plots/--no-plots",
    "with_plots",
    default=True,
    show_default=True,
    help="Draw Figs. 4 and 5 to images/ beside the page; needs matplotlib.",
)
def results(journal: Path, out: Path, with_plots: bool) -> None:
    """Writes the page of results from the journal, and the plots of what was run.

    \b
    Example:
      citrus bench results --out docs/results.md
    """
    from citrus_tool.bench.page import page
    from citrus_tool.bench.plots import draw
    from citrus_tool.files import require_writable_file, write_text
    from citrus_tool.results.measurements import read, read_boxes

    require_writable_file(out)
    entries, losses = read(journal), read_boxes(journal)
    drawn = draw(out.parent / "images", entries, losses) if with_plots else {}
    links = {name: path.relative_to(out.parent).as_posix() for name, path in drawn.items()}
    write_text(out, page(entries, losses, links))
