"""The stages of a certification on chunks of groups, and on a whole data set (see uap.py for their order)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool.attacks.universal import attack_groups
from citrus_tool.bounds.fold import foldable
from citrus_tool.certification.branch import Budget
from citrus_tool.certification.conflicts import Atom, Conflicts
from citrus_tool.certification.dataset_scope import Across, Remainder, Rest, across, attacked
from citrus_tool.certification.group import OpenGroup, refutation_of, remainder_of, timed
from citrus_tool.certification.individual import Clean, OpenInput, Screened, clean_stage, held, judged, screen
from citrus_tool.certification.joint_loop import OpenInput as Execution
from citrus_tool.certification.joint_loop import executions, settle
from citrus_tool.certification.milp import Ending, MasterBound, Planes, Solver, bound_fooled
from citrus_tool.certification.proof import GroupProof, Recorder, Refutation, regrouped
from citrus_tool.checker.graph import read_graph
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import Dataset
from citrus_tool.errors import DataError, SoundnessError, UsageError
from citrus_tool.network import Network
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.progress import Progress
from citrus_tool.results.certificate import GroupResult, Status
from citrus_tool.threat import Threat
from citrus_tool.threat.clip import perturbed_network

CHUNK_INPUTS: Final = 500
"""Inputs that go through the batched stages together."""
BRANCHED_INPUTS: Final = 100
"""The same with branch and bound, which takes seconds for an input: the journal gets a chunk's groups together."""
RELAXED: Final = 20
"""Open inputs whose executions are bounded together."""
CHUNK_BYTES: Final = 2**29
"""Upper limit of the size of a chunk's planes, in bytes."""
INDIVIDUAL_RESTARTS: Final = 2
"""Restarts of the attack that spares foolable inputs the branching, at most."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Groups that go through the batched stages together.

    Attributes:
        first: number of the first of them.
        indices, clean: of their n inputs; `indices` (n,) in the data.
        skip: numbers of groups that are done already. The batched stages run on the whole chunk all the same, so that a
            resumed run gives the same result as an uninterrupted one: the attack's random numbers depend on the batch.
    """

    first: int
    indices: Tensor
    clean: Clean
    skip: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A group of k inputs behind the batched stages: pixels `x` (k, C, H, W) float32, the classes that must stay above,
    and what the stages found. Positions count from 0 in the group.
    """

    group: OpenGroup
    screened: Screened
    x: Tensor
    rivals: Tensor  # (k,)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A group that is done: its bracket, what it leaves open, and its proof where that is still to be recorded."""

    result: GroupResult
    remainder: Remainder
    proof: GroupProof | None


