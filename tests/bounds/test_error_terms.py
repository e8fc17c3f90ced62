"""Each term of rounding errors and margins against a value worked out by hand: neither too small nor much too large."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from citrus_tool.bounds import float32, rounding
from citrus_tool.bounds.curves import CURVES
from citrus_tool.bounds.float32 import FLOOR, HOPELESS, LARGEST, SMOOTH, SPARE, FileErrors, gamma32
from citrus_tool.bounds.interval import final_margins, margins
from citrus_tool.bounds.rounding import outward_margins
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import (
    INPUT,
    Add,
    Affine,
    Evaluation,
    GraphBuilder,
    MatMul,
    Multiply,
    Network,
    Node,
    Pad,
    Pointwise,
    Reshape,
    chain,
)
from citrus_tool.threat import Box

FILE = Evaluation(arithmetic="float32", rounds_input=True)


def _network(*layers: nn.Module, shape: tuple[int, ...]) -> Network:
    """The layers, and a Reshape to a vector."""
    end = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).numel()
    return chain([*layers, Reshape((end,))], shape).eval().frozen(dtype=torch.float64, evaluation=FILE)


def _error(
    layer: nn.Module, before: tuple[nn.Module, ...] = (), *, shape: tuple[int, ...], value: float = 1.0
) -> Tensor:
    """The error at the layer, behind others, for a point box at `value`; (1, *shape of its output)."""
    network = _network(*before, layer, shape=shape)
    errors, node = FileErrors.of(network), network.nodes[-2]
    there = node.inputs[0]
    point = torch.full((1, *network.shape_of(there)), value, dtype=torch.float64)
    found = errors.at(node, Box(centre=point, radius=torch.zeros_like(point)))
    assert found is not None
    return found


def _by_hand(*parts: tuple[float, int]) -> float:
    """Sum over (size, terms) of size gamma(terms + SPARE) + (terms + SPARE) FLOOR, in fractions."""
    total = Fraction(0)
    for size, terms in parts:
        product = Fraction(terms + SPARE) / 2**24
        total += Fraction(size) * product / (1 - product) + (terms + SPARE) * Fraction(FLOOR)
    return float(total)


@pytest.mark.parametrize("terms", [1, 7, 1000, 2**20, 2**23])
def test_gamma_is_the_textbooks(terms: int) -> None:
    assert gamma32(terms) == pytest.approx(
        float(Fraction(terms, 2**24) / (1 - Fraction(terms, 2**24))), rel=1e-12, abs=0
    )


def test_gamma_ends() -> None:
    assert gamma32(2**24) == gamma32(2**25) == torch.inf
    assert gamma32(2**24 - 1) < torch.inf
    assert gamma32(0) == 0.0


def test_gamma_of_float64() -> None:
    for terms in (1, 10**6, 2**50):
        share = Fraction(terms, 2**53)
        assert rounding.gamma(terms, torch.float64) == pytest.approx(float(share / (1 - share)), rel=1e-12, abs=0)


def _filled(layer: nn.Linear | nn.Conv2d, weight: float, bias: float) -> nn.Linear | nn.Conv2d:
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.bias.fill_(bias)  # type: ignore[union-attr]
    return layer


def test_errors_of_sums() -> None:
    linear = _filled(nn.Linear(5, 2), -2.0, -3.0)
    assert _error(linear, shape=(5,)).tolist()[0] == pytest.approx([_by_hand((13.0, 5))] * 2, rel=1e-9, abs=0)
    conv = _filled(nn.Conv2d(2, 1, (2, 3)), -0.5, 1.0)
    found = _error(conv, shape=(2, 2, 3))
    assert found.shape == (1, 1, 1, 1)
    assert found.item() == pytest.approx(_by_hand((7.0, 12)), rel=1e-9, abs=0)


@pytest.mark.parametrize(("kernel", "terms"), [((1, 4), 4), ((2, 3), 6), (2, 4), (3, 9)])
def test_errors_of_averages(kernel: int | tuple[int, int], terms: int) -> None:
    found = _error(nn.AvgPool2d(kernel), shape=(1, 4, 4), value=-3.0)
    assert found.flatten().tolist() == pytest.approx([_by_hand((3.0, terms))] * found.numel(), rel=1e-9, abs=0)


@pytest.mark.parametrize(("kernel", "terms"), [((1, 4), 4), ((2, 3), 6), (2, 4), (3, 9)])
def test_what_is_added_behind_an_average_may_go_through_its_sum(kernel: int | tuple[int, int], terms: int) -> None:
    affine = Affine(torch.tensor(2.0), torch.tensor(-5.0))
    found = _error(affine, (nn.AvgPool2d(kernel),), shape=(1, 4, 4))
    assert found.flatten().tolist() == pytest.approx(
        [_by_hand((2.0, 0), (5.0, terms))] * found.numel(), rel=1e-9, abs=0
    )


def test_errors_of_a_batch_norm() -> None:
    norm = nn.BatchNorm2d(1, eps=0.0)
    with torch.no_grad():
        norm.weight.fill_(-6.0)
        norm.bias.fill_(-7.0)
    norm.running_mean, norm.running_var = torch.tensor([-2.0]), torch.tensor([4.0])
    conv = _filled(nn.Conv2d(1, 1, 2), 1.0, 1.0)
    found = _error(norm, (conv,), shape=(1, 2, 2), value=-4.0)  # scale -3: |-4| 3, and 2 * 3 + 7 through four products
    assert found.item() == pytest.approx(_by_hand((12.0, 0), (13.0, 4)), rel=1e-9, abs=0)


def test_errors_of_a_leaky_relu() -> None:
    assert _error(nn.LeakyReLU(0.25), shape=(1,), value=-8.0).item() == pytest.approx(
        _by_hand((2.0, 0)), rel=1e-6, abs=0
    )


def test_errors_of_smooth_layers() -> None:
    for layer in (nn.Sigmoid(), nn.Tanh()):
        assert _error(layer, shape=(2,)).tolist() == [[SMOOTH, SMOOTH]]


def _point(*values: float) -> Box:
    centre = torch.tensor([values], dtype=torch.float64)
    return Box(centre=centre, radius=torch.zeros_like(centre))


def _error_of_function(kind: str, *values: float, radius: float = 0.0) -> Tensor:
    network = _network(Pointwise(kind), shape=(len(values),))
    box = _point(*values)
    box = Box(centre=box.centre, radius=torch.full_like(box.centre, radius))
    found = FileErrors.of(network).at(network.nodes[0], box)
    assert found is not None
    return found[0]


def test_errors_of_functions() -> None:
    """What was measured, of the largest value and input in the box, and FLOOR, which is all at 0."""
    for kind, size, value in (("square", 3.0, 9.0), ("silu", 2.5, 2.5 / (1 + math.exp(-2.5)))):
        error = CURVES[kind].file_error
        expected = error.of_value * value + error.of_input * size + error.constant
        assert _error_of_function(kind, size - 0.5, radius=0.5).item() == pytest.approx(expected, rel=1e-9, abs=0)
    assert CURVES["square"].file_error.constant == 0.0
    assert _error_of_function("square", 0.0).tolist() == [FLOOR]


def test_functions_of_large_values_leave_no_hope() -> None:
    """Values, inputs, and points outside the domain; entry by entry."""
    found = _error_of_function("exp", 1.0, 41.5, 41.7)  # e^41.58 is 2^60
    assert (found >= HOPELESS).tolist() == [False, False, True]
    assert (_error_of_function("reciprocal", LARGEST, LARGEST * 1.01) >= HOPELESS).tolist() == [False, True]
    assert (_error_of_function("log", 1e-3, 0.0, -1.0) >= HOPELESS).tolist() == [False, True, True]


def test_errors_of_products() -> None:
    builder = GraphBuilder((3,))
    one, two = builder.add(nn.ReLU()), builder.add(nn.ReLU(), INPUT)
    builder.add(Multiply(), one, two)
    builder.add(Reshape((3,)))
    network = builder.build().eval().frozen(dtype=torch.float64, evaluation=FILE)
    boxes = [_point(-2.0, 0.0, 3.0), Box(centre=_point(4.0, 1.0, -1.0).centre, radius=torch.full((1, 3), 0.5).double())]
    found = FileErrors.of(network).at(network.nodes[2], *boxes)
    assert found is not None
    assert found[0].tolist() == pytest.approx([_by_hand((size, 0)) for size in (9.0, 0.0, 4.5)], rel=1e-9, abs=0)


def test_errors_of_products_of_matrices() -> None:
    builder = GraphBuilder((6,))
    one, two = builder.add(Reshape((1, 6))), builder.add(Reshape((6, 1)), INPUT)
    builder.add(MatMul(), one, two)
    after = builder.add(Affine(torch.tensor(1.0), torch.tensor(3.0)))
    builder.add(Reshape((1,)))
    network = builder.build().eval().frozen(dtype=torch.float64, evaluation=FILE)
    errors, left, right = FileErrors.of(network), torch.full((1, 1, 6), -2.0), torch.full((1, 6, 1), 0.5)
    boxes = [Box(centre=value.double(), radius=torch.zeros_like(value).double()) for value in (left, right)]
    found = errors.at(network.nodes[2], *boxes)
    assert found is not None
    assert found.item() == pytest.approx(_by_hand((6.0, 6)), rel=1e-9, abs=0)
    assert errors.carried[network.nodes[2].name] == errors.carried[after] == 6


def test_errors_of_the_input_are_asked_for_where_it_is_rounded() -> None:
    for evaluation in (Evaluation(arithmetic="real", rounds_input=True), Evaluation(arithmetic="float32")):
        network = chain([nn.Linear(2, 2)], (2,)).frozen(dtype=torch.float64, evaluation=evaluation)
        errors = FileErrors.of(network)
        assert errors.at_input(_point(1.0, 2.0)) is None
        assert errors.found == {}


def test_errors_of_an_addition() -> None:
    """Each summand may go through the additions of the other's sum."""
    builder = GraphBuilder((3,))
    one = builder.add(_filled(nn.Linear(3, 4), 1.0, 1.0))
    builder.add(_filled(nn.Linear(4, 4), 1.0, 1.0))
    two = builder.add(_filled(nn.Linear(4, 4), 1.0, 1.0))
    builder.add(Add(), one, two)
    network = builder.build().eval().frozen(dtype=torch.float64, evaluation=FILE)
    errors = FileErrors.of(network)
    boxes = [Box(centre=torch.full((1, 4), v, dtype=torch.float64), radius=torch.zeros(1, 4)) for v in (-2.0, 5.0)]
    found = errors.at(network.nodes[-1], *boxes)
    assert found is not None
    assert found[0].tolist() == pytest.approx([_by_hand((2.0, 4), (5.0, 3))] * 4, rel=1e-9, abs=0)
    assert errors.carried[network.nodes[-1].name] == 4


