"""Parts of the backward walk that whole bounds do not show."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from citrus_tool.bounds.crown import relax
from citrus_tool.bounds.linear import conv_padding
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import Evaluation, Node
from tests.bounds.networks import SHAPE, random_box, random_network


def _node(layer: nn.Module) -> Node:
    return Node(name="here", layer=layer, inputs=("input",), shape=SHAPE)


@pytest.mark.parametrize(
    ("options", "pads"),
    [
        ({"kernel_size": (1, 3), "padding": "same"}, (0, 1)),
        ({"kernel_size": (3, 1), "padding": "same", "dilation": 2}, (2, 0)),
        ({"kernel_size": 2, "padding": "valid"}, (0, 0)),
        ({"kernel_size": 2, "padding": (2, 1)}, (2, 1)),
    ],
)
def test_padding_of_a_convolution(options: dict[str, object], pads: tuple[int, int]) -> None:
    layer = nn.Conv2d(2, 2, **options)  # type: ignore[arg-type]
    found = conv_padding(layer, _node(layer))
    assert found == pads
    assert all(type(one) is int for one in found)


@pytest.mark.parametrize("kernel", [(2, 1), (1, 2), (2, 3)])
def test_uneven_padding_is_refused(kernel: tuple[int, int]) -> None:
    layer = nn.Conv2d(2, 2, kernel, padding="same")
    with pytest.raises(UnsupportedNetworkError, match="node 'here': uneven 'same' padding has no bound rule"):
        conv_padding(layer, _node(layer))


def test_a_part_of_the_batch_has_its_own_errors() -> None:
    evaluation = Evaluation(arithmetic="float32", rounds_input=True)
    checked = 0
    for seed in range(6):
        network = random_network(seed).frozen(dtype=torch.float64, evaluation=evaluation)
        with torch.no_grad():
            relaxed = relax(network, random_box(seed, 3))
        part = relaxed.select(slice(1, 3))
        for whole, some in ((relaxed.errors, part.errors), (relaxed.file_errors, part.file_errors)):
            assert set(whole) == set(some)
            for name in whole:
                assert torch.equal(whole[name][1:3], some[name])
                checked += not torch.equal(whole[name][:2], some[name])
        assert torch.equal(part.box.centre, relaxed.box.centre[1:3])
        assert set(part.relaxations) == set(relaxed.relaxations)
    assert checked
