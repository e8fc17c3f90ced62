"""`citrus demo`."""

from __future__ import annotations

from pathlib import Path

import click

from citrus_tool.choices import Device
from citrus_tool.cli import options, terminal
from citrus_tool.cli.train import show_harden
from citrus_tool.context import RunContext


@click.command()
@click.option(
    "--run-dir",
    type=options.PATH,
    default=Path("runs/demo"),
    show_default=True,
    metavar="DIR",
    help="Where the hardened network and the report go.",
)
@options.device_option
@options.report_option
@options.output_options
def demo(
    run_dir: Path,
    device: Device,
    report_path: Path | None,
    json_path: Path | None,
    quiet: bool,
    config: Path | None,
) -> None:
    """Certifies the embedded digits network, hardens it and certifies it again, in under two minutes.

    \b
    Example:
      citrus demo
    """
    terminal.require_output(json_path, report_path)
    from citrus_tool.workflow import demo as library

    options.use_threads(1)  # so small a network gains nothing from more, and loses much on a busy machine
    context = RunContext(device=device, run_dir=run_dir, progress=terminal.progress(quiet))
    show_harden(library.demo(context), json_path)
    page = report_path or run_dir / "report.html"
    terminal.write_report(page, run_dir)
    if not terminal.is_stdout(json_path):
        click.echo(f"report: {page}")