def test_what_carries_terms() -> None:
    linear = _filled(nn.Linear(4, 4), 1.0, 1.0)
    after = [Reshape((1, 2, 2)), nn.MaxPool2d(1), Reshape((4,))]
    network = _network(Reshape((4,)), linear, *after, shape=(4,))
    assert [FileErrors.of(network).carried[node.name] for node in network.nodes] == [0, 4, 4, 0, 0, 0]


def test_errors_count_the_radius_and_lie_above_zero() -> None:
    network = _network(nn.Linear(2, 1), shape=(2,))
    with torch.no_grad():
        network.nodes[0].layer.weight.copy_(torch.tensor([[2.0, 0.0]]))  # type: ignore[operator,union-attr]
        network.nodes[0].layer.bias.zero_()  # type: ignore[operator,union-attr]
    box = Box(centre=torch.tensor([[-1.0, 0.0]]).double(), radius=torch.tensor([[0.5, 1.0]]).double())
    found = FileErrors.of(network).at(network.nodes[0], box)
    assert found is not None
    assert found.item() == pytest.approx(_by_hand((3.0, 2)), rel=1e-9, abs=0)
    nothing = Box(centre=torch.zeros(1, 2).double(), radius=torch.zeros(1, 2).double())
    least = FileErrors.of(network).at(network.nodes[0], nothing)
    assert least is not None
    assert least.item() == pytest.approx((2 + SPARE) * FLOOR, rel=1e-9, abs=0)


