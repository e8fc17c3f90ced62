"""The folded system and the optimised bounds: against the network, CROWN, the exact LP, and sampled points."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from citrus_tool.bounds.ascent import ROOT, ascend, mean_points
from citrus_tool.bounds.claims import tuned_planes
from citrus_tool.bounds.crown import LinearMargins, crown, relax
from citrus_tool.bounds.duals import Duals, Targets
from citrus_tool.bounds.execution import FoldedExecution
from citrus_tool.bounds.fold import Fold, fold, foldable
from citrus_tool.bounds.workspace import Schedule
from citrus_tool.network import INPUT, Network, chain
from citrus_tool.threat import Box, Threat
from tests.bounds.networks import CLASSES, margins_at, random_box, random_network, samples, values_at

LABELS = torch.tensor([0, 1, 3])
COUNT = 16


@cache
def foldable_seeds() -> list[int]:
    return [seed for seed in range(500) if foldable(random_network(seed))][:COUNT]


def executions(seed: int, *, dtype: torch.dtype = torch.float64) -> list[FoldedExecution]:
    network, box = random_network(seed), random_box(seed)
    read = relax(network, box)
    made = [FoldedExecution.of(read, label, number) for number, label in enumerate(LABELS.tolist())]
    return [replace(one, system=fold(one.relaxed, one.label, dtype=dtype)) for one in made]


def optimised(network: Network, box: Box, known: LinearMargins, *, tighten: bool = True) -> LinearMargins:
    """alpha-CROWN's margins of LABELS where `known` proves nothing, with optimised hidden bounds where asked for."""
    lower, coefficient, offset = known.lower.clone(), known.coefficient.clone(), known.offset.clone()
    with torch.no_grad():
        relaxed = relax(network, box)
        for number, label in enumerate(LABELS.tolist()):
            classes = torch.nonzero(~(known.lower[number] > 0)).flatten()
            if not len(classes):
                continue
            execution = FoldedExecution.of(relaxed, label, number)
            planes, _ = execution.root(classes, ROOT)
            if tighten and not bool((planes.lower > 0).all()):
                planes, _ = execution.tightened(ROOT).root(classes, ROOT)
            better = planes.lower > lower[number, classes]
            lower[number, classes[better]] = planes.lower[better]
            coefficient[number, classes[better]] = planes.coefficient[better]
            offset[number, classes[better]] = planes.offset[better]
    return LinearMargins(lower=lower, coefficient=coefficient, offset=offset)


def random_duals(system: Fold, count: int, seed: int) -> Duals:
    """Any slopes and multipliers, up to three splits a column, some absent."""
    generator = torch.Generator().manual_seed(seed)
    dtype, depth = system.radius.dtype, min(3, system.neurons)
    order = torch.stack([torch.randperm(system.neurons, generator=generator)[:depth] for _ in range(count)], dim=1)
    side = torch.randint(-1, 2, (depth, count), generator=generator)
    return Duals(
        alpha=torch.rand(system.neurons, count, generator=generator, dtype=dtype),
        split=torch.where(side == 0, system.neurons, order),
        side=side.to(dtype),
        beta=torch.rand(depth, count, generator=generator, dtype=dtype),
    )


