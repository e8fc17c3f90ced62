"""`citrus init`."""

from __future__ import annotations

from pathlib import Path

import click

from citrus_tool.choices import DATA_NAMES
from citrus_tool.cli import options, parameters, terminal
from citrus_tool.cli.gathered import Outputs, gathered
from citrus_tool.errors import UsageError
from citrus_tool.files import require_writable_file
from citrus_tool.sources import DataChoice, ModelChoice


@click.command("init")
@options.model_argument
@click.option(
    "--data",
    "data_name",
    type=parameters.NameOrPath(DATA_NAMES),
    metavar="NAME|FILE.npz|FOLDER",
    help="The network's data [default: the named set that fits its input].",
)
@options.data_root_option()
@options.normalisation_options
@click.option("--out", type=parameters.PATH, metavar="FILE.toml", help="The file to write [default: MODEL.toml].")
@click.option("--force", is_flag=True, help="Overwrite it.")
@options.seed_option()
@options.output_options
@gathered
def init(
    source: ModelChoice,
    data_name: str | None,
    data_root: Path | None,
    out: Path | None,
    force: bool,
    seed: int,
    quiet: bool,
    outputs: Outputs,
) -> None:
    """Looks at a network and its data and writes a commented settings file for the other commands.

    \b
    The normalisation is the one under which the network does clearly better than on plain pixels, among
    those in common use; on the validation split.

    \b
    Example:
      citrus init M.onnx --data mine.npz
      citrus certify-uap --config M.toml
    """
    model = source.path
    path = out or Path(f"{model.name.partition('.onnx')[0] or model.stem}.toml")
    if path.exists() and not force:
        raise UsageError(f"{path} exists and is left as it is; name another one with --out, or add --force.")
    require_writable_file(path)
    from citrus_tool.workflow.first_settings import guess, look, write

    name = data_name or guess(source)
    first = look(source, DataChoice(name=name, root=data_root, seed=seed))
    write(first, path)
    facts = first.facts()
    terminal.show(dict(facts) | {"config": str(path)}, outputs.json, ["found", ""], [list(fact) for fact in facts])
    if first.doubt is not None and not quiet:
        click.echo(f"citrus: warning: {first.doubt}", err=True)
    if not outputs.on_stdout:
        click.echo(f"\nwritten to {path}; read it, then:\n")
        click.echo(f"  citrus certify-uap --config {path}\n  citrus harden --config {path}")
