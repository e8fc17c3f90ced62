"""`citrus inspect`."""

from __future__ import annotations

import click

from citrus_tool.cli import options, terminal
from citrus_tool.cli.gathered import Outputs, gathered
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.sources import DataChoice, ModelChoice


@click.command()
@options.model_argument
@click.option("--data", "data_name", metavar="NAME|FILE.npz|FOLDER", help="Also compare on real inputs of this data.")
@options.data_root_option()
@options.normalisation_options
@options.output_options
@gathered
def inspect(
    source: ModelChoice,
    choice: DataChoice | None,
    outputs: Outputs,
) -> None:
    """Shows what is in an ONNX file: operators and their support, parameters, input, parity with onnxruntime.

    \b
    Example:
      citrus inspect M.onnx --data mnist
    """
    from citrus_tool.workflow.inspect import inspect_file

    inspection = inspect_file(source, choice)
    terminal.show(inspection.to_json(), outputs.json, *inspection.table())
    if not outputs.on_stdout:
        click.echo("\n" + "\n".join(f"{what}: {value}" for what, value in inspection.summary()))
    if inspection.problems:
        raise UnsupportedNetworkError(inspection.problems[0])
