"""Max pools over boxes: windows and their adjoint, planes that enclose the pool, differences that CROWN bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from citrus_tool.bounds import crown as module
from citrus_tool.bounds.crown import crown, relax
from citrus_tool.bounds.linear import RelaxedNetwork
from citrus_tool.bounds.pools import MaxPoolRelaxation, Pool, max_pool_planes, reference, rivals
from citrus_tool.network import Network, Node, Reshape, chain
from citrus_tool.threat import Box
from tests.bounds.networks import margins_at, samples

OPTIONS = pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 2, "stride": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "dilation": 2, "stride": 1},
        {"kernel_size": 3, "stride": 2, "ceil_mode": True},
        {"kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 1)},
    ],
    ids=str,
)


def _pooled(options: dict[str, Any]) -> Network:
    """Convolution, ReLU, max pool, one Linear: (2, 6, 6) to 3 logits."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(**options)]
    entries = nn.Sequential(*layers)(torch.zeros(1, 2, 6, 6)).numel()
    return chain([*layers, Reshape((entries,)), nn.Linear(entries, 3)], (2, 6, 6)).frozen(dtype=torch.float64)


@OPTIONS
def test_windows_and_their_adjoint(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = nn.MaxPool2d(**options), torch.randn(2, 3, 6, 7, dtype=torch.float64)
    expected = layer(x)
    pool, outputs = Pool.of(layer), (expected.shape[2], expected.shape[3])
    assert torch.equal(pool.windows(x, outputs, -torch.inf).amax(2), expected)
    y = torch.randn(2, 3, pool.entries, *outputs, dtype=torch.float64)
    assert torch.allclose((pool.windows(x, outputs, 0.0) * y).sum(), (x * pool.on_map(y, (6, 7))).sum())


@OPTIONS
def test_planes_enclose_the_pool(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = nn.MaxPool2d(**options)
    lower = torch.randn(8, 2, 6, 6, dtype=torch.float64)
    box = Box.from_bounds(lower, lower + torch.rand(8, 2, 6, 6, dtype=torch.float64).pow(3) * 2)
    box.radius[-1] = 0
    found = max_pool_planes(layer, box)
    share = torch.rand(200, 1, 1, 1, 1, dtype=torch.float64)
    places = (torch.rand(200, *lower.shape, dtype=torch.float64) * share).round(decimals=1)
    for points in box.lower + places * 2 * box.radius:
        pooled = layer(points)
        windows = Pool.of(layer).windows(points, (pooled.shape[2], pooled.shape[3]), 0.0)
        assert (windows.gather(2, found.chosen.long()) <= pooled[:, :, None]).all()
        assert ((found.slopes * windows).sum(2) + found.offset >= pooled - 1e-15).all()
    # where no rival can exceed the chosen entry, and in a point, the pool is that entry
    low, high = rivals(layer, box, reference(layer, box))
    decided = (high <= 0).all(2)
    assert 0.1 < decided.double().mean() < 0.95
    own = torch.arange(low.shape[2]).reshape(1, 1, -1, 1, 1) == found.chosen
    settled = decided[:, :, None].expand_as(low)
    assert torch.equal(found.slopes[settled], own[settled].double())
    assert (found.offset[decided] == 0).all()
    assert decided[-1].all()


@OPTIONS
def test_differences_of_affine_entries_are_exact(options: dict[str, Any]) -> None:
    """Behind one convolution every difference is affine in the input: centre and l1 norm of its gradient."""
    torch.manual_seed(1)
    layer = nn.MaxPool2d(**options)
    body = [nn.Conv2d(2, 3, 3, padding=1), layer]
    entries = nn.Sequential(*body)(torch.zeros(1, 2, 6, 6)).numel()
    network = chain([*body, Reshape((entries,)), nn.Linear(entries, 3)], (2, 6, 6)).frozen(dtype=torch.float64)
    convolution, pool = network.nodes[0], network.nodes[1]
    box = Box(centre=torch.rand(2, 2, 6, 6).double(), radius=torch.full((2, 2, 6, 6), 0.2).double())
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    found = relax(network, box)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "planes_of_pool", lambda layer, box, chosen, low, high: seen.append((low, high)))
        module.relaxed_pool(found, pool, layer)
    chosen = reference(layer, found.boxes[convolution.name])
    outputs = (chosen.shape[3], chosen.shape[4])

    def differences(x: torch.Tensor) -> torch.Tensor:
        windows = Pool.of(layer).windows(convolution.layer(x[None]), outputs, 0.0)
        return windows - windows.gather(2, chosen[:1])

    low, high = (bounds[0].flatten() for bounds in seen[0])
    gradient = torch.func.jacrev(differences)(box.centre[0]).reshape(len(low), -1)
    centre, reach = differences(box.centre[0]).flatten(), gradient.abs().sum(1) * 0.2
    refined = high > 0
    assert refined.any()
    assert torch.allclose(high[refined], (centre + reach)[refined], atol=1e-9)
    assert torch.allclose(low[refined & (low < 0)], (centre - reach)[refined & (low < 0)], atol=1e-9)
    inside = high > -torch.inf
    assert ((centre + reach)[inside & ~refined] <= 1e-9).all()


def by_entries(relaxed: RelaxedNetwork, node: Node) -> MaxPoolRelaxation:
    """From the entries' own bounds, which were refined."""
    assert isinstance(node.layer, nn.MaxPool2d)
    return max_pool_planes(node.layer, relaxed.boxes[node.inputs[0]])


@OPTIONS
@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_crown_holds_and_is_tighter_than_by_entries(
    options: dict[str, Any], radius: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, labels = _pooled(options), torch.tensor([0, 2])
    box = Box(centre=torch.rand(2, 2, 6, 6).double(), radius=torch.full((2, 2, 6, 6), radius).double())
    ours = crown(network, box, labels, skip_decided=False)
    points = samples(box, 0)
    u = (points - box.centre).flatten(2)
    planes = torch.einsum("ncd,snd->snc", ours.coefficient.flatten(2), u) + ours.offset
    true = margins_at(network, points, labels)
    assert (true >= ours.lower - 1e-12).all()
    assert (true >= planes - 1e-12).all()
    monkeypatch.setattr(module, "relaxed_pool", lambda relaxed, node, *_, **__: by_entries(relaxed, node))
    rough = crown(network, box, labels, skip_decided=False)
    rival = ours.lower.isfinite()
    gain = (ours.lower - rough.lower)[rival]
    assert gain.min() > -0.05 * (true.amax(0) - ours.lower)[rival].max()
    assert gain.mean() > (0.0 if radius == 0.01 else -1e-9)  # constants everywhere, at the larger radius


def test_a_pool_of_the_input() -> None:
    network = chain([nn.MaxPool2d(2), Reshape((9,)), nn.Linear(9, 2)], (1, 6, 6)).frozen(dtype=torch.float64)
    box = Box(centre=torch.rand(1, 1, 6, 6).double(), radius=torch.full((1, 1, 6, 6), 0.2).double())
    labels = torch.tensor([0])
    true = margins_at(network, samples(box, 0), labels)
    found = crown(network, box, labels, skip_decided=False)
    assert (true >= found.lower - 1e-12).all()
    assert (true.amin(0) - found.lower)[:, 1] < 1.0
