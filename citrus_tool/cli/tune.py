"""`citrus tune`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from citrus_tool.choices.settings import TuneSettings
from citrus_tool.choices.space import dimension
from citrus_tool.cli import options, parameters, terminal
from citrus_tool.cli.gathered import Outputs, RecipeChoice, gathered
from citrus_tool.context import RunContext
from citrus_tool.errors import UsageError
from citrus_tool.sources import DataChoice, ModelChoice

if TYPE_CHECKING:
    from citrus_tool.results.tuning import TuneReport


@click.command()
@click.argument("model", type=parameters.PATH, required=False)
@click.option("--architecture", metavar="NAME", help="Tune for this architecture from scratch, in place of a file.")
@options.data_options
@options.normalisation_options
@options.eps_option
@options.method_option("citrus")
@options.recipe_options
@click.option(
    "--search",
    multiple=True,
    metavar="FIELD=LOW:HIGH[:log]|A,B",
    help="Search only this field and other --search ones [default: the numbers that the method is sensitive to].",
)
@options.settings(TuneSettings, "trials", "inputs", "bounds", "group_size", "arithmetic", "weight", "prune")
@click.option("--storage", type=parameters.PATH, metavar="FILE", help="The study [default: RUN_DIR/study.db].")
@click.option(
    "--plot", type=parameters.PATH, metavar="FILE.svg", help="Draw the front, as SVG or PNG; needs matplotlib."
)
@options.run_dir_options("runs/DATA_NAME_METHOD_tune")
@options.run_options
@options.output_options
@gathered
def tune(
    source: ModelChoice | None,
    architecture: str | None,
    choice: DataChoice,
    eps: float,
    recipe: RecipeChoice,
    search: tuple[str, ...],
    tuning: TuneSettings,
    storage: Path | None,
    context: RunContext,
    outputs: Outputs,
) -> None:
    """Searches training recipes by standard and certified accuracy on the validation split; the test split is not read.

    \b
    Prints the recipes that no other one beats in both figures and writes each of them, and the best one by --weight
    as RUN_DIR/best.toml, for `citrus harden --recipe`. --limit counts validation inputs that are certified.

    \b
    Example:
      citrus tune M.onnx --data mnist --eps 0.1 --trials 30 --plot front.svg
      citrus harden M.onnx --data mnist --eps 0.1 --recipe runs/mnist_M_citrus_tune/best.toml
    """
    if (source is None) == (architecture is None):
        raise UsageError("tune takes one network: a file M.onnx, or --architecture NAME.")
    space = dict(map(dimension, search)) or None
    chosen = recipe.at(eps, choice.name, init="keep" if source else "shi")
    name = source.path.stem if source else architecture
    run_dir = context.run_dir or Path("runs") / f"{Path(choice.name).stem}_{name}_{chosen.method}_tune"
    from citrus_tool.workflow.tune.tune import tune_file

    report = tune_file(
        source or architecture or "",
        choice,
        chosen,
        tuning,
        replace(context, run_dir=run_dir),
        space=space,
        storage=storage,
        plot=outputs.plot,
    )
    show(report, outputs)


def show(report: TuneReport, outputs: Outputs) -> None:
    """Prints the front, one recipe a row, the chosen one marked (and writes --json)."""
    by_number = {trial.number: trial for trial in report.trials}
    header = ["", "trial", "standard %", "certified %", "epoch", *report.space]
    rows = []
    for number in report.front:
        trial = by_number[number]
        figures = [terminal.percent(value) for value in trial.figures()]
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in map(trial.parameters.get, report.space)]
        rows.append(["*" if number == report.best else "", str(number), *figures, str(trial.best_epoch), *values])
    terminal.show(report.to_json(), outputs.json, header, rows)
    if not outputs.on_stdout:
        count = {state: sum(t.state == state for t in report.trials) for state in ("complete", "pruned", "failed")}
        click.echo(
            f"\n{count['complete']} trials completed, {count['pruned']} given up, {count['failed']} failed;"
            f" validation split, {report.settings.inputs} inputs certified; * is written to {report.file}"
        )
