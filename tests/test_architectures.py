"""Named architectures: their layers, seeds and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from citrus_tool import architectures, onnx_io
from citrus_tool.errors import UsageError
from citrus_tool.network import Add


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", ["mlp", "convtiny", "cnn7", "resnet"])
def test_builds_for_every_image_size(name: str, shape: tuple[int, int, int]) -> None:
    network = architectures.build(name, shape, 7)
    assert network.input_shape == shape
    assert network.eval()(torch.rand(2, *shape)).shape == (2, 7)


def test_convsmall_is_the_published_one() -> None:
    network = architectures.build("convsmall", (1, 28, 28), 10)
    relus = sum(torch.Size(node.shape).numel() for node in network.nodes if isinstance(node.layer, nn.ReLU))
    assert relus == 3604  # ERAN's ConvSmall on MNIST
    cifar = architectures.build("convsmall", (3, 32, 32), 10)
    assert sum(torch.Size(n.shape).numel() for n in cifar.nodes if isinstance(n.layer, nn.ReLU)) == 4852


def test_cnn7_is_the_papers() -> None:
    network = architectures.build("cnn7", (3, 64, 64), 200)
    convs = [node.layer for node in network.nodes if isinstance(node.layer, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [64, 64, 128, 128, 128]
    assert [conv.stride[0] for conv in convs] == [1, 1, 2, 1, 2]
    assert architectures.build("cnn7", (3, 32, 32), 10).nodes[-3].shape == (512,)
    kinds = [type(node.layer) for node in network.nodes]
    assert all(kinds[i + 1] is nn.BatchNorm2d for i, kind in enumerate(kinds) if kind is nn.Conv2d)


def test_resnet_adds_what_its_blocks_leave_out() -> None:
    network = architectures.build("resnet", (3, 32, 32), 10)
    adds = [node for node in network.nodes if isinstance(node.layer, Add)]
    layers = {node.name: node.layer for node in network.nodes}
    first, second = ([type(layers[name]) for name in node.inputs] for node in adds)
    assert first == [nn.BatchNorm2d, nn.BatchNorm2d]  # both ways have a convolution where the shape changes
    assert second == [nn.BatchNorm2d, nn.ReLU]
    assert [node.shape for node in adds] == [(32, 8, 8), (32, 8, 8)]


def test_normalisation_is_the_first_layer() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.1, 0.4)
    plain = architectures.build("mlp", (3, 8, 8), 10)
    network = architectures.build("mlp", (3, 8, 8), 10, normalisation=(mean, std))
    x = torch.rand(4, 3, 8, 8)
    scaled = (x - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
    torch.testing.assert_close(network(x), plain(scaled))


@pytest.mark.parametrize("name", ["cnn7", "resnet"])
def test_batch_norm_is_folded_at_export(name: str, tmp_path: Path) -> None:
    network = architectures.build(name, (1, 12, 12), 10, normalisation=((0.4,), (0.3,))).train()
    for _ in range(3):
        network(torch.rand(8, 1, 12, 12))  # running statistics that are not the identity
    network.eval()
    model = onnx_io.export(onnx_io.fold_batch_norm(network), tmp_path / "m.onnx", metadata={})
    assert not any(isinstance(node.layer, nn.BatchNorm1d | nn.BatchNorm2d) for node in model.network.nodes)
    x = torch.rand(4, 1, 12, 12)
    torch.testing.assert_close(model.network(x), network(x), rtol=1e-4, atol=1e-5)
    again = onnx_io.read(tmp_path / "m.onnx", input_shape=(1, 12, 12))
    torch.testing.assert_close(again.network(x), network(x), rtol=1e-4, atol=1e-5)


def test_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, two, three = (architectures.build("mlp", (1, 8, 8), 10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    weights = [next(network.parameters()) for network in (one, two, three)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_errors() -> None:
    with pytest.raises(
        UsageError, match=r"no architecture 'convsmal'; architectures are mlp, .*Did you mean 'convsmall'\?"
    ):
        architectures.build("convsmal", (1, 28, 28), 10)
    with pytest.raises(UsageError, match="convsmall needs larger images than 8 x 8: convolution 2 has no output"):
        architectures.build("convsmall", (1, 8, 8), 10)
    with pytest.raises(UsageError, match=r"input_shape is \(784,\); images have three axes"):
        architectures.build("mlp", (784,), 10)
