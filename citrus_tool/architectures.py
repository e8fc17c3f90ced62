"""Architectures that `citrus train` builds from scratch, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from citrus_tool.errors import UsageError
from citrus_tool.names import meant
from citrus_tool.network import INPUT, Add, Affine, GraphBuilder, Network, Reshape, size

Maker = Callable[["_Tower", int], None]
Normalisation = tuple[Sequence[float], Sequence[float]]


def build(
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    *,
    seed: int = 0,
    normalisation: Normalisation | None = None,
) -> Network:
    """A network of architecture `name` for images (C, H, W), with PyTorch's default weights drawn from `seed`.

    Args:
        normalisation: mean and standard deviation of each channel; (x - mean) / std becomes the network's first layer.

    Raises:
        UsageError: the name is unknown, or the images are too small for the architecture.
    """
    if name not in ARCHITECTURES:
        hint = meant(name, ARCHITECTURES, " Did you mean {!r}?")
        raise UsageError(f"there is no architecture {name!r}; architectures are {', '.join(ARCHITECTURES)}.{hint}")
    if len(input_shape) != 3:
        raise UsageError(f"input_shape is {tuple(input_shape)}; images have three axes (C, H, W).")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = _Tower(input_shape, normalisation)
        try:
            ARCHITECTURES[name](tower, num_classes)
        except _TooSmallError as error:
            raise UsageError(f"{name} needs larger images than {input_shape[1]} x {input_shape[2]}: {error}.") from None
    return tower.builder.build()


class _TooSmallError(Exception):
    """A convolution would leave no pixel."""


class _Tower:
    """Layers one after the other on a graph, keeping track of the image's shape."""

    def __init__(self, shape: Sequence[int], normalisation: Normalisation | None) -> None:
        self.builder = GraphBuilder(shape)
        self.shape = tuple(shape)
        self.last = INPUT
        self.convs = 0
        if normalisation is not None:
            mean, std = (torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1) for values in normalisation)
            self.add(Affine((1 / std).float(), (-mean / std).float()))

    def add(self, *layers: nn.Module) -> None:
        for layer in layers:
            self.last = self.builder.add(layer, self.last)

    def conv(self, out: int, kernel: int, stride: int, padding: int, *, batch_norm: bool = False) -> None:
        """A convolution, its batch norm and ReLU."""
        self._linear_conv(out, kernel, stride, padding, batch_norm=batch_norm)
        self.add(nn.ReLU())

    def residual(self, out: int, stride: int) -> None:
        """relu(conv(relu(conv(x))) + shortcut(x)), 3 x 3 with batch norm; a 1 x 1 shortcut where the shape changes."""
        shape, source = self.shape, self.last
        self.conv(out, 3, stride, 1, batch_norm=True)
        self._linear_conv(out, 3, 1, 1, batch_norm=True)
        after, long = self.shape, self.last
        self.shape, self.last = shape, source
        if shape != after:
            self._linear_conv(out, 1, stride, 0, batch_norm=True)
        self.shape, self.last = after, self.builder.add(Add(), long, self.last)
        self.add(nn.ReLU())

    def dense(self, hidden: Sequence[int], num_classes: int, *, batch_norm: bool = False) -> None:
        """The fully connected layers at the end."""
        width = size(self.shape)
        self.add(Reshape((width,)))
        for out in hidden:
            self.add(nn.Linear(width, out), *([nn.BatchNorm1d(out)] if batch_norm else []), nn.ReLU())
            width = out
        self.add(nn.Linear(width, num_classes))

    def _linear_conv(self, out: int, kernel: int, stride: int, padding: int, *, batch_norm: bool) -> None:
        channels, height, width = self.shape
        height, width = ((n + 2 * padding - kernel) // stride + 1 for n in (height, width))
        self.convs += 1
        if min(height, width) < 1:
            raise _TooSmallError(f"convolution {self.convs} has no output")
        self.add(nn.Conv2d(channels, out, kernel, stride=stride, padding=padding))
        self.add(*([nn.BatchNorm2d(out)] if batch_norm else []))
        self.shape = (out, height, width)


def _mlp(tower: _Tower, num_classes: int) -> None:
    tower.dense((100, 100), num_classes)


def _convtiny(tower: _Tower, num_classes: int) -> None:
    tower.conv(8, 3, 1, 1)
    tower.conv(16, 3, 2, 1)
    tower.dense((32,), num_classes)


def _convsmall(tower: _Tower, num_classes: int) -> None:
    tower.conv(16, 4, 2, 0)
    tower.conv(32, 4, 2, 0)
    tower.dense((100,), num_classes)


def _cnn7(tower: _Tower, num_classes: int) -> None:
    last_stride = 2 if min(tower.shape[1:]) >= 64 else 1
    for out, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (128, last_stride)):
        tower.conv(out, 3, stride, 1, batch_norm=True)
    tower.dense((512,), num_classes, batch_norm=True)


def _resnet(tower: _Tower, num_classes: int) -> None:
    tower.conv(16, 3, 2, 1, batch_norm=True)
    tower.residual(32, 2)
    tower.residual(32, 1)
    tower.dense((100,), num_classes)


ARCHITECTURES: Mapping[str, Maker] = {
    "mlp": _mlp,  # FC 100, FC 100, FC c
    "convtiny": _convtiny,  # Conv 8 3x3, Conv 16 3x3 stride 2, FC 32, FC c; for 8 x 8 digits
    "convsmall": _convsmall,  # Conv 16 4x4 stride 2, Conv 32 4x4 stride 2, FC 100, FC c; ERAN's ConvSmall
    "cnn7": _cnn7,  # paper, appendix C.1; batch norm as in Shi et al. 2021; fifth conv stride 2 from 64 x 64 on
    "resnet": _resnet,  # Conv 16 3x3 stride 2, residual blocks of 32 (stride 2) and 32, FC 100, FC c; batch norm
}
