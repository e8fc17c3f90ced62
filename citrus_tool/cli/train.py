"""`citrus harden` and `citrus train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from citrus_tool.choices import Device, Init, Tracker, TrainOn
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.cli import options, terminal
from citrus_tool.context import RunContext
from citrus_tool.errors import UsageError

if TYPE_CHECKING:
    from citrus_tool.choices.settings import CertifySettings
    from citrus_tool.results.harden import HardenReport, SpecVerdict
    from citrus_tool.sources import DataChoice, ModelChoice


@click.command()
@options.model_argument
@options.data_options
@options.normalisation_options
@click.option(
    "--eps", type=options.Eps(), help="Radius in pixel space [0, 1], e.g. 0.1 or 2/255 [default with --spec: its own]."
)
@click.option(
    "--spec",
    "specs",
    type=options.PATH,
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
@options.settings(CertifySettings, "group_size", "limit", "bounds", "solver", "time_limit", limit=1000)
@click.option(
    "--out", type=options.PATH, metavar="H.onnx", help="The hardened file [default: RUN_DIR/MODEL_METHOD.onnx]."
)
@options.run_dir_options("runs/MODEL_METHOD")
@options.run_options
@options.tracker_option
@options.report_option
@options.output_options
@click.pass_context
@options.gathered
def harden(
    ctx: click.Context,
    source: ModelChoice,
    choice: DataChoice,
    certify: CertifySettings,
    eps: float | None,
    specs: tuple[Path, ...],
    spec_timeout: float,
    method: str,
    recipe: str | None,
    epochs: int | None,
    init: Init,
    batch_norm: bool,
    out: Path | None,
    run_dir: Path | None,
    resume: bool,
    device: Device,
    tracker: Tracker | None,
    report_path: Path | None,
    json_path: Path | None,
    quiet: bool,
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
    terminal.require_output(json_path, report_path)
    from citrus_tool.training.tracking import tracking
    from citrus_tool.workflow.harden import harden_file, read_spec
    from citrus_tool.workflow.recipe_choice import choose_recipe

    target = read_spec(source, choice, specs, seconds=spec_timeout) if specs else None
    if target is not None:
        eps = target.eps if eps is None else eps
    if eps is None:
        raise UsageError("harden needs a radius to train for; add --eps, e.g. --eps 0.1, or --spec F.vnnlib.")
    defaults = {"method": method, "init": init, "group_size": certify.group_size, "seed": choice.seed}
    numbers = ("tau_ratio", "pgd_steps", "same_input", "lr", "l1", "groups_per_batch", "train_on")
    chosen = choose_recipe(
        choice.name,
        name=recipe,
        eps=eps,
        epochs=epochs,
        changes=options.given(ctx, *defaults, *numbers),
        defaults=defaults,
    )
    stem = f"{source.path.stem}_{chosen.method}"
    run_dir = run_dir or Path("runs") / stem
    settings = options.effective(ctx)
    with tracking(tracker, run_dir, name=run_dir.name, settings=settings) as on_epoch:
        report = harden_file(
            source,
            choice,
            chosen,
            RunContext(
                device=device,
                run_dir=run_dir,
                resume=resume,
                progress=terminal.progress(quiet),
                effective=settings,
            ),
            out=out or run_dir / f"{stem}.onnx",
            certify=certify,
            target=target,
            batch_norm=batch_norm,
            on_epoch=on_epoch,
        )
    show_harden(report, json_path)
    terminal.write_report(report_path, run_dir)


def show_harden(report: HardenReport, json_path: Path | None) -> None:
    """Prints the before/after table of a hardening run (and writes --json)."""
    shown = report.table()
    terminal.show(report.to_json(), json_path, shown.columns, shown.rows)
    if not terminal.is_stdout(json_path):
        click.echo(
            f"\neps {report.recipe.eps:g}, groups of {report.group_size}, {report.inputs} test inputs;"
            f" trained {report.recipe.epochs} epochs in {terminal.clock(report.seconds)}; written to {report.out}"
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
@click.option("--eps", type=options.Eps(), default=None, help="Radius for a certified method, in pixel space.")
@options.recipe_options
@options.changes("train_on")
@click.option("--out", type=options.PATH, metavar="M.onnx", help="The ONNX file [default: RUN_DIR/ARCHITECTURE.onnx].")
@options.run_dir_options("runs/DATA_ARCHITECTURE_METHOD")
@options.run_options
@options.output_options
@click.pass_context
def train(
    ctx: click.Context,
    architecture: str,
    data_name: str,
    data_root: Path | None,
    method: str,
    eps: float | None,
    recipe: str | None,
    epochs: int | None,
    lr: float | None,
    l1: float | None,
    groups_per_batch: int | None,
    train_on: TrainOn,
    out: Path | None,
    run_dir: Path | None,
    resume: bool,
    device: Device,
    threads: int | None,
    seed: int,
    json_path: Path | None,
    quiet: bool,
    config: Path | None,
) -> None:
    """Trains a named architecture (mlp, convtiny, convsmall, cnn7, resnet) from scratch and exports it as ONNX.

    \b
    Example:
      citrus train convtiny --data digits --out digits.onnx
    """
    terminal.require_output(json_path)
    from citrus_tool.sources import DataChoice
    from citrus_tool.workflow.recipe_choice import choose_recipe
    from citrus_tool.workflow.train import train_file

    options.use_threads(threads)
    standard = method == "standard"
    name = recipe or ("standard" if standard else None)
    chosen = choose_recipe(
        data_name,
        name=name,
        eps=eps or 0.0,
        epochs=epochs,
        changes=options.given(ctx, "method", "lr", "l1", "groups_per_batch", "train_on", "seed"),
        defaults={"method": method, "init": "keep" if standard else "shi", "seed": seed},
    )
    if chosen.method != "standard" and eps is None:
        raise UsageError(f"method {chosen.method} needs a radius to train for; add --eps, e.g. --eps 0.1.")
    run_dir = run_dir or Path("runs") / f"{Path(data_name).stem}_{architecture}_{chosen.method}"
    report = train_file(
        architecture,
        DataChoice(name=data_name, root=data_root, seed=seed),
        chosen,
        RunContext(
            device=device,
            run_dir=run_dir,
            resume=resume,
            progress=terminal.progress(quiet),
            effective=options.effective(ctx),
        ),
        out=out or run_dir / f"{architecture}.onnx",
    )
    row = [
        architecture,
        terminal.percent(report.standard_accuracy),
        str(report.best_epoch),
        terminal.clock(report.seconds),
    ]
    terminal.show(
        report.to_json(),
        json_path,
        ["network", "standard accuracy in %", "best epoch", "time", "file"],
        [[*row, str(report.out)]],
    )