def exact(system: Fold, targets: Targets, column: int, duals: Duals) -> float:
    """The least value of one target over the triangle relaxation of its part of the box, by linear programming.

    +inf where the relaxation is empty.
    """
    d, neurons = len(system.radius), system.neurons
    signs = {int(n): float(s) for n, s in zip(duals.split[:, column], duals.side[:, column], strict=True) if s != 0}
    rows, limits, equal, values = [], [], [], []

    def add(terms: np.ndarray, bound: float, *, equality: bool = False) -> None:
        (equal if equality else rows).append(terms)
        (values if equality else limits).append(bound)

    for stage in system.stages:
        for place in range(len(stage.entry)):
            neuron = stage.start + place
            z, h = np.zeros(d + neurons), np.zeros(d + neurons)
            z[:d] = stage.inputs.at_input[place].numpy()
            z[d : d + stage.start] = stage.inputs.at_hidden[place].numpy()
            h[d + neuron] = 1.0
            shift, floor = float(stage.inputs.offset[place]), float(system.floor[neuron])
            sign = signs.get(neuron, 0.0)
            if sign:
                slope = 1.0 if sign > 0 else floor
                add(h - slope * z, slope * shift, equality=True)
                add(-sign * z, sign * shift)
            else:
                upper = float(system.upper_slope[neuron])
                add(h - upper * z, upper * shift + float(system.upper_offset[neuron]))
                add(z - h, -shift)
                add(floor * z - h, -floor * shift)
    cost = np.concatenate([targets.at_input[:, column].numpy(), targets.at_hidden[:, column].numpy()])
    found = linprog(
        cost,
        A_ub=np.array(rows) if rows else None,
        b_ub=limits or None,
        A_eq=np.array(equal) if equal else None,
        b_eq=values or None,
        bounds=[(-1, 1)] * d + [(None, None)] * neurons,
    )
    if found.status == 2:
        return float("inf")
    assert found.success, found.message
    return float(found.fun) + float(targets.offset[column])


def margins_of(execution: FoldedExecution, points: Tensor) -> Tensor:
    """(s, c) margins at points (s, *shape)."""
    logits = execution.relaxed.network(points)
    return logits[:, [execution.label]] - logits


