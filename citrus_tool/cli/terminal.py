"""What a user sees: tables and JSON on stdout, progress on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from citrus_tool.errors import AccuracyWarning
from citrus_tool.files import require_writable_file, write_text
from citrus_tool.progress import Progress, Silent
from citrus_tool.tables import Table, clock
from citrus_tool.tables import percent as percent

if TYPE_CHECKING:
    from citrus_tool.reports.data import Result
    from citrus_tool.sources import DataChoice, ModelChoice

LINE_SECONDS = 10.0
"""Seconds between two progress lines when stderr is not a terminal: a log of an hour has some hundreds."""


def progress(quiet: bool) -> Progress:
    """Bars on a terminal, a line about every ten seconds elsewhere, nothing when `quiet`.

    From here to the end of the command, citrus' warnings are one line each on stderr, once, or dropped when `quiet`.
    """
    click.get_current_context().with_resource(_warnings(quiet))
    if quiet:
        return Silent()
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return PlainLines()
    from citrus_tool.cli.drawn import Bars

    return Bars()


@contextmanager
def _warnings(quiet: bool) -> Iterator[None]:
    shown: set[str] = set()
    with warnings.catch_warnings():
        other = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, AccuracyWarning):
                other(message, category, *where, **more)
            elif str(message) not in shown:
                shown.add(str(message))
                click.echo(f"citrus: warning: {message}", err=True)

        warnings.simplefilter("ignore" if quiet else "always", AccuracyWarning)
        warnings.showwarning = show
        yield


class PlainLines(Progress):
    """One plain line on stderr about every ten seconds, and one at the end of a stage that took that long."""

    def __init__(self) -> None:
        self._stage = ""
        self._total: int | None = None
        self._unit = ""
        self._done = 0
        self._note = ""
        self._began = self._shown = 0.0

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.finish()
        self._stage, self._total, self._unit, self._done, self._note = stage, total, unit, 0, ""
        self._began = self._shown = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done += amount
        self._note = note or self._note
        if time.monotonic() - self._shown >= LINE_SECONDS:
            self._show()

    def finish(self) -> None:
        if self._stage and self._shown > self._began:
            self._show()
        self._stage = ""

    def _show(self) -> None:
        self._shown = time.monotonic()
        seconds = max(self._shown - self._began, 1e-9)
        rate = self._done / seconds
        amount = f"{self._done}/{self._total}" if self._total is not None else str(self._done)
        left = f", {clock((self._total - self._done) / rate)} left" if self._total is not None and rate > 0 else ""
        note = f", {self._note}" if self._note else ""
        click.echo(f"{self._stage}: {amount} {self._unit} in {clock(seconds)}, {rate:.3g}/s{left}{note}", err=True)


def is_stdout(json_path: Path | None) -> bool:
    """Whether `--json -` puts JSON on stdout, and nothing else."""
    return json_path is not None and str(json_path) == "-"


def require_output(*paths: Path | None) -> None:
    """Refuses files of --json and the like that cannot be written, before any work is done."""
    for path in paths:
        if path is not None and not is_stdout(path):
            require_writable_file(path)


def write_report(report_path: Path | None, run: Path) -> None:
    """Writes the page of --report about a run folder."""
    if report_path is None:
        return
    from citrus_tool.reports import write_report

    _left_out(write_report([run], report_path))


def write_report_of(
    report_path: Path | None, result: Result, name: str, source: ModelChoice, choice: DataChoice
) -> None:
    """Writes the page of --report about a result that is called `name`."""
    if report_path is None:
        return
    from citrus_tool.reports import write_report
    from citrus_tool.reports.data import Origin, Reported

    origin = Origin(mean=source.mean, std=source.std, root=choice.root, seed=choice.seed)
    _left_out(write_report([Reported.of(result, name, origin)], report_path))


def _left_out(reasons: Sequence[str]) -> None:
    for reason in reasons:
        click.echo(f"report: left out: {reason}", err=True)


def show(
    result: Mapping[str, Any], json_path: Path | None, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Prints a table of `rows`, or with `--json -` the result itself; `--json FILE` also writes that file."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if is_stdout(json_path):
        click.echo(text, nl=False)
        return
    if json_path is not None:
        write_text(json_path, text)
    table(columns, rows)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: drawn on a terminal, aligned plain text elsewhere. Numbers are set flush right."""
    plain = Table(title="", columns=columns, rows=rows)
    if sys.stdout.isatty():
        from citrus_tool.cli.drawn import draw

        draw(plain)
        return
    for line in plain.lines():
        click.echo(line)
