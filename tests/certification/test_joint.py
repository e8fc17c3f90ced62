"""Joint bounds of several inputs under one perturbation, and the neurons that they share."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from citrus_tool.bounds.ascent import ascend
from citrus_tool.bounds.crown import relax
from citrus_tool.bounds.duals import Duals
from citrus_tool.bounds.execution import FoldedExecution
from citrus_tool.bounds.workspace import Schedule
from citrus_tool.certification.joint import JointProblem, Member
from citrus_tool.certification.search import CLOSED_ELSEWHERE
from citrus_tool.network import INPUT, Network
from citrus_tool.threat import Threat
from citrus_tool.threat.clip import clipped
from tests.bounds.networks import values_at
from tests.certification.toys import SHAPE, tiny_chain, tiny_residual

EPS = 0.3
STILL = Schedule(steps=0)


def network_of(kind: str, seed: int) -> Network:
    network = tiny_residual(seed, channels=3) if kind == "residual" else tiny_chain(seed, hidden=12)
    if kind == "clip":
        network = clipped(network)
    return network.frozen(dtype=torch.float64, device="cpu")


def problem_of(network: Network, members: int, seed: int, *, brightest: float = 1.0) -> tuple[JointProblem, Tensor]:
    """Inputs (M, *SHAPE) with pixels up to `brightest`."""
    x = torch.rand(members, *SHAPE, generator=torch.Generator().manual_seed(seed)) * brightest
    relaxed = relax(network, Threat(eps=EPS).enclosure(x))
    found = []
    for number, label in enumerate(network(x.double()).argmax(1).tolist()):
        execution = FoldedExecution.of(relaxed, label, number)
        found.append(Member(execution=execution, rivals=()))
    labels = tuple((one.execution.label + 1) % network.num_classes for one in found)
    return JointProblem(members=tuple(found), combinations=(labels,)), x.double()


def inputs_at(problem: JointProblem, x: Tensor, u: Tensor) -> Tensor:
    """(s, U + 1) the neurons' inputs at perturbations u (s, *SHAPE), and a 0."""
    found = []
    for member, centre in zip(problem.members, x, strict=True):
        values = {INPUT: centre + u, **values_at(member.execution.relaxed.network, (centre + u)[:, None])}
        found += [values[stage.source].flatten(1)[:, stage.entry] for stage in member.execution.system.stages]
    return torch.cat([*found, u.new_zeros(len(u), 1)], dim=1)


def true_sums(problem: JointProblem, x: Tensor, u: Tensor, share: Tensor) -> Tensor:
    """(s, D) sums of share_i margin_i."""
    total = torch.zeros(len(u), share.shape[1], dtype=torch.float64)
    for number, (member, centre) in enumerate(zip(problem.members, x, strict=True)):
        logits = member.execution.relaxed.network(centre + u)
        margin = logits[:, member.execution.label] - logits[:, problem.combinations[0][number]]
        total += margin[:, None] * share[number]
    return total


def random_duals(problem: JointProblem, z: Tensor, seed: int, *, count: int = 32) -> Duals:
    """Any slopes, multipliers and shares; the signs that some row of z (s, U + 1) has."""
    generator = torch.Generator().manual_seed(seed)
    neurons, members = problem.system.neurons, len(problem.members)
    depth = min(4, neurons)
    split = torch.stack([torch.randperm(neurons, generator=generator)[:depth] for _ in range(count)], dim=1)
    split = split.where(torch.rand(split.shape, generator=generator) < 0.8, neurons)
    side = z[torch.arange(count)[None], split].sign()
    floor = problem.system.floor[:, None].double()
    alpha = torch.maximum(torch.rand(neurons, count, generator=generator, dtype=torch.float64), floor)
    share = torch.rand(members, count, generator=generator, dtype=torch.float64)
    return Duals(
        alpha=alpha.float(),
        split=split,
        side=side.float(),
        beta=torch.rand(split.shape, generator=generator),
        share=(share / share.sum(0)).float(),
    )


def corners(seed: int, count: int = 400) -> Tensor:
    """Perturbations, half of them corners of the box."""
    u = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    u[::2] = u[::2].sign()
    return u * EPS


