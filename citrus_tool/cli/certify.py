"""`citrus certify-uap`, `citrus attack-uap` and `citrus evaluate`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from citrus_tool.checker.expected import Expected
from citrus_tool.checker.proof_format import cut, escaped
from citrus_tool.choices import ARITHMETICS, Split
from citrus_tool.choices.settings import AttackSettings, CertifySettings
from citrus_tool.cli import options, parameters, terminal
from citrus_tool.cli.gathered import Outputs, gathered
from citrus_tool.context import RunContext
from citrus_tool.errors import AccuracyWarning, UsageError
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.threat import Threat


@click.command("certify-uap")
@options.model_argument
@options.certification_options
@options.part_options
@click.option(
    "--certificate",
    type=parameters.PATH,
    metavar="FILE",
    help="With --bounds full: write the proof, for `citrus check`.",
)
@options.run_dir_options("runs/MODEL_certify")
@options.run_options
@options.table_options
@options.report_option
@options.output_options
@gathered
def certify_uap(
    source: ModelChoice,
    choice: DataChoice,
    threats: Sequence[Threat],
    certify: CertifySettings,
    split: Split,
    part: tuple[int, int] | None,
    join: tuple[Path, ...],
    certificate: Path | None,
    context: RunContext,
    outputs: Outputs,
) -> None:
    """Proves how many inputs stay correctly classified under any single perturbation of their group.

    \b
    Example:
      citrus certify-uap M.onnx --data mnist --eps 0.1 --limit 1000 --json certificate.json
      citrus certify-uap M.onnx --data mnist --eps 0.02,0.05,0.1 --limit 1000 --latex sweep.tex
    """
    if len(threats) > 1 and certificate is not None:
        raise UsageError("--certificate holds the proof of one eps; give one --eps, or leave it out.")
    if len(threats) > 1 and (part is not None or join):
        raise UsageError("--part and --join go with one eps; make a run for each.")
    from citrus_tool.cli.sweep_tables import judged, sweep_table, write_tables
    from citrus_tool.workflow.certify import certify_file
    from citrus_tool.workflow.sweep import sweep_file

    name = f"{source.path.stem}_{'certify' if len(threats) == 1 else 'sweep'}"
    run_dir = context.run_dir or Path("runs") / (name if part is None else f"{name}_{part[0]}_of_{part[1]}")
    context = replace(context, run_dir=run_dir)
    if len(threats) > 1:
        swept = sweep_file(source, choice, threats, certify, context, split=split)
        table = sweep_table(swept.certificates, threats[0].target)
        terminal.show(swept.to_json(), outputs.json, *table)
        if not outputs.on_stdout:
            click.echo(f"\npercent of {judged(swept.certificates[0])}")
        write_tables(outputs, swept.certificates, table)
    else:
        proven = certify_file(
            source, choice, threats[0], certify, context, split=split, proof=certificate, part=part, join=join
        )
        write_tables(outputs, [proven], sweep_table([proven], threats[0].target))
        shown = proven.table()
        terminal.show(proven.to_json(), outputs.json, shown.columns, shown.rows)
        if proven.remark is not None:
            warnings.warn(proven.remark, AccuracyWarning, stacklevel=1)
    terminal.write_report(outputs.report, run_dir)


@click.command()
@click.argument("certificate", type=parameters.PATH)
@options.model_argument
@click.option(
    "--data",
    "data_name",
    metavar="NAME|FILE.npz|FOLDER",
    help="Also compare the certificate's inputs with this data set.",
)
@options.data_root_option()
@options.split_option
@options.seed_option()
@click.option("--eps", type=parameters.Eps(), help="Require this radius (pixel space), e.g. 0.1 or 2/255.")
@click.option("--mean", type=parameters.Numbers(), help="Require this mean in front of the file, one per channel.")
@click.option("--std", type=parameters.Numbers(), help="Require this standard deviation, one per channel.")
@click.option("--arithmetic", type=parameters.Choice(ARITHMETICS), help="Require a proof about this arithmetic.")
@click.option("--inputs", type=parameters.Ranges(), metavar="RANGES", help="Require these inputs, e.g. 0-99,105.")
@options.output_options
@gathered
def check(
    certificate: Path,
    model: Path,
    choice: DataChoice | None,
    expected: Expected,
    split: Split,
    context: RunContext,
    outputs: Outputs,
) -> None:
    """Verifies the proof that `certify-uap --certificate` wrote; exit code 4 where it does not hold.

    \b
    Without --data the proof is about the inputs that it holds, whatever their origin. What the table says of data,
    split, protocol and scope is what the proof says; the rest is verified.

    \b
    Example:
      citrus certify-uap M.onnx --data mnist --eps 0.1 --bounds full --certificate C
      citrus check C M.onnx --data mnist
    """
    from citrus_tool.workflow.check import check_file

    found = check_file(certificate, model, choice, context, split=split, expected=expected).to_json()
    rows = [[name, cut(escaped(_words(value)))] for name, value in found.items() if name != "holds"]
    terminal.show(found, outputs.json, ["the proof holds", ""], rows)


def _words(value: object) -> str:
    """A field's value in a table."""
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@click.command("attack-uap")
@options.model_argument
@options.data_options
@options.split_option
@options.settings(AttackSettings, "limit")
@options.normalisation_options
@options.eps_option
@options.threat_options
@options.settings(AttackSettings, "group_size")
@options.setting(CertifySettings, "scope", about="One perturbation for each group, or one for all inputs.")
@options.settings(AttackSettings, "steps", "restarts", "arithmetic")
@click.option("--save", type=parameters.PATH, metavar="u.npy", help="Write the perturbations (groups, C, H, W).")
@options.run_options
@options.output_options
@gathered
def attack_uap(
    source: ModelChoice,
    choice: DataChoice,
    threat: Threat,
    split: Split,
    attack: AttackSettings,
    save: Path | None,
    context: RunContext,
    outputs: Outputs,
) -> None:
    """Searches the strongest shared perturbation of each group and replays it, on onnxruntime unless told otherwise.

    \b
    Example:
      citrus attack-uap M.onnx --data mnist --eps 0.1 --limit 1000 --save u.npy
    """
    from citrus_tool.workflow.attack import attack_file

    report = attack_file(source, choice, threat, attack, context, split=split, save=save)
    shown = report.table()
    terminal.show(report.to_json(), outputs.json, shown.columns, shown.rows)


