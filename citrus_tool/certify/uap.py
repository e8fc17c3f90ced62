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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
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
from citrus_tool.certify.journal import Journal, open_journal
from citrus_tool.certify.master import Ending, MasterBound, Planes, Solver, SolverName, bound_fooled, named
from citrus_tool.certify.proof import GroupProof, Recorder, Refutation
from citrus_tool.certify.screen import BoundsName, Clean, Screened, clean_stage, held, judged, screen
from citrus_tool.certify.settle import executions, settle
from citrus_tool.data import Dataset
from citrus_tool.errors import DataError, InterruptedRunError, SoundnessError, UsageError
from citrus_tool.network import Network
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.progress import Progress, Silent
from citrus_tool.threat import Threat

Protocol = Literal["all", "correct"]

CHUNK_INPUTS: Final = 500
"""Inputs that go through the batched stages together."""
BRANCHED_INPUTS: Final = 100
"""The same with branch and bound, which takes seconds for an input: the journal gets a chunk's groups together."""
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
        bounds: the strongest bounds in use; `ibp` stops after IBP, `crown` runs IBP, CROWN and the MILP, `alpha` puts
            alpha-CROWN before the MILP, `full` alpha-CROWN, branch and bound on each input, and the cross-execution
            loop in place of the MILP (networks that branch and bound cannot split keep the MILP).
        branch_nodes: parts of the box that branch and bound may bound for one input; this budget is deterministic.
        branch_seconds: seconds that it may take for one input that CROWN leaves open, on average over a batch; a result
            that this limit cuts short depends on the machine.
        intermediate: bounds of hidden neurons, by CROWN intersected with IBP, or by CROWN alone (as published).
        solver, threads: of the MILP.
        time_limit: seconds a group that the MILP or the cross-execution loop may take.
        attack_steps, attack_restarts, seed: of the attack on the shared perturbation.
        limit: how many inputs are judged; None: all.
    """

    group_size: int = 5
    protocol: Protocol = "all"
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
        choices = {"protocol": Protocol, "bounds": BoundsName, "intermediate": Intermediate, "solver": SolverName}
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
) -> Certificate:
    """The certificate of `model` on `data` under one shared perturbation per group.

    Args:
        device: where bounds and attacks are computed; clean accuracy and witnesses are judged on onnxruntime's CPU.
        journal: file that gets one line per finished group; `resume` goes on with it.
        proof: file that gets the proof, for `citrus check`.
        solver: another MILP solver in place of the one that `settings` names.

    Raises:
        DataError: shape or number of classes do not fit the network, or no input is left to judge.
        UsageError: the target is no class of the network; a proof is wanted of bounds that have none.
        UnsupportedNetworkError: a proof is wanted of a network that the checker cannot read.
        UsageError, InputFileError: the journal is of another run, or no journal (journal.open_journal).
        SoundnessError: a lower bound lies above an upper bound; names group, stage and values.
        InterruptedRunError: Ctrl-C; finished groups are in the journal.
    """
    progress = progress or Silent()
    data.require_classifier(model.network.input_shape, model.network.num_classes, str(model.path))
    threat.require_target(model.network.num_classes)
    network = threat.network(model.network)
    run = _Run(
        bounded=network.frozen(dtype=torch.float64, device=device),
        attacked=network.frozen(dtype=torch.float32, device=device),
        runner=OnnxRunner(model),
        data=data,
        threat=threat,
        settings=settings,
        solver=solver or named(settings.solver),
        device=torch.device(device),
        recorder=None if proof is None else _recorder(proof, model, threat, settings, network, resume=resume),
    )
    results: dict[int, GroupResult] = {}
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
            progress.start("groups", len(groups), "groups")
            progress.advance(len(results))
            size = run.chunk_groups()
            for first in range(0, len(groups), size):
                members = range(first, min(first + size, len(groups)))
                if all(index in results for index in members):
                    continue
                part = chosen[first * k : (members[-1] + 1) * k]
                progress.advance(0, note=f"{_note(results)}working on groups {first + 1} to {members[-1] + 1}")
                for result in run.chunk(first, candidates[part], clean.select(part), skip=results.keys()):
                    results[result.index] = result
                    if log is not None:
                        log.write(result)
                    progress.advance(1, note=_note(results).removesuffix("; "))
            if log is not None:
                log.finish()
        except KeyboardInterrupt:
            saved = f"continue with --resume ({journal})" if journal is not None else "nothing was saved (no journal)"
            raise InterruptedRunError(f"stopped after {len(results)} of {len(groups)} groups; {saved}.") from None
    if run.recorder is not None:
        run.recorder.pack(len(groups), {"data": data.name, "split": data.split, "version": __version__})
    progress.finish()
    ordered = tuple(results[index] for index in range(len(groups)))
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
    )


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
    """The bracket so far; empty before the first group."""
    if not results:
        return ""
    inputs = sum(len(group.indices) for group in results.values())
    certified = 100 * sum(group.certified for group in results.values()) / inputs
    attacked = 100 * sum(group.attacked for group in results.values()) / inputs
    return f"certified {certified:.1f} %, attacked {attacked:.1f} %; "


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
    u: Tensor  # (C, H, W) float32
    fooled: int  # by u, replayed
    seconds: dict[str, float]

    @property
    def open(self) -> Tensor:
        return self.correct & ~self.proven

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

    def chunk(self, first: int, indices: Tensor, clean: Clean, *, skip: Any) -> Iterator[GroupResult]:
        """The groups of one chunk, beginning with group number `first`; those in `skip` are not finished again.

        The batched stages run on the whole chunk even if some groups are skipped, so that a resumed run gives the same
        result as an uninterrupted one: the attack's random numbers depend on the batch.
        """
        settings, k = self.settings, self.settings.group_size
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
            if first + number in skip:
                continue
            group = _Open(
                index=first + number,
                indices=tuple(indices[position].tolist()),
                position=position,
                correct=clean.held[position],
                ibp=screened.ibp[position],
                proven=screened.proven[position],
                u=u[number],
                fooled=0,
                seconds=dict(share),
            )
            with _timed(group.seconds, "replay"):
                group = self._replayed(group, screened, u[number], x, labels)
            result, together = self._finish(group, screened, x, labels)
            if self.recorder is not None:
                self.recorder.write(self._proof(group, result, screened, x, labels, together))
            yield result

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
        k = self.settings.group_size
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
        fooled = int((lost & ~held(seen, truth, target)).sum())
        return replace(group, u=u, fooled=fooled) if fooled > group.fooled else group

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
    ) -> tuple[GroupResult, tuple[Refutation, ...]]:
        """The group's bracket, by the cross-execution loop, or by the MILP where it can help; the loop's proofs."""
        if self.joint and group.fooled < int(group.open.sum()):
            return self._settled(group, screened, x, labels)
        return self._counted(group, screened, x, labels), ()

    def _counted(self, group: _Open, screened: Screened, x: Tensor, labels: Tensor) -> GroupResult:
        """The group's bracket, by the MILP where it can help."""
        count = int(group.open.sum())
        if count == 0:
            return group.result(0, Status.EXACT, "every correct input is proven by itself")
        if self.settings.bounds == "ibp":
            return group.result(count, Status.BOUNDED, "IBP only, no MILP")
        if count == 1:
            return group.result(count, Status.BOUNDED, "no MILP: with one open input it cannot help")
        if group.fooled == count:
            return group.result(count, Status.EXACT, "no MILP: one perturbation fools every open input")
        with _timed(group.seconds, "milp"):
            bound = self._master(group, screened)
        if group.fooled < bound.fooled_upper and bound.proposal is not None:
            with _timed(group.seconds, "attack"):
                u = self._attack_from(group, bound.proposal, x, labels)
            with _timed(group.seconds, "replay"):
                group = self._replayed(group, screened, u, x, labels)
        status = {Ending.OPTIMAL: Status.BOUNDED, Ending.TIME_LIMIT: Status.TIMEOUT, Ending.NO_BOUND: Status.ERROR}
        return group.result(bound.fooled_upper, status[bound.ending], bound.words)

    def _settled(
        self, group: _Open, screened: Screened, x: Tensor, labels: Tensor
    ) -> tuple[GroupResult, tuple[Refutation, ...]]:
        """The group's bracket by the cross-execution loop, and its proofs."""
        with _timed(group.seconds, "joint"):
            positions = group.position[group.open]
            inputs = executions(
                self.bounded,
                x[positions].to(self.device),
                labels[positions].tolist(),
                [tuple(screened.planes[position].label.tolist()) for position in positions.tolist()],
                [float(screened.guard[position]) for position in positions.tolist()],
                self.eps,
            )
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
        refuted = tuple(
            Refutation(
                atoms=tuple((places[member], label) for member, label in one.combination),
                instances=tuple(inputs[member].member.instance for member, _ in one.combination),
                leaves=one.leaves,
                fronts=one.fronts,
                closed=one.closed,
            )
            for one in found.evidence
        )
        return replace(replayed, proven=proven).result(found.fooled_upper, status, detail), refuted

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
