"""`citrus harden` and `citrus train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from citrus_tool.choices.settings import CertifySettings
from citrus_tool.cli import options, parameters, terminal
from citrus_tool.cli.gathered import Outputs, RecipeChoice, SpecChoice, gathered
from citrus_tool.context import RunContext
from citrus_tool.errors import UsageError
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.tables import clock

if TYPE_CHECKING:
    from citrus_tool.results.harden import HardenReport, SpecVerdict


@click.command()
@options.model_argument
@options.data_options
@options.normalisation_options
@click.option(
    "--eps",
    type=parameters.Eps(),
    help="Radius in pixel space [0, 1], e.g. 0.1 or 2/255 [default with --spec: its own].",
)
@click.option(
    "--spec",
    "specs",
    type=parameters.PATH,
    multiple=True,
    metavar="F.vnnlib",
    help="Local robustness to train for: a VNN-LIB file, a folder of such or an instances.csv; repeatable.",
)
@click.option(
    "--spec-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="For the verdict on one property, before and after.",
)
@options.method_option("citrus")
@options.recipe_options
@options.changes("train_on", "init", "tau_ratio", "pgd_steps", "same_input")
@click.option(
    "--batch-norm", is_flag=True, help="Train with batch norm, put in as the identity; the file's graph stays as it is."
)
@options.settings(CertifySettings, "group_size", "limit", "bounds", "arithmetic", "solver", "time_limit", limit=1000)
@click.option(
    "--out", type=parameters.PATH, metavar="H.onnx", help="The hardened file [default: RUN_DIR/MODEL_METHOD.onnx]."
)
@options.run_dir_options("runs/MODEL_METHOD")
@options.run_options
@options.tracker_option
@options.report_option
@options.output_options
@gathered
def harden(
    source: ModelChoice,
    choice: DataChoice,
    certify: CertifySettings,
    eps: float | None,
    spec: SpecChoice,
    recipe: RecipeChoice,
    batch_norm: bool,
    out: Path | None,
    context: RunContext,
    outputs: Outputs,
) -> None:
    """Trains a network against universal perturbations and writes it back as the same ONNX file with new weights.

    \b
    Prints the figures before and after: standard accuracy on the whole test split, the others on its
    first --limit inputs. The best epoch is chosen on a validation split, never on the test split
    (--train-on all: the last one is kept).

    \b
    With --spec the images of VNN-LIB properties join the training data, --eps is their radius unless given, and
    the properties are verified before and after.

    \b
    Example:
      citrus harden M.onnx --data mnist --eps 0.1 --out H.onnx
      citrus harden M.onnx --data mnist --spec prop.vnnlib --out H.onnx
    """
    if eps is None and not spec.specs:
        raise UsageError("harden needs a radius to train for; add --eps, e.g. --eps 0.1, or --spec F.vnnlib.")
    target = None
    if spec.specs:
        from citrus_tool.workflow.harden import read_spec

        target = read_spec(source, choice, spec.specs, seconds=spec.spec_timeout)
        eps = target.eps if eps is None else eps
    chosen = recipe.at(eps or 0.0, choice.name)
    stem = f"{source.path.stem}_{chosen.method}"
    run_dir = context.run_dir or Path("runs") / stem
    from citrus_tool.training.tracking import tracking
    from citrus_tool.workflow.harden import harden_file

    with tracking(outputs.tracker, run_dir, name=run_dir.name, settings=context.effective or {}) as on_epoch:
        report = harden_file(
            source,
            choice,
            chosen,
            replace(context, run_dir=run_dir),
            out=out or run_dir / f"{stem}.onnx",
            certify=certify,
            target=target,
            batch_norm=batch_norm,
            on_epoch=on_epoch,
        )
    show_harden(report, outputs)
    terminal.write_report(outputs.report, run_dir)


def show_harden(report: HardenReport, outputs: Outputs) -> None:
    """Prints the before/after table of a hardening run (and writes --json)."""
    shown = report.table()
    terminal.show(report.to_json(), outputs.json, shown.columns, shown.rows)
    if not outputs.on_stdout:
        click.echo(
            f"\neps {report.eps:g}, groups of {report.group_size}, {report.inputs} test inputs;"
            f" trained {report.epochs} epochs in {clock(report.seconds)}; written to {report.out}"
        )
        show_spec(report.spec)


def show_spec(spec: Sequence[SpecVerdict]) -> None:
    """Prints the verdicts on the properties that were trained for, before and after."""
    if not spec:
        return
    click.echo("")
    pairs = [(entry.before, entry.after) for entry in spec]
    rows = [[p.file.name, str(p.images), f"{p.eps:g}", p.before, p.after] for p in spec]
    terminal.table(["property", "images", "eps", "before", "after"], rows)
    before, after = (sum(verdict == "unsat" for verdict in column) for column in zip(*pairs, strict=True))
    click.echo(f"\n{before} of {len(spec)} properties hold (unsat) before, {after} after; they were trained for.")


@click.command()
@click.argument("architecture")
@options.data_options
@options.method_option("standard")
@click.option("--eps", type=parameters.Eps(), default=None, help="Radius for a certified method, in pixel space.")
@options.recipe_options
@options.changes("train_on")
@click.option(
    "--out", type=parameters.PATH, metavar="M.onnx", help="The ONNX file [default: RUN_DIR/ARCHITECTURE.onnx]."
)
@options.run_dir_options("runs/DATA_ARCHITECTURE_METHOD")
@options.run_options
@options.output_options
@gathered
def train(
    architecture: str,
    choice: DataChoice,
    eps: float | None,
    recipe: RecipeChoice,
    out: Path | None,
    context: RunContext,
    outputs: Outputs,
) -> None:
    """Trains a named architecture (mlp, convtiny, convsmall, cnn7, resnet) from scratch and exports it as ONNX.

    \b
    Example:
      citrus train convtiny --data digits --out digits.onnx
    """
    standard = recipe.defaults["method"] == "standard"
    recipe = replace(recipe, name=recipe.name or ("standard" if standard else None))
    chosen = recipe.at(eps or 0.0, choice.name, init="keep" if standard else "shi")
    if chosen.method != "standard" and eps is None:
        raise UsageError(f"method {chosen.method} needs a radius to train for; add --eps, e.g. --eps 0.1.")
    run_dir = context.run_dir or Path("runs") / f"{Path(choice.name).stem}_{architecture}_{chosen.method}"
    context = replace(context, run_dir=run_dir)
    from citrus_tool.workflow.train import train_file

    report = train_file(architecture, choice, chosen, context, out=out or run_dir / f"{architecture}.onnx")
    row = [
        architecture,
        terminal.percent(report.standard_accuracy),
        str(report.best_epoch),
        clock(report.seconds),
    ]
    terminal.show(
        report.to_json(),
        outputs.json,
        ["network", "standard accuracy in %", "best epoch", "time", "file"],
        [[*row, str(report.out)]],
    )
