"""Batch norm put into an imported network: the same function before, the same graph after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from citrus_tool import onnx_io
from citrus_tool.network import Network, Reshape, chain
from citrus_tool.training.batch_norm import insert_batch_norm, restore_layers
from tests.training.test_citrus_loss import MAKERS, _made

X = torch.rand((40, 2, 7, 7), generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def _norms(network: Network) -> list[nn.Module]:
    return [node.layer for node in network.nodes if isinstance(node.layer, nn.BatchNorm1d | nn.BatchNorm2d)]


@pytest.mark.parametrize(("name", "count"), [("chain", 3), ("residual", 0), ("relu-last", 2)])
def test_the_function_is_the_same(name: str, count: int) -> None:
    network = _made(MAKERS[name])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    normed = insert_batch_norm(network, X.split(10))
    assert len(_norms(normed)) == count
    fresh = torch.rand((9, 2, 7, 7), dtype=torch.float64)
    torch.testing.assert_close(normed(fresh), network(fresh), rtol=1e-9, atol=1e-11)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_its_statistics_are_those_of_the_data() -> None:
    network = _made(MAKERS["chain"])
    normed = insert_batch_norm(network, X.split(10))
    first = _norms(normed)[0]
    assert isinstance(first, nn.BatchNorm2d)
    conv = network.nodes[1].layer(network.nodes[0].layer(X))
    torch.testing.assert_close(first.running_mean, conv.mean((0, 2, 3)))
    torch.testing.assert_close(first.running_var, conv.var((0, 2, 3), unbiased=False))


def test_trained_weights_go_back_into_the_graph_they_came_from() -> None:
    network = _made(MAKERS["chain"])
    normed = insert_batch_norm(network, X.split(10))
    with torch.no_grad():  # any training step
        for parameter in normed.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    restored = restore_layers(onnx_io.fold_batch_norm(normed), network)
    assert [node.name for node in restored.nodes] == [node.name for node in network.nodes]
    assert not _norms(restored)
    torch.testing.assert_close(restored(X), normed(X), rtol=1e-8, atol=1e-10)
    assert (restored(X) - network(X)).abs().max() > 1e-3


def test_shared_layers_and_layers_without_bias_are_left_alone() -> None:
    shared = nn.Linear(98, 98)
    layers = [Reshape((98,)), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(98, 5, bias=False), nn.ReLU()]
    network = chain([*layers, nn.Linear(5, 4)], (2, 7, 7)).double()
    assert not _norms(insert_batch_norm(network, X.split(10)))
