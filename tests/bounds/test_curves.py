"""Functions of one number: lines and images against dense grids, tightness, gradients, and onnxruntime's float32."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from citrus_tool.bounds import float32
from citrus_tool.bounds.crown import crown
from citrus_tool.bounds.curves import CURVES, Curve, curve_lines, curve_offset, steepest
from citrus_tool.bounds.rounding import OUTWARD_INTERVAL
from citrus_tool.elementwise import FUNCTIONS
from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.network import Affine, Evaluation, Network, Pointwise, chain
from citrus_tool.threat import Box
from citrus_tool.training.interval_margins import TRAINING

KINDS = pytest.mark.parametrize("kind", sorted(CURVES))
POINTS = 801


def intervals(curve: Curve, count: int = 3000) -> tuple[Tensor, Tensor]:
    """(E,) ends of random intervals in the curve's domain: tiny to huge, points, and across every break and turn."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    centre = 10 ** draw(-6, 4) * draw(-1, 1).sign()
    near = torch.tensor([*curve.breaks, *curve.turns, 0.0], dtype=torch.float64)
    centre[::3] = near[torch.arange(len(centre[::3])) % len(near)]
    centre[1::3] = draw(-6, 6)[1::3]
    radius = 10 ** draw(-14, 4)
    radius[::17] = 0.0
    centre = centre + draw(-1, 1) * radius
    lower, upper = centre - radius, centre + radius
    if curve.domain != "all":
        sign = 1.0 if curve.domain == "positive" else draw(-1, 1).sign()
        lower, upper = lower.abs().clamp(min=1e-6), lower.abs().clamp(min=1e-6) + (upper - lower)
        lower, upper = torch.minimum(sign * lower, sign * upper), torch.maximum(sign * lower, sign * upper)
    if curve is CURVES["exp"]:
        lower, upper = lower.clamp(max=60.0), upper.clamp(max=60.0)
    return lower, upper


