"""`citrus report`."""

from __future__ import annotations

from pathlib import Path

import click

from citrus_tool.cli import options, parameters, terminal


@click.command()
@click.argument("runs", nargs=-1, required=True, type=parameters.PATH, metavar="RUN...")
@click.option(
    "--out",
    type=parameters.PATH,
    default=Path("report.html"),
    show_default=True,
    metavar="FILE.html",
    help="The page to write.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=parameters.PATH,
    metavar="M.onnx",
    help="Where a network lies that is no longer where it was; may be given several times.",
)
@options.data_root_option(default="as in the run")
@options.quiet_option()
def report(runs: tuple[Path, ...], out: Path, models: tuple[Path, ...], data_root: Path | None, quiet: bool) -> None:
    """Writes what runs found as one HTML file that loads nothing from the network.

    \b
    RUN is a run folder of certify-uap, harden, train or vnncomp, or the JSON that certify-uap, harden, train, evaluate
    or attack-uap wrote. Pictures need the network and the data of the run, which are replayed on onnxruntime.

    \b
    Example:
      citrus report runs/M_certify --out report.html
      citrus report runs/M_sweep runs/M_citrus --out report.html
    """
    from citrus_tool.reports import write_report

    missing = write_report(runs, out, models=models, root=data_root, progress=terminal.progress(quiet))
    for reason in missing:
        click.echo(f"left out: {reason}", err=True)
    click.echo(f"written to {out}")
