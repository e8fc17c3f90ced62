"""Image files: one decoded, and a folder of them with one sub-folder a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from citrus_tool.choices import Split
from citrus_tool.data.dataset import Array, Dataset
from citrus_tool.data.splits import split_of
from citrus_tool.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp"})


def decode(path: Path, mode: str, size: tuple[int, int] | None) -> Array:
    """One image as uint8 (C, H, W); raises DataError when it cannot be read or is not of `size` (width, height)."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "RGB"):
                raise DataError(f"{path}: image mode {image.mode} is not supported; save it as 8-bit grey or RGB.")
            if size is not None and image.size != size:
                raise DataError(f"{path}: {image.size} pixels where the first image has {size}; make all alike.")
            pixels = np.asarray(image.convert(mode), dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: not a readable image ({error}); remove it or save it again.") from None
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def read_folder(path: Path, split: Split, seed: int) -> Dataset:
    """One split of a folder with a sub-folder a class, in sorted order of names; all images of one size, grey or RGB.

    Raises DataError for a folder without images, one that cannot be read, or sizes that differ.
    """
    from PIL import Image

    classes = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = [(file, label) for label, c in enumerate(classes) for file in sorted(c.iterdir())]
    files = [(file, label) for file, label in found if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise DataError(f"{path}: there are no images; put them into one sub-folder a class (FOLDER/CLASS/IMAGE.png).")
    try:
        grey, size = True, None
        for file, _ in files:
            with Image.open(file) as image:
                grey, size = grey and image.mode in ("1", "L"), size or image.size
    except OSError as error:
        raise DataError(f"{file}: not a readable image ({error}); remove it or save it again.") from None
    images = np.stack([decode(file, "L" if grey else "RGB", size) for file, _ in files])
    labels = torch.tensor([label for _, label in files])
    whole = Dataset(
        name=str(path),
        split="whole folder",
        images=torch.from_numpy(images),
        labels=labels,
        num_classes=len(classes),
        class_names=tuple(entry.name for entry in classes),
    )
    return split_of(whole, split, seed)
