"""Answers a query: sat with a replayed witness, unsat with a proof, or unknown; never later than the time allows.

The unsafe set is a union of questions (queries/question.py). Each is attacked, screened, attacked again, and searched;
the query is unsat when all of them are proven. Everything here fails closed: what is neither witnessed on the files
nor proven, of every float32 run of them or of real arithmetic, is unknown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool.choices import Arithmetic
from citrus_tool.errors import UnsupportedNetworkError, UsageError
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.onnx_io.onnx_file import load
from citrus_tool.onnx_io.reader import assemble
from citrus_tool.onnx_io.unbatched import read_whole
from citrus_tool.queries.falsify import Falsifier
from citrus_tool.queries.prove import Prover
from citrus_tool.queries.question import Files, Question, Replay, questions
from citrus_tool.queries.spec import Spec
from citrus_tool.tables import Table, Tabular

Log = Callable[[str], None]

FIRST_STEPS = 40
"""Gradient steps of the attack before anything is proven: few, as it comes back later."""
STEPS = 100
"""Gradient steps of every later round of the attack."""
ATTACK_EVERY = 8.0
"""Branch and bound is interrupted for another round of the attack after about this many times that round's seconds."""
ROUNDING = 10.0
"""Seconds of the search for points where float32 rounding decides, once nothing is left to prove."""
PATIENCE = 60.0
"""Seconds that the plain branch and bound has for itself, at most; then attack and branching get their turns."""
PATIENT_SHARE = 0.2
"""Share of the query's time that the plain branch and bound has for itself, at most."""


class Verdict(Enum):
    """The answer, as VNN-LIB's solver interface spells it (VNN-COMP writes timeout for timed-out)."""

    SAT = "sat"
    UNSAT = "unsat"
    UNKNOWN = "unknown"
    TIMED_OUT = "timed-out"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Answer(Tabular):
    """A verdict; `witness` holds every tensor of the query, (*shape,) as declared, where it is SAT, `reason` one
    sentence otherwise.
    """

    verdict: Verdict
    witness: Mapping[str, NDArray[np.float32]] | None = None
    reason: str = ""

    def table(self) -> Table:
        """The verdict, and the shape of the witness or the reason."""
        rows = [[name, " x ".join(map(str, value.shape))] for name, value in (self.witness or {}).items()]
        if self.reason:
            rows.append(["reason", self.reason])
        return Table(title=f"query: {self.verdict.value}", columns=["answer", self.verdict.value], rows=rows)


def read_models(spec: Spec, paths: Mapping[str, Path]) -> dict[str, OnnxModel]:
    """Reads the file of every declared network that is not `equal-to` another one.

    Inputs keep the file's own shape and order; outputs may have any shape. A file that is no network with a batch axis
    is read as one without (`onnx_io/unbatched.py`), where that can be. Raises UsageError where names and files do not
    match, and what `onnx_io.read` raises.
    """
    require_names(spec, paths)
    return {name: _read_model(path) for name, path in paths.items()}


def _read_model(path: Path) -> OnnxModel:
    try:
        source = load(path)
    except UnsupportedNetworkError:
        return read_whole(path)  # whose error says what remains
    try:
        return assemble(source, input_shape=source.input_shape, classifier=False)
    except UnsupportedNetworkError as error:
        try:
            return read_whole(path)
        except UnsupportedNetworkError:
            raise error from None


def require_names(spec: Spec, names: Collection[str]) -> None:
    """Raises UsageError unless `names` are those of the networks that are not `equal-to` another one."""
    needed = {network.name for network in spec.networks if network.equal_to is None}
    declared = {network.name for network in spec.networks}
    for name in names:
        if name not in declared:
            raise UsageError(f"--network {name}=...: the query declares no network {name!r}, only {_list(declared)}.")
        if name not in needed:
            raise UsageError(f"--network {name}=...: {name} is equal-to another network and takes no file of its own.")
    missing = needed - set(names)
    if missing:
        name = min(missing)
        raise UsageError(f"network {name!r} has no file; add --network {name}=FILE.onnx.")


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names))


