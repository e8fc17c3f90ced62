"""Interval bounds: containment on random graphs, degenerate boxes, margins, errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from citrus_tool.bounds.interval import INTERVAL, margins
from citrus_tool.bounds.rounding import OUTWARD_INTERVAL
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import CANONICAL, CONCRETE, Reshape, Rules, chain, walk
from citrus_tool.threat import Box
from tests.bounds.networks import CLASSES, SHAPE, margins_at, random_box, random_network, samples, values_at

SEEDS = st.integers(0, 10**6)
LABELS = torch.tensor([0, 1, 3])


def test_every_canonical_layer_has_a_rule() -> None:
    assert set(INTERVAL) == set(OUTWARD_INTERVAL) == set(CANONICAL)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(SEEDS)
def test_boxes_contain_every_value_of_sampled_points(seed: int) -> None:
    network, box = random_network(seed), random_box(seed)
    boxes: dict[str, Box] = {}
    walk(network, INTERVAL, box, record=boxes)
    for name, value in values_at(network, samples(box, seed)).items():
        assert (value >= boxes[name].lower - 1e-9).all(), name
        assert (value <= boxes[name].upper + 1e-9).all(), name


@settings(max_examples=20, derandomize=True, deadline=None)
@given(SEEDS)
def test_a_point_box_is_the_forward_pass(seed: int) -> None:
    network, box = random_network(seed), random_box(seed, radius=0.0)
    output = walk(network, INTERVAL, box)
    torch.testing.assert_close(output.centre, network(box.centre), rtol=1e-9, atol=1e-9)
    assert output.radius.abs().max() < 1e-12
    want = margins_at(network, box.centre[None], LABELS)[0]
    torch.testing.assert_close(margins(network, box, LABELS), want, rtol=1e-9, atol=1e-9)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(SEEDS)
def test_margins_hold_and_eliding_the_last_layer_helps(seed: int) -> None:
    network, box = random_network(seed), random_box(seed)
    lower = margins(network, box, LABELS)
    assert (margins_at(network, samples(box, seed), LABELS) >= lower - 1e-9).all()
    output = walk(network, INTERVAL, box)
    plain = (output.lower.gather(1, LABELS[:, None]) - output.upper).scatter(1, LABELS[:, None], math.inf)
    assert (lower >= plain - 1e-9).all()


def test_margins_do_not_depend_on_the_size_of_the_batch() -> None:
    network, box = random_network(5), random_box(5, 3)
    many = Box(centre=box.centre.repeat(4, 1, 1, 1), radius=box.radius.repeat(4, 1, 1, 1))  # 12 boxes > CLASSES > 3
    assert CLASSES > 3
    torch.testing.assert_close(margins(network, many, LABELS.repeat(4)), margins(network, box, LABELS).repeat(4, 1))


def test_margins_train() -> None:
    network = random_network(3).train()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    box = random_box(3)
    lower = margins(network.eval(), box, LABELS, true_class=0.0)
    assert (lower.gather(1, LABELS[:, None]) == 0).all()
    nn.functional.cross_entropy(-lower, LABELS).backward()
    for name, parameter in network.named_parameters():
        if "linear" in name:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


@settings(max_examples=20, derandomize=True, deadline=None)
@given(SEEDS)
def test_outward_boxes_in_float32_contain_the_exact_image(seed: int) -> None:
    """float64 stands in for real arithmetic; the plain rules in float32 fail this (next test)."""
    assert _escapes(seed, OUTWARD_INTERVAL) == 0


def test_plain_boxes_in_float32_do_not() -> None:
    assert sum(_escapes(seed, INTERVAL) for seed in range(10)) > 0


def _escapes(seed: int, rules: Rules) -> int:
    """How many entries of point boxes, read in float32, miss the value in float64."""
    network, point = random_network(seed), random_box(seed, radius=0.0).centre.float()
    values: dict[str, Tensor] = {}
    walk(network.float().double(), CONCRETE, point.double(), record=values)
    boxes: dict[str, Box] = {}
    walk(network.float(), rules, Box(centre=point, radius=torch.zeros_like(point)), record=boxes)
    return sum(
        int(((value < boxes[name].lower.double()) | (value > boxes[name].upper.double())).sum())
        for name, value in values.items()
    )


def test_a_layer_without_a_rule_is_named() -> None:
    network = random_network(0)
    rules = {kind: rule for kind, rule in INTERVAL.items() if kind is not nn.Linear}
    linear = next(node.name for node in network.nodes if isinstance(node.layer, nn.Linear))
    with pytest.raises(UnsupportedNetworkError, match=f"node '{linear}': this analysis has no rule for Linear"):
        walk(network, rules, random_box(0))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "padding mode 'reflect' has no bound rule"),
        (nn.LeakyReLU(-0.5), "negative_slope -0.5 has no bound rule"),
        (nn.LeakyReLU(1.5), "negative_slope 1.5 has no bound rule"),
        (nn.BatchNorm2d(2, track_running_stats=False), "without running statistics"),
    ],
)
def test_layers_that_cannot_be_bounded(layer: nn.Module, message: str) -> None:
    network = chain([layer.eval(), Reshape((84,))], SHAPE).double()
    with pytest.raises(UnsupportedNetworkError, match=message):
        walk(network, INTERVAL, random_box(0))


def test_a_leaky_relu_may_be_straight_or_a_relu() -> None:
    box = Box(centre=torch.tensor([[-1.0, 0.5]]), radius=torch.ones(1, 2))
    for slope, lower in ((1.0, [[-2.0, -0.5]]), (0.0, [[0.0, 0.0]])):
        assert INTERVAL[nn.LeakyReLU](nn.LeakyReLU(slope), box).lower.tolist() == lower


@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
def test_a_batch_norm_lacks_either_statistic(missing: str) -> None:
    norm = nn.BatchNorm1d(2).eval()
    setattr(norm, missing, None)
    with pytest.raises(UnsupportedNetworkError, match="without running statistics"):
        INTERVAL[nn.BatchNorm1d](norm, Box(centre=torch.ones(1, 2), radius=torch.ones(1, 2)))