def grid(lower: Tensor, upper: Tensor) -> Tensor:
    """(POINTS, E) points of the intervals, denser at the ends, and in the middle of long ones."""
    share = torch.linspace(0, 1, POINTS // 3, dtype=torch.float64)
    share = torch.cat([share, share**6, 1 - share**6])[:, None]
    around = torch.linspace(-8, 8, 161, dtype=torch.float64)[:, None].expand(-1, len(lower))
    return torch.cat([lower + share * (upper - lower), around]).maximum(lower).minimum(upper)


def exceeds(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """Where left > right by more than what the test's own arithmetic rounds."""
    return left > right + 8 * 2.0**-53 * scale


@KINDS
def test_lines_and_images_enclose_the_function(kind: str) -> None:
    curve = CURVES[kind]
    lower, upper = intervals(curve)
    z = grid(lower, upper)
    value = curve.value(z)
    lines = curve_lines(curve, lower, upper)
    assert all(line.isfinite().all() for line in lines)
    scale = value.abs() + torch.maximum(lines.lower_slope.abs(), lines.upper_slope.abs()) * z.abs()
    assert not exceeds(lines.lower_slope * z + lines.lower_offset, value, scale).any()
    assert not exceeds(value, lines.upper_slope * z + lines.upper_offset, scale).any()
    box = OUTWARD_INTERVAL[Pointwise](Pointwise(kind), Box.from_bounds(lower[:, None], upper[:, None]))
    assert (value >= box.lower[:, 0]).all()
    assert (value <= box.upper[:, 0]).all()
    limit = steepest(curve, lower, upper) * (1 + 1e-9)
    assert (torch.maximum(lines.lower_slope.abs(), lines.upper_slope.abs()) <= limit).all()


@KINDS
def test_offsets_are_sound_for_any_slope(kind: str) -> None:
    curve = CURVES[kind]
    lower, upper = intervals(curve, 600)
    z, limit = grid(lower, upper), steepest(curve, lower, upper)
    for share in (-3.0, -0.7, -1e-9, 0.0, 0.01, 0.5, 1.0, 2.0):
        slope = share * limit
        gap, scale = curve.value(z) - slope * z, curve.value(z).abs() + slope.abs() * z.abs()
        above, below = (curve_offset(curve, lower, upper, slope, above=side) for side in (True, False))
        assert not exceeds(gap, above.expand_as(gap), scale).any()
        assert not exceeds(below.expand_as(gap), gap, scale).any()


SAMPLES = [
    (-1.0, 1.0),
    (-4.0, 4.0),
    (-6.0, 2.0),
    (-2.0, 9.0),
    (-1.0, 0.2),
    (0.3, 1.7),
    (-5.0, -1.0),
    (1.0, 4.0),
    (-30.0, 20.0),
]


@KINDS
def test_lines_are_nearly_those_of_least_area(kind: str) -> None:
    """Least among the slopes of a fine search, each with the offset that a fine grid allows."""
    curve = CURVES[kind]
    for a, b in SAMPLES:
        if curve.domain != "all":
            a, b = (0.3, 1.7) if a < 0 else (a, b)
        lower, upper = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
        z = torch.linspace(a, b, 2001, dtype=torch.float64)
        lines, value, middle = curve_lines(curve, lower, upper), curve.value(z), (a + b) / 2
        slopes = (value.diff() / z.diff()).sort().values[::4, None]
        best_above = ((value - slopes * z).amax(1) + slopes[:, 0] * middle).amin()
        best_below = ((value - slopes * z).amin(1) + slopes[:, 0] * middle).amax()
        best = (best_above - best_below).clamp(min=1e-12)
        got = (lines.upper_slope - lines.lower_slope) * middle + lines.upper_offset - lines.lower_offset
        assert float(got) <= 1.05 * float(best) + 1e-9, (a, b)


@KINDS
def test_derivatives_are_those_of_the_function_and_monotone_on_each_piece(kind: str) -> None:
    curve = CURVES[kind]
    ends = (-9.0, *curve.breaks, 9.0)
    for number, (a, b) in enumerate(itertools.pairwise(ends)):
        a = max(a, 1e-3) if curve.domain == "positive" else a
        a, b = (a, b - 1e-3) if curve.domain == "nonzero" and b == 0 else (a, b)
        a = a + 1e-3 if curve.domain == "nonzero" and a == 0 else a
        z = torch.linspace(a, b, 4001, dtype=torch.float64)[1:-1].requires_grad_(True)
        (slope,) = torch.autograd.grad(curve.value(z).sum(), z)
        torch.testing.assert_close(curve.derivative(z, number), slope, rtol=1e-9, atol=1e-9)
        assert (slope.diff() * curve.bends[number] >= -1e-12 * (1 + slope[1:].abs())).all()


@KINDS
def test_gradients_are_finite_and_those_of_the_ends(kind: str) -> None:
    layer = Pointwise(kind)
    centre = torch.tensor([[-4.0, -1.2, 0.0, 0.0, 0.7, 3.0, 500.0]], requires_grad=True)
    radius = torch.tensor([[0.5, 0.1, 0.0, 1.0, 0.0, 1e-9, 200.0]], requires_grad=True)
    box = TRAINING[Pointwise](layer, Box(centre=centre, radius=radius))
    assert box.centre.isfinite().all()
    (box.lower.sum() + box.upper.clamp(max=1e30).sum()).backward()
    assert centre.grad is not None
    assert radius.grad is not None
    assert centre.grad.isfinite().all()
    assert radius.grad.isfinite().all()
    lower, upper = intervals(CURVES[kind], 200)
    lower.requires_grad_(True)
    lines = curve_lines(CURVES[kind], lower, upper)
    (gradient,) = torch.autograd.grad(lines.lower_offset.sum() + lines.upper_offset.sum(), lower)
    assert gradient.isfinite().all()


def through(kind: str, *, evaluation: Evaluation, shift: float) -> Network:
    layers = [nn.Linear(2, 2), Affine(torch.ones(1), torch.full((1,), shift)), Pointwise(kind), nn.Linear(2, 2)]
    for layer in layers[::3]:
        assert isinstance(layer, nn.Linear)
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.constant_(layers[3].bias[:1], 1e6)
    return chain(layers, (2,)).frozen(dtype=torch.float64, evaluation=evaluation)


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
@pytest.mark.parametrize(
    ("kind", "shift", "proven"),
    [("log", 0.0, False), ("log", 2.0, True), ("sqrt", -3.0, False), ("reciprocal", 0.0, False), ("exp", 2000.0, False),
     ("reciprocal", -3.0, True), ("exp", 2.0, True), ("exp", -2000.0, True), ("rsqrt", 0.5, False)],
)  # fmt: skip
def test_nothing_is_proven_outside_a_domain(arithmetic: str, kind: str, shift: float, proven: bool) -> None:
    network = through(kind, evaluation=Evaluation(arithmetic=arithmetic), shift=shift)  # type: ignore[arg-type]
    box = Box(centre=torch.zeros(2, 2, dtype=torch.float64), radius=torch.ones(2, 2, dtype=torch.float64))
    found = crown(network, box, torch.tensor([0, 0]), skip_decided=False)
    assert found.verified.tolist() == [proven, proven]
    assert found.coefficient.isfinite().all()
    assert not found.offset.isnan().any()


def test_an_unknown_function_is_named() -> None:
    with pytest.raises(UnsupportedNetworkError, match="no function is called 'sine'; there are exp, log"):
        Pointwise("sine")


def test_every_function_has_a_curve() -> None:
    assert set(CURVES) == set(FUNCTIONS)


Form = tuple[list[NodeProto], Mapping[str, float]]


def _form(text: str, **constants: float) -> Form:
    """Nodes written as  "y = Op a b; ..."."""
    nodes = []
    for line in text.split("; "):
        output, right = line.split(" = ")
        operator, *names = right.split()
        nodes.append(helper.make_node(operator, names, [output]))
    return nodes, constants


GELU = "a = Div x s; b = Erf a; c = Add b o; d = Mul x c; y = Mul d h"
GELU_TANH = "a = Pow x t; b = Mul a c; d = Add x b; e = Mul d s; f = Tanh e; g = Add f o; i = Mul x g; y = Mul i h"
FORMS: dict[str, list[Form]] = {
    "exp": [_form("y = Exp x")],
    "log": [_form("y = Log x")],
    "sqrt": [_form("y = Sqrt x"), _form("y = Pow x h", h=0.5)],
    "reciprocal": [_form("y = Reciprocal x"), _form("y = Div o x", o=1.0), _form("y = Pow x h", h=-1.0)],
    "rsqrt": [_form("a = Sqrt x; y = Reciprocal a"), _form("y = Pow x h", h=-0.5)],
    "square": [_form("y = Mul x x"), _form("y = Pow x h", h=2.0)],
    "cube": [_form("a = Mul x x; y = Mul a x"), _form("y = Pow x h", h=3.0)],
    "erf": [_form("y = Erf x")],
    "softplus": [_form("y = Softplus x")],
    "elu": [_form("y = Elu x")],
    "silu": [_form("a = Sigmoid x; y = Mul x a")],
    "gelu": [_form("y = Gelu x"), _form(GELU, s=2**0.5, o=1.0, h=0.5)],
    "gelu_tanh": [
        ([helper.make_node("Gelu", ["x"], ["y"], approximate="tanh")], {}),
        _form(GELU_TANH, t=3.0, c=0.044715, s=(2 / np.pi) ** 0.5, o=1.0, h=0.5),
    ],
    "hardswish": [
        _form("y = HardSwish x"),
        _form("a = Add x t; b = Clip a z s; c = Div b s; y = Mul x c", t=3.0, z=0.0, s=6.0),
        _form("a = Add x t; b = Clip a z s; c = Mul x b; y = Div c s", t=3.0, z=0.0, s=6.0),
        ([helper.make_node("HardSigmoid", ["x"], ["a"], alpha=1 / 6, beta=0.5), *_form("y = Mul x a")[0]], {}),
    ],
    "mish": [_form("y = Mish x"), _form("a = Softplus x; b = Tanh a; y = Mul x b")],
}


@KINDS
@pytest.mark.parametrize("optimised", [True, False])
def test_onnxruntime_is_within_a_quarter_of_what_a_function_is_given(kind: str, optimised: bool) -> None:
    """All exponents, both signs, each of the usual ways to write the function."""
    exponents, curve = np.exp2(np.linspace(-66, 60, 100001)), CURVES[kind]
    x = np.concatenate([exponents, -exponents, np.linspace(-100, 100, 100001)]).astype(np.float32)
    x = x[x > 0] if curve.domain == "positive" else x[x != 0]
    exact = FUNCTIONS[kind](torch.from_numpy(x).double()).numpy()
    x, exact = x[np.abs(exact) <= float32.LARGEST], exact[np.abs(exact) <= float32.LARGEST]
    given = curve.file_error.of_value * np.abs(exact) + curve.file_error.of_input * np.abs(x.astype(np.float64))
    given += curve.file_error.constant + float32.FLOOR
    for nodes, constants in FORMS[kind]:
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
            [numpy_helper.from_array(np.array(v, dtype=np.float32), k) for k, v in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        options = onnxruntime.SessionOptions()
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        got = session.run(None, {"x": x})[0].astype(np.float64)
        assert (np.abs(got - exact) <= given / 4).all()
