"""`citrus bench`: the paper's tables, trained and certified, from one journal."""

from __future__ import annotations

from pathlib import Path

import click

from citrus_tool.choices import BENCH_SCALES, BenchScale
from citrus_tool.cli import options, parameters
from citrus_tool.cli.gathered import ContestChoice, Outputs, Places, gathered
from citrus_tool.context import RunContext
from citrus_tool.threat import parse_eps

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
        places: Places,
        only_list: bool,
        context: RunContext,
        outputs: Outputs,
    ) -> None:
        if contest.eps is not None:
            parse_eps(contest.eps)
        from citrus_tool.cli.bench_tables import show_table

        show_table(name, scale, contest, places, context, outputs, only_list=only_list)

    command.__doc__ = f"""{about}

    Finished runs stand in the journal and are never done again; a run that was stopped goes on where it stood.

    \b
    Example:
      citrus bench {name}
    """
    return click.command(name)(command)


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
    from citrus_tool.cli.bench_tables import write_page

    write_page(journal, out, with_plots=with_plots)
