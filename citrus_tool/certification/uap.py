"""Certified worst-case UAP accuracy of a network on a data split (the `certify-uap` command).

Per group of inputs that share one perturbation: clean -> IBP -> CROWN -> branch and bound on each input alone, an
attack with a shared u on the inputs that stay open (chunks.py); then how many of them one u can fool, and the replay of
every witness on onnxruntime (group_result.py). Summed over groups this bounds the worst-case UAP accuracy from below
and above (Theorem 3 of the paper); scope dataset goes on from there (dataset_result.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from citrus_tool import __version__
from citrus_tool.certification.chunks import Chunk, Plan, Prepared, prepared
from citrus_tool.certification.dataset_result import Whole, whole_data_set
from citrus_tool.certification.dataset_scope import Remainder
from citrus_tool.certification.group_result import Finished, finished
from citrus_tool.certification.milp import Solver, named
from citrus_tool.certification.proof import GroupProof
from citrus_tool.certification.rounding_loss import LOOKED_AT, rounding_losses
from citrus_tool.certification.selection import JudgedInputs, judged_inputs
from citrus_tool.certification.setup import Setup
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.context import ON_CPU, RunContext
from citrus_tool.data import Dataset
from citrus_tool.engines.processes import More, spread
from citrus_tool.errors import InputFileError, InterruptedRunError, UsageError
from citrus_tool.onnx_io import OnnxModel, OnnxRunner, require_parity
from citrus_tool.results.certificate import Certificate, GroupResult
from citrus_tool.results.evidence import InputVerdict
from citrus_tool.results.journal import Journal, open_journal
from citrus_tool.threat import Threat

PROVER: Final = 3
"""Raised when results of the procedure before are no longer to be mixed with those of today's, or were wrong."""


def certify_uap(
    model: OnnxModel,
    data: Dataset,
    threat: Threat,
    settings: CertifySettings,
    context: RunContext = ON_CPU,
    *,
    journal: Path | None = None,
    proof: Path | None = None,
    solver: Solver | None = None,
    part: tuple[int, int] | None = None,
    join: Sequence[Path] = (),
) -> Certificate:
    """The certificate of `model` on `data` under one shared perturbation per group.

    Args:
        context: on its device bounds and attacks are computed, while clean accuracy and witnesses are judged on
            onnxruntime's CPU; groups are spread over its workers, each with as many threads as this process, with the
            same result; `resume` goes on with the journal and the proof.
        journal: file that gets one line per finished group.
        proof: file that gets the proof, for `citrus check`.
        solver: another MILP solver in place of the one that `settings` names.
        part: (i, n), i from 1 to n: only the groups of every n-th batch, from the i-th. The certificate is of their
            inputs alone, and the journal stays open for another run to `join`.
        join: journals of parts of this run, whose groups are taken over; what they lack is done here.

    Raises:
        DataError: shape or number of classes do not fit the network, or no input is left to judge.
        CheckFailedError: the network is not (any more) that of the file.
        UsageError: the target is no class of the network; a proof is wanted of bounds that have none; a part of no
            group, or of a run that is about all inputs together or writes a proof; no GPU for device cuda.
        UnsupportedNetworkError: a proof is wanted of a network that the checker cannot read.
        UsageError, InputFileError: the journal is of another run, or no journal (journal.open_journal).
        SoundnessError: a lower bound lies above an upper bound; names group, stage and values.
        InterruptedRunError: Ctrl-C, or a worker died; finished groups are in the journal.
    """
    _require_sense(model, data, threat, settings, proof, part)
    solver = solver or named(settings.solver)
    build = partial(Setup.of, model, data, threat, settings, solver, context.device, proof)
    setup = build(resume=context.resume)
    ledger = _Ledger()
    with _interruptible(ledger, journal), ExitStack() as stack:
        start = time.monotonic()
        selection = judged_inputs(setup, context.progress)
        clean_seconds = time.monotonic() - start
        ledger.groups = groups = selection.groups
        if journal is not None:
            identity = _identity(model, data, threat, settings)
            log = stack.enter_context(open_journal(journal, identity, groups, resume=context.resume, join=join))
            ledger.take_over(log, setup, journal)
        plan = Plan.of(setup, len(groups), part)
        ledger.keep(plan.groups)
        context.progress.start("groups", len(plan.groups), "groups")
        context.progress.advance(len(ledger.results))
        tasks = plan.todo(selection, ledger.results)
        if tasks and not ledger.results:
            context.progress.advance(0, note=f"in batches of {min(plan.size, len(groups))}")
        workers = min(context.workers, len(plan.groups) - len(ledger.results))
        for one in _finished(setup, partial(build, resume=True), tasks, workers):
            ledger.note(one)
            context.progress.advance(1, note=ledger.words)
        whole = Whole(groups=tuple(ledger.results[index] for index in plan.groups))
        if settings.scope == "dataset":
            whole = whole_data_set(setup, whole.groups, ledger.remainders, ledger.proofs, selection, context.progress)
        if ledger.log is not None and part is None:
            ledger.log.finish()
    if setup.recorder is not None:
        about = {"data": data.name, "split": data.split, "version": __version__}
        about |= {"protocol": settings.protocol, "scope": settings.scope}
        setup.recorder.pack(len(whole.groups), about)
    losses = _rounding_losses(setup, selection, whole.groups)
    context.progress.finish()
    examined = selection.examined(plan.groups)
    return Certificate(
        model=str(model.path),
        sha256=model.sha256,
        data=data.name,
        split=data.split,
        data_sha256=data.sha256(),
        threat=threat,
        settings=asdict(settings),
        examined=int(examined.sum()),
        examined_correct=int(selection.clean.correct[examined].sum()),
        groups=whole.groups,
        stages={"clean": clean_seconds, **_total(group.stages for group in whole.groups)},
        version=__version__,
        together=whole.held,
        perturbation=whole.perturbation,
        rounding=losses,
    )