def test_errors_of_the_input() -> None:
    network = _network(nn.Linear(2, 1), shape=(2,))
    box = Box(centre=torch.tensor([[-0.75, 0.5]]).double(), radius=torch.tensor([[0.25, 0.5]]).double())
    errors = FileErrors.of(network)
    found = errors.at_input(box)
    assert found is not None
    assert found[0].tolist() == pytest.approx([2.0**-23] * 2, rel=1e-6, abs=0)
    assert errors.found["input"] is found or found in errors.found.values()
    zero = Box(centre=torch.zeros(1, 2).double(), radius=torch.zeros(1, 2).double())
    assert FileErrors.of(network).at_input(zero)[0].tolist() == [FLOOR, FLOOR]  # type: ignore[index]


def test_values_above_the_largest_leave_no_hope() -> None:
    network = _network(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2), shape=(1,))
    for node in (network.nodes[0], network.nodes[2]):
        _filled(node.layer, 1.0, 0.0)  # type: ignore[arg-type]
    for size, hopeless in ((LARGEST, False), (LARGEST * (1 + 2**-50), True)):
        errors = FileErrors.of(network)
        centre = torch.tensor([[size], [1.0]], dtype=torch.float64)
        box = Box(centre=centre, radius=torch.zeros_like(centre))
        first = errors.at(network.nodes[0], box)
        assert first is not None
        assert (first >= HOPELESS).tolist() == [[hopeless], [False]]
        small = Box(centre=torch.ones(2, 2).double(), radius=torch.zeros(2, 2).double())
        last = errors.at(network.nodes[-1], small)  # the output, which errs nowhere itself
        assert (last is not None) == hopeless
        if last is not None:
            assert last.tolist() == [[HOPELESS] * 2, [0.0] * 2]


