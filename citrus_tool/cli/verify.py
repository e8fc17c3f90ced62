"""`citrus verify` and `citrus supports`: the solver interface of the VNN-LIB standard."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from citrus_tool.cli import options, parameters
from citrus_tool.context import RunContext
from citrus_tool.errors import UnsupportedNetworkError, UsageError

if TYPE_CHECKING:
    from citrus_tool.queries import Spec

STARTED: Final = time.monotonic()
"""When this process began, but for the interpreter's own start: what --timeout counts from."""
SPARE: Final = 2.0
"""Seconds before --timeout at which the answer is out, at most a quarter of it."""

BLIND: Final = 5.0
"""Seconds of the search for a witness where a network is not supported."""

OPERATORS: Final = (
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Concat",
    "Constant",
    "Conv",
    "Div",
    "Dropout",
    "Expand",
    "Flatten",
    "Gather",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "LeakyRelu",
    "MatMul",
    "MaxPool",
    "Mul",
    "Neg",
    "Pad",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Shape",
    "Sigmoid",
    "Slice",
    "Split",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
"""ONNX operators between activations (`citrus inspect` says more about a file); constants are folded beyond these."""

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
@options.threads_option()
@options.seed_option("Of the attack.")
@options.quiet_option("No log on stderr.")
def verify(
    query: Path, networks: tuple[str, ...], timeout: float | None, threads: int | None, seed: int, quiet: bool
) -> None:
    """Answers a VNN-LIB query (1.0 or 2.0): sat, unsat, unknown or timed-out on the first line of stdout.

    After sat follows a witness that onnxruntime has confirmed.

    \b
    Example:
      citrus verify Q.vnnlib --network N=M.onnx --timeout 300
    """
    end = None if timeout is None else STARTED + timeout - min(SPARE, timeout / 4)
    with Answers(None if end is None else max(0.0, end - time.monotonic())) as answers:
        from citrus_tool import queries
        from citrus_tool.devices import resolved
        from citrus_tool.queries.black_box import sample
        from citrus_tool.queries.verify import Verdict, read_models
        from citrus_tool.queries.verify import verify as decide

        def log(text: str) -> None:
            if not quiet:
                click.echo(f"{time.monotonic() - STARTED:8.1f} s  {text}", err=True)

        resolved(RunContext(device="cpu", threads=threads))
        spec = queries.read(query)
        paths = _paths(spec, networks)
        try:
            models = read_models(spec, paths)
            seconds = float("inf") if end is None else end - time.monotonic()
            answer = decide(spec, models, seconds=seconds, seed=seed, log=log)
        except UnsupportedNetworkError as error:
            log(str(error))
            late = time.monotonic() + BLIND if end is None else min(end, time.monotonic() + BLIND)
            witness = sample(spec, paths, deadline=late, seed=seed)
            answers.give("unknown\n" if witness is None else f"sat\n{queries.format_witness(spec, witness)}")
            return
        if answer.reason:
            log(answer.reason)
        text = f"{answer.verdict.value}\n"
        if answer.verdict is Verdict.SAT and answer.witness is not None:
            text += queries.format_witness(spec, answer.witness)
        answers.give(text)


def _paths(spec: Spec, networks: tuple[str, ...]) -> dict[str, Path]:
    """Network name -> file. A bare file, or any name, will do for a 1.0 query, which does not name its network.

    A list of pairs, as VNN-COMP's instances.csv has it, stands for several networks.
    """
    found: dict[str, Path] = {}
    from citrus_tool.queries.benchmark import network_pairs

    listed = [
        f"{name}={path}" for text in networks if text.startswith("[") for name, path in network_pairs(text).items()
    ]
    for text in [*(text for text in networks if not text.startswith("[")), *listed]:
        name, equals, path = text.partition("=")
        if spec.version == "1.0":
            name, path = spec.networks[0].name, path if equals else text
        elif not equals:
            raise UsageError(f"--network {text}: write NAME=FILE, with the name that the query declares.")
        if name in found:
            raise UsageError(f"--network gives {name} twice; one file for each network.")
        found[name] = Path(path)
    return found


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