def _rounding_losses(setup: Setup, selection: JudgedInputs, groups: Sequence[GroupResult]) -> dict[str, int] | None:
    """What rounding alone keeps from being proven, by node."""
    if setup.settings.arithmetic == "real":
        return None
    lost = [
        index
        for group in groups
        if group.evidence is not None
        for index, verdict in zip(group.indices, group.evidence.verdicts, strict=True)
        if verdict in (InputVerdict.OPEN, InputVerdict.FOOLED)
    ][:LOOKED_AT]
    if not lost:
        return None
    found = rounding_losses(
        setup.bounded,
        setup.data.pixels()[lost].to(setup.device),
        selection.rows(lost).reference.tolist(),
        setup.threat,
        intervals_alone=setup.settings.bounds == "ibp",
        intermediate=setup.settings.intermediate,
    )
    return found or None


def _require_sense(
    model: OnnxModel,
    data: Dataset,
    threat: Threat,
    settings: CertifySettings,
    proof: Path | None,
    part: tuple[int, int] | None,
) -> None:
    data.require_classifier(model.network.input_shape, model.network.num_classes, str(model.path))
    threat.require_target(model.network.num_classes)
    require_parity(model.network, OnnxRunner(model), model.path)
    if part is not None and (settings.scope == "dataset" or proof is not None):
        raise UsageError(
            "a part of the groups has no certificate for one perturbation of all inputs (scope dataset) and no proof;"
            " make the parts without them."
        )


