"""Branch and bound: against the exact MILP, sampled points, budgets, and a published row."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from citrus_tool import onnx_io
from citrus_tool.bounds.ascent import ascend
from citrus_tool.bounds.claims import tuned_planes
from citrus_tool.bounds.crown import LinearMargins, crown, relax
from citrus_tool.bounds.duals import Duals, Targets, children
from citrus_tool.bounds.execution import FoldedExecution
from citrus_tool.bounds.workspace import Schedule
from citrus_tool.certification import branch
from citrus_tool.certification.branch import Branched, BranchVerdict, Budget, branch_and_bound
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import load
from citrus_tool.errors import UsageError
from citrus_tool.network import Network, Reshape, chain
from citrus_tool.progress import Progress
from citrus_tool.threat import Threat
from tests.certification.oracle import fooled_at_most
from tests.certification.toys import SHAPE, as_onnx, data_for, tiny_chain, tiny_residual

QUICK = Budget(nodes=200, attack_steps=20, attack_restarts=1)


def deep_chain(seed: int) -> Network:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [Reshape((4,))]
    for sizes, activation in (((4, 8), nn.ReLU()), ((8, 8), nn.LeakyReLU(0.1)), ((8, 6), nn.ReLU())):
        layers += [nn.Linear(*sizes), activation]
    network = chain([*layers, nn.Linear(6, 3)], SHAPE)
    with torch.no_grad():
        for layer in (layers[1], layers[3], layers[5]):
            layer.weight.mul_(3)
        network.nodes[-1].layer.bias.sub_(network(torch.rand(500, *SHAPE)).mean(0))
    return network.eval()


def run(network: Network, count: int, eps: float, seed: int, budget: Budget = QUICK) -> tuple[Branched, LinearMargins]:
    data = data_for(network, count, seed, noise=0.0)
    bounded = network.frozen(dtype=torch.float64)
    x = data.pixels()
    known = crown(bounded, Threat(eps=eps).enclosure(x), data.labels)
    generator = torch.Generator().manual_seed(seed)
    return branch_and_bound(
        bounded, x, data.labels, Threat(eps=eps), known=known, budget=budget, generator=generator
    ), known


@pytest.mark.parametrize("make", [tiny_chain, tiny_residual, lambda seed: tiny_residual(seed, channels=2)])
@pytest.mark.parametrize("seed", range(6))
def test_verdicts_are_the_exact_ones(make: Callable[[int], Network], seed: int) -> None:
    network, eps = make(seed), 0.3
    found, _ = run(network, 8, eps, seed)
    data = data_for(network, 8, seed, noise=0.0)
    decided = 0
    for number, verdict in enumerate(found.verdict):
        x, label = data.pixels()[number : number + 1], data.labels[number : number + 1]
        foolable = fooled_at_most(network, x, label, eps) == 1
        if verdict is BranchVerdict.PROVEN:
            assert not foolable
        elif verdict is BranchVerdict.WITNESS:
            assert foolable
            u = found.witness[number]
            assert float(u.abs().max()) <= eps
            logits = network(x + u)[0]
            assert int(label) != int(logits.argmax()) or float(logits.sort().values.diff()[-1]) == 0.0
        decided += verdict is not BranchVerdict.OPEN
    assert decided >= 7


def test_branching_proves_what_crown_and_alpha_crown_do_not() -> None:
    gains = {"crown": 0, "alpha": 0, "full": 0}
    for seed in range(6):
        network = tiny_chain(seed, hidden=30)
        alpha, known = run(network, 20, 0.12, seed, replace(QUICK, nodes=0))
        full, _ = run(network, 20, 0.12, seed)
        gains["crown"] += int(known.verified.sum())
        gains["alpha"] += int(alpha.proven.sum())
        gains["full"] += int(full.proven.sum())
        assert (alpha.margins.lower >= known.lower).all()
        assert (full.margins.lower >= known.lower).all()
    assert gains["crown"] < gains["alpha"] < gains["full"]


@pytest.mark.parametrize("make", [deep_chain, tiny_residual])
@pytest.mark.parametrize("seed", range(3))
def test_margins_and_planes_hold_at_sampled_points(make: Callable[[int], Network], seed: int) -> None:
    network, eps = make(seed), 0.25
    for budget in (QUICK, replace(QUICK, nodes=10), replace(QUICK, nodes=0, attack_restarts=0)):
        found, _ = run(network, 6, eps, seed, budget)
        data = data_for(network, 6, seed, noise=0.0)
        generator = torch.Generator().manual_seed(seed)
        u = (torch.rand(400, 1, *SHAPE, generator=generator, dtype=torch.float64) * 2 - 1) * eps
        u[::2] = u[::2].sign() * eps
        logits = network.double()((data.pixels().double() + u).flatten(0, 1)).reshape(400, 6, -1)
        true = logits.gather(2, data.labels[None, :, None].expand(400, -1, -1)) - logits
        true = true.scatter(2, data.labels[None, :, None].expand(400, -1, -1), math.inf)
        plane = torch.einsum("sd,ncd->snc", u.flatten(1), found.margins.coefficient.flatten(2)) + found.margins.offset
        assert (true >= found.margins.lower - 1e-12).all()
        assert (true >= plane - 1e-12).all()
        network = network.float()


@pytest.mark.parametrize("seed", range(4))
def test_children_reproduce_their_parents_bound_and_cover_its_part(seed: int) -> None:
    network = deep_chain(seed).frozen(dtype=torch.float64)
    data = data_for(deep_chain(seed), 1, seed, noise=0.0)
    box = Threat(eps=0.3).enclosure(data.pixels())
    execution = FoldedExecution.of(relax(network, box), int(data.labels[0]), 0)
    other = torch.tensor([(int(data.labels[0]) + 1) % 3])
    targets = Targets.of(execution.system.margins, other)
    root = ascend(execution.system, targets, Duals.start(execution.system, 1), Schedule(steps=20))
    neurons = torch.arange(execution.system.neurons)
    parents = root.duals.columns(torch.zeros_like(neurons))
    halves = children(execution.system, parents, neurons, root.weight[:, 0])
    many = Targets.of(execution.system.margins, other.expand(2 * len(neurons)))
    bound = ascend(execution.system, many, halves, Schedule(steps=0)).bound
    positive = (root.weight[:, 0] > 0).repeat_interleave(2)
    torch.testing.assert_close(bound[positive], root.bound.expand(int(positive.sum())), rtol=1e-4, atol=1e-4)  # float32
    split = ascend(execution.system, many, halves, Schedule(steps=20))
    claimed = tuned_planes(
        execution.relaxed, execution.system, *execution.margins(other.expand(2 * len(neurons))), split.duals
    )
    u = torch.rand(500, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 0.6 - 0.3
    logits = network(data.pixels().double() + u)
    margin = logits[:, data.labels[0]] - logits[:, other[0]]
    pair = claimed.lower.reshape(-1, 2).amin(1)
    assert (margin.amin() >= pair - 1e-12).all()
    assert float(pair.amax()) > float(root.bound) + 1e-4


def test_node_budgets_are_deterministic_and_kept() -> None:
    """A guard above the true margins keeps every input open without a witness."""
    network = tiny_chain(0, hidden=30).frozen(dtype=torch.float64)
    data = data_for(tiny_chain(0, hidden=30), 10, 0, noise=0.0)
    x, budget, generator = data.pixels(), Budget(nodes=24, plane_nodes=0, attack_restarts=0), torch.Generator()
    known, guard = crown(network, Threat(eps=0.05).enclosure(x), data.labels), torch.full((10,), 0.3)
    first, again = (
        branch_and_bound(
            network, x, data.labels, Threat(eps=0.05), known=known, guard=guard, budget=budget, generator=generator
        )
        for _ in range(2)
    )
    assert int(first.nodes.max()) == 24
    assert torch.equal(first.nodes, again.nodes)
    assert first.verdict == again.verdict
    assert torch.equal(first.margins.lower, again.margins.lower)
    assert torch.equal(first.margins.coefficient, again.margins.coefficient)


def test_planes_of_open_labels_are_raised_and_slopes_kept() -> None:
    raised = 0
    for seed in range(4):
        network = tiny_chain(seed, hidden=30)
        plain, _ = run(network, 10, 0.15, seed, replace(QUICK, plane_nodes=0))
        lifted, _ = run(network, 10, 0.15, seed)
        assert plain.verdict == lifted.verdict
        assert (lifted.margins.offset >= plain.margins.offset).all()
        still = lifted.margins.lower == plain.margins.lower
        assert torch.equal(lifted.margins.coefficient[still], plain.margins.coefficient[still])
        raised += int((lifted.margins.offset > plain.margins.offset + 1e-3).sum())
    assert raised > 20


def test_an_inputs_result_does_not_depend_on_the_others() -> None:
    network = tiny_chain(3, hidden=40).frozen(dtype=torch.float64)
    data = data_for(tiny_chain(3, hidden=40), 10, 3, noise=0.0)
    x, budget = data.pixels(), Budget(nodes=300, attack_restarts=0)
    known = crown(network, Threat(eps=0.2).enclosure(x), data.labels)
    generator = torch.Generator().manual_seed(0)
    threat = Threat(eps=0.2)
    whole = branch_and_bound(network, x, data.labels, threat, known=known, budget=budget, generator=generator)
    half = LinearMargins(lower=known.lower[5:], coefficient=known.coefficient[5:], offset=known.offset[5:])
    part = branch_and_bound(network, x[5:], data.labels[5:], threat, known=half, budget=budget, generator=generator)
    assert whole.verdict[5:] == part.verdict
    assert torch.equal(whole.nodes[5:], part.nodes)


def test_results_do_not_depend_on_how_many_inputs_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_chain(3, hidden=40)
    whole, _ = run(network, 10, 0.2, 3)
    monkeypatch.setattr(branch, "MEMORY", 1)
    single, _ = run(network, 10, 0.2, 3)
    assert whole.verdict == single.verdict
    assert torch.equal(whole.nodes, single.nodes)
    assert torch.equal(whole.margins.lower, single.margins.lower)


def test_near_optimal_points_lead_to_witnesses_that_a_weak_attack_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = Budget(nodes=100, attack_steps=1, attack_restarts=1)
    # minimising points find most of them here
    monkeypatch.setattr(branch._InputSearch, "refuted_at", lambda case, point: set())
    found = []
    for seed in range(4):
        network = tiny_chain(seed, hidden=40)
        branched, _ = run(network, 12, 0.25, seed, weak)
        found.append(sum(verdict is BranchVerdict.WITNESS for verdict in branched.verdict))
        with monkeypatch.context() as patch:
            patch.setattr(branch._InputSearch, "attack_from_relaxations", lambda case: None)
            plain, _ = run(network, 12, 0.25, seed, weak)
        found[-1] -= sum(verdict is BranchVerdict.WITNESS for verdict in plain.verdict)
    assert min(found) >= 0, found
    assert sum(found) > 0, found


def test_the_time_limit_ends_the_search() -> None:
    network = tiny_chain(1, hidden=200)
    start = time.monotonic()
    found, known = run(network, 10, 0.5, 1, Budget(nodes=10**6, seconds=0.5, attack_restarts=0))
    assert time.monotonic() - start < 10
    assert (found.margins.lower >= known.lower).all()
    found, known = run(network, 10, 0.5, 1, Budget(nodes=10**6, seconds=0.0, attack_restarts=0))
    assert torch.equal(found.margins.lower, known.lower)
    assert int(found.nodes.sum()) == 0


@pytest.mark.parametrize("layer", [nn.Sigmoid, nn.Tanh])
def test_other_activations_stay_open(layer: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = chain([Reshape((4,)), nn.Linear(4, 16), layer(), nn.Linear(16, 3)], SHAPE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4)
    found, known = run(network, 20, 0.4, 0, replace(QUICK, attack_restarts=0))
    assert (found.proven == known.verified).all()
    assert not known.verified.all()
    assert all(
        verdict is BranchVerdict.OPEN
        for verdict, proven in zip(found.verdict, known.verified, strict=True)
        if not proven
    )


def test_the_guard_is_what_margins_must_exceed() -> None:
    network = tiny_chain(2, hidden=30).frozen(dtype=torch.float64)
    data = data_for(tiny_chain(2, hidden=30), 10, 2, noise=0.0)
    x = data.pixels()
    known = crown(network, Threat(eps=0.05).enclosure(x), data.labels)
    generator = torch.Generator().manual_seed(0)

    def proven(guard: float) -> int:
        found = branch_and_bound(
            network,
            x,
            data.labels,
            Threat(eps=0.05),
            known=known,
            guard=torch.full((10,), guard),
            budget=QUICK,
            generator=generator,
        )
        assert (found.margins.lower[found.proven] > guard).all()
        return int(found.proven.sum())

    assert proven(0.0) > proven(0.1) >= proven(100.0) == 0


def test_progress_counts_every_input() -> None:
    class Counter(Progress):
        total = done = 0

        def start(self, stage: str, total: int | None, unit: str) -> None:
            self.total = total or 0

        def advance(self, amount: int = 1, note: str = "") -> None:
            self.done += amount

        def finish(self) -> None:
            self.total -= self.done

    network = tiny_chain(3)
    data = data_for(network, 10, 3, noise=0.0)
    bounded, counter = network.frozen(dtype=torch.float64), Counter()
    known = crown(bounded, Threat(eps=0.3).enclosure(data.pixels()), data.labels)
    generator = torch.Generator().manual_seed(0)
    branch_and_bound(
        bounded,
        data.pixels(),
        data.labels,
        Threat(eps=0.3),
        known=known,
        budget=QUICK,
        generator=generator,
        progress=counter,
    )
    assert (counter.total, counter.done) == (0, 10)


@pytest.mark.parametrize("seed", range(3))
def test_certificates_with_stronger_bounds_bracket_the_truth(seed: int, tmp_path: Path) -> None:
    network, eps = tiny_chain(seed, hidden=12), 0.1
    model, data = as_onnx(network, tmp_path), data_for(network, 12, seed)
    settings = CertifySettings(group_size=3, attack_steps=20, attack_restarts=2, branch_nodes=100)
    crown_, alpha, full = (
        certify_uap(model, data, Threat(eps=eps), replace(settings, bounds=bounds))
        for bounds in ("crown", "alpha", "full")
    )
    for group, stronger, strongest in zip(crown_.groups, alpha.groups, full.groups, strict=True):
        index = torch.tensor(group.indices)
        x, labels = data.pixels(index), data.labels[index]
        right = network(x).argmax(dim=1) == labels
        least = int(right.sum()) - fooled_at_most(network, x[right], labels[right], eps)
        assert group.certified <= stronger.certified <= strongest.certified <= least <= strongest.attacked
        assert group.individually_certified <= stronger.individually_certified <= strongest.individually_certified
    assert full.stages["branch"] > 0 == crown_.stages["branch"]


@pytest.mark.parametrize("change", [{"branch_nodes": 0}, {"branch_seconds": 0.0}, {"bounds": "best"}])
def test_settings_that_make_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        CertifySettings(**change)


@pytest.mark.slow
def test_racoons_first_row_input_by_input(shared_models: Path, data_root: Callable[[str], Path]) -> None:
    """RACoon certifies 65 of these 100 inputs with cross-execution reasoning; on their own 80 are proven here."""
    data = load("mnist", split="test", root=data_root("mnist"), limit=110)
    network = onnx_io.read(shared_models / "mnistconvSmallRELUDiffAI.onnx", input_shape=data.shape).network
    bounded = network.frozen(dtype=torch.float64)
    x, labels = data.pixels(), data.labels
    kept = torch.nonzero(bounded(x.double()).argmax(1) == labels).flatten()[:100]
    x, labels = x[kept], labels[kept]
    known = crown(bounded, Threat(eps=0.13).enclosure(x), labels)
    generator = torch.Generator().manual_seed(0)
    found = branch_and_bound(
        bounded,
        x,
        labels,
        Threat(eps=0.13),
        known=known,
        budget=Budget(nodes=500, attack_restarts=1),
        generator=generator,
    )
    assert int(known.verified.sum()) == 54
    assert 78 <= int(found.proven.sum()) <= 87