def verify(
    spec: Spec,
    models: Mapping[str, OnnxModel],
    *,
    arithmetic: Arithmetic = "float32",
    seconds: float = math.inf,
    seed: int = 0,
    log: Log = lambda text: None,
) -> Answer:
    """Decides whether the unsafe set of `spec` is empty.

    Args:
        models: by network name, as `read_models` gives them.
        arithmetic: what unsat is about: every run of the files in float32, or the networks in real arithmetic.
        seconds: wall time; one step of the work may overrun it by a little (the command line's watchdog does not).
        seed: of the attack.
        log: gets progress lines.

    Raises UsageError where shapes do not fit, InputFileError where the query speaks of too many boxes.
    """
    deadline = time.monotonic() + seconds
    files = Files.of(spec, models, arithmetic)
    replay = Replay.of(files)
    open_problems = 0
    reason = ""
    for number, question in enumerate(questions(files)):
        now = time.monotonic()
        total = 1 if spec.is_box() or question.shared else spec.case_count
        share = (deadline - now) / max(1, total - number)  # what earlier questions leave goes to later ones
        work = _Work(
            question=question,
            replay=replay,
            seed=seed + number,
            log=log,
            patience=min(PATIENCE, PATIENT_SHARE * share),
        )
        work.run(now + share)
        if work.witness is not None:
            return Answer(verdict=Verdict.SAT, witness=work.witness)
        if not work.prover.proven:
            open_problems += 1
            reason = work.reason
            if time.monotonic() >= deadline:
                break
    if not open_problems:
        return Answer(verdict=Verdict.UNSAT)
    timed_out = time.monotonic() >= deadline
    return Answer(verdict=Verdict.TIMED_OUT if timed_out else Verdict.UNKNOWN, reason=reason)


class _Work:
    """One question: attack and proof in turns."""

    def __init__(self, *, question: Question, replay: Replay, seed: int, log: Log, patience: float) -> None:
        self.question, self.replay, self.log = question, replay, log
        self.witness: Mapping[str, NDArray[np.float32]] | None = None
        self.reason = ""
        self.falsifier = Falsifier.of(question, self.confirm, seed)
        self.prover = Prover(question, self.falsifier.judge, log, patience=patience)

    def confirm(self, z: Tensor) -> bool:
        """Replays the files at z; keeps the witness where it holds."""
        values = self.replay.run(self.question.inputs(z))
        found = self.replay.judge(values)
        if found.holds:
            self.witness = values
        return found.holds

    def run(self, deadline: float) -> None:
        """Until a witness, a proof, or the deadline."""
        prover, falsifier = self.prover, self.falsifier
        if prover.proven:
            return
        if falsifier.sample() or falsifier.descend(self.question.formula, steps=FIRST_STEPS, deadline=deadline):
            return
        self.log("attack: no witness in the first round")
        prover.screen()
        if prover.done and not prover.stuck:
            return
        seconds = self._attack(deadline)
        if self.witness is not None:
            return
        prover.root()
        while not prover.done and time.monotonic() < deadline:
            prover.grow(min(deadline, time.monotonic() + max(1.0, ATTACK_EVERY * seconds)))
            if not prover.done:
                self._attack(deadline)
                if self.witness is not None:
                    return
        if prover.stuck and self.falsifier.by_rounding(min(deadline, time.monotonic() + ROUNDING)):
            return
        self.reason = "the search ended without a proof." if prover.stuck else "the time ran out."

    def _attack(self, deadline: float) -> float:
        """One round on the cases that are left; the seconds it took."""
        start = time.monotonic()
        self.falsifier.descend(self.prover.formula, steps=STEPS, deadline=deadline)
        return time.monotonic() - start