@pytest.mark.parametrize("kind", ["chain", "residual", "clip"])
@pytest.mark.parametrize("members", [2, 3])
def test_any_duals_give_bounds_that_hold_where_the_signs_do(kind: str, members: int) -> None:
    checked = shared = 0
    for seed in range(4):
        problem, x = problem_of(network_of(kind, seed), members, seed, brightest=0.4 if kind == "clip" else 1.0)
        u = corners(seed)
        z = inputs_at(problem, x, u)
        duals = random_duals(problem, z, seed)
        bound = problem.claim(torch.zeros(32, dtype=torch.long), duals)
        assert duals.share is not None
        true = true_sums(problem, x, u, duals.share.double())
        inside = (z[:, duals.split] * duals.side >= 0).all(1)
        assert inside[torch.arange(32), torch.arange(32)].all()
        assert (true >= bound - 1e-12)[inside].all()
        checked += int(inside.sum())
        shared += problem.system.twins is not None
    assert checked > 1000
    assert shared >= 3


@pytest.mark.parametrize("kind", ["chain", "residual"])
@pytest.mark.parametrize("members", [2, 3, 4])
def test_a_claim_equals_the_dual_bound_of_the_folded_systems(
    kind: str, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the float32 system, which is another computation altogether; and shared neurons only raise it."""
    monkeypatch.setattr("citrus_tool.bounds.fold.NEARLY", 0.0)
    index = torch.zeros(32, dtype=torch.long)
    raised = 0
    for seed in range(4):
        problem, x = problem_of(network_of(kind, seed), members, seed)
        duals = random_duals(problem, inputs_at(problem, x, corners(seed)), seed)
        found = ascend(problem.system, problem.targets(index), duals, STILL).bound.double()
        torch.testing.assert_close(found, problem.claim(index, duals), rtol=1e-4, atol=1e-4)
        apart = ascend(replace(problem.system, twins=None), problem.targets(index), duals, STILL).bound.double()
        assert (found >= apart - 1e-4).all()
        raised += int((found > apart + 1e-3).sum())
    assert raised > 50


def test_shared_neurons_count_in_the_ascent() -> None:
    """The best bound is higher than that of executions that share the perturbation alone."""
    index = torch.zeros(1, dtype=torch.long)
    gains = []
    for seed in range(6):
        problem, _ = problem_of(network_of("chain", seed), 2, seed)
        apart = replace(problem.system, twins=None)
        targets, start, patient = problem.targets(index), problem.start(1), Schedule(steps=200)
        gains.append(
            float(ascend(problem.system, targets, start, patient).bound - ascend(apart, targets, start, patient).bound)
        )
    assert min(gains) > -1e-4
    assert sum(gain > 1e-3 for gain in gains) >= 3


def test_signs_that_contradict_each_other_close_a_part() -> None:
    """z_i <= 0 and z_j >= 0 of one neuron where z_i is always above z_j."""
    index = torch.zeros(1, dtype=torch.long)
    closed = 0
    for seed in range(4):
        problem, _ = problem_of(network_of("chain", seed), 2, seed)
        twins = problem.system.twins
        if twins is None:
            continue
        shift = problem.system.shift[:, 0]
        for row in twins.row.T.tolist():
            low, high = sorted(row, key=lambda neuron: float(shift[neuron]))
            start = problem.start(1)
            for side, empty in ((torch.tensor([[-1.0], [1.0]]), True), (torch.tensor([[1.0], [-1.0]]), False)):
                duals = replace(start, split=torch.tensor([[high], [low]]), side=side, beta=torch.zeros(2, 1))
                assert (problem.claim(index, duals) == CLOSED_ELSEWHERE).all() == empty
                found = ascend(problem.system, problem.targets(index), duals, STILL).bound
                assert found.isinf().all() == empty
                closed += empty
    assert closed > 10


def test_members_without_a_neuron_of_the_others() -> None:
    """Only neurons that at least two inputs leave open are shared; each knows its own row."""
    for seed in range(4):
        problem, _ = problem_of(network_of("residual", seed), 3, seed)
        twins = problem.system.twins
        assert twins is not None
        entries = []
        for (first, last), member in zip(pairwise(problem._first), problem.members, strict=True):
            stage = member.execution.system.stages[0]
            entries.append({first + place: entry for place, entry in enumerate(stage.entry.tolist())})
            assert last == first + member.execution.system.neurons
        for column in twins.row.T.tolist():
            named = {entries[m][row] for m, row in enumerate(column) if row < problem.system.neurons}
            assert len(named) == 1
            assert sum(row < problem.system.neurons for row in column) > 1