def test_the_output_keeps_its_own_error_beside_inputs_without_hope() -> None:
    network = chain([nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)], (1,)).eval()
    network = network.frozen(dtype=torch.float64, evaluation=FILE)
    for node in (network.nodes[0], network.nodes[2]):
        _filled(node.layer, 1.0, 0.0)  # type: ignore[arg-type]
    errors, zero = FileErrors.of(network), torch.zeros(2, 1, dtype=torch.float64)
    errors.at(network.nodes[0], Box(centre=torch.tensor([[2 * LARGEST], [1.0]], dtype=torch.float64), radius=zero))
    last = errors.at(network.nodes[2], Box(centre=torch.tensor([[1.0], [4.0]], dtype=torch.float64), radius=zero))
    assert last is not None
    assert last[0].tolist() == [HOPELESS] * 2
    assert last[1].tolist() == pytest.approx([_by_hand((4.0, 1))] * 2, rel=1e-9, abs=0)


@pytest.mark.parametrize("value", [LARGEST * 1.001, -LARGEST * 1.001])
def test_constants_above_the_largest_are_refused(value: float) -> None:
    norm = nn.BatchNorm2d(1, eps=0.0)
    norm.running_var = torch.tensor([1e-38])
    with torch.no_grad():
        norm.weight.fill_(value * 1e-19 / 0.999)
    for layer, shape in (
        (_filled(nn.Linear(1, 2), value, 0.0), (1,)),
        (_filled(nn.Linear(1, 2), 0.0, value), (1,)),
        (norm, (1, 1, 1)),
    ):
        with pytest.raises(UnsupportedNetworkError, match="constants above"):
            FileErrors.of(_network(layer, shape=shape))
    FileErrors.of(_network(_filled(nn.Linear(1, 2), LARGEST, -LARGEST), shape=(1,)))


