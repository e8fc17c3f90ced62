"""`citrus compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from citrus_tool.choices import Split
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.cli import options, parameters, terminal
from citrus_tool.cli.gathered import Outputs, gathered
from citrus_tool.context import RunContext
from citrus_tool.errors import UsageError
from citrus_tool.files import write_text
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.tables import to_csv, to_latex
from citrus_tool.threat import Threat


@click.command("compare")
@click.argument("models", metavar="MODEL MODEL...", type=parameters.PATH, nargs=-1, required=True)
@options.certification_options
@options.run_dir_options("runs/compare")
@options.run_options
@options.table_options
@options.output_options
@gathered
def compare(
    models: tuple[Path, ...],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    choice: DataChoice,
    threats: Sequence[Threat],
    certify: CertifySettings,
    split: Split,
    context: RunContext,
    outputs: Outputs,
) -> None:
    """Certifies several networks on the same data: one table, and what each certifies that another does not.

    \b
    Standard accuracy is of the whole split, the others are of its first --limit inputs. --mean and --std
    are those of all networks. A network that cannot be read is reported at the end (exit code 3 or 4).

    \b
    Example:
      citrus compare M.onnx H.onnx --data mnist --eps 0.05,0.1 --limit 200 --latex table.tex
    """
    if len(models) < 2:
        raise UsageError("give at least two networks to compare; citrus certify-uap judges one.")
    from citrus_tool.results.sweep import judged
    from citrus_tool.workflow.compare import compare_files

    found = compare_files(
        [ModelChoice(path=model, mean=mean, std=std) for model in models],
        choice,
        threats,
        certify,
        replace(context, run_dir=context.run_dir or Path("runs") / "compare"),
        split=split,
    )
    terminal.show(found.to_json(), outputs.json, *found.table())
    first = [entry.sweep.certificates[0] for entry in found.networks if entry.sweep is not None]
    words = f"percent of {judged(first[0])}, protocol {certify.protocol}" if first else "no network was judged"
    if not outputs.on_stdout:
        click.echo(f"\n{words}; standard: of the whole split")
        if found.pairs:
            click.echo("\ncertified inputs, group by group:\n")
            terminal.table(*found.pair_table())
    if outputs.csv is not None:
        write_text(outputs.csv, to_csv(*found.csv()))
    if outputs.latex is not None:
        write_text(outputs.latex, to_latex(*found.table(), words))
    failed = [entry.error for entry in found.failed if entry.error is not None]
    if failed:
        raise type(failed[0])(
            f"{len(failed)} of {len(models)} networks could not be judged: {' '.join(map(str, failed))}"
        )
