"""Windows of convolutions and average poolings: which entries they take; a convolution times many inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from citrus_tool.errors import UnsupportedNetworkError

GATHERED: Final = 2**22
"""Entries of windows that are laid side by side at a time: bounds the memory of a convolution's products."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A convolution's matrix as what it is made of, whose products are fast: of G groups with P windows of K entries.

    weights: (G, O, K).  places: (G, K, P) positions in the source, -1 in the padding.
    """

    weights: NDArray[np.float64]
    places: NDArray[np.int64]

    def sizes(self) -> Windows:
        """With the weights' absolute values."""
        return Windows(weights=np.abs(self.weights), places=self.places)

    def __matmul__(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """The matrix times z (entries, n)."""
        padded = np.concatenate([z, np.zeros((1, z.shape[1]))])
        step = max(1, GATHERED // self.places.size)
        groups, inputs, windows = self.places.shape
        found = []
        for at in range(0, z.shape[1], step):
            taken = padded[:, at : at + step][self.places].reshape(groups, inputs, -1)
            found.append((self.weights @ taken).reshape(groups * self.weights.shape[1] * windows, -1))
        return np.concatenate(found, axis=1)


def places_of(shape: tuple[int, ...], kernel: tuple[int, ...], given: Mapping[str, Any]) -> NDArray[np.int64]:
    """Flat positions in a tensor of this shape of every window's entries, -1 in the padding: (C, kh, kw, oh, ow).

    Args:
        given: the attributes of a convolution or an average pooling.

    Raises UnsupportedNetworkError for forms that are not read.
    """
    pads = tuple(given.get("pads", (0, 0, 0, 0)))
    automatic = given.get("auto_pad", b"NOTSET")
    padded = automatic != b"NOTSET" and (automatic != b"VALID" or any(pads))
    if len(shape) != 4 or given.get("ceil_mode", 0) or padded:
        raise UnsupportedNetworkError("windows with automatic padding, rounded up, or not over (C, H, W) maps.")
    (sy, sx), (dy, dx) = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
    reach = (dy * (kernel[0] - 1) + 1, dx * (kernel[1] - 1) + 1)
    if (
        len(pads) != 4
        or min(pads) < 0
        or min(sy, sx, dy, dx, *kernel) < 1
        or tuple(given.get("kernel_shape", kernel)) != kernel
    ):
        raise UnsupportedNetworkError("windows of odd size, step or padding.")
    top, left, bottom, right = pads
    if max(top, bottom) >= reach[0] or max(left, right) >= reach[1]:
        raise UnsupportedNetworkError("windows that may lie in the padding alone.")
    place = np.arange(int(np.prod(shape))).reshape(shape[1:])
    place = np.pad(place, ((0, 0), (top, bottom), (left, right)), constant_values=-1)
    view = np.lib.stride_tricks.sliding_window_view(place, reach, axis=(1, 2))[:, ::sy, ::sx, ::dy, ::dx]
    return view.transpose(0, 3, 4, 1, 2)
