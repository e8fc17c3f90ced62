"""Parts of the backward walk that whole bounds do not show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from citrus_tool.bounds.crown import relax
from citrus_tool.bounds.linear import BACKWARD, RelaxedNetwork, backward_error, concretise, conv_padding
from citrus_tool.bounds.rounding import OWN, PER_NODE, SAFETY
from citrus_tool.bounds.rows import Rows, Window
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import (
    INPUT,
    Add,
    Affine,
    Concat,
    Evaluation,
    GraphBuilder,
    MatMul,
    Multiply,
    Node,
    Pad,
    Pointwise,
    Reshape,
    Select,
    Slice,
    Transpose,
    chain,
)
from citrus_tool.threat import Box
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


def _rows(coefficient: list[list[float]], *, window: Window | None = None) -> Rows:
    values = torch.tensor(coefficient, dtype=torch.float64)
    return Rows.of(
        sample=torch.zeros(len(values), dtype=torch.int64),
        shape=tuple(values.shape[1:]),
        coefficient=values,
        offset=torch.zeros(len(values), dtype=torch.float64),
        window=window,
    )


def test_backward_errors_by_hand() -> None:
    """gamma over the layer's sum, its own operations, the entries on both sides and four for each node."""
    network = chain([nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 5)], (3,)).frozen(dtype=torch.float64)
    box = Box(centre=torch.tensor([[-1.0, 3.0]]).double(), radius=torch.tensor([[1.0, 1.0]]).double())
    terms = 1 + OWN + (2 + 2) + PER_NODE * 3
    found = backward_error(network, network.nodes[1], box)
    assert found.tolist() == pytest.approx([SAFETY * terms * 2.0**-53 * (4 * 4 + 2)], rel=1e-6, abs=0)


def test_planes_at_the_input_by_hand() -> None:
    """<(2, -1), z> - .5 over centre (1, 3), radius (.25, .5): -1.5 at the centre, -2.5 at least."""
    network = chain([nn.Linear(2, 2)], (2,)).frozen(dtype=torch.float64)
    box = Box(centre=torch.tensor([[1.0, 3.0]]).double(), radius=torch.tensor([[0.25, 0.5]]).double())
    rows = replace(_rows([[2.0, -1.0]]), offset=torch.tensor([-0.5]).double())
    plain = RelaxedNetwork(network=network, boxes={INPUT: box})
    erring = replace(plain, file_errors={INPUT: torch.tensor([[0.125, 0.25]]).double()})
    unit = SAFETY * (2 + PER_NODE + OWN) * 2.0**-53 * 3.0 * 3.5
    for relaxed, paid in ((plain, 0.0), (erring, 0.5)):
        found = concretise(relaxed, rows, box)
        assert found.offset.item() == pytest.approx(-1.5 - paid, abs=1e-12)
        assert found.lower.item() == pytest.approx(-2.5 - paid, abs=1e-12)
        assert -1.5 - paid - found.offset.item() == pytest.approx(unit, rel=0.2, abs=0)
        assert -2.5 - paid - found.lower.item() == pytest.approx(2 * unit, rel=0.2, abs=0)


def test_norms_grow_by_the_largest_scale() -> None:
    network = chain([Affine(torch.tensor([3.0, -0.5]), torch.tensor([7.0, 1.0]))], (2,)).frozen(dtype=torch.float64)
    node = network.nodes[0]
    (found,) = BACKWARD[Affine](RelaxedNetwork(network=network), node.layer, node, _rows([[1.0, -2.0], [0.0, 4.0]]))
    assert found.coefficient.tolist() == [[3.0, 1.0], [0.0, -2.0]]
    assert found.offset.tolist() == [5.0, 4.0]
    assert found.norm.tolist() == [9.0, 12.0]
    assert (found.norm >= found.coefficient.abs().sum(1)).all()


def test_errors_of_one_box_serve_all_rows() -> None:
    """An error that a batch shares is one row; each input has its own otherwise."""
    network = chain([nn.Linear(2, 2)], (2,)).frozen(dtype=torch.float64)
    shared, own = torch.tensor([[0.25, 0.5]]), torch.tensor([[0.25, 0.5], [1.0, 2.0]])
    sample, entry, offset = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]), torch.ones(3)
    for error, left in ((shared, [0.5, 0.75, 0.5]), (own, [0.5, 0.0, -1.0])):
        relaxed = RelaxedNetwork(network=network, file_errors={"here": error})
        assert relaxed.paid_at("here", sample, entry, offset).tolist() == left
        assert relaxed.paid_at("there", sample, entry, offset) is offset


