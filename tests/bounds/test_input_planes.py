"""Planes above the first stage: against the network at sampled points, the dual bound, and the exact convex hull."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from citrus_tool.bounds.ascent import ROOT, ascend
from citrus_tool.bounds.claims import tuned_planes
from citrus_tool.bounds.crown import relax
from citrus_tool.bounds.duals import Duals, Targets
from citrus_tool.bounds.execution import FoldedExecution
from citrus_tool.bounds.fold import foldable_nodes
from citrus_tool.bounds.input_planes import with_input_planes
from citrus_tool.bounds.workspace import Schedule
from citrus_tool.network import chain
from citrus_tool.threat import Threat
from tests.bounds.networks import CLASSES, samples, values_at
from tests.bounds.test_execution import executions, foldable_seeds, margins_of, random_duals


def with_planes(execution: FoldedExecution, seed: int = 0) -> FoldedExecution:
    """The execution with planes for some class, found on random parts."""
    system = execution.system
    duals = random_duals(system, 3, seed) if seed else Duals.start(system, 1)
    duals = replace(duals, alpha=torch.maximum(duals.alpha, system.floor[:, None]))
    return with_input_planes(execution, (execution.label + 1) % CLASSES, duals)


@pytest.mark.parametrize("seed", foldable_seeds())
def test_planes_lie_above_the_neurons(seed: int) -> None:
    for execution in map(with_planes, executions(seed), range(3)):
        stages = execution.system.stages
        if not stages or stages[0].input_planes is None:
            assert not stages or stages[0].node != foldable_nodes(execution.relaxed.network)[0].name
            continue
        input_planes, box = stages[0].input_planes, execution.box
        points = samples(box, seed, count=200)
        h = values_at(execution.relaxed.network, points)[stages[0].node][:, 0].flatten(1)[:, stages[0].entry]
        u = (points[:, 0] - box.centre[0]).flatten(1)
        assert (h <= u @ input_planes.claimed_slope.to_dense() + input_planes.claimed_offset + 1e-12).all()


@pytest.mark.parametrize("seed", foldable_seeds())
def test_any_duals_give_bounds_that_hold_and_are_the_dual_bound(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("citrus_tool.bounds.fold.NEARLY", 0.0)
    checked = 0
    for execution in map(with_planes, executions(seed), range(3)):
        system = execution.system
        if not system.stages or system.stages[0].input_planes is None:
            continue
        others = torch.tensor([c for c in range(CLASSES) if c != execution.label]).repeat(4)
        duals = random_duals(system, len(others), seed)
        duals = replace(duals, alpha=torch.maximum(duals.alpha, system.floor[:, None]))
        planes = tuned_planes(execution.relaxed, system, *execution.margins(others), duals)
        found = ascend(system, Targets.of(system.margins, others), duals, Schedule(steps=0))
        torch.testing.assert_close(found.bound, planes.lower, rtol=1e-7, atol=1e-7)
        points = samples(execution.box, seed, count=200)[:, 0]
        values = values_at(execution.relaxed.network, points[:, None])
        z = torch.cat([values[stage.source].flatten(1)[:, stage.entry] for stage in system.stages], dim=1)
        inside = (torch.nn.functional.pad(z, (0, 1))[:, duals.split] * duals.side >= 0).all(1)  # (s, D)
        true = margins_of(execution, points)[:, others]
        plane = (points - execution.box.centre).flatten(1) @ planes.coefficient.flatten(1).T + planes.offset
        assert (true >= plane - 1e-12)[inside].all()
        assert (true >= planes.lower - 1e-12)[inside].all()
        checked += int(inside.sum())
    first = [
        one.system.stages and one.system.stages[0].node == foldable_nodes(one.relaxed.network)[0].name
        for one in executions(seed)
    ]
    assert checked or not any(first)


def test_planes_gain_on_the_whole_box() -> None:
    gains = []
    for seed in foldable_seeds():
        for execution in executions(seed):
            if not execution.system.neurons:
                continue
            other = torch.tensor([(execution.label + 1) % CLASSES])
            plain, _ = execution.root(other, ROOT)
            better, _ = with_planes(execution).root(other, ROOT)
            gains.append(float(better.lower - plain.lower))
    assert sum(gain > 1e-3 for gain in gains) > len(gains) / 4
    assert sum(gain < -1e-3 for gain in gains) < len(gains) / 10


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_one_neuron_is_bounded_exactly(slope: float) -> None:
    """For a margin c v - h of one neuron, h's convex hull over the box has the function's own minimum, at a corner."""
    generator = torch.Generator().manual_seed(1)
    exact_somewhere = 0
    for _ in range(20):
        first, last = nn.Linear(3, 1), nn.Linear(1, 2)
        with torch.no_grad():
            first.weight.copy_(torch.randn(1, 3, generator=generator))
            first.bias.copy_(0.2 * torch.randn(1, generator=generator))
            last.weight.copy_(torch.tensor([[-1.0], [0.0]]))
            last.bias.zero_()
        act = nn.LeakyReLU(slope) if slope else nn.ReLU()
        network = chain([first, act, last], (3,)).frozen(dtype=torch.float64, device="cpu")
        execution = FoldedExecution.of(relax(network, Threat(eps=1.0).enclosure(torch.zeros(1, 3))), 0, 0)
        if not execution.system.neurons:
            continue
        shift = torch.randn(1, 3, generator=generator, dtype=torch.float64) * first.weight.detach().abs().mean()
        tilted = replace(
            execution.system, margins=replace(execution.system.margins, at_input=shift.expand(2, 3).float())
        )
        tilted_instance = replace(execution, system=tilted)
        patient = with_input_planes(
            tilted_instance, 1, Duals.start(tilted, 1), Schedule(steps=300, share_rate=0.1, decay=0.98)
        )
        found = ascend(patient.system, Targets.of(tilted.margins, torch.tensor([1])), Duals.start(tilted, 1), ROOT)
        corners = torch.tensor(list(product([-1.0, 1.0], repeat=3)), dtype=torch.float64)
        z = corners @ first.weight[0].double() + first.bias.double()
        truth = float(((corners * shift).sum(1) - torch.maximum(z, slope * z)).detach().min())
        assert float(found.bound) <= truth + 1e-5
        chord = ascend(tilted, Targets.of(tilted.margins, torch.tensor([1])), Duals.start(tilted, 1), ROOT)
        assert float(found.bound) >= float(chord.bound) - 1e-2
        exact_somewhere += float(found.bound) > truth - 0.02 and float(chord.bound) < truth - 0.1
    assert exact_somewhere >= 3
