"""The cross-execution loop: counting by enumeration, products by linear programs, counts by the exact MILP."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from citrus_tool.bounds.duals import Duals
from citrus_tool.bounds.linear import LinearBounds
from citrus_tool.certification import joint_loop as loop
from citrus_tool.certification.conflicts import Conflicts
from citrus_tool.certification.execution import executions
from citrus_tool.certification.joint_loop import GroupBracket, bracket_group
from citrus_tool.certification.part_products import Factor, multiply
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.network import Network
from citrus_tool.results.certificate import Status
from citrus_tool.threat import Threat
from tests.certification.oracle import fooled_at_most
from tests.certification.toys import SHAPE, as_onnx, data_for, tiny_chain, tiny_residual

Make = Callable[[int], Network]


def largest_by_enumeration(conflicts: Conflicts) -> int:
    best = 0
    for choice in product(*[[None, *labels] for labels in conflicts.rivals]):
        chosen = {(member, label) for member, label in enumerate(choice) if label is not None}
        if not conflicts.covers(chosen):
            best = max(best, len(chosen))
    return best


def random_conflicts(seed: int) -> Conflicts:
    draw = random.Random(seed)
    count = draw.randint(1, 5)
    conflicts = Conflicts(rivals=[draw.sample(range(9), draw.randint(0, 3)) for _ in range(count)])
    for _ in range(draw.randint(0, 12)):
        owners = draw.sample(range(count), min(draw.randint(1, 3), count))
        atoms = [(owner, draw.choice(conflicts.rivals[owner])) for owner in owners if conflicts.rivals[owner]]
        if atoms:
            conflicts.add(atoms)
    return conflicts


def test_the_largest_choice_is_that_of_enumeration() -> None:
    for seed in range(300):
        conflicts = random_conflicts(seed)
        found = conflicts.largest()
        assert found.bound == len(found.choice) == largest_by_enumeration(conflicts), seed
        assert not found.choice or not conflicts.covers(found.choice)


def test_a_search_that_is_cut_short_still_gives_an_upper_bound() -> None:
    short = 0
    for seed in range(300):
        conflicts = random_conflicts(seed)
        truth = largest_by_enumeration(conflicts)
        for steps in (0, 1, 2, 4):
            found = conflicts.largest(steps)
            assert len(found.choice) <= truth <= found.bound
            short += found.bound > truth
    assert short > 25


def test_conflicts_keep_the_smallest_combinations() -> None:
    conflicts = Conflicts(rivals=[[1, 2], [3], [4]])
    conflicts.add([(0, 1), (1, 3), (2, 4)])
    conflicts.add([(0, 1), (1, 3)])
    conflicts.add([(0, 1), (1, 3), (2, 4)])
    assert conflicts.refuted == {frozenset([(0, 1), (1, 3)])}
    assert conflicts.excluded() == []
    conflicts.add([(1, 3)])
    assert conflicts.excluded() == [1]


def random_factor(generator: torch.Generator, parts: int, height: float) -> Factor:
    planes = LinearBounds(
        coefficient=torch.randn(parts, *SHAPE, generator=generator, dtype=torch.float64),
        offset=height + 0.3 * torch.randn(parts, generator=generator, dtype=torch.float64),
        lower=torch.zeros(parts),
    )
    blank = torch.zeros(0, parts)
    return Factor(duals=Duals(alpha=blank, split=blank.long(), side=blank, beta=blank), planes=planes)


def jointly_below_zero(planes: list[tuple[Tensor, Tensor]], radius: Tensor) -> bool:
    """Whether some u in the box has every plane <= 0, by linear programming."""
    found = linprog(
        torch.zeros(len(radius)).numpy(),
        A_ub=torch.stack([slope for slope, _ in planes]).numpy(),
        b_ub=-torch.stack([offset for _, offset in planes]).numpy(),
        bounds=[(-float(r), float(r)) for r in radius],
    )
    assert found.status in (0, 2)
    return bool(found.status == 0)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_closed_products_are_infeasible_and_most_infeasible_ones_are_closed(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    box = Threat(eps=0.5).enclosure(torch.rand(1, *SHAPE, generator=generator))
    radius = box.radius.flatten()
    infeasible = closed = 0
    for _ in range(4):
        factors = [random_factor(generator, 4, 0.4) for _ in range(count)]
        found = multiply(factors, box, limit=1000)
        assert found is not None
        for width, products in enumerate(found.closed, start=2):
            for part in products.part.tolist():
                planes = [
                    (factor.planes.coefficient[place].flatten(), factor.planes.offset[place])
                    for factor, place in zip(factors[:width], part, strict=True)
                ]
                assert not jointly_below_zero(planes, radius)
        shut = [{tuple(part) for part in products.part.tolist()} for products in found.closed]
        left = {tuple(part) for part in found.open.part.tolist()}
        for part in product(range(4), repeat=count):
            planes = [
                (factor.planes.coefficient[place].flatten(), factor.planes.offset[place])
                for factor, place in zip(factors, part, strict=True)
            ]
            done = any(part[: width + 2] in known for width, known in enumerate(shut))
            assert done != (part in left)  # every product is either closed or open
            empty = not jointly_below_zero(planes, radius)
            infeasible += empty
            closed += empty and done
    assert closed > 0.5 * infeasible > 2  # one share after the other is no full search; the joint ascent has the rest


def test_too_many_open_products_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    box = Threat(eps=0.5).enclosure(torch.rand(1, *SHAPE, generator=generator))
    factors = [random_factor(generator, 10, -1.0) for _ in range(2)]
    assert multiply(factors, box, limit=50) is None
    assert multiply(factors, box, limit=100) is not None


def group(
    network: Network, k: int, eps: float, seed: int, *, seconds: float = 600.0
) -> tuple[GroupBracket, Tensor, Tensor]:
    """The loop on all correctly classified inputs of a group, with every wrong label open."""
    data = data_for(network, k, seed, noise=0.0)
    x, labels = data.pixels(), data.labels
    wrong = [tuple(c for c in range(network.num_classes) if c != label) for label in labels.tolist()]
    bounded = network.frozen(dtype=torch.float64, device="cpu")
    inputs = executions(bounded, x, labels.tolist(), wrong, Threat(eps=eps))
    found = bracket_group(
        network.frozen(dtype=torch.float32, device="cpu"),
        inputs,
        torch.zeros(SHAPE),
        Threat(eps=eps),
        seconds=seconds,
        generator=torch.Generator().manual_seed(seed),
        record=True,
    )
    return found, x, labels


@pytest.mark.parametrize("make", [tiny_chain, tiny_residual, lambda seed: tiny_residual(seed, channels=2)])
@pytest.mark.parametrize(
    "k", [2, 3, 4, pytest.param(5, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow)]
)
def test_the_loop_is_exact_on_tiny_networks(make: Make, k: int) -> None:
    relational = 0
    for seed in range(4):
        network, eps = make(seed), 0.25
        found, x, labels = group(network, k, eps, seed)
        truth = fooled_at_most(network, x, labels, eps)
        assert found.complete
        assert found.fooled_upper == truth
        refuted = found.conflicts.refuted
        assert {frozenset(one.combination) for one in found.grounds} >= refuted or not found.grounds
        relational += any(len(combination) > 1 for combination in refuted)
        # what is refuted does not happen at sampled perturbations
        generator = torch.Generator().manual_seed(seed)
        u = (torch.rand(2000, 1, *SHAPE, generator=generator, dtype=torch.float64) * 2 - 1) * eps
        u[::2] = u[::2].sign() * eps
        logits = network.double()((x.double() + u).flatten(0, 1)).reshape(2000, k, -1)
        true = logits.gather(2, labels[None, :, None].expand(2000, -1, -1))
        happens = logits <= true
        for combination in refuted:
            together = torch.stack([~happens[:, member, label] for member, label in combination])
            assert not together.all(0).any()
        network.float()
    assert relational >= (1 if k > 3 else 0)


@pytest.mark.parametrize("make", [tiny_chain, tiny_residual])
def test_inputs_that_no_perturbation_fools_are_proven_alone(make: Make) -> None:
    refuted = 0
    for seed in range(4):
        found, x, labels = group(make(seed), 3, 0.05, seed)
        network = make(seed)
        fooled = [fooled_at_most(network, x[i : i + 1], labels[i : i + 1], 0.05) for i in range(3)]
        assert found.complete
        assert set(found.conflicts.excluded()) >= {i for i in range(3) if not fooled[i]}
        assert all(len(combination) == 1 for combination in found.conflicts.refuted) or sum(fooled) > 1
        refuted += fooled.count(0)
    assert refuted > 5


@pytest.mark.parametrize(
    "make", [lambda seed: tiny_chain(seed, hidden=12), lambda seed: tiny_residual(seed, channels=3)]
)
def test_planes_prove_inputs_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "FACTOR_NODES", (0, 0))  # so that little is proven before
    planes = 0
    for seed in range(4):
        found, x, labels = group(make(seed), 4, 0.2, seed)
        assert found.complete
        assert found.fooled_upper == fooled_at_most(make(seed), x, labels, 0.2)
        for one in found.grounds:
            assert len(one.combination) == len(one.views)
            planes += any(view.input_planes is not None for view in one.views)
    assert planes > 2


def test_without_time_every_open_input_counts_as_lost() -> None:
    network = tiny_chain(1)
    found, _, _ = group(network, 4, 0.25, 1, seconds=1e-9)
    assert found.fooled_upper == 4
    assert not found.complete


@pytest.mark.slow
def test_the_full_pipeline_brackets_the_exact_count(tmp_path: Path) -> None:
    settings = CertifySettings(bounds="full", branch_nodes=8, attack_steps=10, attack_restarts=1, time_limit=30)
    gained = exact = 0
    for seed in range(6):
        network = (tiny_chain, tiny_residual)[seed % 2](seed)
        model = as_onnx(network, tmp_path, f"{seed}.onnx")
        data = data_for(model.network, 12, seed)
        for k in (3, 4, 6):
            found = certify_uap(model, data, Threat(eps=0.3), replace(settings, group_size=k))
            for one in found.groups:
                x, labels = data.pixels(torch.tensor(one.indices)), data.labels[list(one.indices)]
                right = model.network(x).argmax(1) == labels
                fooled = fooled_at_most(model.network, x[right], labels[right], 0.3) if bool(right.any()) else 0
                assert one.certified <= int(right.sum()) - fooled <= one.attacked
                gained += one.certified - one.individually_certified
                exact += one.status is Status.EXACT
    assert gained > 5
    assert exact > 40
