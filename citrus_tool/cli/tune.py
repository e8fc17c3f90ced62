"""`citrus tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from citrus_tool.choices import Device, QuickBounds
from citrus_tool.choices.settings import TuneSettings
from citrus_tool.cli import options, terminal
from citrus_tool.context import RunContext
from citrus_tool.errors import UsageError

if TYPE_CHECKING:
    from citrus_tool.workflow.tune import TuneReport


@click.command()
@click.argument("model", type=options.PATH, required=False)
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
@options.settings(TuneSettings, "trials", "inputs", "bounds", "group_size", "weight", "prune")
@click.option("--storage", type=options.PATH, metavar="FILE", help="The study [default: RUN_DIR/study.db].")
@click.option("--plot", type=options.PATH, metavar="FILE.svg", help="Draw the front, as SVG or PNG; needs matplotlib.")
@options.run_dir_options("runs/DATA_NAME_METHOD_tune")
@options.run_options
@options.output_options
@click.pass_context
def tune(
    ctx: click.Context,
    model: Path | None,
    architecture: str | None,
    data_name: str,
    data_root: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    eps: float,
    method: str,
    recipe: str | None,
    epochs: int | None,
    lr: float | None,
    l1: float | None,
    groups_per_batch: int | None,
    search: tuple[str, ...],
    trials: int,
    limit: int,
    bounds: QuickBounds,
    group_size: int,
    weight: float,
    prune: bool,
    storage: Path | None,
    plot: Path | None,
    run_dir: Path | None,
    resume: bool,
    device: Device,
    threads: int | None,
    seed: int,
    json_path: Path | None,
    quiet: bool,
    config: Path | None,
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
    terminal.require_output(json_path)
    if (model is None) == (architecture is None):
        raise UsageError("tune takes one network: a file M.onnx, or --architecture NAME.")
    from citrus_tool.sources import DataChoice, ModelChoice
    from citrus_tool.workflow import tune as library
    from citrus_tool.workflow.recipe_choice import choose_recipe

    options.use_threads(threads)
    defaults = {"method": method, "init": "keep" if model else "shi", "group_size": group_size, "seed": seed}
    chosen = choose_recipe(
        data_name,
        name=recipe,
        eps=eps,
        epochs=epochs,
        defaults=defaults,
        changes=options.given(ctx, "method", "group_size", "seed", "lr", "l1", "groups_per_batch"),
    )
    name = model.stem if model else architecture
    report = library.tune_file(
        ModelChoice(path=model, mean=mean, std=std) if model else architecture or "",
        DataChoice(name=data_name, root=data_root, seed=seed),
        chosen,
        TuneSettings(
            trials=trials, inputs=limit, bounds=bounds, group_size=group_size, weight=weight, prune=prune, seed=seed
        ),
        RunContext(
            device=device,
            run_dir=run_dir or Path("runs") / f"{Path(data_name).stem}_{name}_{chosen.method}_tune",
            resume=resume,
            progress=terminal.progress(quiet),
            effective=options.effective(ctx),
        ),
        space=dict(map(library.dimension, search)) or None,
        storage=storage,
        plot=plot,
    )
    show(report, json_path)


def show(report: TuneReport, json_path: Path | None) -> None:
    """Prints the front, one recipe a row, the chosen one marked (and writes --json)."""
    by_number = {trial.number: trial for trial in report.trials}
    header = ["", "trial", "standard %", "certified %", "epoch", *report.space]
    rows = []
    for number in report.front:
        trial = by_number[number]
        figures = [terminal.percent(value) for value in trial.figures()]
        values = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in map(trial.parameters.get, report.space)]
        rows.append(["*" if number == report.best else "", str(number), *figures, str(trial.best_epoch), *values])
    terminal.show(report.to_json(), json_path, header, rows)
    if not terminal.is_stdout(json_path):
        count = {state: sum(t.state == state for t in report.trials) for state in ("complete", "pruned", "failed")}
        click.echo(
            f"\n{count['complete']} trials completed, {count['pruned']} given up, {count['failed']} failed;"
            f" validation split, {report.settings.inputs} inputs certified; * is written to {report.file}"
        )