@dataclass(frozen=True, kw_only=True)
class Run:
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
    ) -> Run:
        """The run of `certify_uap`'s arguments; `resume` keeps what is recorded already."""
        network = perturbed_network(model.network, threat)
        return Run(
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
        """Radius of the perturbation, in pixel space."""
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
        """Indices (n,) of the candidates and what they are without a perturbation."""
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
        """Positions (n,) of the inputs to judge, by protocol, among the candidates (m,).

        Raises DataError where there are none.
        """
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

    def prepared(self, task: Chunk) -> list[Prepared]:
        """The groups of one chunk but those that are done, behind the batched stages."""
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
        with timed(seconds, "attack"):
            u = self._attack(first, positions, x, labels, clean.held & ~screened.proven)
        share = {stage: value / len(positions) for stage, value in seconds.items()}
        groups = []
        for number, position in enumerate(positions):
            if first + number in task.skip:
                continue
            some = screened.select(position)
            group = OpenGroup(
                index=first + number,
                indices=tuple(indices[position].tolist()),
                position=torch.arange(len(position)),
                correct=clean.held[position],
                ibp=some.ibp,
                proven=some.proven,
                labels=tuple(self.data.labels[indices[position]].tolist()),
                u=u[number],
                fallen=torch.zeros(len(position), dtype=torch.bool),
                seconds=dict(share),
            )
            groups.append(Prepared(group=group, screened=some, x=x[position], rivals=labels[position]))
        return groups

    def finished(self, prepared: Prepared) -> Finished:
        """The group's result; its proof is recorded, or kept in scope dataset."""
        group, screened, x, rivals = prepared.group, prepared.screened, prepared.x, prepared.rivals
        with timed(group.seconds, "replay"):
            group = self._replayed(group, screened, group.u, x, rivals)
        result, witness, refuted, together = self._finish(group, screened, x, rivals)
        proof = None if self.recorder is None else self._proof(group, result, screened, x, rivals, together)
        if proof is not None and self.settings.scope == "groups":
            self._record(proof)
            proof = None
        remainder = remainder_of(group, screened, witness.u, refuted, self.eps)
        return Finished(result=result, remainder=remainder, proof=proof)

    def _proof(
        self,
        group: OpenGroup,
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
                Refutation(atoms=((place, one.label),), views=(one.view,), leaves=one.leaves)
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
        group: OpenGroup,
        screened: Screened,
        u: Tensor,
        x: Tensor,
        labels: Tensor,
        conflicts: Conflicts | None = None,
    ) -> OpenGroup:
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
        self, group: OpenGroup, screened: Screened, x: Tensor, labels: Tensor
    ) -> tuple[GroupResult, OpenGroup, Collection[frozenset[Atom]], tuple[Refutation, ...]]:
        """The group's bracket and witness, by the cross-execution loop, or by the MILP where it can help.

        Also the combinations that the loop refuted, and their proofs.
        """
        if self.joint and group.fooled < int(group.open.sum()):
            return self._settled(group, screened, x, labels)
        return *self._counted(group, screened, x, labels), (), ()

    def _counted(
        self, group: OpenGroup, screened: Screened, x: Tensor, labels: Tensor
    ) -> tuple[GroupResult, OpenGroup]:
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
        with timed(group.seconds, "milp"):
            bound = self._master(group, screened)
        if group.fooled < bound.fooled_upper and bound.proposal is not None:
            with timed(group.seconds, "attack"):
                u = self._attack_from(group, bound.proposal, x, labels)
            with timed(group.seconds, "replay"):
                group = self._replayed(group, screened, u, x, labels)
        status = {Ending.OPTIMAL: Status.BOUNDED, Ending.TIME_LIMIT: Status.TIMEOUT, Ending.NO_BOUND: Status.ERROR}
        return group.result(bound.fooled_upper, status[bound.ending], bound.words), group

    def _settled(
        self, group: OpenGroup, screened: Screened, x: Tensor, labels: Tensor
    ) -> tuple[GroupResult, OpenGroup, Collection[frozenset[Atom]], tuple[Refutation, ...]]:
        """What `_finish` gives, by the cross-execution loop."""
        with timed(group.seconds, "joint"):
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
        with timed(group.seconds, "replay"):
            replayed = self._replayed(group, screened, found.u.cpu(), x, labels, found.conflicts)
        status = Status.TIMEOUT if found.late else Status.BOUNDED
        detail = (
            f"cross-execution search: {len(found.conflicts.refuted)} combinations refuted, {found.nodes} parts bounded"
        )
        places = torch.nonzero(group.open).flatten().tolist()
        proofs = tuple(refutation_of(one, places) for one in found.grounds)
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
    ) -> tuple[tuple[GroupResult, ...], int, NDArray[np.float32] | None]:
        """The groups of a partition chosen for one perturbation of the whole data set, and how many it leaves correct.

        Also the worst perturbation found (C, H, W) float32, pixel space; None where none fools an input.

        Args:
            groups: the results of the consecutive groups; `remainders`, and `proofs` if recorded, by their index.
            clean, row: what the candidates are without a perturbation, and the row there of an index into the data.

        Raises:
            SoundnessError: an open input has no label that may win, or as `_replayed`.
        """
        seconds: dict[str, float] = {}
        held_ = sum(group.clean_correct for group in groups)
        rest = Rest.of([remainders[group.index] for group in groups])
        if not rest.inputs:
            for proof in proofs.values():
                self._record(proof)
            return tuple(groups), held_, None
        rows = [row[index] for index in rest.inputs]
        x, rivals = self.data.pixels(torch.tensor(rest.inputs)), clean.rival[rows]
        found: Across | None = None
        with timed(seconds, "dataset"):
            if self.joint:
                if not all(rest.labels):
                    raise SoundnessError(
                        "data set: an open input has no label that may win; the certificate is void, please report the"
                        " network and the settings."
                    )
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
        whole = OpenGroup(
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
        with timed(seconds, "replay"):
            whole = self._replayed(whole, screened, u.cpu(), x, rivals, None if found is None else found.conflicts)
        worst_of_all = whole.u.numpy() if whole.fooled else None
        if found is None:
            return tuple(groups), held_ - whole.fooled, worst_of_all
        parts = [whole.of(block.members, index) for index, block in enumerate(found.blocks)]
        with timed(seconds, "attack"):
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
            across_ = [refutation_of(some, range(len(inputs))) for some in found.grounds]
            for part in regrouped(proofs, rest.inputs, found.blocks, across_):
                self._record(part)
        return tuple(chosen), held_ - whole.fooled, worst_of_all

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

    def _master(self, group: OpenGroup, screened: Screened) -> MasterBound:
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

    def _attack_from(self, group: OpenGroup, proposal: NDArray[np.float64], x: Tensor, labels: Tensor) -> Tensor:
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
