"""Products of activations: intervals that are attained, planes as good as McCormick's, float32, export."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from citrus_tool.bounds.crown import crown, relax
from citrus_tool.bounds.float32 import FileErrors
from citrus_tool.bounds.interval import INTERVAL
from citrus_tool.bounds.relaxation import RELAXATIONS, ProductRelaxation
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import (
    Add,
    Affine,
    GraphBuilder,
    MatMul,
    Multiply,
    Network,
    Pointwise,
    Reshape,
    Select,
    Transpose,
)
from citrus_tool.onnx_io import export_graph
from citrus_tool.threat import Box
from citrus_tool.training.crown_ibp import crown_margins
from tests.bounds.networks import margins_at, samples

LABELS = torch.tensor([0, 1])


def box_of(shape: tuple[int, ...], seed: int) -> Box:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return Box(centre=centre, radius=torch.rand(2, *shape, generator=generator, dtype=torch.float64))


def corners(box: Box) -> Tensor:
    """(2^k, *shape) corners of one small box (1, *shape) of k entries."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=box.centre[0].numel())), dtype=torch.float64)
    return box.centre + signs.reshape(-1, *box.centre.shape[1:]) * box.radius


@pytest.mark.parametrize("seed", range(6))
def test_intervals_of_matrix_products_are_attained(seed: int) -> None:
    x, y = (Box(centre=b.centre[:1], radius=b.radius[:1]) for b in (box_of((2, 3), seed), box_of((3, 1), seed + 50)))
    found = INTERVAL[MatMul](MatMul(), x, y)
    every = corners(x)[:, None] @ corners(y)[None]
    torch.testing.assert_close(every.amin((0, 1)), found.lower[0])
    torch.testing.assert_close(every.amax((0, 1)), found.upper[0])


@pytest.mark.parametrize("seed", range(6))
def test_planes_of_products_hold_and_are_as_far_off_as_mccormicks(seed: int) -> None:
    x, y = box_of((4,), seed), box_of((4,), seed + 50)
    planes = RELAXATIONS[Multiply](Multiply(), x, y)
    assert isinstance(planes, ProductRelaxation)
    p, q = samples(x, seed, 400), samples(y, seed + 9, 400)
    middle = planes.right * p + planes.left * q - planes.constant
    assert ((p * q - middle).abs() <= planes.spread + 1e-12).all()
    classic = torch.maximum(
        x.lower * y.centre + y.lower * x.centre - x.lower * y.lower,
        x.upper * y.centre + y.upper * x.centre - x.upper * y.upper,
    )
    torch.testing.assert_close(planes.constant - planes.spread, classic)


def gated() -> Network:
    """Squeeze and excitation: a map times gates that its means give."""
    torch.manual_seed(3)
    builder = GraphBuilder((2, 4, 4))
    features = builder.add(nn.Conv2d(2, 3, 3, padding=1))
    features = builder.add(Pointwise("silu"))
    builder.add(nn.AvgPool2d(4))
    builder.add(nn.Conv2d(3, 3, 1))
    gate = builder.add(nn.Sigmoid())
    gate = builder.add(Select(torch.arange(3)[:, None, None].expand(3, 4, 4).contiguous()), gate)
    builder.add(Multiply(), features, gate)
    builder.add(nn.Conv2d(3, 2, 3, padding=1))
    builder.add(nn.ReLU())
    builder.add(Reshape((32,)))
    builder.add(nn.Linear(32, 3))
    return builder.build().frozen(dtype=torch.float64)


def attention() -> Network:
    """Two heads of three tokens; softmax by differences, so that no quotient of sums is left."""
    torch.manual_seed(4)
    tokens, width = 3, 4
    builder = GraphBuilder((tokens * width,))
    heads = [
        builder.add(Reshape((2, tokens, 2)), builder.add(nn.Linear(tokens * width, tokens * width), "input"))
        for _ in range(3)
    ]
    turned = builder.add(Transpose((0, 2, 1)), heads[1])
    score = builder.add(MatMul(), heads[0], turned)
    builder.add(Affine(torch.full((1,), 0.7), torch.zeros(1)), score)
    place = torch.arange(2 * tokens * tokens).reshape(2, tokens, tokens)
    many = (2, tokens, tokens, tokens)
    other = builder.add(Select(place[:, :, None, :].expand(many).contiguous()), score)
    own = builder.add(Select(place[:, :, :, None].expand(many).contiguous()), score)
    own = builder.add(Affine(torch.full((1,), -1.0), torch.zeros(1)), own)
    builder.add(Add(), other, own)
    builder.add(Pointwise("exp"))
    builder.add(Reshape((2, tokens * tokens, tokens)))
    builder.add(nn.AvgPool2d((1, tokens)))
    builder.add(Reshape((2, tokens, tokens)))
    builder.add(Affine(torch.full((1,), float(tokens)), torch.zeros(1)))
    weights = builder.add(Pointwise("reciprocal"))
    builder.add(MatMul(), weights, heads[2])
    builder.add(Reshape((tokens * width,)))
    builder.add(nn.Linear(tokens * width, 3))
    return builder.build().frozen(dtype=torch.float64)


@pytest.mark.parametrize("make", [gated, attention])
@pytest.mark.parametrize("radius", [0.0, 0.01, 0.1])
def test_networks_with_products(make: Callable[[], Network], radius: float) -> None:
    network = make()
    centre = torch.randn(2, *network.input_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    box = Box(centre=centre, radius=torch.full_like(centre, radius))
    points = samples(box, 5, 400)
    with torch.no_grad():
        found = crown(network, box, LABELS, skip_decided=False)
        true = margins_at(network, points, LABELS)
        boxes = relax(network, box).boxes
    finite = torch.isfinite(found.offset)
    assert (true >= found.lower - 1e-12)[:, finite].all()
    planes = torch.einsum("snd,ncd->snc", (points - centre).flatten(2), found.coefficient.flatten(2)) + found.offset
    assert (true >= planes - 1e-12)[:, finite].all()
    assert all(bounds.centre.isfinite().all() for bounds in boxes.values())
    if radius == 0.01:  # tight: samples reach most of it
        gap, reach = (true.amin(0) - found.lower)[finite], (true.amax(0) - true.amin(0))[finite]
        assert float((gap / reach).max()) < 0.8


@pytest.mark.parametrize("make", [gated, attention])
def test_crown_ibp_trains_through_products(make: Callable[[], Network]) -> None:
    network = make()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    centre = torch.randn(2, *network.input_shape, dtype=torch.float64)
    boxes = {"input": Box(centre=centre, radius=torch.full_like(centre, 0.01))}
    crown_margins(network, boxes, LABELS).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("make", [gated, attention])
def test_products_are_exported(make: Callable[[], Network]) -> None:
    network = make().float()
    model = export_graph.to_proto(network, input_name="x", output_name="y", opset=17, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    x = torch.randn(5, *network.input_shape)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], network(x).numpy(), atol=1e-5)


def test_matrices_of_unlike_leading_axes_are_refused() -> None:
    with pytest.raises(UnsupportedNetworkError, match="expand their leading axes first"):
        MatMul()(torch.zeros(1, 2, 3, 4), torch.zeros(1, 4, 3))


def test_terms_of_a_matrix_product_are_those_of_its_inner_axis() -> None:
    carried = FileErrors.of(attention()).carried
    assert [carried[node.name] for node in attention().nodes if isinstance(node.layer, MatMul)] == [2, 3]