# --- margins


def _box(count: int, entries: int, seed: int, radius: float) -> Box:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, entries, generator=generator, dtype=torch.float64)
    return Box(centre=centre, radius=radius * torch.rand(count, entries, generator=generator, dtype=torch.float64))


def _least(layer: nn.Linear, box: Box, labels: Tensor) -> Tensor:
    """Margins (n, c) at the worst corner of each, one by one."""
    rows = []
    for c, r, y in zip(box.centre, box.radius, labels.tolist(), strict=True):
        difference = layer.weight[y] - layer.weight
        rows.append(difference @ c - difference.abs() @ r + layer.bias[y] - layer.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_final_margins_are_those_of_the_worst_corner(count: int) -> None:
    """Both ways: one table for each box, and one for each class where there are more boxes than classes."""
    torch.manual_seed(count)
    layer, box = nn.Linear(5, 3).double(), _box(count, 5, count, 0.3)
    labels = torch.arange(count) % 3
    with torch.no_grad():
        torch.testing.assert_close(final_margins(layer, box, labels), _least(layer, box, labels))
        network = chain([layer], (5,)).eval()
        found = margins(network, box, labels, true_class=-5.0)
        assert (found.gather(1, labels[:, None]) == -5.0).all()
        plain = final_margins(None, box, labels)
    expected = box.lower.gather(1, labels[:, None]) - box.upper
    torch.testing.assert_close(plain, expected)


def test_outward_margins_pay_for_each_error_and_for_little_more() -> None:
    torch.manual_seed(0)
    layer, box, labels = nn.Linear(5, 3), _box(2, 5, 1, 0.3), torch.tensor([0, 2])
    network = chain([layer], (5,)).eval().frozen(dtype=torch.float64)
    layer = network.nodes[0].layer
    boxes = {network.nodes[0].inputs[0]: box}
    errors = torch.tensor([[0.1, 0.2, 0.4], [0.0, 0.5, 0.25]], dtype=torch.float64)
    with torch.no_grad():
        least = _least(layer, box, labels)  # type: ignore[arg-type]
        exact = outward_margins(network, boxes, {}, labels)
        paying = outward_margins(network, boxes, {network.nodes[0].name: errors}, labels)
        unit = rounding.layer_error(layer, box)[:, None]
    others = torch.ones(2, 3, dtype=torch.bool).scatter(1, labels[:, None], False)
    assert torch.isinf(exact[~others]).all()
    lost = least - exact
    assert ((lost >= 3.9 * unit) & (lost <= 4.1 * unit))[others].all()
    both = errors + errors.gather(1, labels[:, None])
    assert ((least - paying >= both) & (least - paying <= 1.01 * both + 1e-9))[others].all()


def test_layer_errors_by_hand() -> None:
    """gamma(terms + OWN) (slope |z| + shift), of each kind of layer."""
    box = Box(centre=torch.tensor([[-2.0, 1.0]]).double(), radius=torch.tensor([[0.5, 3.0]]).double())  # |z| <= 4
    linear = nn.Linear(2, 2).double()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 0.5]]))
        linear.bias.copy_(torch.tensor([-3.0, 1.0]))
    norm = nn.BatchNorm1d(2, eps=0.0).double().eval()
    norm.running_mean, norm.running_var = torch.tensor([-2.0, 0.0]).double(), torch.tensor([4.0, 1.0]).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([6.0, 1.0]))  # scale 3, shift 6
    affine = Affine(torch.tensor([-2.0, 1.0]).double(), torch.tensor([0.0, -5.0]).double())
    for layer, size, terms in (
        (linear, 3 * 4 + 3, 2),
        (norm, 3 * 4 + 6 + 12, 1),
        (affine, 2 * 4 + 5, 1),
        (nn.ReLU(), 4 * 4 + 2, 1),
        (Reshape((2,)), 4, 1),
    ):
        for extra in (0, 100):
            found = rounding.layer_error(layer, box, extra_terms=extra).item()
            unit = rounding.SAFETY * (terms + rounding.OWN + extra) * 2.0**-53
            assert found == pytest.approx(size * unit, rel=1e-6, abs=0), layer
    two = rounding.magnitude(box, Box(centre=box.centre, radius=0 * box.radius))
    assert two.tolist() == [6.0]


