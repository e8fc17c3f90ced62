"""`citrus demo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from citrus_tool.cli import options, parameters, terminal
from citrus_tool.cli.gathered import Outputs, gathered
from citrus_tool.cli.train import show_harden
from citrus_tool.context import RunContext


@click.command()
@click.option(
    "--run-dir",
    type=parameters.PATH,
    default=Path("runs/demo"),
    show_default=True,
    metavar="DIR",
    help="Where the hardened network and the report go.",
)
@options.device_option
@options.report_option
@options.output_options
@gathered
def demo(
    context: RunContext,
    outputs: Outputs,
) -> None:
    """Certifies the embedded digits network, hardens it and certifies it again, in under two minutes.

    \b
    Example:
      citrus demo
    """
    from citrus_tool.workflow import demo as workflow

    # so small a network gains nothing from more threads, and loses much on a busy machine
    show_harden(workflow.demo(replace(context, threads=1, effective=None)), outputs)
    page = outputs.report or context.folder / "report.html"
    terminal.write_report(page, context.folder)
    if not outputs.on_stdout:
        click.echo(f"report: {page}")