@pytest.mark.parametrize("seed", foldable_seeds())
def test_the_folded_system_is_the_network(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("citrus_tool.bounds.fold.NEARLY", 0.0)
    for execution in executions(seed):
        system, box = execution.system, execution.box
        points = samples(box, seed, count=20)[:, 0]
        v = torch.where(box.radius > 0, (points - box.centre) / box.radius.clamp(min=1e-300), 0.0).flatten(1)
        values = values_at(execution.relaxed.network, points[:, None])
        h = v.new_zeros(len(points), 0)
        for stage in system.stages:
            z = v @ stage.inputs.at_input.T + h @ stage.inputs.at_hidden.T + stage.inputs.offset
            torch.testing.assert_close(z, values[stage.source].flatten(1)[:, stage.entry], rtol=1e-9, atol=1e-9)
            floor = system.floor[stage.range]
            h = torch.cat([h, torch.maximum(z, floor * z)], dim=1)
        margins = v @ system.margins.at_input.T + h @ system.margins.at_hidden.T + system.margins.offset
        torch.testing.assert_close(margins, margins_of(execution, points), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", foldable_seeds())
def test_without_steps_the_bounds_are_crowns(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("citrus_tool.bounds.fold.NEARLY", 0.0)
    box = random_box(seed)
    known = crown(random_network(seed), box, LABELS, skip_decided=False)
    for number, execution in enumerate(executions(seed)):
        others = torch.tensor([c for c in range(CLASSES) if c != execution.label])
        planes, found = execution.root(others, Schedule(steps=0))
        torch.testing.assert_close(planes.offset, known.offset[number, others], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(planes.coefficient, known.coefficient[number, others], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.bound, planes.lower, rtol=1e-7, atol=1e-7)
        assert (planes.lower <= known.lower[number, others] + 1e-12).all()  # that one is also IBP's


@pytest.mark.parametrize("seed", foldable_seeds())
def test_alpha_crown_gains_and_contains_sampled_margins(seed: int) -> None:
    network, box = random_network(seed), random_box(seed)
    known = crown(network, box, LABELS)
    quick = optimised(network, box, known, tighten=False)
    best = optimised(network, box, known)
    assert (quick.lower >= known.lower).all()
    assert (best.lower >= known.lower).all()
    points = samples(box, seed)
    true = margins_at(network, points, LABELS)
    u = (points - box.centre).flatten(2)
    for bounds in (quick, best):
        planes = torch.einsum("ncd,snd->snc", bounds.coefficient.flatten(2), u) + bounds.offset
        assert (true >= bounds.lower - 1e-12).all()
        assert (true >= planes - 1e-12).all()


def test_alpha_crown_gains_somewhere() -> None:
    gains = []
    for seed in foldable_seeds():
        network, box = random_network(seed), random_box(seed)
        known = crown(network, box, LABELS)
        found = optimised(network, box, known)
        gains.append(float((found.lower - known.lower).nan_to_num().amax()))
    assert sum(gain > 1e-3 for gain in gains) > COUNT / 2


@pytest.mark.parametrize("seed", foldable_seeds())
def test_any_duals_give_bounds_that_hold_where_the_signs_do(seed: int) -> None:
    checked = 0
    for execution in executions(seed):
        system = execution.system
        if not system.neurons:
            continue
        others = torch.tensor([c for c in range(CLASSES) if c != execution.label]).repeat(4)
        duals = random_duals(system, len(others), seed)
        planes = tuned_planes(execution.relaxed, system, *execution.margins(others), duals)
        points = samples(execution.box, seed, count=200)[:, 0]
        values = values_at(execution.relaxed.network, points[:, None])
        z = torch.cat([values[stage.source].flatten(1)[:, stage.entry] for stage in system.stages], dim=1)
        z = torch.cat([z, z.new_zeros(len(z), 1)], dim=1)
        inside = (z[:, duals.split] * duals.side >= 0).all(1)  # (s, D)
        true = margins_of(execution, points)[:, others]
        plane = (points - execution.box.centre).flatten(1) @ planes.coefficient.flatten(1).T + planes.offset
        assert (true >= plane - 1e-12)[inside].all()
        assert (true >= planes.lower - 1e-12)[inside].all()
        checked += int(inside.sum())
    assert checked or all(not execution.system.neurons for execution in executions(seed))


@pytest.mark.parametrize("seed", foldable_seeds())
def test_a_claim_equals_the_dual_bound_of_the_folded_system(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("citrus_tool.bounds.fold.NEARLY", 0.0)
    for execution in executions(seed):
        others = torch.tensor([c for c in range(CLASSES) if c != execution.label])
        duals = random_duals(execution.system, len(others), seed + 1)
        floor = execution.system.floor[:, None]
        duals = replace(duals, alpha=torch.maximum(duals.alpha, floor))
        targets = Targets.of(execution.system.margins, others)
        found = ascend(execution.system, targets, duals, Schedule(steps=0))
        claimed = tuned_planes(execution.relaxed, execution.system, *execution.margins(others), duals).lower
        torch.testing.assert_close(found.bound, claimed, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("seed", foldable_seeds()[:8])
def test_the_ascent_reaches_the_linear_programs_optimum(seed: int) -> None:
    patient = Schedule(steps=800, alpha_rate=0.1, beta_rate=0.3, decay=0.99)
    compared = 0
    for execution in executions(seed):
        system = execution.system
        others = torch.tensor([c for c in range(CLASSES) if c != execution.label])
        targets = Targets.of(system.margins, others)
        for number, start in enumerate((Duals.start(system, len(others)), random_duals(system, len(others), seed))):
            start = replace(start, alpha=torch.maximum(start.alpha, system.floor[:, None]))
            found = ascend(system, targets, start, patient)
            plain = ascend(system, targets, start, Schedule(steps=0)).bound
            for column in range(len(others)):
                best = exact(system, targets, column, start)
                if best == float("inf"):
                    continue  # an empty part: its dual is unbounded
                assert found.bound[column] <= best + 1e-6 * (1 + abs(best))
                if not number:
                    continue
                gap, first = best - float(found.bound[column]), best - float(plain[column])
                assert gap <= 0.05 * first + 1e-4 * (1 + abs(best)), (column, best, found.bound[column], plain[column])
                compared += 1
    assert compared or not any(execution.system.neurons for execution in executions(seed))


def test_mean_points_are_closer_to_the_relaxations_optimum_than_corners() -> None:
    lower = compared = 0
    for seed in foldable_seeds():
        for execution in executions(seed):
            if not execution.system.neurons:
                continue
            others = torch.tensor([c for c in range(CLASSES) if c != execution.label])
            targets = Targets.of(execution.system.margins, others)
            start = Duals.start(execution.system, len(others))
            corner = ascend(execution.system, targets, start, ROOT).point
            mean = mean_points(execution.system, targets, start, Schedule(steps=200, alpha_rate=0.02))
            assert (mean.abs() <= 1 + 1e-9).all()
            box = execution.box
            for number, other in enumerate(others.tolist()):
                v = torch.stack([corner[:, number], mean[:, number]]).reshape(2, *box.centre.shape[1:])
                at = margins_of(execution, box.centre + v * box.radius)[:, other]
                if (at[0] - at[1]).abs() > 1e-3:
                    compared += 1
                    lower += bool(at[1] < at[0])
    assert compared > 20
    assert lower > 0.6 * compared, (lower, compared)


@pytest.mark.parametrize("seed", foldable_seeds())
def test_tightened_boxes_contain_sampled_values_and_shrink(seed: int) -> None:
    for execution in executions(seed):
        better = execution.tightened(ROOT)
        values = values_at(execution.relaxed.network, samples(execution.box, seed, count=40)[:, :1])
        for name, box in better.relaxed.boxes.items():
            known = execution.relaxed.boxes[name]
            if name != INPUT:
                assert (values[name] >= box.lower).all()
                assert (values[name] <= box.upper).all()
            assert (box.lower >= known.lower - 1e-12 * (1 + known.lower.abs())).all()
            assert (box.upper <= known.upper + 1e-12 * (1 + known.upper.abs())).all()


def test_a_goal_ends_the_ascent_early_and_the_result_is_never_worse_than_the_start() -> None:
    seed = foldable_seeds()[0]
    for execution in executions(seed, dtype=torch.float32):
        others = torch.tensor([c for c in range(CLASSES) if c != execution.label])
        targets = Targets.of(execution.system.margins, others)
        start = Duals.start(execution.system, len(others))
        first = ascend(execution.system, targets, start, Schedule(steps=0))
        early = ascend(execution.system, targets, start, ROOT, goal=-1e9)
        late = ascend(execution.system, targets, start, ROOT)
        assert torch.equal(early.bound, first.bound)
        assert (late.bound >= first.bound).all()


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_nearly_decided_neurons_are_folded_at_a_price(slope: float) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.LeakyReLU(slope) if slope else nn.ReLU()
    first, last = nn.Linear(6, 12), nn.Linear(12, 3)
    with torch.no_grad():
        first.weight.copy_(torch.randn(12, 6, generator=generator))
        first.bias.copy_(torch.randn(12, generator=generator))
        reach = 0.2 * first.weight.abs().sum(1)
        # on the box around 0: four are positive but for 1e-5, four negative but for 1e-5, four open
        first.bias[:4] = reach[:4] - 1e-5
        first.bias[4:8] = -reach[4:8] + 1e-5
        first.bias[8:] = 0.1
    network = chain([first, layer, last], (6,)).frozen(dtype=torch.float64, device="cpu")
    box = Threat(eps=0.2).enclosure(torch.zeros(1, 6))
    read = relax(network, box)
    execution = FoldedExecution.of(read, 0, 0)
    assert execution.system.neurons == 4
    planes, found = execution.root(torch.tensor([1, 2]), ROOT)
    # exactly at the corner where a nearly decided neuron is on its wrong side, and at random points
    corners = torch.cat([first.weight.sign(), -first.weight.sign(), torch.rand(4000, 6, generator=generator) * 2 - 1])
    u = 0.2 * corners.double()
    logits = network(u)
    margins = logits[:, [0]] - logits[:, 1:]
    value = u @ planes.coefficient.flatten(1).T + planes.offset
    assert (margins >= value).all()
    assert (margins >= planes.lower).all()
    # the price is there, and it is small
    grid = found.duals.on_grid()
    targets = Targets.of(execution.system.margins, torch.tensor([1, 2]))
    free = ascend(execution.system, targets, replace(grid, alpha=grid.alpha.float()), Schedule(steps=0)).bound
    assert (free - planes.lower > 1e-7).all()
    assert (free - planes.lower < 1e-3).all()