@pytest.mark.parametrize("kernel", [2, (1, 3)])
def test_gain_of_an_average(kernel: int | tuple[int, int]) -> None:
    entries = 4 if kernel == 2 else 3
    box = Box(centre=torch.ones(1, 1, 2, 3).double(), radius=torch.zeros(1, 1, 2, 3).double())
    gain = rounding.GAINS[nn.AvgPool2d](nn.AvgPool2d(kernel), box)
    assert (gain.slope, gain.shift, gain.terms) == (1.0, 0.0, entries)
    gain = rounding.GAINS[nn.AvgPool2d](nn.AvgPool2d(kernel, divisor_override=2), box)
    assert gain.slope == entries / 2


def test_gain_of_a_max_pool_covers_its_planes() -> None:
    """Slopes up to 2 K - 3 in all beside the entries themselves, offsets up to 2 (K - 1) |z|; and little more."""
    for kernel, entries in ((3, 9), ((2, 3), 6), (1, 1)):
        box = Box(centre=torch.ones(1, 1, 3, 3).double(), radius=torch.zeros(1, 1, 3, 3).double())
        gain = rounding.GAINS[nn.MaxPool2d](nn.MaxPool2d(kernel), box)
        assert 4 * entries - 4 < gain.slope <= 4 * entries + 4
        assert gain.terms == entries
        assert 0 <= gain.shift <= 2


def test_gains_that_depend_on_the_box() -> None:
    """Four times |f| + |f'| |z|, or the sums of |x| |y|, at most over the box of each input."""
    centre = torch.tensor([[-1.5, 1.5], [0.0, 1.5]], dtype=torch.float64)
    box = Box(centre=centre, radius=torch.tensor([[2.5, 1.5], [0.0, 0.5]]).double())  # [-4, 1] [0, 3]; 0, [1, 2]
    gain = rounding.GAINS[Pointwise](Pointwise("square"), box)
    assert (gain.slope, gain.terms) == (0.0, 1)
    assert gain.shift.tolist() == pytest.approx([4 * (16 + 8 * 4), 4 * (4 + 4 * 2)])
    other = Box(centre=torch.tensor([[2.0, -4.0], [3.0, -7.0]]).double(), radius=torch.ones(2, 2).double())
    gain = rounding.GAINS[Multiply](Multiply(), box, other)
    assert (gain.slope, gain.terms) == (0.0, 1)
    assert gain.shift.tolist() == [4 * 3 * 5, 4 * 2 * 8]
    left, right = (Box(centre=one.centre[:, None], radius=one.radius[:, None]) for one in (box, other))
    right = Box(centre=right.centre.transpose(1, 2), radius=right.radius.transpose(1, 2))
    gain = rounding.GAINS[MatMul](MatMul(), left, right)
    assert (gain.slope, gain.terms) == (0.0, 2)
    assert gain.shift.tolist() == [4 * (4 * 3 + 3 * 5), 4 * (0 * 4 + 2 * 8)]
    assert rounding.GAINS[Pad](Pad((1, 0), value=-3.0), box) == (1.0, 3.0, 1)


