"""What the input of an ONNX file looks like, and how pixel space [0, 1] gets there.

Pixel space is (C, H, W) with values in [0, 1]; the file may want it normalised, channels last or flat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from citrus_tool.errors import DataError, InputFileError, UsageError
from citrus_tool.network import Affine, Reshape, Transpose

Layout = Literal["nchw", "nhwc", "flat"]
CHANNEL_COUNTS = (1, 3, 4)
"""Sizes of an axis that may be colour channels: grey, RGB, RGBA."""


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """How an input in pixel space becomes the file's input: normalise, change the layout, reshape.

    Attributes:
        mean, std: per channel (one value for inputs that are not C x H x W), y = (x - mean) / std.
        layout: "nchw" as is, "nhwc" channels last, "flat" the pixels in C, H, W order in another shape.
        file_shape: per-sample shape in the file.
        pixel_shape: per-sample shape in pixel space, (C, H, W) where it is known.
        batch: 1 if the file takes one input at a time, None if its batch axis is free, 0 if it has no batch axis.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: Layout
    file_shape: tuple[int, ...]
    pixel_shape: tuple[int, ...]
    batch: int | None = None

    def layers(self) -> list[tuple[str, nn.Module]]:
        """The named canonical layers in front of the file's graph, in order; identities are left out."""
        layers: list[tuple[str, nn.Module]] = []
        if any(self.mean) or any(s != 1.0 for s in self.std):
            mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.std))
            shape = (-1, *(1,) * (len(self.pixel_shape) - 1))
            layers.append(("normalise", Affine((1 / std).float().reshape(shape), (-mean / std).float().reshape(shape))))
        if self.layout == "nhwc":
            layers.append(("layout", Transpose((1, 2, 0))))
        elif self.pixel_shape != self.file_shape:
            layers.append(("layout", Reshape(self.file_shape)))
        return layers

    def to_file(self, x: Tensor) -> NDArray[np.float32]:
        """Inputs `x` (n, *pixel_shape) in pixel space as the file takes them: float32 (n, *file_shape).

        Raises DataError when the shape of `x` is another one.
        """
        if tuple(x.shape[1:]) != self.pixel_shape:
            raise DataError(f"inputs have shape {tuple(x.shape[1:])}, the network takes {self.pixel_shape}.")
        y = x.detach().to(device="cpu", dtype=torch.float32)
        for _, layer in self.layers():
            y = layer(y)
        return np.ascontiguousarray(y.numpy())

    def to_pixels(self, y: Tensor) -> Tensor:
        """The inputs (n, *pixel_shape) in pixel space whose `to_file` is `y` (n, *file_shape), in float64."""
        x = y.double()
        x = x.permute(0, 3, 1, 2) if self.layout == "nhwc" else x.reshape(-1, *self.pixel_shape)
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.std))
        shape = (-1, *(1,) * (len(self.pixel_shape) - 1))
        return x * std.reshape(shape) + mean.reshape(shape)


def detect(
    file_shape: tuple[int, ...],
    *,
    batch: int | None,
    input_shape: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    where: str,
) -> InputContract:
    """The contract of a file whose input has per-sample shape `file_shape`.

    With `input_shape` (C, H, W) of the data: equal shapes are "nchw", (H, W, C) is "nhwc", one long axis or the
    same axes without ones is "flat". Without it: an axis of 1, 3 or 4 at the front or the end of three is the
    channel axis; any other shape is taken as pixel space as it is.
    Raises InputFileError (both shapes) where the data does not fit, UsageError for a senseless mean or std.
    """
    layout: Layout
    if input_shape is None:
        nhwc = len(file_shape) == 3 and file_shape[0] not in CHANNEL_COUNTS and file_shape[2] in CHANNEL_COUNTS
        layout = "nhwc" if nhwc else "nchw" if len(file_shape) == 3 else "flat"
        pixel_shape = (file_shape[2], *file_shape[:2]) if nhwc else file_shape
    else:
        pixel_shape = tuple(input_shape)
        long_axes = tuple(s for s in file_shape if s != 1)
        if file_shape == pixel_shape:
            layout = "nchw" if len(pixel_shape) == 3 else "flat"
        elif len(pixel_shape) == 3 and file_shape == (*pixel_shape[1:], pixel_shape[0]):
            layout = "nhwc"
        elif long_axes == (math.prod(pixel_shape),) or long_axes == tuple(s for s in pixel_shape if s != 1):
            layout = "flat"
        else:
            raise InputFileError(
                f"{where}: the network takes inputs of shape {file_shape}, the data has {pixel_shape} (C, H, W); "
                "choose the data that this network was made for."
            )
    channels = pixel_shape[0] if len(pixel_shape) == 3 else 1
    return InputContract(
        mean=_per_channel("mean", mean, 0.0, channels),
        std=_per_channel("std", std, 1.0, channels),
        layout=layout,
        file_shape=file_shape,
        pixel_shape=pixel_shape,
        batch=batch,
    )


def _per_channel(option: str, values: Sequence[float] | None, default: float, channels: int) -> tuple[float, ...]:
    given = tuple(float(v) for v in values) if values is not None else (default,)
    if len(given) not in (1, channels):
        raise UsageError(f"{option} has {len(given)} values, the input has {channels} channel(s); give one value each.")
    if not all(math.isfinite(v) for v in given) or (option == "std" and min(given) <= 0.0):
        need = "finite numbers above 0" if option == "std" else "finite numbers"
        raise UsageError(f"{option} is {', '.join(str(v) for v in given)}; it must consist of {need}.")
    return given * channels if len(given) == 1 else given