@dataclass(kw_only=True)
class _Ledger:
    """What is known of the groups so far, by their index; updated in place.

    Attributes:
        groups: each group's inputs, once they are chosen.
        log: the journal, which gets every group that is done; with remainders where `noting`.
    """

    groups: Sequence[tuple[int, ...]] = ()
    results: dict[int, GroupResult] = field(default_factory=dict)
    remainders: dict[int, Remainder] = field(default_factory=dict)
    proofs: dict[int, GroupProof] = field(default_factory=dict)
    log: Journal | None = None
    noting: bool = False

    def take_over(self, log: Journal, setup: Setup, path: Path) -> None:
        """Takes the journal at `path`, and the groups in it that need not be found again."""
        self.log, self.noting, recorder = log, setup.settings.scope == "dataset", setup.recorder
        self.results.update(log.done)
        if recorder is not None and self.noting:  # proofs are regrouped at the end, from memory
            self.results.clear()
        elif recorder is not None:
            for index, group in log.done.items():
                if not recorder.has(index, group.indices, group.certified):
                    del self.results[index]
        if self.noting:
            self.remainders.update(_remainders(path, {index: log.notes.get(index) for index in self.results}))

    def keep(self, groups: Sequence[int]) -> None:
        """Drops the results of all other groups."""
        wanted = set(groups)
        self.results = {index: result for index, result in self.results.items() if index in wanted}

    def note(self, one: Finished) -> None:
        """Takes in a group that is done."""
        index = one.result.index
        self.results[index], self.remainders[index] = one.result, one.remainder
        if one.proof is not None:
            self.proofs[index] = one.proof
        if self.log is not None:
            self.log.write(one.result, one.remainder.to_json() if self.noting else None)

    @property
    def words(self) -> str:
        """The bracket so far, for progress."""
        inputs = sum(len(group.indices) for group in self.results.values())
        certified = 100 * sum(group.certified for group in self.results.values()) / inputs
        attacked = 100 * sum(group.attacked for group in self.results.values()) / inputs
        return f"certified {certified:.1f} %, attacked {attacked:.1f} %"


@contextmanager
def _interruptible(ledger: _Ledger, journal: Path | None) -> Iterator[None]:
    """Ctrl-C inside becomes an InterruptedRunError that says what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        saved = f"continue with --resume ({journal})" if journal is not None else "nothing was saved (no journal)"
        raise InterruptedRunError(
            f"stopped after {len(ledger.results)} of {len(ledger.groups)} groups; {saved}."
        ) from None


def _finished(setup: Setup, build: Callable[[], Setup], tasks: Sequence[Chunk], workers: int) -> Iterator[Finished]:
    """The groups of all chunks, here or by worker processes, each of which builds a setup of its own."""
    if workers > 1:
        yield from spread(partial(_worker, build), tasks, workers, threads=torch.get_num_threads())
    else:
        for task in tasks:
            yield from (finished(setup, one) for one in prepared(setup, task))


def _worker(build: Callable[[], Setup]) -> Callable[[Chunk | Prepared], Finished | More]:
    """What a worker process does: a chunk's batched stages, or one group."""
    setup = build()

    def work(task: Chunk | Prepared) -> Finished | More:
        return finished(setup, task) if isinstance(task, Prepared) else More(tasks=tuple(prepared(setup, task)))

    return work


def _remainders(path: Path, notes: Mapping[int, Any]) -> dict[int, Remainder]:
    """The remainders that a journal holds."""
    try:
        return {index: Remainder.of(note) for index, note in notes.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise InputFileError(f"{path}: a note is damaged ({error!r}); remove the file to start again.") from None


def _identity(model: OnnxModel, data: Dataset, threat: Threat, settings: CertifySettings) -> dict[str, Any]:
    """Everything that a group's result depends on, as JSON values: the journal's first line."""
    contract = model.contract
    return {
        "model sha256": model.sha256,
        "mean": list(contract.mean),
        "std": list(contract.std),
        "data sha256": data.sha256(),
        "split": data.split,
        **threat.to_json(),
        "version": __version__,
        "prover": PROVER,
        **asdict(settings),
    }


def _total(stages: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for stage in stages:
        for name, seconds in stage.items():
            total[name] = total.get(name, 0.0) + seconds
    return total
