"""Certified worst-case UAP accuracy of a network on a data split (the `certify-uap` command).

Per group of inputs that share one perturbation: clean -> IBP -> CROWN -> branch and bound on each input alone, an
attack with a shared u on the inputs that stay open, then how many of them one u can fool: with bounds `full` the
counterexample-guided loop over joint proofs (settle.py), otherwise the MILP on their planes (master.py); and the replay
of every witness on onnxruntime. Summed over groups this bounds the worst-case UAP accuracy from below and above
(Theorem 3 of the paper).

The MILP is skipped where it cannot help: with at most one open input its value is known, since an open input has a
plane that reaches 0 in the box, so that the optimum is 1; and when the attack fooled all open inputs with one u.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool import __version__
from citrus_tool.attacks.universal import attack_groups
from citrus_tool.bounds.crown import Intermediate
from citrus_tool.bounds.fold import foldable
from citrus_tool.certify.branch import Budget
from citrus_tool.certify.certificate import Certificate, GroupResult, Status
from citrus_tool.certify.check_graph import read_graph
from citrus_tool.certify.conflicts import Atom, Conflicts
from citrus_tool.certify.dataset import Across, Remainder, Rest, across, attacked
from citrus_tool.certify.evidence import Evidence, Verdict
from citrus_tool.certify.journal import Journal, open_journal
from citrus_tool.certify.master import Ending, MasterBound, Planes, Solver, SolverName, bound_fooled, named
from citrus_tool.certify.proof import GroupProof, Recorder, Refutation, regrouped
from citrus_tool.certify.screen import BoundsName, Clean, OpenInput, Screened, clean_stage, held, judged, screen
from citrus_tool.certify.settle import Grounds, executions, settle
from citrus_tool.certify.settle import OpenInput as Execution
from citrus_tool.data import Dataset
from citrus_tool.errors import DataError, InputFileError, InterruptedRunError, SoundnessError, UsageError
from citrus_tool.network import Network
from citrus_tool.onnx_io import OnnxModel, OnnxRunner, require_parity
from citrus_tool.progress import Progress, Silent
from citrus_tool.threat import Threat
from citrus_tool.workers import spread

Protocol = Literal["all", "correct"]
Scope = Literal["groups", "dataset"]

CHUNK_INPUTS: Final = 500
"""Inputs that go through the batched stages together."""
BRANCHED_INPUTS: Final = 100
"""The same with branch and bound, which takes seconds for an input: the journal gets a chunk's groups together."""
RELAXED: Final = 20
"""Open inputs whose executions are bounded together."""
CHUNK_BYTES: Final = 2**29
"""Upper limit of the size of a chunk's planes, in bytes."""
PROVER: Final = 2
"""Raised when results of the procedure before are no longer to be mixed with those of today's, or were wrong."""
INDIVIDUAL_RESTARTS: Final = 2
"""Restarts of the attack that spares foolable inputs the branching, at most."""