def test_rows_pay_for_errors_of_their_sample() -> None:
    """By |coefficient| times what the file differs by, and norm times the error of the step."""
    network = chain([Reshape((2,))], (2,)).frozen(dtype=torch.float64)
    node = network.nodes[0]
    rows = replace(_rows([[2.0, -1.0], [2.0, -1.0]]), sample=torch.tensor([0, 1]))
    relaxed = RelaxedNetwork(
        network=network,
        errors={node.name: torch.tensor([0.5, 0.25]).double()},
        file_errors={node.name: torch.tensor([[0.0, 8.0], [1.0, 4.0]]).double()},
    )
    assert relaxed.settle(node, rows).tolist() == [-(3 * 0.5) - 8.0, -(3 * 0.25) - 6.0]


def test_rows_on_windows_pay_for_the_largest_error_of_the_map() -> None:
    network = chain([nn.Conv2d(1, 1, 1), Reshape((4,))], (1, 2, 2)).frozen(dtype=torch.float64)
    window = Window(position=torch.tensor([[0, 1]]), grid=(2, 2), stride=(1, 1), offset=(0, 0))
    rows = Rows.of(
        sample=torch.tensor([1]),
        shape=(1, 2, 2),
        coefficient=torch.tensor([-3.0]).reshape(1, 1, 1, 1),
        offset=torch.ones(1),
        window=window,
    )
    error = torch.tensor([[[[9.0, 9.0], [9.0, 9.0]]], [[[1.0, 0.5], [2.0, 0.25]]]])
    relaxed = RelaxedNetwork(network=network, file_errors={"here": error})
    assert relaxed.paid("here", rows).tolist() == [1.0 - 3 * 2.0]


MAP = (2, 4, 4)
LAYERS: list[nn.Module] = [
    *(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(2), nn.AvgPool2d(2), nn.MaxPool2d(2), nn.ReLU(), nn.Sigmoid()),
    *(nn.LeakyReLU(0.2), nn.Tanh(), Affine(torch.tensor(2.0), torch.tensor(-1.0)), Reshape((4, 8)), Pointwise("silu")),
    *(Transpose((2, 0, 1)), Pad((1, 0, 0, 2), value=0.5), Slice(1, 1, 4, 2), Select(torch.randint(-1, 32, (3, 5)))),
    *(Add(), Concat(0), Multiply(), MatMul(), nn.Linear(4, 3)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_every_layer_takes_its_error_off_the_rows_once(layer: nn.Module) -> None:
    """Norm times what one step rounds, and |coefficient| times what a run of the file differs by."""
    torch.manual_seed(0)
    builder = GraphBuilder(MAP)
    if isinstance(layer, Add | Concat | Multiply | MatMul):
        builder.add(layer, builder.add(nn.ReLU()), builder.add(nn.ReLU(), INPUT))
    else:
        builder.add(layer)
    inputs = [torch.zeros(1, *MAP)] * (2 if isinstance(layer, Add | Concat | Multiply | MatMul) else 1)
    builder.add(Reshape((layer.eval()(*inputs).numel(),)))
    network = builder.build().eval().frozen(dtype=torch.float64)
    node = network.nodes[-2]
    box = Box(centre=torch.rand(2, *MAP).double() - 0.5, radius=torch.full((2, *MAP), 0.25).double())
    with torch.no_grad():
        exact = replace(relax(network, box), errors={}, file_errors={})
        error = torch.rand(2, *node.shape, dtype=torch.float64)
        erring = replace(exact, errors={node.name: torch.tensor([0.5, 0.25]).double()}, file_errors={node.name: error})
        rows = Rows.of(
            sample=torch.tensor([0, 1, 1]),
            shape=node.shape,
            coefficient=torch.randn(3, *node.shape, dtype=torch.float64),
            offset=torch.ones(3, dtype=torch.float64),
        )
        before, after = (
            sum(one.offset for one in BACKWARD[type(layer)](relaxed, node.layer, node, rows))
            for relaxed in (exact, erring)
        )
    paid = rows.norm * torch.tensor([0.5, 0.25, 0.25]) + (rows.coefficient.abs() * error[rows.sample]).flatten(1).sum(1)
    torch.testing.assert_close(before - after, paid)