def test_slack_of_a_function_is_that_of_its_entry() -> None:
    box = Box(centre=torch.tensor([[-0.5, 1.5]]).double(), radius=torch.tensor([[1.5, 1.5]]).double())
    grown = rounding.OUTWARD_INTERVAL[Pointwise](Pointwise("square"), box)
    slack = grown.radius - torch.tensor([[2.0, 4.5]]).double()  # of [0, 4] and [0, 9]
    unit = 4 * (1 + rounding.OWN) * 2.0**-53
    assert slack[0].tolist() == pytest.approx([unit * (4 + 4 * 2), unit * (9 + 6 * 3)], rel=0.05, abs=0)


def test_widened_boxes_cover_the_rounding_of_their_ends() -> None:
    """Two roundings at each end, of at most u (|centre| + radius) each; and no more than twice that."""
    centre, radius = torch.tensor([[-3.0, 0.0]]).double(), torch.tensor([[1.0, 2.0]]).double()
    added = rounding.widen(Box(centre=centre, radius=radius)).radius - radius
    sizes = torch.tensor([[4.0, 2.0]]).double()
    assert (added >= 2 * 2.0**-53 * sizes).all()
    assert (added <= 4 * 2.0**-53 * sizes).all()


def test_margins_of_logits_pay_for_their_subtraction() -> None:
    """Where no Linear layer is last: 8 u |z| of each input, and its own."""
    network = chain([nn.ReLU()], (2,)).eval().frozen(dtype=torch.float64)
    centre = torch.tensor([[4.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    boxes = {network.nodes[0].name: Box(centre=centre, radius=torch.full_like(centre, 0.5))}
    found = outward_margins(network, boxes, {}, torch.tensor([0, 1]))
    unit = 8 * 2.0**-53
    assert torch.isinf(found[[0, 1], [0, 1]]).all()
    paid = [1.0 - found[0, 1].item(), 0.0 - found[1, 0].item()]
    assert paid == pytest.approx([4.5 * unit, 2.5 * unit], rel=0.2, abs=0)


def test_the_error_of_a_network_without_any() -> None:
    network = _network(nn.ReLU(), shape=(2,))
    node: Node = network.nodes[0]
    box = Box(centre=torch.ones(1, 2).double(), radius=torch.zeros(1, 2).double())
    assert FileErrors.of(network).at(node, box) is None
    assert float32.grown(box, None) is box


@pytest.mark.parametrize("layer", [nn.Linear(2, 3, bias=False), nn.Conv2d(2, 1, 1, bias=False), nn.AvgPool2d(1)])
def test_margins_of_zero_cover_what_underflows(layer: nn.Module) -> None:
    """Without a bias nothing is added to the products, and above 0 lies the smallest normal number."""
    shape = (1, 2) if isinstance(layer, nn.Linear) else (1, 2, 1, 1)
    nothing = Box(centre=torch.zeros(shape).double(), radius=torch.zeros(shape).double())
    assert rounding.layer_error(layer.double(), nothing).tolist() == [2.0**-1022]


@pytest.mark.parametrize(
    ("module", "name", "expected", "words"),
    [
        (rounding, "SAFETY", 1.01, "with a factor 1.01 for the roundings of the margin itself"),
        (rounding, "OWN", 16, r"The computed centre and radius of a layer are off by at most $\gamma(n + 16)"),
        (rounding, "PER_NODE", 4, "at most 4 additions at each of the $L$ nodes"),
        (float32, "UNIT", 2.0**-24, r"$\mathbf{u}_{32} = 2^{-24}$"),
        (float32, "SPARE", 16, "$S = 16$ roundings"),
        (float32, "FLOOR", 2.0**-66, "$F = 2^{-66}$"),
        (float32, "LARGEST", 2.0**60, "Up to $2^{60}$"),
        (float32, "SMOOTH", 2.0**-19, "| sigmoid, tanh | $2^{-19}$"),
    ],
)
def test_constants_are_those_that_the_page_argues_for(
    module: ModuleType, name: str, expected: float, words: str
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "soundness.md").read_text(encoding="utf-8")
    assert getattr(module, name) == expected
    assert words in page.replace("\n", " ")
