"""Images and perturbations as PNG data URIs."""

from __future__ import annotations

import base64
import io
from typing import Final

import numpy as np
from numpy.typing import NDArray

COLOURS: Final = "RdBu_r"
"""Matplotlib's map of signed values: blue below 0, white at 0, red above."""


def photo(image: NDArray[np.float32]) -> str:
    """An image (C, H, W), C 1 or 3; what lies outside [0, 1] is shown as 0 or 1. Other C: the mean of the channels."""
    pixels = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
    if len(pixels) == 3:
        return _png(pixels.transpose(1, 2, 0))
    return _png(pixels[0] if len(pixels) == 1 else np.rint(pixels.mean(axis=0)).astype(np.uint8))


def signed(channel: NDArray[np.float32], eps: float) -> str:
    """One channel (H, W) of a perturbation: -eps blue, 0 white, eps red."""
    from matplotlib import colormaps

    share = (channel.astype(np.float64) / eps + 1) / 2 if eps > 0 else np.full(channel.shape, 0.5)
    coloured = np.asarray(colormaps[COLOURS](share.clip(0, 1), bytes=True))
    return _png(np.ascontiguousarray(coloured[..., :3]))


def _png(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