@dataclass(frozen=True, kw_only=True)
class CertifySettings:
    """What `certify_uap` does beside the network, the data and eps. Raises UsageError for values that make no sense.

    Attributes:
        group_size: inputs that share one perturbation; the last group may be smaller.
        protocol: `all` inputs in order, misclassified ones count as lost; or `correct`: of the first 3 * limit inputs
            the misclassified ones are dropped and the first `limit` others kept (RaVeN, RACoon, RABBit).
        scope: one perturbation for each of the consecutive `groups`, or one for the whole `dataset`, whose certificate
            is never below that of the groups (dataset.py).
        bounds: the strongest bounds in use; `ibp` stops after IBP, `crown` runs IBP, CROWN and the MILP, `alpha` puts
            alpha-CROWN before the MILP, `full` alpha-CROWN, branch and bound on each input, and the cross-execution
            loop in place of the MILP (networks that branch and bound cannot split keep the MILP).
        branch_nodes: parts of the box that branch and bound may bound for one input; this budget is deterministic.
        branch_seconds: seconds that it may take for one input that CROWN leaves open, on average over a batch; a result
            that this limit cuts short depends on the machine.
        intermediate: bounds of hidden neurons, by CROWN intersected with IBP, or by CROWN alone (as published).
        solver, threads: of the MILP.
        time_limit: seconds a group that the MILP or the cross-execution loop may take; the search across groups may
            take as much for each group with an open input.
        attack_steps, attack_restarts, seed: of the attack on the shared perturbation.
        limit: how many inputs are judged; None: all.
    """

    group_size: int = 5
    protocol: Protocol = "all"
    scope: Scope = "groups"
    bounds: BoundsName = "crown"
    intermediate: Intermediate = "intersect"
    branch_nodes: int = 4000
    branch_seconds: float = 60.0
    solver: SolverName = "cbc"
    time_limit: float = 60.0
    threads: int = 1
    attack_steps: int = 50
    attack_restarts: int = 6
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        choices = {
            "protocol": Protocol,
            "scope": Scope,
            "bounds": BoundsName,
            "intermediate": Intermediate,
            "solver": SolverName,
        }
        for field, kind in choices.items():
            if getattr(self, field) not in get_args(kind):
                raise UsageError(f"{field} is {getattr(self, field)!r}; choose one of {', '.join(get_args(kind))}.")
        least = {"group_size": 1, "threads": 1, "attack_steps": 0, "attack_restarts": 0, "seed": 0, "limit": 1}
        least["branch_nodes"] = 1
        for field, smallest in least.items():
            value = getattr(self, field)
            if value is not None and not (isinstance(value, int) and value >= smallest):
                raise UsageError(f"{field} is {value!r}; it must be an integer of at least {smallest}.")
        for field in ("time_limit", "branch_seconds"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{field} is {value!r}; it must be a positive number of seconds.")


def certify_uap(
    model: OnnxModel,
    data: Dataset,
    threat: Threat,
    settings: CertifySettings,
    *,
    device: str = "cpu",
    journal: Path | None = None,
    resume: bool = False,
    proof: Path | None = None,
    progress: Progress | None = None,
    solver: Solver | None = None,
    workers: int = 1,
) -> Certificate:
    """The certificate of `model` on `data` under one shared perturbation per group.

    Args:
        device: where bounds and attacks are computed; clean accuracy and witnesses are judged on onnxruntime's CPU.
        journal: file that gets one line per finished group; `resume` goes on with it.
        proof: file that gets the proof, for `citrus check`.
        solver: another MILP solver in place of the one that `settings` names.
        workers: processes that groups are spread over, each with as many threads as this one; the result is the same.

    Raises:
        DataError: shape or number of classes do not fit the network, or no input is left to judge.
        CheckFailedError: the network is not (any more) that of the file.
        UsageError: the target is no class of the network; a proof is wanted of bounds that have none.
        UnsupportedNetworkError: a proof is wanted of a network that the checker cannot read.
        UsageError, InputFileError: the journal is of another run, or no journal (journal.open_journal).
        SoundnessError: a lower bound lies above an upper bound; names group, stage and values.
        InterruptedRunError: Ctrl-C, or a worker died; finished groups are in the journal.
    """
    progress = progress or Silent()
    data.require_classifier(model.network.input_shape, model.network.num_classes, str(model.path))
    threat.require_target(model.network.num_classes)
    require_parity(model.network, OnnxRunner(model), model.path)
    solver = solver or named(settings.solver)
    build = partial(_Run.of, model, data, threat, settings, solver, device, proof)
    run = build(resume=resume)
    results: dict[int, GroupResult] = {}
    remainders: dict[int, Remainder] = {}
    proofs: dict[int, GroupProof] = {}
    dataset = settings.scope == "dataset"
    groups: list[tuple[int, ...]] = []
    with ExitStack() as stack:
        log: Journal | None = None
        try:
            start = time.monotonic()
            candidates, clean = run.clean(progress)
            chosen = run.chosen(candidates, clean)
            k = settings.group_size
            groups = [tuple(part.tolist()) for part in torch.split(candidates[chosen], k)]
            clean_seconds = time.monotonic() - start
            if journal is not None:
                log = stack.enter_context(
                    open_journal(journal, _identity(model, data, threat, settings), groups, resume=resume)
                )
                results.update(run.recorded(log.done))
                if dataset:
                    remainders.update(_remainders(journal, {index: log.notes.get(index) for index in results}))
            progress.start("groups", len(groups), "groups")
            progress.advance(len(results))
            size = run.chunk_groups()
            tasks = []
            for first in range(0, len(groups), size):
                members = range(first, min(first + size, len(groups)))
                part = chosen[first * k : (members[-1] + 1) * k]
                skip = frozenset(results).intersection(members)
                if len(skip) < len(members):
                    tasks.append(_Chunk(first=first, indices=candidates[part], clean=clean.select(part), skip=skip))
            if tasks and not results:
                progress.advance(0, note=f"in batches of {min(size, len(groups))}")
            for one in _finished(run, partial(build, resume=True), tasks, workers):
                result, index = one.result, one.result.index
                results[index], remainders[index] = result, one.remainder
                if one.proof is not None:
                    proofs[index] = one.proof
                if log is not None:
                    log.write(result, one.remainder.to_json() if dataset else None)
                progress.advance(1, note=_note(results))
            ordered: tuple[GroupResult, ...] = tuple(results[index] for index in range(len(groups)))
            together = None
            if dataset:
                row = dict(zip(candidates[chosen].tolist(), chosen.tolist(), strict=True))
                ordered, together = run.together(ordered, remainders, proofs, clean, row, progress)
            if log is not None:
                log.finish()
        except KeyboardInterrupt:
            saved = f"continue with --resume ({journal})" if journal is not None else "nothing was saved (no journal)"
            raise InterruptedRunError(f"stopped after {len(results)} of {len(groups)} groups; {saved}.") from None
    if run.recorder is not None:
        run.recorder.pack(len(ordered), {"data": data.name, "split": data.split, "version": __version__})
    progress.finish()
    return Certificate(
        model=str(model.path),
        sha256=model.sha256,
        data=data.name,
        split=data.split,
        data_sha256=data.sha256(),
        threat=threat,
        settings=asdict(settings),
        examined=len(candidates),
        examined_correct=int(clean.correct.sum()),
        groups=ordered,
        stages={"clean": clean_seconds, **_total(group.stages for group in ordered)},
        version=__version__,
        together=together,
    )


def _finished(run: _Run, build: Callable[[], _Run], tasks: Sequence[_Chunk], workers: int) -> Iterator[_Finished]:
    """The groups of all chunks, here or by worker processes, each of which builds a run of its own."""
    if min(workers, len(tasks)) > 1:
        done = spread(partial(_worker, build), tasks, workers, threads=torch.get_num_threads())
        yield from (one for several in done for one in several)
    else:
        for task in tasks:
            yield from run.chunk(task)


def _worker(build: Callable[[], _Run]) -> Callable[[_Chunk], list[_Finished]]:
    """What a worker process does with a chunk."""
    run = build()
    return lambda task: list(run.chunk(task))


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


def _recorder(
    path: Path, model: OnnxModel, threat: Threat, settings: CertifySettings, network: Network, *, resume: bool
) -> Recorder:
    """What writes the proof; raises where there will be none that `citrus check` can verify."""
    if settings.bounds != "full" or settings.intermediate != "intersect" or not foldable(network):
        raise UsageError(
            "a proof is written for --bounds full with --intermediate intersect, and for networks whose nonlinear"
            " layers are ReLU and LeakyReLU; leave --certificate out."
        )
    form = model.contract
    read_graph(model.path, form.pixel_shape, mean=form.mean, std=form.std, layout=form.layout, clip=threat.clip)
    run = {
        "model_sha256": model.sha256,
        "eps": float(threat.eps).hex(),
        "clip": threat.clip,
        "target": threat.target,
        "shape": list(form.pixel_shape),
        "mean": list(form.mean),
        "std": list(form.std),
        "layout": form.layout,
    }
    return Recorder(path, run, resume=resume)


def _note(results: Mapping[int, GroupResult]) -> str:
    inputs = sum(len(group.indices) for group in results.values())
    certified = 100 * sum(group.certified for group in results.values()) / inputs
    attacked = 100 * sum(group.attacked for group in results.values()) / inputs
    return f"certified {certified:.1f} %, attacked {attacked:.1f} %"


def _total(stages: Iterator[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for stage in stages:
        for name, seconds in stage.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - start


@dataclass(frozen=True, kw_only=True)
class _Open:
    """One group on its way: position of its inputs in the chunk, flags by input, and the worst u found.

    `correct`: correct without a perturbation, or for a target class, not driven to it; see screen.Clean.held.
    """

    index: int
    indices: tuple[int, ...]
    position: Tensor  # (k,) int64
    correct: Tensor  # (k,) bool
    ibp: Tensor
    proven: Tensor
    labels: tuple[int, ...]
    u: Tensor  # (C, H, W) float32
    fallen: Tensor  # (k,) bool, fooled by u, replayed
    seconds: dict[str, float]

    @property
    def fooled(self) -> int:
        return int(self.fallen.sum())

    @property
    def open(self) -> Tensor:
        return self.correct & ~self.proven

    def of(self, members: Sequence[int], index: int) -> _Open:
        """Some of the inputs as a group of their own, without a witness."""
        some = list(members)
        return _Open(
            index=index,
            indices=tuple(self.indices[member] for member in some),
            position=self.position[some],
            correct=self.correct[some],
            ibp=self.ibp[some],
            proven=self.proven[some],
            labels=tuple(self.labels[member] for member in some),
            u=torch.zeros_like(self.u),
            fallen=torch.zeros(len(some), dtype=torch.bool),
            seconds={},
        )

    def result(self, fooled_upper: int, status: Status, detail: str) -> GroupResult:
        correct = int(self.correct.sum())
        certified, attacked = correct - fooled_upper, correct - self.fooled
        return GroupResult(
            index=self.index,
            indices=self.indices,
            clean_correct=correct,
            ibp_certified=int(self.ibp.sum()),
            individually_certified=int(self.proven.sum()),
            certified=certified,
            attacked=attacked,
            status=Status.EXACT if certified == attacked else status,
            detail=detail,
            stages=dict(self.seconds),
            evidence=Evidence(
                labels=self.labels,
                verdicts=tuple(map(self._verdict, range(len(self.indices)))),
                perturbation=self.u.numpy() if self.fooled else None,
            ),
        )

    def _verdict(self, place: int) -> Verdict:
        if not self.correct[place]:
            return Verdict.LOST
        if self.proven[place]:
            return Verdict.IBP if self.ibp[place] else Verdict.PROVEN
        return Verdict.FOOLED if self.fallen[place] else Verdict.OPEN


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Groups that go through the batched stages together.

    Attributes:
        first: number of the first of them.
        indices, clean: of their inputs.
        skip: numbers of groups that are done already. The batched stages run on the whole chunk all the same, so that a
            resumed run gives the same result as an uninterrupted one: the attack's random numbers depend on the batch.
    """

    first: int
    indices: Tensor
    clean: Clean
    skip: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """A group that is done: its bracket, what it leaves open, and its proof where that is still to be recorded."""

    result: GroupResult
    remainder: Remainder
    proof: GroupProof | None


def _remainder(
    group: _Open, screened: Screened, u: Tensor, refuted: Collection[frozenset[Atom]], eps: float
) -> Remainder:
    """What the group's stages left open."""
    places = [p for p, is_open in enumerate(group.open.tolist()) if is_open]
    entries = [screened.planes.get(int(group.position[place])) for place in places]
    gaps = [
        math.inf if entry is None else float((eps * np.abs(entry.coefficient).sum(1) - entry.offset).max(initial=0.0))
        for entry in entries
    ]
    return Remainder(
        inputs=tuple(group.indices[place] for place in places),
        labels=tuple(() if entry is None else tuple(entry.label.tolist()) for entry in entries),
        gaps=tuple(gap if math.isfinite(gap) else 0.0 for gap in gaps),
        refuted=tuple(tuple(sorted(some)) for some in sorted(refuted, key=sorted)),
        u=u,
    )


def _refutation(grounds: Grounds, places: Sequence[int], inputs: Sequence[Execution]) -> Refutation:
    """The proof of a combination of `inputs`, which are at `places` in the group."""
    return Refutation(
        atoms=tuple((places[member], label) for member, label in grounds.combination),
        instances=tuple(inputs[member].member.instance for member, _ in grounds.combination),
        leaves=grounds.leaves,
        fronts=grounds.fronts,
        closed=grounds.closed,
    )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The parts of one certification that stay the same for all groups."""

    bounded: Network  # float64
    attacked: Network  # float32
    runner: OnnxRunner
    data: Dataset
    threat: Threat
    settings: CertifySettings
    solver: Solver
    device: torch.device
    recorder: Recorder | None

    @staticmethod
    def of(
        model: OnnxModel,
        data: Dataset,
        threat: Threat,
        settings: CertifySettings,
        solver: Solver,
        device: str,
        proof: Path | None,
        *,
        resume: bool,
    ) -> _Run:
        """The run of `certify_uap`'s arguments; `resume` keeps what is recorded already."""
        network = threat.network(model.network)
        return _Run(
            bounded=network.frozen(dtype=torch.float64, device=device),
            attacked=network.frozen(dtype=torch.float32, device=device),
            runner=OnnxRunner(model),
            data=data,
            threat=threat,
            settings=settings,
            solver=solver,
            device=torch.device(device),
            recorder=None if proof is None else _recorder(proof, model, threat, settings, network, resume=resume),
        )

    @property
    def eps(self) -> float:
        return self.threat.eps

    @property
    def joint(self) -> bool:
        """Whether groups go through the cross-execution loop."""
        return self.settings.bounds == "full" and foldable(self.bounded)

    def recorded(self, done: Mapping[int, GroupResult]) -> dict[int, GroupResult]:
        """Those of an earlier run's results that need not be found again."""
        recorder = self.recorder
        if recorder is None:
            return dict(done)
        if self.settings.scope == "dataset":  # its proofs are regrouped at the end, from memory
            return {}
        return {n: group for n, group in done.items() if recorder.has(n, group.indices, group.certified)}

    def clean(self, progress: Progress) -> tuple[Tensor, Clean]:
        """Indices of the candidates and what they are without a perturbation."""
        limit, target = self.settings.limit, self.threat.target
        candidates = judged(self.data, target)
        if limit is not None:
            candidates = candidates[: limit if self.settings.protocol == "all" else 3 * limit]
        progress.start("clean", len(candidates), "inputs")
        parts = []
        for part in torch.split(candidates, CHUNK_INPUTS):
            x, labels = self.data.pixels(part), self.data.labels[part]
            parts.append(clean_stage(self.bounded, self.runner, x, labels, target))
            progress.advance(len(part))
        return candidates, Clean.joined(parts)

    def chosen(self, candidates: Tensor, clean: Clean) -> Tensor:
        """Positions of the inputs to judge, by protocol."""
        if self.settings.protocol == "all":
            return torch.arange(len(candidates))
        kept = torch.nonzero(clean.correct).flatten()[: self.settings.limit]
        if len(kept) == 0:
            raise DataError(
                f"data {self.data.name} ({self.data.split}): none of the first {len(candidates)} inputs is classified"
                " correctly, so protocol correct has nothing to judge; check --mean/--std or use --protocol all."
            )
        return kept

    def chunk_groups(self) -> int:
        """Groups that go through the batched stages together."""
        per_input = 8 * self.bounded.num_classes * math.prod(self.bounded.input_shape)
        inputs = CHUNK_INPUTS if self.settings.bounds in ("ibp", "crown") else BRANCHED_INPUTS
        return max(1, min(inputs, CHUNK_BYTES // per_input) // self.settings.group_size)

    def chunk(self, task: _Chunk) -> Iterator[_Finished]:
        """The groups of one chunk but those that are done; their proofs are recorded, or kept in scope dataset."""
        settings, k = self.settings, self.settings.group_size
        first, indices, clean = task.first, task.indices, task.clean
        x, labels = self.data.pixels(indices), clean.rival
        seconds: dict[str, float] = {}
        screened = screen(
            self.bounded,
            x,
            clean,
            self.eps,
            bounds=settings.bounds,
            intermediate=settings.intermediate,
            target=self.threat.target,
            budget=Budget(
                nodes=settings.branch_nodes,
                plane_nodes=0 if self.joint else Budget.plane_nodes,
                seconds=settings.branch_seconds,
                attack_steps=settings.attack_steps,
                attack_restarts=min(INDIVIDUAL_RESTARTS, settings.attack_restarts),
            ),
            generator=self._generator(2, first),
            record=self.recorder is not None,
        )
        seconds.update(screened.seconds)
        positions = torch.split(torch.arange(len(indices)), k)
        with _timed(seconds, "attack"):
            u = self._attack(first, positions, x, labels, clean.held & ~screened.proven)
        share = {stage: value / len(positions) for stage, value in seconds.items()}
        for number, position in enumerate(positions):
            if first + number in task.skip:
                continue
            group = _Open(
                index=first + number,
                indices=tuple(indices[position].tolist()),
                position=position,
                correct=clean.held[position],
                ibp=screened.ibp[position],
                proven=screened.proven[position],
                labels=tuple(self.data.labels[indices[position]].tolist()),
                u=u[number],
                fallen=torch.zeros(len(position), dtype=torch.bool),
                seconds=dict(share),
            )
            with _timed(group.seconds, "replay"):
                group = self._replayed(group, screened, u[number], x, labels)
            result, witness, refuted, together = self._finish(group, screened, x, labels)
            proof = None if self.recorder is None else self._proof(group, result, screened, x, labels, together)
            if proof is not None and settings.scope == "groups":
                self._record(proof)
                proof = None
            remainder = _remainder(group, screened, witness.u, refuted, self.eps)
            yield _Finished(result=result, remainder=remainder, proof=proof)

    def _proof(
        self,
        group: _Open,
        result: GroupResult,
        screened: Screened,
        x: Tensor,
        rivals: Tensor,
        together: Sequence[Refutation],
    ) -> GroupProof:
        """What is recorded of a group: proofs of single labels, and of labels of several inputs `together`."""
        kinds, excluded, alone = [], [], []
        for place, position in enumerate(group.position.tolist()):
            wanted = set(range(self.bounded.num_classes)) if self.threat.target is None else {self.threat.target}
            wanted.discard(int(rivals[position]))
            held, ibp = bool(group.correct[place]), bool(group.ibp[place])
            kinds.append("lost" if not held else "interval" if ibp else "bounds")
            excluded.append(tuple(sorted(wanted if ibp else wanted.intersection(screened.excluded.get(position, ())))))
            alone += [
                Refutation(atoms=((place, one.label),), instances=(one.instance,), leaves=one.leaves)
                for one in screened.proofs.get(position, ())
            ]
        return GroupProof(
            index=group.index,
            indices=group.indices,
            images=x[group.position],
            labels=tuple(self.data.labels[list(group.indices)].tolist()),
            rivals=tuple(rivals[group.position].tolist()),
            kinds=tuple(kinds),
            excluded=tuple(excluded),
            refutations=(*alone, *together),
            fooled=result.clean_correct - result.certified,
        )

    def _attack(self, first: int, positions: tuple[Tensor, ...], x: Tensor, labels: Tensor, attacked: Tensor) -> Tensor:
        """The worst u found for each group against its inputs in `attacked` (n,); (g, C, H, W) on the CPU."""
        k = max(len(position) for position in positions)
        index = torch.stack([torch.cat([p, p[-1:].expand(k - len(p))]) for p in positions])  # pads a smaller last group
        real = torch.stack([torch.arange(k) < len(p) for p in positions])
        u, _ = attack_groups(
            self.attacked,
            x[index].to(self.device),
            labels[index].to(self.device),
            (attacked[index] & real).to(self.device),
            self.eps,
            steps=self.settings.attack_steps,
            restarts=self.settings.attack_restarts,
            generator=self._generator(0, first),
            target=self.threat.target,
        )
        return u.cpu()

    def _generator(self, stage: int, number: int) -> torch.Generator:
        state = np.random.SeedSequence([self.settings.seed, stage, number]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

    def _replayed(
        self,
        group: _Open,
        screened: Screened,
        u: Tensor,
        x: Tensor,
        labels: Tensor,
        conflicts: Conflicts | None = None,
    ) -> _Open:
        """The group with `u` as its witness if it fools more inputs than the old one.

        An input is fooled if the file on onnxruntime (float32) and the float64 network at the exact x + u agree that it
        is. Every proof is held against the latter, for proofs are about real arithmetic and float32 may round a small
        true margin away: a label at or above the true one must have been left open, and its plane must allow it at u;
        and what happens at u must not contain a combination that the cross-execution loop refuted.
        """
        if not bool(group.open.any()):
            return group
        inputs = group.position[group.correct]
        truth, target = labels[inputs].numpy(), self.threat.target
        with torch.no_grad():
            exact = self.bounded((x[inputs].double() + u.double()).to(self.device)).cpu().numpy()
        lost = ~held(exact, truth, target)
        point = u.flatten().double().numpy()
        happening: set[Atom] = set()
        number_of = {int(position): number for number, position in enumerate(group.position[group.open].tolist())}
        for position, row, true in zip(inputs[lost].tolist(), exact[lost], truth[lost], strict=True):
            winners = np.flatnonzero(row >= row[true]) if target is None else np.array([target])
            if position in number_of:
                happening |= {(number_of[position], int(label)) for label in winners[winners != true]}
            if not self._allowed(screened, position, winners[winners != true], point):
                raise SoundnessError(
                    f"group {group.index}: a perturbation within eps {self.eps:g} fools input"
                    f" {group.indices[position - int(group.position[0])]} although the {self.settings.bounds} stage"
                    " excludes it; the certificate is void, please report the network."
                )
        if conflicts is not None and conflicts.covers(happening):
            raise SoundnessError(
                f"group {group.index}: a perturbation within eps {self.eps:g} fools inputs together although the"
                " cross-execution stage excludes it; the certificate is void, please report the network."
            )
        seen = self.runner.logits(self.threat.inputs(x[inputs], u))
        fallen = torch.zeros_like(group.correct)
        fallen[group.correct] = torch.from_numpy(lost & ~held(seen, truth, target))
        return replace(group, u=u, fallen=fallen) if int(fallen.sum()) > group.fooled else group

    def _allowed(self, screened: Screened, position: int, labels: NDArray[np.int64], u: NDArray[np.float64]) -> bool:
        """Whether the bounds of an input allow all of `labels` to win at u."""
        if bool(screened.proven[position]):
            return False
        entry = screened.planes.get(position)
        if entry is None:  # IBP only: nothing is known about an unproven input
            return True
        return bool(np.isin(labels, entry.label[entry.coefficient @ u + entry.offset <= 0]).all())

    def _finish(
        self, group: _Open, screened: Screened, x: Tensor, labels: Tensor
    ) -> tuple[GroupResult, _Open, Collection[frozenset[Atom]], tuple[Refutation, ...]]:
        """The group's bracket and witness, by the cross-execution loop, or by the MILP where it can help.

        Also the combinations that the loop refuted, and their proofs.
        """
        if self.joint and group.fooled < int(group.open.sum()):
            return self._settled(group, screened, x, labels)
        return *self._counted(group, screened, x, labels), (), ()

    def _counted(self, group: _Open, screened: Screened, x: Tensor, labels: Tensor) -> tuple[GroupResult, _Open]:
        """The group's bracket and witness, by the MILP where it can help."""
        count = int(group.open.sum())
        if count == 0:
            return group.result(0, Status.EXACT, "every correct input is proven by itself"), group
        if self.settings.bounds == "ibp":
            return group.result(count, Status.BOUNDED, "IBP only, no MILP"), group
        if count == 1:
            return group.result(count, Status.BOUNDED, "no MILP: with one open input it cannot help"), group
        if group.fooled == count:
            return group.result(count, Status.EXACT, "no MILP: one perturbation fools every open input"), group
        with _timed(group.seconds, "milp"):
            bound = self._master(group, screened)
        if group.fooled < bound.fooled_upper and bound.proposal is not None:
            with _timed(group.seconds, "attack"):
                u = self._attack_from(group, bound.proposal, x, labels)
            with _timed(group.seconds, "replay"):
                group = self._replayed(group, screened, u, x, labels)
        status = {Ending.OPTIMAL: Status.BOUNDED, Ending.TIME_LIMIT: Status.TIMEOUT, Ending.NO_BOUND: Status.ERROR}
        return group.result(bound.fooled_upper, status[bound.ending], bound.words), group

    def _settled(
        self, group: _Open, screened: Screened, x: Tensor, labels: Tensor
    ) -> tuple[GroupResult, _Open, Collection[frozenset[Atom]], tuple[Refutation, ...]]:
        """What `_finish` gives, by the cross-execution loop."""
        with _timed(group.seconds, "joint"):
            positions = group.position[group.open]
            open_labels = [tuple(screened.planes[position].label.tolist()) for position in positions.tolist()]
            inputs = self._executions(open_labels, x[positions], labels[positions], screened.guard[positions])
            found = settle(
                self.attacked,
                inputs,
                group.u.to(self.device),
                self.eps,
                seconds=self.settings.time_limit,
                generator=self._generator(1, group.index),
                target=self.threat.target,
                record=self.recorder is not None,
            )
        alone = found.conflicts.excluded()
        proven = group.proven.clone()
        proven[torch.nonzero(group.open).flatten()[list(alone)]] = True
        with _timed(group.seconds, "replay"):
            replayed = self._replayed(group, screened, found.u.cpu(), x, labels, found.conflicts)
        status = Status.BOUNDED if found.complete else Status.TIMEOUT
        detail = (
            f"cross-execution search: {len(found.conflicts.refuted)} combinations refuted, {found.nodes} parts bounded"
        )
        places = torch.nonzero(group.open).flatten().tolist()
        proofs = tuple(_refutation(one, places, inputs) for one in found.grounds)
        result = replace(replayed, proven=proven).result(found.fooled_upper, status, detail)
        return result, replayed, found.conflicts.refuted, proofs

    def together(
        self,
        groups: Sequence[GroupResult],
        remainders: Mapping[int, Remainder],
        proofs: Mapping[int, GroupProof],
        clean: Clean,
        row: Mapping[int, int],
        progress: Progress,
    ) -> tuple[tuple[GroupResult, ...], int]:
        """The groups of a partition chosen for one perturbation of the whole data set, and how many it leaves correct.

        Args:
            groups: the results of the consecutive groups; `remainders`, and `proofs` if recorded, by their index.
            clean, row: what the candidates are without a perturbation, and the row there of an index into the data.

        Raises: as `_replayed`.
        """
        seconds: dict[str, float] = {}
        held_ = sum(group.clean_correct for group in groups)
        rest = Rest.of([remainders[group.index] for group in groups])
        if not rest.inputs:
            for proof in proofs.values():
                self._record(proof)
            return tuple(groups), held_
        rows = [row[index] for index in rest.inputs]
        x, rivals = self.data.pixels(torch.tensor(rest.inputs)), clean.rival[rows]
        found: Across | None = None
        with _timed(seconds, "dataset"):
            if self.joint:
                inputs = self._executions(rest.labels, x, rivals, clean.guard[rows])
                found = across(
                    self.attacked,
                    inputs,
                    rest,
                    self.eps,
                    seconds=self.settings.time_limit * len(rest.given),
                    generator=self._generator(3, 0),
                    progress=progress,
                    target=self.threat.target,
                    record=self.recorder is not None,
                )
                u = found.u
            else:
                u = attacked(
                    self.attacked,
                    x.to(self.device),
                    rivals.to(self.device),
                    rest.tried,
                    self.eps,
                    generator=self._generator(3, 0),
                    target=self.threat.target,
                ).best
        everything = torch.arange(len(rest.inputs))
        whole = _Open(
            index=0,
            indices=rest.inputs,
            position=everything,
            correct=torch.ones_like(everything, dtype=torch.bool),
            ibp=torch.zeros_like(everything, dtype=torch.bool),
            proven=torch.zeros_like(everything, dtype=torch.bool),
            labels=tuple(self.data.labels[list(rest.inputs)].tolist()),
            u=torch.zeros_like(x[0]),
            fallen=torch.zeros_like(everything, dtype=torch.bool),
            seconds={},
        )
        screened = Screened(
            ibp=whole.ibp,
            proven=whole.proven,
            guard=clean.guard[rows],
            planes={
                place: OpenInput(
                    label=np.array(labels),
                    coefficient=np.zeros((len(labels), x[0].numel())),
                    offset=np.zeros(len(labels)),
                )
                for place, labels in enumerate(rest.labels)
                if labels
            },
            excluded={},
            proofs={},
            seconds={},
        )
        with _timed(seconds, "replay"):
            whole = self._replayed(whole, screened, u.cpu(), x, rivals, None if found is None else found.conflicts)
        if found is None:
            return tuple(groups), held_ - whole.fooled
        parts = [whole.of(block.members, index) for index, block in enumerate(found.blocks)]
        with _timed(seconds, "attack"):
            worst = self._attack(len(groups), tuple(one.position for one in parts), x, rivals, whole.correct)
        share = {stage: value / len(parts) for stage, value in seconds.items()}
        still, chosen = set(rest.inputs), list[GroupResult]()
        for group in groups:
            kept = tuple(index for index in group.indices if index not in still)
            if kept:
                chosen.append(group.without(len(group.indices) - len(kept), kept, index=len(chosen)))
        first = len(chosen)
        for number, (one, block) in enumerate(zip(parts, found.blocks, strict=True)):
            for perturbation in (whole.u, worst[number]):
                one = self._replayed(one, screened, perturbation, x, rivals)
            alone = set(found.conflicts.excluded()).intersection(block.members)
            proven = torch.tensor([member in alone for member in block.members])
            one = replace(one, index=first + number, seconds=share, proven=proven)
            words = f"at most {block.bound} of {len(block.members)} fooled at once"
            chosen.append(one.result(block.bound, Status.BOUNDED if found.complete else Status.TIMEOUT, words))
        if self.recorder is not None:
            across_ = [_refutation(some, range(len(inputs)), inputs) for some in found.grounds]
            for part in regrouped(proofs, rest.inputs, found.blocks, across_):
                self._record(part)
        return tuple(chosen), held_ - whole.fooled

    def _record(self, proof: GroupProof) -> None:
        if self.recorder is not None:
            self.recorder.write(proof)

    def _executions(
        self, labels: Sequence[tuple[int, ...]], x: Tensor, rivals: Tensor, guard: Tensor
    ) -> list[Execution]:
        """The executions of open inputs x (n, C, H, W), some at a time."""
        found: list[Execution] = []
        for part in torch.split(torch.arange(len(x)), RELAXED):
            some = part.tolist()
            found += executions(
                self.bounded,
                x[part].to(self.device),
                rivals[part].tolist(),
                [labels[place] for place in some],
                guard[part].tolist(),
                self.eps,
            )
        return found

    def _master(self, group: _Open, screened: Screened) -> MasterBound:
        inputs = [screened.planes[int(position)] for position in group.position[group.open]]
        planes = Planes(
            owner=np.concatenate([np.full(len(entry.label), owner) for owner, entry in enumerate(inputs)]),
            label=np.concatenate([entry.label for entry in inputs]),
            coefficient=np.concatenate([entry.coefficient for entry in inputs]),
            offset=np.concatenate([entry.offset for entry in inputs]),
        )
        return bound_fooled(
            planes,
            inputs=len(inputs),
            eps=math.nextafter(self.eps, math.inf),
            known=[group.u.flatten().double().numpy()],
            solver=self.solver,
            time_limit=self.settings.time_limit,
            threads=self.settings.threads,
        )

    def _attack_from(self, group: _Open, proposal: NDArray[np.float64], x: Tensor, labels: Tensor) -> Tensor:
        """The worst u found from the MILP's proposal."""
        u, _ = attack_groups(
            self.attacked,
            x[group.position][None].to(self.device),
            labels[group.position][None].to(self.device),
            group.open[None].to(self.device),
            self.eps,
            steps=self.settings.attack_steps,
            restarts=0,
            generator=self._generator(1, group.index),
            target=self.threat.target,
            starts=torch.from_numpy(proposal).to(torch.float32).reshape(1, 1, *x.shape[1:]).to(self.device),
        )
        return u[0].cpu()
