"""Shi et al.'s initialisation and regularisers against literal twins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from citrus_tool import architectures
from citrus_tool.network import Affine, Network, Reshape, chain
from citrus_tool.threat import Box
from citrus_tool.training import shi
from citrus_tool.training.interval_margins import box_margins, uniform_box


def test_initialisation_has_the_papers_deviation_everywhere_but_in_the_last_layer() -> None:
    network = architectures.build("convsmall", (1, 28, 28), 10)
    shi.initialise(network, torch.Generator().manual_seed(0))
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers[:-1]:
        fan_in = layer.weight[0].numel()
        expected = math.sqrt(2 * math.pi) / fan_in
        tolerance = 4 / math.sqrt(2 * layer.weight.numel())
        assert layer.weight.std().item() == pytest.approx(expected, rel=tolerance)
        assert layer.weight.mean().abs() < 4 * expected / math.sqrt(layer.weight.numel())
    bound = 1 / math.sqrt(100)
    assert 0.9 * bound < layers[-1].weight.abs().max() <= bound
    assert all((layer.bias == 0).all() for layer in layers)


def test_initialisation_resets_batch_norms_and_follows_its_generator() -> None:
    networks = [architectures.build("cnn7", (1, 8, 8), 10, seed=seed) for seed in (1, 2, 3)]
    for network, seed in zip(networks, (7, 7, 8), strict=True):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(3.0)
                nn.init.constant_(module.weight, 2.0)
        shi.initialise(network, torch.Generator().manual_seed(seed))
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    norm = next(m for m in networks[0].modules() if isinstance(m, nn.BatchNorm2d))
    assert (norm.running_mean == 0).all()
    assert (norm.weight == 1).all()


def _literal(lower: list[Tensor], upper: list[Tensor], r0: float, tol: float) -> float:
    """notes: mean over layers of L_tight + L_relu, one entry at a time; terms that are nan or infinite are left out."""
    total = 0.0
    for low, up in zip(lower, upper, strict=True):
        l_all, u_all = low.flatten().tolist(), up.flatten().tolist()
        c_all = [(a + b) / 2 for a, b in zip(l_all, u_all, strict=True)]
        n, mean = len(c_all), sum(c_all) / len(c_all)
        mean_r = sum((b - a) / 2 for a, b in zip(l_all, u_all, strict=True)) / n
        total += max(tol - r0 / mean_r, 0.0) / tol
        entries = list(zip(l_all, u_all, c_all, strict=True))
        pairs = [
            (sum(c for a, _, c in entries if a > 0) / n, -sum(c for _, b, c in entries if b < 0) / n),
            (
                sum((c - mean) ** 2 for a, _, c in entries if a > 0),
                sum((c - mean) ** 2 for _, b, c in entries if b < 0),
            ),
        ]
        for p, q in pairs:
            if p > 0 and q > 0:
                total += max(tol - min(p / q, q / p), 0.0) / tol
    return total / len(lower)


def _network() -> Network:
    torch.manual_seed(2)
    layers = [
        Affine(torch.tensor(3.0), torch.tensor(-0.4)),
        nn.Conv2d(1, 4, 3, stride=2),
        nn.ReLU(),
        Reshape((36,)),
        nn.Linear(36, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    ]
    network = chain(layers, (1, 7, 7)).double()
    with torch.no_grad():
        network.nodes[1].layer.bias.sub_(0.3)  # type: ignore[operator, union-attr]
    return network


def test_regulariser_equals_the_literal_formula() -> None:
    network = _network()
    x, labels = torch.rand(6, 1, 7, 7, dtype=torch.float64), torch.randint(0, 3, (6,))
    boxes: dict[str, Box] = {}
    box_margins(network, uniform_box(x, 0.03), labels, record=boxes)
    sources = [node.inputs[0] for node in network.nodes if isinstance(node.layer, nn.ReLU)]
    lower, upper = [boxes[s].lower for s in sources], [boxes[s].upper for s in sources]
    assert (lower[0] > 0).any()
    assert (upper[0] < 0).any()
    for tol in (0.5, 0.9):
        got = shi.regulariser(network, boxes, tol)
        # the normalisation in front of the first weight layer scales the input radius by 3
        assert got.item() == pytest.approx(_literal(lower, upper, 3 * 0.03, tol), rel=1e-9)
        assert got.item() > 0


@pytest.mark.parametrize("shift", [-1e3, 1e3])
def test_layers_without_active_or_inactive_neurons_add_no_nan(shift: float) -> None:
    network = _network()
    with torch.no_grad():
        network.nodes[1].layer.bias.fill_(shift)  # type: ignore[operator, union-attr]
    boxes: dict[str, Box] = {}
    x = torch.rand(6, 1, 7, 7, dtype=torch.float64)
    for radius in (0.03, 0.0):
        box_margins(network, uniform_box(x, radius), torch.zeros(6, dtype=torch.int64), record=boxes)
        value = shi.regulariser(network, boxes, 0.5)
        assert torch.isfinite(value)
        if value.requires_grad:
            gradients = torch.autograd.grad(value, list(network.parameters()), allow_unused=True)
            assert all(g is None or torch.isfinite(g).all() for g in gradients)


def test_network_without_relu_is_not_regularised() -> None:
    network = chain([Reshape((49,)), nn.Linear(49, 3)], (1, 7, 7))
    boxes: dict[str, Box] = {}
    box_margins(network, uniform_box(torch.rand(2, 1, 7, 7), 0.1), torch.tensor([0, 1]), record=boxes)
    assert shi.regulariser(network, boxes, 0.5).item() == 0.0
