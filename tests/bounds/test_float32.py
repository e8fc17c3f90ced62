"""Bounds of float32 runs: against runs whose layers err by as much as is allowed, real float32, and onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from citrus_tool.bounds import float32
from citrus_tool.bounds.ascent import ROOT
from citrus_tool.bounds.crown import crown, relax
from citrus_tool.bounds.execution import FoldedExecution
from citrus_tool.bounds.float32 import LARGEST, SMOOTH, FileErrors
from citrus_tool.bounds.fold import foldable
from citrus_tool.bounds.linear import RelaxedNetwork
from citrus_tool.bounds.rounding import enclosures, outward_margins
from citrus_tool.certification.joint import JointProblem, Member
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import CANONICAL, INPUT, Affine, Evaluation, Network, Reshape, chain
from citrus_tool.threat import Box, Threat
from citrus_tool.threat.clip import clipped
from tests.bounds.networks import CLASSES, SHAPE, random_box, random_network, samples

FILE = Evaluation(arithmetic="float32", rounds_input=True)
LABELS = torch.tensor([0, 1, 3])
COARSE = 2.0**-12
"""Unit roundoff of the runs that err on purpose: large enough that bounds without their errors are seen to fail."""
SEEDS = range(40)


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float32, "UNIT", COARSE)
    monkeypatch.setattr(float32, "SMOOTH", 16 * COARSE)


def erring(relaxed: RelaxedNetwork, points: Tensor, seed: int, *, share: float = 1.0) -> dict[str, Tensor]:
    """Every node's values (count, n, *shape) in runs whose layers err by `share` of what is allowed, in any direction.

    Half of the runs err at all entries by all of it.
    """
    generator = torch.Generator().manual_seed(seed)

    def off(name: str, value: Tensor) -> Tensor:
        allowed = relaxed.file_errors.get(name)
        if allowed is None:
            return value
        amount = torch.rand(value.shape, generator=generator, dtype=torch.float64) * 2 - 1
        amount[::2] = amount[::2].sign()
        return value + share * allowed * amount

    values = {INPUT: off(INPUT, points)}
    for node in relaxed.network.nodes:
        inputs = [values[name].flatten(0, 1) for name in node.inputs]
        value = node.layer(*inputs)
        values[node.name] = off(node.name, value.reshape(*points.shape[:2], *value.shape[1:]))
    return values


def network_of(seed: int) -> Network:
    network = random_network(seed)
    network = clipped(network) if seed % 5 == 0 else network
    return network.frozen(dtype=torch.float64, evaluation=FILE)


def small_box(seed: int) -> Box:
    box = random_box(seed)
    return Box(centre=box.centre, radius=box.radius * 0.02)


def margins_of(values: dict[str, Tensor], network: Network) -> Tensor:
    logits = values[network.output_name]
    index = LABELS[None, :, None].expand(len(logits), -1, -1)
    return (logits.gather(2, index) - logits).scatter(2, index, torch.inf)


def test_every_layer_has_a_rule() -> None:
    assert set(float32.SUMS) == set(CANONICAL)


@pytest.mark.usefixtures("coarse")
def test_erring_runs_stay_in_every_box_and_above_every_plane() -> None:
    escaped = 0
    for seed in SEEDS:
        network, box = network_of(seed), small_box(seed)
        with torch.no_grad():
            relaxed = relax(network, box)
            points = samples(box, seed)
            values = erring(relaxed, points, seed)
            plain = enclosures(network.frozen(dtype=torch.float64, evaluation=Evaluation()), box).boxes
            for boxes in (relaxed.boxes, enclosures(network, box).boxes):
                for name, value in values.items():
                    assert (value >= boxes[name].lower - 1e-12).all(), (seed, name)
                    assert (value <= boxes[name].upper + 1e-12).all(), (seed, name)
            escaped += sum(
                bool(((value < plain[name].lower) | (value > plain[name].upper)).any())
                for name, value in values.items()
            )
            true = margins_of(values, network)
            assert (true >= outward_margins(network, relaxed.boxes, relaxed.file_errors, LABELS)).all(), seed
            found = crown(network, box, LABELS, skip_decided=False)
        u = (points - box.centre).flatten(2)
        plane = torch.einsum("snd,ncd->snc", u, found.coefficient.flatten(2)) + found.offset
        finite = torch.isfinite(found.offset)
        assert (true >= found.lower - 1e-12)[:, finite].all(), seed
        assert (true >= plane - 1e-12)[:, finite].all(), seed
    assert escaped  # the errors matter


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("paying", [True, False])
def test_planes_fail_unless_they_pay(paying: bool) -> None:
    """On point boxes all of a margin's room is the errors': without paying for them, or for one node's, bounds fail."""
    failed = 0
    for seed in SEEDS:
        network, box = network_of(seed), random_box(seed, radius=0.0)
        with torch.no_grad():
            relaxed = relax(network, box)
            true = margins_of(erring(relaxed, box.centre[None].expand(40, -1, -1, -1, -1), seed), network)
            least = true.amin(0)
            exact = network.frozen(dtype=torch.float64, evaluation=FILE if paying else Evaluation())
            lower = crown(exact, box, LABELS, skip_decided=False).lower
        failed += int((least < lower - 1e-12)[torch.isfinite(lower)].sum())
    assert bool(failed) != paying


