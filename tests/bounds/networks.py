"""Random small networks over every canonical layer: chains and graphs with residual Add and Concat."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from citrus_tool.elementwise import FUNCTIONS
from citrus_tool.network import (
    CONCRETE,
    INPUT,
    Add,
    Affine,
    Concat,
    GraphBuilder,
    MatMul,
    Multiply,
    Network,
    Pad,
    Pointwise,
    Reshape,
    Select,
    Slice,
    Transpose,
    size,
    walk,
)
from citrus_tool.threat import Box

SHAPE = (2, 6, 7)
CLASSES = 4


class _Sketch:
    """A graph under construction that knows the shape of its last value."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.builder = GraphBuilder(SHAPE)
        self.name, self.shape = INPUT, SHAPE

    def add(self, layer: nn.Module, *inputs: tuple[str, tuple[int, ...]]) -> None:
        sources = inputs or ((self.name, self.shape),)
        _randomise(layer)
        self.name = self.builder.add(layer, *(name for name, _ in sources))
        layer.eval()
        with torch.no_grad():
            self.shape = tuple(layer(*(torch.zeros(1, *shape) for _, shape in sources)).shape[1:])

    def activation(self) -> None:
        kinds = (nn.ReLU, nn.ReLU, nn.ReLU, nn.Sigmoid, nn.Tanh, lambda: nn.LeakyReLU(0.2))
        self.add(self.random.choice(kinds)())

    def conv(self) -> None:
        r, channels = self.random, self.shape[0]
        dilation = r.choice((1, 1, 2))
        kernel = r.choice((1, 2, 3)) if min(self.shape[1:]) > 2 * dilation else 1
        groups = r.choice((1, 2)) if channels % 2 == 0 else 1
        padding, stride = r.choice((0, 1)), r.choice((1, 1, 2, (2, 1)))
        self.add(
            nn.Conv2d(channels, r.choice((2, 4)), kernel, stride, padding, dilation, groups, bias=r.random() < 0.8)
        )

    def norm(self) -> None:
        self.add(nn.BatchNorm2d(self.shape[0]) if len(self.shape) == 3 else nn.BatchNorm1d(self.shape[0]))

    def affine(self) -> None:
        shape = self.random.choice((self.shape, (self.shape[0], *[1] * (len(self.shape) - 1)), (1,)))
        self.add(Affine(torch.randn(shape), torch.randn(shape)))

    def residual(self) -> None:
        start, channels = (self.name, self.shape), self.shape[0]
        self.add(nn.Conv2d(channels, channels, 3, padding=1))
        self.activation()
        if self.random.random() < 0.5:
            self.add(nn.Conv2d(channels, channels, 3, padding=1))
        self.add(Add(), (self.name, self.shape), start)

    def projected(self) -> None:
        start, channels = (self.name, self.shape), self.shape[0]
        self.add(nn.Conv2d(channels, 4, 3, stride=2, padding=1))
        self.activation()
        self.add(nn.Conv2d(4, 4, 3, padding=1))
        left = (self.name, self.shape)
        self.add(nn.Conv2d(channels, 4, 1, stride=2), start)
        self.add(Add(), left, (self.name, self.shape))

    def fork(self) -> None:
        start = (self.name, self.shape)
        self.activation()
        self.add(Concat(self.random.randrange(len(self.shape))), (self.name, self.shape), start)

    def average(self) -> None:
        if min(self.shape[1:]) > 2:
            self.add(
                nn.AvgPool2d(
                    2,
                    self.random.choice((1, 2)),
                    self.random.choice((0, 1)),
                    ceil_mode=self.random.random() < 0.5,
                    count_include_pad=self.random.random() < 0.5,
                )
            )

    def maximum(self) -> None:
        if min(self.shape[1:]) > 2:
            self.add(nn.MaxPool2d(self.random.choice((2, 3)), self.random.choice((1, 2)), self.random.choice((0, 1))))

    def move(self) -> None:
        self.add(Transpose(self.random.sample(range(len(self.shape)), len(self.shape))))

    def border(self) -> None:
        self.add(Pad((1, 0, self.random.choice((0, -1)), 1), self.random.choice((0.0, 0.7))))

    def pick(self) -> None:
        """Entries moved, taken several times, dropped, and zeros between them."""
        count = size(self.shape)
        index = torch.tensor([self.random.randrange(-1, count) for _ in range(count)]).reshape(self.shape)
        self.add(Select(index))

    def bend(self) -> None:
        """A function of one number; those of positive numbers behind one that is positive."""
        kind = self.random.choice(sorted(FUNCTIONS))
        if kind in ("log", "sqrt", "reciprocal", "rsqrt"):
            self.add(Pointwise(self.random.choice(("softplus", "square"))))
            self.add(Affine(torch.ones(1), torch.full((1,), 0.5)))
        elif kind in ("exp", "square", "cube"):
            self.add(Affine(torch.full((1,), 0.2), torch.zeros(1)))
        self.add(Pointwise(kind))

    def product(self) -> None:
        """With a function of itself, or with itself; scaled, so that values stay moderate."""
        start = (self.name, self.shape)
        if self.random.random() < 0.8:
            self.add(Affine(torch.full((1,), 0.5), torch.full((1,), 0.2)))
            self.activation()
        self.add(Multiply(), (self.name, self.shape), start)
        self.add(Affine(torch.full((1,), 0.3), torch.zeros(1)))

    def attention(self) -> None:
        """Products of matrices x f(x)^T, and of these and x, of the last two axes."""
        shape, count = self.shape, size(self.shape)
        if len(shape) == 1:
            rows = next(k for k in (3, 2, 1) if count % k == 0)
            self.add(Reshape((rows, count // rows)))
        values = (self.name, self.shape)
        self.activation()
        axes = len(self.shape)
        self.add(Transpose((*range(axes - 2), axes - 1, axes - 2)))
        self.add(MatMul(), values, (self.name, self.shape))
        self.add(Affine(torch.full((1,), 0.2), torch.zeros(1)))
        self.add(MatMul(), (self.name, self.shape), values)
        self.add(Affine(torch.full((1,), 0.1), torch.zeros(1)))
        self.add(Reshape(shape))

    def cut(self) -> None:
        axis = self.random.randrange(len(self.shape))
        if self.shape[axis] > 3:
            self.add(Slice(axis, 1, self.shape[axis], self.random.choice((1, 2))))


def _randomise(layer: nn.Module) -> None:
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2.0)
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)


def random_network(seed: int) -> Network:
    """A network in float64; the same for the same seed."""
    torch.manual_seed(seed)
    sketch = _Sketch(seed)
    layers = (sketch.conv, sketch.conv, sketch.conv, sketch.norm, sketch.affine, sketch.activation, sketch.average)
    graphs = (sketch.residual, sketch.projected, sketch.fork, sketch.maximum, sketch.move, sketch.border, sketch.cut)
    sketch.conv()
    for _ in range(sketch.random.randrange(1, 6)):
        sketch.random.choice(layers + graphs)()
        if sketch.random.random() < 0.4:
            sketch.activation()
    sketch.add(Reshape((size(sketch.shape),)))
    sketch.add(nn.Linear(sketch.shape[0], 9))
    for part in sketch.random.sample((sketch.norm, sketch.affine, sketch.fork, sketch.cut), sketch.random.randrange(3)):
        part()
    sketch.activation()
    sketch.add(nn.Linear(sketch.shape[0], CLASSES))
    if sketch.random.random() < 0.2:
        sketch.activation()
    return sketch.builder.build().frozen(dtype=torch.float64)


def varied_network(seed: int) -> Network:
    """As `random_network`, with the layers that entries are picked, multiplied and bent by; in float64."""
    torch.manual_seed(seed)
    sketch = _Sketch(seed)
    plain = (sketch.conv, sketch.norm, sketch.activation, sketch.average, sketch.residual)
    varied = (sketch.pick, sketch.bend, sketch.bend, sketch.product, sketch.attention)
    sketch.conv()
    for _ in range(sketch.random.randrange(1, 4)):
        sketch.random.choice(plain)()
        sketch.random.choice(varied)()
    sketch.add(Reshape((size(sketch.shape),)))
    sketch.add(nn.Linear(sketch.shape[0], 9))
    sketch.activation()
    sketch.random.choice(varied)()
    sketch.add(nn.Linear(sketch.shape[0], CLASSES))
    return sketch.builder.build().frozen(dtype=torch.float64)


def random_box(seed: int, count: int = 3, *, radius: float | None = None) -> Box:
    """Boxes of different size per input and pixel; `radius` fixes it."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    scale = torch.tensor([0.01, 0.1, 0.5], dtype=torch.float64)[:, None, None, None]
    spread = torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64) * scale
    return Box(centre=centre, radius=spread if radius is None else torch.full_like(centre, radius))


def samples(box: Box, seed: int, count: int = 40) -> Tensor:
    """(count, n, *shape) points of the box, half of them corners."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.rand(count, *box.centre.shape, generator=generator, dtype=torch.float64) * 2 - 1
    inner[::2] = inner[::2].sign()
    return box.centre + inner * box.radius


def values_at(network: Network, points: Tensor) -> dict[str, Tensor]:
    """Every node's value (count, n, *shape) at points (count, n, *input_shape)."""
    values: dict[str, Tensor] = {}
    walk(network, CONCRETE, points.flatten(0, 1), record=values)
    return {name: value.reshape(*points.shape[:2], *value.shape[1:]) for name, value in values.items()}


def margins_at(network: Network, points: Tensor, labels: Tensor) -> Tensor:
    """f_y - f_c (count, n, c) at points (count, n, *input_shape); +inf at the true class."""
    logits = values_at(network, points)[network.output_name]
    index = labels[None, :, None].expand(len(points), -1, -1)
    return (logits.gather(2, index) - logits).scatter(2, index, torch.inf)
