"""CROWN: containment on random graphs, planes, the literal twin, chunks, errors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from citrus_tool.bounds import crown as module
from citrus_tool.bounds.crown import LinearMargins, chunks, crown, relax
from citrus_tool.bounds.interval import margins
from citrus_tool.bounds.linear import BACKWARD, RelaxedNetwork, concretise, seed, to_input
from citrus_tool.bounds.relaxation import OPEN, RELAXATIONS, Lines
from citrus_tool.bounds.rounding import outward_margins
from citrus_tool.choices import Intermediate
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import CANONICAL, Network, Reshape, chain, size
from citrus_tool.records import select
from citrus_tool.threat import Box
from tests.bounds import literal_crown as literal
from tests.bounds.networks import SHAPE, margins_at, random_box, random_network, samples, values_at

SEEDS = st.integers(0, 10**6)
MODES = pytest.mark.parametrize("intermediate", ["crown", "intersect"])
LABELS = torch.tensor([0, 1, 3])
TRUE = LABELS[:, None] == torch.arange(4)


def _plane_minimum(bounds: LinearMargins, box: Box) -> Tensor:
    return bounds.offset - torch.einsum("ncd,nd->nc", bounds.coefficient.flatten(2).abs(), box.radius.flatten(1))


def test_every_canonical_layer_has_a_rule() -> None:
    assert set(BACKWARD) == set(CANONICAL)
    assert set(RELAXATIONS) == set(OPEN)


@MODES
@settings(max_examples=25, derandomize=True, deadline=None)
@given(SEEDS)
def test_every_bound_contains_sampled_values(intermediate: Intermediate, seed: int) -> None:
    network, box = random_network(seed), random_box(seed)
    boxes = relax(network, box, intermediate=intermediate).boxes
    points = samples(box, seed)
    for name, value in values_at(network, points).items():
        assert (value >= boxes[name].lower).all(), name
        assert (value <= boxes[name].upper).all(), name
    bounds = crown(network, box, LABELS, intermediate=intermediate, skip_decided=False)
    true = margins_at(network, points, LABELS)
    u = (points - box.centre).flatten(2)
    planes = torch.einsum("ncd,snd->snc", bounds.coefficient.flatten(2), u) + bounds.offset
    assert (true >= bounds.lower - 1e-12).all()
    assert (true >= planes - 1e-12).all()
    assert (bounds.lower >= _plane_minimum(bounds, box) - 1e-9).all()
    assert bounds.lower[TRUE].isposinf().all()
    assert (bounds.coefficient[TRUE] == 0).all()


@MODES
@settings(max_examples=10, derandomize=True, deadline=None)
@given(SEEDS)
def test_a_point_box_is_the_forward_pass(intermediate: Intermediate, seed: int) -> None:
    network, box = random_network(seed), random_box(seed, radius=0.0)
    bounds = crown(network, box, LABELS, intermediate=intermediate, skip_decided=False)
    want = margins_at(network, box.centre[None], LABELS)[0]
    torch.testing.assert_close(bounds.lower, want, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(bounds.offset, want, rtol=1e-7, atol=1e-7)
    assert (bounds.lower <= want).all()


@settings(max_examples=15, derandomize=True, deadline=None)
@given(SEEDS)
def test_rows_of_every_node_equal_explicit_matrices(number: int) -> None:
    """Windows, merges and dense maps against matrix products, from every node back, each input apart."""
    network, box = random_network(number), random_box(number)
    relaxations = relax(network, box).relaxations
    relaxed = RelaxedNetwork(network=network, relaxations=relaxations)
    for node in network.nodes:
        entries = size(node.shape)
        sample = torch.arange(3).repeat_interleave(entries)
        entry = torch.arange(entries).repeat(3)
        sign = torch.where(torch.arange(3 * entries) % 3 == 0, -1.0, 1.0).double()
        start, rows = seed(relaxed, node.name, sample, entry, sign)
        got = to_input(relaxed, rows, start=start)
        assert (got.norm >= got.coefficient.abs().flatten(1).sum(1) * (1 - 1e-9)).all()
        for i in range(3):
            mine = sample == i
            own = {name: select(relaxation, slice(i, i + 1)) for name, relaxation in relaxations.items()}
            unit = torch.zeros(entries, entries, dtype=torch.float64)
            unit[torch.arange(entries), entry[mine]] = sign[mine]
            coefficient, offset = literal.carry(network, own, node.name, unit)
            torch.testing.assert_close(got.dense().coefficient.flatten(1)[mine], coefficient, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(got.offset[mine], offset, rtol=1e-9, atol=1e-9)


def _piecewise_linear(network: Network) -> bool:
    return not any(isinstance(node.layer, nn.Sigmoid | nn.Tanh) for node in network.nodes)


def test_planes_equal_the_literal_twin() -> None:
    """End to end. Sigmoid and tanh are left out: their slopes jump where a bound crosses 0 by a rounding error."""
    seeds = [s for s in range(60) if _piecewise_linear(random_network(s))][:12]
    for number in seeds:
        network, box = random_network(number), random_box(number)
        got = _plane_minimum(crown(network, box, LABELS, intermediate="crown", skip_decided=False), box)
        for i, label in enumerate(LABELS.tolist()):
            one = Box(centre=box.centre[i : i + 1], radius=box.radius[i : i + 1])
            want = literal.literal_crown(network, one, label)
            torch.testing.assert_close(got[i], want, rtol=1e-7, atol=1e-7, msg=f"network {number}, input {i}")


@settings(max_examples=15, derandomize=True, deadline=None)
@given(SEEDS)
def test_never_worse_than_intervals(seed: int) -> None:
    network, box = random_network(seed), random_box(seed)
    bounds = crown(network, box, LABELS)
    assert (bounds.lower >= margins(network, box, LABELS) - 1e-9).all()


@settings(max_examples=10, derandomize=True, deadline=None)
@given(SEEDS)
def test_decided_labels_keep_the_verdict(seed: int) -> None:
    network, box = random_network(seed), random_box(seed)
    every, some = (crown(network, box, LABELS, skip_decided=skip) for skip in (False, True))
    assert (every.verified == some.verified).all()
    decided = (some.coefficient == 0).flatten(2).all(2) & ~TRUE
    torch.testing.assert_close(some.lower[~decided], every.lower[~decided])
    torch.testing.assert_close(some.offset[decided], some.lower[decided])


@MODES
def test_chunks_do_not_change_results(intermediate: Intermediate) -> None:
    for number in range(6):
        network, box = random_network(number), random_box(number)
        whole, parts = (
            crown(network, box, LABELS, intermediate=intermediate, skip_decided=False, row_bytes=b)
            for b in (2**30, 4096)
        )
        torch.testing.assert_close(whole.lower, parts.lower, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(whole.coefficient, parts.coefficient, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(whole.offset, parts.offset, rtol=1e-12, atol=1e-12)


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 12))
@settings(derandomize=True, deadline=None)
def test_chunks_cover_every_entry_once(counts: list[int], step: int) -> None:
    owner = [sample for sample, count in enumerate(counts) for _ in range(count)]
    covered = []
    for samples_, part in chunks(counts, step):
        assert 0 < part.stop - part.start <= max(step, 1)
        assert all(samples_.start <= owner[i] < samples_.stop for i in range(part.start, part.stop))
        covered += range(part.start, part.stop)
    assert covered == list(range(len(owner)))


def test_a_batch_equals_its_inputs_one_by_one() -> None:
    network, box = random_network(7), random_box(7)
    together = crown(network, box, LABELS, skip_decided=False)
    for i in range(3):
        one = Box(centre=box.centre[i : i + 1], radius=box.radius[i : i + 1])
        alone = crown(network, one, LABELS[i : i + 1], skip_decided=False)
        torch.testing.assert_close(alone.lower[0], together.lower[i], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.coefficient[0], together.coefficient[i], rtol=1e-12, atol=1e-12)


def test_linear_layers_on_maps() -> None:
    """Linear acts on the last axis of a (C, H, W) map; rows that start behind it as windows must leave it as maps."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1), nn.ReLU(), Reshape((6,)), nn.Linear(6, 4)]
    network = chain(layers, (2, 3, 4)).frozen(dtype=torch.float64)
    centre = torch.rand(3, 2, 3, 4, dtype=torch.float64)
    bounds = crown(network, Box(centre=centre, radius=torch.full_like(centre, 0.2)), LABELS, intermediate="crown")
    u = 0.2 * torch.randn(200, 1, 2, 3, 4, dtype=torch.float64).sign()
    found = margins_at(network, centre + u, LABELS)
    planes = torch.einsum("ncd,ud->unc", bounds.coefficient.flatten(2), u.flatten(1)) + bounds.offset
    assert (found >= planes)[:, ~TRUE].all()


