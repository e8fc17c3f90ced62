"""What `citrus verify` answers: the verifier's verdict, or a search for a witness where a network is not supported."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from citrus_tool import queries
from citrus_tool.choices import Arithmetic
from citrus_tool.context import RunContext
from citrus_tool.devices import resolved
from citrus_tool.errors import UnsupportedNetworkError, UsageError
from citrus_tool.queries import Spec
from citrus_tool.queries.benchmark import network_pairs
from citrus_tool.queries.black_box import sample
from citrus_tool.queries.verify import Verdict, read_models, verify

BLIND: Final = 5.0
"""Seconds of the search for a witness where a network is not supported: short, since only chance can find one."""


def answer(
    query: Path,
    networks: tuple[str, ...],
    context: RunContext,
    *,
    arithmetic: Arithmetic,
    end: float | None,
    log: Callable[[str], None],
) -> str:
    """The text of the answer, by the time `end` (seconds of time.monotonic; None: no limit).

    Raises as `queries.read`; UsageError for --network options that do not fit the query.
    """
    resolved(context)
    spec = queries.read(query)
    paths = _paths(spec, networks)
    try:
        models = read_models(spec, paths)
        seconds = float("inf") if end is None else end - time.monotonic()
        found = verify(spec, models, arithmetic=arithmetic, seconds=seconds, seed=context.seed, log=log)
    except UnsupportedNetworkError as error:
        log(str(error))
        late = time.monotonic() + BLIND if end is None else min(end, time.monotonic() + BLIND)
        witness = sample(spec, paths, deadline=late, seed=context.seed)
        return "unknown\n" if witness is None else f"sat\n{queries.format_witness(spec, witness)}"
    if found.reason:
        log(found.reason)
    text = f"{found.verdict.value}\n"
    if found.verdict is Verdict.SAT and found.witness is not None:
        text += queries.format_witness(spec, found.witness)
    return text


def _paths(spec: Spec, networks: tuple[str, ...]) -> dict[str, Path]:
    """Network name -> file. A bare file, or any name, will do for a 1.0 query, which does not name its network.

    A list of pairs, as VNN-COMP's instances.csv has it, stands for several networks.
    """
    found: dict[str, Path] = {}
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