@click.command()
@options.model_argument
@options.data_options
@options.split_option
@options.settings(CertifySettings, "limit", limit=1000)
@options.normalisation_options
@options.eps_option
@options.settings(CertifySettings, "group_size", "bounds", "arithmetic", "solver", "time_limit")
@click.option("--pgd-steps", type=click.IntRange(min=1), default=50, show_default=True, help="Steps of the PGD attack.")
@options.run_options
@options.report_option
@options.output_options
@gathered
def evaluate(
    source: ModelChoice,
    choice: DataChoice,
    threat: Threat,
    certify: CertifySettings,
    split: Split,
    pgd_steps: int,
    context: RunContext,
    outputs: Outputs,
) -> None:
    """Standard, PGD, attacked UAP, certified UAP and IBP certified accuracy in one table.

    \b
    Standard accuracy is of the whole split, the others are of its first --limit inputs.

    \b
    Example:
      citrus evaluate M.onnx --data mnist --eps 0.1
    """
    from citrus_tool.workflow.evaluate import evaluate_file

    result = evaluate_file(source, choice, threat, certify, context, split=split, pgd_steps=pgd_steps)
    shown = result.table()
    terminal.show(result.to_json(), outputs.json, shown.columns, shown.rows)
    name = f"evaluation of {source.path.name}"
    terminal.write_report_of(outputs.report, result, name, source, choice)