def test_ties_and_unknowns_are_not_verified() -> None:
    zero = torch.zeros(3, 4, 2, dtype=torch.float64)
    lower = torch.tensor([[math.inf, 1.0], [math.inf, 0.0], [math.inf, math.nan]], dtype=torch.float64)
    assert LinearMargins(lower=lower, coefficient=zero, offset=lower).verified.tolist() == [True, False, False]


def test_nan_weights_verify_nothing() -> None:
    network = random_network(2)
    next(network.parameters()).fill_(math.nan)
    assert not crown(network, random_box(2), LABELS).verified.any()


def test_rows_only_for_open_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 'intersect', no row is computed for a neuron that intervals decide."""
    network = chain(
        [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), Reshape((24,)), nn.Linear(24, 4)], SHAPE
    ).frozen(dtype=torch.float64)
    box = random_box(1, radius=0.02)
    counted = []

    def counting(relaxed: RelaxedNetwork, rows: module.Rows, region: Box) -> module.LinearBounds:
        counted.append(len(rows.offset))
        return concretise(relaxed, rows, region)

    monkeypatch.setattr(module, "concretise", counting)
    boxes: dict[str, Box] = {}
    module.walk(network, module.OUTWARD_INTERVAL, box, record=boxes)
    hidden = boxes[network.nodes[2].name]
    relax(network, box)
    unstable = int(((hidden.lower < 0) & (hidden.upper > 0)).sum())
    assert 0 < unstable < hidden.lower.numel()
    assert sum(counted) == 2 * unstable


def test_slopes_can_be_optimised() -> None:
    """The dense backward pass is differentiable in the slopes, which are inputs: what alpha-CROWN needs."""
    network, box = random_network(0), random_box(0)
    found = relax(network, box)
    boxes, relaxations, free = found.boxes, dict(found.relaxations), {}
    for name, lines in found.relaxations.items():
        if isinstance(lines, Lines):
            source = next(n for n in network.nodes if n.name == name).inputs[0]
            kinked = (boxes[source].lower < 0) & (boxes[source].upper > 0)
            relaxations[name] = replace(lines, lower_slope=torch.where(kinked, 0.5, lines.lower_slope).requires_grad_())
            free[name] = relaxations[name].lower_slope
    relaxed = RelaxedNetwork(network=network, relaxations=relaxations)
    start, rows = seed(
        relaxed, network.output_name, torch.arange(3), torch.zeros(3, dtype=torch.long), torch.ones(3).double()
    )
    concretise(relaxed, to_input(relaxed, rows, start=start), box).lower.sum().backward()
    assert free
    assert all(slope.grad is not None for slope in free.values())


def test_a_layer_without_a_rule_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network = chain([Reshape((84,)), nn.Linear(84, 4)], SHAPE).frozen(dtype=torch.float64)
    rules = {kind: rule for kind, rule in BACKWARD.items() if kind is not nn.Linear}
    monkeypatch.setattr(module, "BACKWARD", rules)
    with pytest.raises(UnsupportedNetworkError, match=r"node 'n1_linear': this analysis has no rule for Linear"):
        crown(network, random_box(0, radius=1.0), LABELS, skip_decided=False)


@pytest.mark.filterwarnings("ignore:Using padding=:UserWarning")
def test_uneven_same_padding_is_named() -> None:
    network = chain([nn.Conv2d(2, 2, 2, padding="same"), Reshape((84,)), nn.Linear(84, 4)], SHAPE)
    with pytest.raises(UnsupportedNetworkError, match=r"node 'n0_conv2d': uneven 'same' padding"):
        crown(network.frozen(dtype=torch.float64), random_box(0), LABELS, skip_decided=False)


def test_outward_margins_are_the_interval_part_of_lower() -> None:
    network, box = random_network(4), random_box(4)
    boxes = relax(network, box).boxes
    assert (crown(network, box, LABELS).lower >= outward_margins(network, boxes, {}, LABELS)).all()
