"""Architectures that `citrus train` builds from scratch, by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from citrus_tool.errors import UsageError
from citrus_tool.network import Affine, Network, Reshape, chain, size

Shape = tuple[int, int, int]
Maker = Callable[[Shape, int], Sequence[nn.Module]]
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
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"there is no architecture {name!r}; architectures are {', '.join(ARCHITECTURES)}.{meant}")
    if len(input_shape) != 3:
        raise UsageError(f"input_shape is {tuple(input_shape)}; images have three axes (C, H, W).")
    channels, height, width = input_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            layers = ARCHITECTURES[name]((channels, height, width), num_classes)
        except _TooSmallError as error:
            raise UsageError(f"{name} needs larger images than {height} x {width}: {error}.") from None
    front = [] if normalisation is None else [_normalise(*normalisation)]
    return chain([*front, *layers], input_shape)


def _normalise(mean: Sequence[float], std: Sequence[float]) -> Affine:
    centre, scale = (torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1) for values in (mean, std))
    return Affine((1 / scale).float(), (-centre / scale).float())


class _TooSmallError(Exception):
    """A convolution would leave no pixel."""


class _Tower:
    """Convolutions one after the other, each followed by ReLU, keeping track of the image's shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.layers: list[nn.Module] = []

    def conv(self, out: int, kernel: int, stride: int, padding: int, *, batch_norm: bool = False) -> None:
        channels, height, width = self.shape
        height, width = ((n + 2 * padding - kernel) // stride + 1 for n in (height, width))
        if min(height, width) < 1:
            raise _TooSmallError(f"convolution {sum(isinstance(m, nn.Conv2d) for m in self.layers) + 1} has no output")
        self.layers.append(nn.Conv2d(channels, out, kernel, stride=stride, padding=padding))
        self.layers += [nn.BatchNorm2d(out)] if batch_norm else []
        self.layers.append(nn.ReLU())
        self.shape = (out, height, width)

    def dense(self, hidden: Sequence[int], num_classes: int, *, batch_norm: bool = False) -> list[nn.Module]:
        """All layers, with the fully connected ones behind the convolutions."""
        width = size(self.shape)
        self.layers.append(Reshape((width,)))
        for out in hidden:
            self.layers.append(nn.Linear(width, out))
            self.layers += [nn.BatchNorm1d(out)] if batch_norm else []
            self.layers.append(nn.ReLU())
            width = out
        return [*self.layers, nn.Linear(width, num_classes)]


def _mlp(shape: Shape, num_classes: int) -> Sequence[nn.Module]:
    return _Tower(shape).dense((100, 100), num_classes)


def _convtiny(shape: Shape, num_classes: int) -> Sequence[nn.Module]:
    tower = _Tower(shape)
    tower.conv(8, 3, 1, 1)
    tower.conv(16, 3, 2, 1)
    return tower.dense((32,), num_classes)


def _convsmall(shape: Shape, num_classes: int) -> Sequence[nn.Module]:
    tower = _Tower(shape)
    tower.conv(16, 4, 2, 0)
    tower.conv(32, 4, 2, 0)
    return tower.dense((100,), num_classes)


def _cnn7(shape: Shape, num_classes: int) -> Sequence[nn.Module]:
    tower = _Tower(shape)
    last_stride = 2 if min(shape[1:]) >= 64 else 1
    for out, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (128, last_stride)):
        tower.conv(out, 3, stride, 1, batch_norm=True)
    return tower.dense((512,), num_classes, batch_norm=True)


ARCHITECTURES: Mapping[str, Maker] = {
    "mlp": _mlp,  # FC 100, FC 100, FC c
    "convtiny": _convtiny,  # Conv 8 3x3, Conv 16 3x3 stride 2, FC 32, FC c; for 8 x 8 digits
    "convsmall": _convsmall,  # Conv 16 4x4 stride 2, Conv 32 4x4 stride 2, FC 100, FC c; ERAN's ConvSmall
    "cnn7": _cnn7,  # paper, appendix C.1; batch norm as in Shi et al. 2021; fifth conv stride 2 from 64 x 64 on
}
