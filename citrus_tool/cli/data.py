"""`citrus data list` and `citrus data prepare`."""

from __future__ import annotations

from pathlib import Path

import click

from citrus_tool.choices import DATA_NAMES, SPLITS
from citrus_tool.cli import options, terminal
from citrus_tool.cli.gathered import Outputs, gathered
from citrus_tool.data.lookup import locate


@click.group()
def data() -> None:
    """Shows which data sets are there and how to get the others.

    \b
    Example:
      citrus data list
    """


data_root = options.data_root_option("Look only here")


@data.command("list")
@data_root
@options.output_options
@gathered
def list_(data_root: Path | None, outputs: Outputs) -> None:
    """Lists the named data sets, where each was found, and how to get what is missing.

    \b
    Example:
      citrus data list --data-root ~/datasets
    """
    sources = [locate(name, data_root) for name in DATA_NAMES]
    rows = []
    for source in sources:
        status = "embedded" if source.embedded else str(source.found) if source.found else f"missing: {source.how}"
        rows.append([source.name, status])
    entries = [
        {
            "name": source.name,
            "there": source.embedded or source.found is not None,
            "found": str(source.found) if source.found else None,
            "searched": [str(path) for path in source.searched],
            "how": source.how,
        }
        for source in sources
    ]
    terminal.show({"data": entries}, outputs.json, ["data", "where"], rows)


@data.command("prepare")
@click.argument("name", metavar="NAME|FILE.npz|FOLDER")
@data_root
@options.seed_option()
@options.output_options
@gathered
def prepare(name: str, data_root: Path | None, seed: int, outputs: Outputs) -> None:
    """Reads a data set once: checks every pixel and label, fills caches, prints the splits.

    \b
    Example:
      citrus data prepare mnist --data-root ~/datasets
    """
    from citrus_tool.data import load

    columns = ["split", "images", "shape", "classes", "sha256"]
    splits = [load(name, split=split, root=data_root, seed=seed) for split in SPLITS]
    rows = [
        [part.split, str(len(part)), "x".join(map(str, part.shape)), str(part.num_classes), part.sha256()]
        for part in splits
    ]
    result = {"data": name, "seed": seed, "splits": [dict(zip(columns, row, strict=True)) for row in rows]}
    terminal.show(result, outputs.json, columns, rows)
