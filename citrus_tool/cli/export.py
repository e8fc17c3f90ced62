"""`citrus export-query`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from citrus_tool.choices import Split
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.cli import options, parameters, terminal
from citrus_tool.cli.gathered import Outputs, gathered
from citrus_tool.errors import UsageError
from citrus_tool.files import require_writable_folder
from citrus_tool.sources import DataChoice, ModelChoice


@click.command("export-query")
@options.model_argument
@options.data_options
@options.split_option
@options.normalisation_options
@options.eps_option
@options.settings(CertifySettings, "group_size")
@click.option("--group", type=click.IntRange(min=0), default=0, show_default=True, help="Which group, counted from 0.")
@click.option(
    "--at-least",
    type=click.IntRange(min=1),
    metavar="M",
    help="The 1.0 property asks for M fooled inputs [default: all of the group].",
)
@click.option(
    "--out", type=parameters.PATH, default=Path(), show_default="here", metavar="DIR", help="Folder to write."
)
@options.seed_option("Draws the validation split.")
@options.output_options
@gathered
def export_query(
    source: ModelChoice,
    choice: DataChoice,
    split: Split,
    eps: float,
    group_size: int,
    group: int,
    at_least: int | None,
    out: Path,
    outputs: Outputs,
) -> None:
    """Writes a group's UAP problem for other verifiers: VNN-LIB 2.0, and product network with VNN-LIB 1.0.

    \b
    Example:
      citrus export-query M.onnx --data mnist --eps 0.1 --group-size 5 --group 3 --at-least 2
    """
    require_writable_folder(out)
    from citrus_tool.queries.export import export_group

    first = group * group_size
    dataset = choice.load(split, first + group_size)
    if len(dataset) < first + group_size:
        raise UsageError(f"group {group} ends at input {first + group_size}, but there are only {len(dataset)} inputs.")
    loaded = source.read(dataset)
    images, labels = dataset.pixels()[first:], dataset.labels[first:].tolist()
    out.mkdir(parents=True, exist_ok=True)
    name = source.path.name.removesuffix(".gz").removesuffix(".onnx")
    stem = f"{name}_{split}_{first}_{first + group_size - 1}_eps_{eps:.6g}"
    files = export_group(loaded, images, labels, eps, out, stem, at_least=at_least or group_size)
    onnx = os.path.relpath(source.path, out)
    result = {
        "model": str(source.path),
        "indices": list(range(first, first + group_size)),
        "eps": eps,
        "at_least": at_least or group_size,
        "query": str(files.query),
        "product": str(files.product),
        "property": str(files.property),
    }
    rows = [
        [f"[('f1', '{onnx}')]", files.query.name, "2.0: all are fooled"],
        [files.product.name, files.property.name, f"1.0: at least {at_least or group_size} are fooled"],
    ]
    terminal.show(result, outputs.json, ["network", "query", "what"], rows)
