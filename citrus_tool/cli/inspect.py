"""`citrus inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from citrus_tool.cli import options, terminal
from citrus_tool.errors import UnsupportedNetworkError


@click.command()
@options.model_argument
@click.option("--data", "data_name", metavar="NAME|FILE.npz|FOLDER", help="Also compare on real inputs of this data.")
@options.data_root_option()
@options.normalisation_options
@options.output_options
def inspect(
    model: Path,
    data_name: str | None,
    data_root: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    json_path: Path | None,
    quiet: bool,
    config: Path | None,
) -> None:
    """Shows what is in an ONNX file: operators and their support, parameters, input, parity with onnxruntime.

    \b
    Example:
      citrus inspect M.onnx --data mnist
    """
    terminal.require_output(json_path)
    from citrus_tool.sources import DataChoice, ModelChoice
    from citrus_tool.workflow.inspect import inspect_file

    choice = None if data_name is None else DataChoice(name=data_name, root=data_root)
    inspection = inspect_file(ModelChoice(path=model, mean=mean, std=std), choice)
    terminal.show(inspection.to_json(), json_path, *inspection.table())
    if not terminal.is_stdout(json_path):
        click.echo("\n" + "\n".join(f"{what}: {value}" for what, value in inspection.summary()))
    if inspection.problems:
        raise UnsupportedNetworkError(inspection.problems[0])
