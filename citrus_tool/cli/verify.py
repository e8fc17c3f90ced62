"""`citrus verify` and `citrus supports`: the solver interface of the VNN-LIB standard."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from citrus_tool.choices import Arithmetic
from citrus_tool.choices.operators import OPERATORS
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.cli import options, parameters
from citrus_tool.context import RunContext
from citrus_tool.errors import UsageError

STARTED: Final = time.monotonic()
"""When this process began, but for the interpreter's own start: what --timeout counts from."""
SPARE: Final = 2.0
"""Seconds before --timeout at which the answer is out, at most a quarter of it, for a step that overruns."""

CAPABILITIES: Final = {
    "onnx-opset-versions": ("7", "22"),
    "onnx-element-types": ("float32",),
    "onnx-operators": OPERATORS,
    "vnnlib-versions": ("1.0", "2.0"),
    "hidden-node-theories": ("NH",),
    "multiple-input-output-theories": ("SIO",),
    "multiple-network-theories": ("SNET", "MNET", "MENET", "MINET"),
    "multiple-node-comparison-theories": ("SNC", "MNC"),
    "arithmetic-complexity-theories": ("BND", "OUTC", "LIN"),
    "optimised-disjunctive-reasoning": ("true",),
    "serialise-assignments": ("false",),
}
"""Capability -> the lines of its answer (VNN-LIB standard, section 5.4)."""


class Answers:
    """Where the answer goes, once: the verifier's, or timed-out when it is late, whatever the main thread is busy with.

    Args:
        seconds: when it is late; None: never.
    """

    def __init__(self, seconds: float | None) -> None:
        self._lock = threading.Lock()
        self._timer = None if seconds is None else threading.Timer(seconds, self._late)

    def __enter__(self) -> Answers:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def give(self, text: str) -> None:
        """Prints `text`, unless another answer is on its way out: then the process ends here."""
        self._lock.acquire()  # never released: the first answer is the only one
        sys.stdout.write(text)
        sys.stdout.flush()

    def _late(self) -> None:
        self.give("timed-out\n")
        os._exit(0)


@click.command("verify")
@click.argument("query", type=parameters.PATH)
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NAME=FILE",
    help="ONNX file of a declared network; once for each that is not equal-to another. A 1.0 query needs no NAME.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Answer by then, two seconds early where there is room [default: no limit].",
)
@options.setting(
    CertifySettings,
    "arithmetic",
    about="What unsat is about: every run of the file in float32, or the network in real arithmetic.",
)
@options.threads_option()
@options.seed_option("Of the attack.")
@options.quiet_option("No log on stderr.")
def verify(
    query: Path,
    networks: tuple[str, ...],
    timeout: float | None,
    arithmetic: Arithmetic,
    threads: int | None,
    seed: int,
    quiet: bool,
) -> None:
    """Answers a VNN-LIB query (1.0 or 2.0): sat, unsat, unknown or timed-out on the first line of stdout.

    After sat follows a witness that onnxruntime has confirmed.

    \b
    Example:
      citrus verify Q.vnnlib --network N=M.onnx --timeout 300
    """
    end = None if timeout is None else STARTED + timeout - min(SPARE, timeout / 4)
    with Answers(None if end is None else max(0.0, end - time.monotonic())) as answers:
        from citrus_tool.cli.answering import answer

        def log(text: str) -> None:
            if not quiet:
                click.echo(f"{time.monotonic() - STARTED:8.1f} s  {text}", err=True)

        context = RunContext(device="cpu", threads=threads, seed=seed)
        answers.give(answer(query, networks, context, arithmetic=arithmetic, end=end, log=log))


def _flags() -> list[Callable[[options.F], options.F]]:
    """One flag for each capability; the standard spells one of them in two ways."""
    other = {"multiple-input-output-theories": ["--multiple-inputs-output-theories"]}
    return [
        click.option(f"--{name}", *other.get(name, []), "capability", flag_value=name, help=", ".join(lines[:4]))
        for name, lines in CAPABILITIES.items()
    ]


@click.command("supports")
@options.stacked(*_flags())
def supports(capability: str | None) -> None:
    """Prints what the verifier supports, one capability at a time, as the VNN-LIB standard asks.

    \b
    Example:
      citrus supports --onnx-operators
    """
    if capability is None:
        raise UsageError("give one capability, such as --onnx-operators; see citrus supports --help.")
    click.echo("\n".join(CAPABILITIES[capability]))
