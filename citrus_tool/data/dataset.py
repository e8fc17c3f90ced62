"""A Dataset: labelled images that cannot be out of contract.

Construction checks rank, range, NaN, labels and lengths, and names the first offending entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from citrus_tool.choices import Split
from citrus_tool.errors import DataError
from citrus_tool.tables import Table, Tabular

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, repr=False)
class Dataset(Tabular):
    """Labelled images of one split.

    Attributes:
        name: what the user asked for (`digits`, a path, ...).
        split: `train`, `validation` or `test`.
        images: (N, C, H, W); uint8, or floating point in [0, 1].
        labels: (N,) int64, 0 <= label < num_classes.
        num_classes: number of classes of the whole set, not only of those that occur in this split.
        classes_known: False when `num_classes` is only the largest label + 1 of a file.
        class_names: what reports call the classes, by label; empty where they have only numbers.

    Raises:
        DataError: empty, wrong rank, pixels outside [0, 1] or NaN, labels out of range, lengths that differ.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    num_classes: int
    classes_known: bool = True
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"data {self.name} ({self.split})"
        if self.images.dim() != 4:
            raise DataError(f"{where}: images have shape {tuple(self.images.shape)}; 4 axes (N, C, H, W) are needed.")
        if self.labels.dim() != 1 or len(self.labels) != len(self.images):
            raise DataError(
                f"{where}: {len(self.images)} images but labels of shape {tuple(self.labels.shape)};"
                " give one label for each image."
            )
        if len(self.images) == 0:
            raise DataError(f"{where}: there are no images; give a larger data set or another --split.")
        if self.labels.dtype != torch.int64:
            raise DataError(f"{where}: labels are {self.labels.dtype}; int64 class indices are needed.")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise DataError(
                f"{where}: {len(self.class_names)} class names for {self.num_classes} classes; give one for each class."
            )
        _check_pixels(self.images, where)
        wrong = torch.nonzero((self.labels < 0) | (self.labels >= self.num_classes))
        if len(wrong):
            index = int(wrong[0])
            raise DataError(
                f"{where}: label {int(self.labels[index])} at index {index} is out of range;"
                f" labels are 0 to {self.num_classes - 1}."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def pixels(self, index: Tensor | slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        """Images (n, C, H, W) at `index` as `dtype` in [0, 1]; uint8 is divided by 255 in that precision."""
        chosen = self.images[index]
        return chosen.to(dtype) / 255 if chosen.dtype == torch.uint8 else chosen.to(dtype)

    def select(self, index: Tensor) -> Dataset:
        """The images at `index` (int64, in this order)."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    @staticmethod
    def from_arrays(
        images: Array | Tensor,
        labels: Array | Tensor | Sequence[int],
        *,
        name: str = "arrays",
        split: Split = "test",
        layout: Literal["NCHW", "NHWC"] | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
    ) -> Dataset:
        """Labelled images that are in memory already.

        Args:
            images: (N, C, H, W) or (N, H, W, C); uint8 in 0 to 255, or floating point in [0, 1].
            labels: (N,) whole numbers from 0.
            layout: which of the two; None: told from the shape where it allows one reading only.
            num_classes: None: as many as class_names, or largest label + 1.
            class_names: what reports call the classes, by label.

        Raises:
            DataError: out of contract; the message names the first offending entry.
        """
        return of_arrays(
            _array(images),
            _array(labels),
            layout=layout,
            num_classes=num_classes,
            class_names=tuple(class_names),
            where=f"data {name}",
            name=name,
            split=split,
        )

    def table(self) -> Table:
        """Sizes, shape and classes."""
        rows = [
            ["split", self.split],
            ["images", f"{len(self)} x {' x '.join(str(s) for s in self.shape)} {str(self.images.dtype)[6:]}"],
            [
                "classes",
                ": ".join([str(self.num_classes), *([", ".join(self.class_names)] if self.class_names else [])]),
            ],
            ["sha256", self.sha256()[:16]],
        ]
        return Table(title=f"data {self.name}", columns=["what", "value"], rows=rows)

    def joined(self, other: Dataset) -> Dataset:
        """These images and then those of another split, under this one's name; 8-bit where both are.

        Raises:
            DataError: shapes or numbers of classes differ.
        """
        if (other.shape, other.num_classes) != (self.shape, self.num_classes):
            raise DataError(
                f"data {other.name} ({other.split}) has images of shape {other.shape} in {other.num_classes} classes,"
                f" {self.name} ({self.split}) {self.shape} in {self.num_classes}; give splits of one data set."
            )
        alike = self.images.dtype == other.images.dtype
        return replace(
            self,
            images=torch.cat([self.images, other.images] if alike else [self.pixels(), other.pixels()]),
            labels=torch.cat([self.labels, other.labels]),
        )

    def take(self, n: int) -> Dataset:
        """The first `n` images (all of them when there are fewer)."""
        return self.select(torch.arange(min(n, len(self))))

    def sha256(self) -> str:
        """Digest of shape, dtype, pixels and labels; equal data has an equal digest whatever its name."""
        digest = hashlib.sha256(f"{self.images.dtype} {tuple(self.images.shape)}".encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def require_classifier(self, input_shape: Sequence[int], num_classes: int, model: str) -> None:
        """Raises DataError unless a network from `input_shape` to `num_classes` logits can be judged on this data."""
        if tuple(input_shape) != self.shape:
            raise DataError(
                f"{model} takes inputs of shape {tuple(input_shape)}, but data {self.name} has {self.shape}"
                " (C, H, W); choose the data set that the network was made for."
            )
        if self.num_classes > num_classes or (self.classes_known and self.num_classes < num_classes):
            raise DataError(
                f"{model} has {num_classes} outputs, but data {self.name} has {self.num_classes} classes;"
                " choose the data set that the network was made for."
            )


def _check_pixels(images: Tensor, where: str) -> None:
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise DataError(f"{where}: pixels are {images.dtype}; uint8 or floats in [0, 1] are needed.")
    wrong = ~((images >= 0) & (images <= 1))  # NaN compares false
    if wrong.any():
        index = tuple(int(i) for i in torch.nonzero(wrong)[0])
        raise DataError(
            f"{where}: pixel {index} (image, channel, row, column) is {images[index].item():g}, outside [0, 1];"
            " give uint8 or floats scaled to [0, 1]."
        )


def _array(values: Array | Tensor | Sequence[int]) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def of_arrays(
    x: Array,
    y: Array,
    *,
    layout: str | None,
    num_classes: int | None,
    class_names: tuple[str, ...],
    where: str,
    name: str,
    split: str,
) -> Dataset:
    """A data set of images x (N, C, H, W), or (N, H, W, C) where that is the only reading, and labels y (N,).

    Raises DataError for arrays out of contract; its text begins with `where`.
    """
    if x.ndim != 4:
        raise DataError(f"{where}: x has shape {x.shape}; 4 axes (N, C, H, W) are needed.")
    if y.ndim != 1 or len(y) != len(x):
        raise DataError(f"{where}: {len(x)} images but labels of shape {y.shape}; give one label for each image.")
    if len(x) == 0:
        raise DataError(f"{where}: there are no images.")
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating):
            raise DataError(f"{where}: x is {x.dtype}; give uint8, or floats in [0, 1].")
        x = x.astype(np.float32)
    x = np.ascontiguousarray(_to_nchw(x, layout, where))
    fraction = np.flatnonzero(y.astype(np.float64) != np.floor(y.astype(np.float64))) if y.dtype.kind in "fiu" else [0]
    if len(fraction):
        raise DataError(f"{where}: label {y[fraction[0]]!r} at index {fraction[0]} is not an integer.")
    labels = y.astype(np.int64)
    if num_classes is None and class_names:
        num_classes = len(class_names)
    return Dataset(
        name=name,
        split=split,
        images=torch.from_numpy(x),
        labels=torch.from_numpy(labels),
        num_classes=max(int(labels.max()) + 1, 1) if num_classes is None else num_classes,
        classes_known=num_classes is not None,
        class_names=class_names,
    )


def _to_nchw(x: Array, layout: str | None, where: str) -> Array:
    if layout is not None and layout.upper() not in ("NCHW", "NHWC"):
        raise DataError(f"{where}: layout is {layout!r}; it is NCHW or NHWC.")
    first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
    if layout is None and first and last:
        raise DataError(
            f"{where}: x has shape {x.shape}, which reads as NCHW and as NHWC; add layout='NCHW' (or 'NHWC')."
        )
    nhwc = layout.upper() == "NHWC" if layout is not None else last
    return x.transpose(0, 3, 1, 2) if nhwc else x