@pytest.mark.usefixtures("coarse")
def test_optimised_claims_hold_for_erring_runs() -> None:
    checked = 0
    for seed in range(120):
        network, box = network_of(seed), small_box(seed)
        if not foldable(network):
            continue
        with torch.no_grad():
            relaxed = relax(network, box)
            true = margins_of(erring(relaxed, points := samples(box, seed), seed), network)
            u = (points - box.centre).flatten(2)
            for number, label in enumerate(LABELS.tolist()):
                classes = torch.tensor([c for c in range(CLASSES) if c != label])
                execution = FoldedExecution.of(relaxed, label, number)
                for one in (execution, execution.tightened(ROOT)):
                    planes, _ = one.root(classes, ROOT)
                    value = u[:, number] @ planes.coefficient.flatten(1).T + planes.offset
                    assert (true[:, number, classes] >= value - 1e-12).all(), (seed, label)
                    checked += 1
    assert checked > 60


@pytest.mark.usefixtures("coarse")
def test_joint_claims_hold_although_each_execution_errs_on_its_own() -> None:
    """Shares of one half; the network's first neurons are shared, so that their errors must not be taken for one."""
    checked = failing = 0
    for seed in range(60):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten()]
        size = 3 * SHAPE[1] * SHAPE[2]
        plain = chain([*layers[:2], Reshape((size,)), nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, CLASSES)], SHAPE)
        network = plain.frozen(dtype=torch.float64, evaluation=FILE)
        x = torch.rand(1, *SHAPE).expand(2, -1, -1, -1).double() + torch.rand(2, *SHAPE).double() * 0.02
        box = Box(centre=x, radius=torch.full_like(x, 0.005))
        with torch.no_grad():
            relaxed = relax(network, box)
            labels = network(x).argmax(1).tolist()
            members = tuple(
                Member(execution=FoldedExecution.of(relaxed, label, number), rivals=())
                for number, label in enumerate(labels)
            )
            rivals = tuple((label + 1) % CLASSES for label in labels)
            problem = JointProblem(members=members, combinations=(rivals,))
            index = torch.zeros(1, dtype=torch.long)
            bound = problem.claim(index, problem.start(1))
            u = (torch.rand(60, 1, *SHAPE, dtype=torch.float64) * 2 - 1).sign() * box.radius[:1]
            values = erring(relaxed, x + u, seed)[network.output_name]
            own = [
                values[:, i, label] - values[:, i, rival]
                for i, (label, rival) in enumerate(zip(labels, rivals, strict=True))
            ]
            true = (own[0] + own[1]) / 2
        assert (true >= bound - 1e-12).all(), seed
        checked += problem.system.twins is not None
        without = replace(relaxed, file_errors={})
        free = tuple(
            Member(execution=replace(m.execution, relaxed=without.select(slice(i, i + 1))), rivals=())
            for i, m in enumerate(members)
        )
        failing += bool(
            (true < JointProblem(members=free, combinations=(rivals,)).claim(index, problem.start(1))).any()
        )
    assert checked > 30
    assert failing > 20  # errors of the shared neurons that are left out show


def test_float32_sums_in_any_order_stay_inside(tmp_path: Path) -> None:
    """Real float32: random orders of summation, with and without fused multiply-adds, of sums that cancel."""
    generator = np.random.default_rng(0)
    broke = 0
    for _ in range(60):
        n = int(generator.integers(2, 60))
        weight = generator.normal(size=(1, n)) * 10.0 ** generator.integers(-3, 7, size=(1, n))
        weight[:, n // 2 :][:, : n // 2] = -weight[:, : n // 2]
        weight, bias = weight.astype(np.float32), generator.normal(size=1).astype(np.float32) * 1000
        layer = nn.Linear(n, 1).requires_grad_(False)
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
        network = chain([layer, _two()], (n,)).frozen(dtype=torch.float64, evaluation=Evaluation(arithmetic="float32"))
        x = generator.random(n).astype(np.float32)
        point = Box(centre=torch.from_numpy(x).double()[None], radius=torch.zeros(1, n, dtype=torch.float64))
        with torch.no_grad():
            found = enclosures(network, point).boxes[network.nodes[0].name]
        exact = float(weight[0].astype(np.float64) @ x.astype(np.float64) + bias[0])
        for fused in (False, True):
            for _ in range(10):
                total = np.float32(bias[0])
                for place in generator.permutation(n):
                    if fused:
                        total = np.float32(np.float64(total) + np.float64(weight[0, place]) * np.float64(x[place]))
                    else:
                        total = np.float32(total + np.float32(weight[0, place] * x[place]))
                assert found.lower[0, 0] <= float(total) <= found.upper[0, 0]
                broke += float(total) != exact
    assert broke


def _two() -> nn.Module:
    layer = nn.Linear(1, 2).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    return layer


@pytest.mark.parametrize("kind", ["Sigmoid", "Tanh"])
def test_onnxruntime_is_within_a_quarter_of_what_smooth_functions_are_given(kind: str) -> None:
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    exponents = np.exp2(np.linspace(-40, 8, 400001))
    x = np.concatenate([exponents, -exponents, np.linspace(-20, 20, 400001)]).astype(np.float32)
    exact = np.tanh(x.astype(np.float64)) if kind == "Tanh" else 1 / (1 + np.exp(-x.astype(np.float64)))
    assert np.abs(session.run(None, {"x": x})[0].astype(np.float64) - exact).max() <= SMOOTH / 4


@pytest.mark.parametrize("where", ["weight", "value", "scale"])
def test_nothing_is_proven_where_a_run_may_overflow(where: str) -> None:
    torch.manual_seed(0)
    first = nn.Linear(4, 3).requires_grad_(False)
    last = nn.Linear(3, 2).requires_grad_(False)
    last.bias.copy_(torch.tensor([5.0, -5.0]))
    last.weight.zero_()
    size = 2 * LARGEST
    if where == "weight":
        first.weight[0, 0] = size
    layers: list[nn.Module] = [first, nn.ReLU(), last]
    if where == "value":
        first.weight.fill_(LARGEST / 2)
    if where == "scale":
        layers.insert(1, Affine(torch.tensor([size, 1.0, 1.0]), torch.zeros(3)))
    box = Box(centre=torch.ones(1, 4, dtype=torch.float64), radius=torch.full((1, 4), 0.1, dtype=torch.float64))
    plain = chain(layers, (4,)).frozen(dtype=torch.float64)
    network = plain.frozen(dtype=torch.float64, evaluation=Evaluation(arithmetic="float32"))
    label = torch.tensor([0])
    assert bool(crown(plain, box, label, skip_decided=False).verified)
    if where != "value":
        with pytest.raises(UnsupportedNetworkError, match="may overflow"):
            crown(network, box, label)
        return
    found = crown(network, box, label, skip_decided=False)
    assert float(found.lower[0, 1]) < -1e200
    assert not bool(found.verified)
    found_by_intervals = enclosures(network, box)
    assert float(outward_margins(network, *found_by_intervals, label)[0, 1]) < -1e200


def test_terms_are_carried_through_what_a_runtime_may_fuse_and_no_further() -> None:
    network = chain(
        [
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            Affine(torch.ones(1), torch.ones(1)),
            Reshape((60,)),
            nn.Linear(60, 4),
        ],
        SHAPE,
    ).eval()
    assert list(FileErrors.of(network).carried.values()) == [0, 18, 18, 0, 0, 0, 60]


def test_clip_layers_cost_nothing_and_normalisation_little() -> None:
    network = clipped(random_network(0)).frozen(dtype=torch.float64, evaluation=FILE)
    errors = relax(network, Threat(eps=0.1).enclosure(torch.rand(1, *SHAPE))).file_errors
    assert INPUT in errors
    assert not [name for name in errors if name.startswith("clip")]
    front = chain([Affine(torch.full((1,), 4.0), torch.full((1,), -2.0)), Reshape((84,)), nn.Linear(84, 2)], SHAPE)
    front = front.frozen(dtype=torch.float64, evaluation=FILE)
    error = relax(front, Threat(eps=0.1).enclosure(torch.ones(1, *SHAPE))).file_errors[front.nodes[0].name]
    assert float(error.max()) < 17 * float32.UNIT * 6.5
