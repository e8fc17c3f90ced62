"""Labelled images in pixel space [0, 1], with splits fixed by a seed.

A Dataset cannot be out of contract: construction checks rank, range, NaN, labels and lengths, and
names the first offending entry. Splits:

    digits           60/20/20 of 1,797 images (assets/README.md), stratified, drawn by the seed
    mnist, cifar10   test is the official test set in its own order; validation is 5,000 images drawn by
                     the seed from the official training set, train is the rest
    tinyimagenet     test is the official validation folder (the official test labels are not public);
                     validation is 5 % of the training images, stratified, drawn by the seed
    FILE.npz, FOLDER 70/15/15, stratified, drawn by the seed, in shuffled order

The test split is for the final figures only; choices (epoch, recipe, eps) are made on validation.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.resources
import math
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from citrus_tool.choices import DATA_NAMES, SPLITS, Split
from citrus_tool.errors import DataError, UsageError
from citrus_tool.files import near
from citrus_tool.names import meant
from citrus_tool.tables import Table, Tabular

Array = npt.NDArray[Any]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp"})
NAMED_VALIDATION = 5000
"""Size of the validation split that is drawn from the official MNIST and CIFAR-10 training sets."""


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
        return Dataset(
            name=self.name,
            split=self.split,
            images=self.images[index],
            labels=self.labels[index],
            num_classes=self.num_classes,
            classes_known=self.classes_known,
            class_names=self.class_names,
        )

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
        x, y = _array(images), _array(labels)
        return _of_arrays(
            x,
            y,
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


@dataclass(frozen=True, kw_only=True, repr=False)
class Splits(Tabular):
    """The three splits of one data set: training sees `train`, choices are made on `validation`, figures on `test`.

    Raises:
        DataError: shapes or numbers of classes differ.
    """

    train: Dataset
    validation: Dataset
    test: Dataset

    def __post_init__(self) -> None:
        for part in (self.validation, self.test):
            if (part.shape, part.num_classes) != (self.train.shape, self.train.num_classes):
                raise DataError(
                    f"data {part.name} ({part.split}) has images of shape {part.shape} in {part.num_classes} classes,"
                    f" the training split {self.train.shape} in {self.train.num_classes}; give splits of one data set."
                )

    @property
    def name(self) -> str:
        """Of the training split."""
        return self.train.name

    def load(self, split: Split, limit: int | None = None) -> Dataset:
        """One of the three, or its first `limit` images."""
        part = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        return part if limit is None else part.take(limit)

    @staticmethod
    def of(whole: Dataset, *, seed: int = 0) -> Splits:
        """70 / 15 / 15 % of `whole`, stratified, drawn by the seed, in shuffled order."""
        train, validation, test = (_split_of(whole, split, seed) for split in SPLITS)
        return Splits(train=train, validation=validation, test=test)

    def table(self) -> Table:
        """Sizes of the splits."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        rows = [[name, str(len(part)), " x ".join(map(str, part.shape))] for name, part in parts.items()]
        return Table(title=f"data {self.name}", columns=["split", "images", "shape"], rows=rows)


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


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a named data set is (or is not) on this machine.

    Attributes:
        found: the folder that holds its files; None when it is missing; also None for `digits`, which needs none.
        searched: every folder that was looked into.
        how: one sentence on how to get it.
        embedded: True when it comes with the installation.
    """

    name: str
    found: Path | None
    searched: tuple[Path, ...]
    how: str
    embedded: bool = False


@dataclass(frozen=True, kw_only=True)
class _Named:
    """A public data set: its possible folders under a root, a file that must be there, how to get it, its reader."""

    folders: tuple[str, ...]
    marker: str
    how: str
    read: Callable[[Path, str], tuple[Array, Array]]  # (folder, "train"|"test") -> uint8 images NCHW, labels
    num_classes: int
    validation: int | float  # images (int) drawn from train, or a share of it (float), stratified


def roots(root: Path | None = None) -> tuple[Path, ...]:
    """The folders that are searched: `root` alone, or $CITRUS_DATA, ./data and ~/.cache/citrus in this order."""
    if root is not None:
        return (root,)
    environment = os.environ.get("CITRUS_DATA")
    return (*((Path(environment),) if environment else ()), Path("data"), cache_dir())


def cache_dir() -> Path:
    """The user's cache folder for citrus ($XDG_CACHE_HOME/citrus or ~/.cache/citrus)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "citrus"


def locate(name: str, root: Path | None = None) -> Source:
    """Looks for a named data set (choices.DATA_NAMES) without reading it."""
    if name == "digits":
        return Source(name=name, found=None, searched=(), how="It comes with citrus.", embedded=True)
    named = _NAMED[name]
    searched = roots(root)
    for base in searched:
        for folder in (base / part for part in named.folders):
            if any((folder / f"{named.marker}{suffix}").exists() for suffix in ("", ".gz")):
                return Source(name=name, found=folder, searched=searched, how=named.how)
    return Source(name=name, found=None, searched=searched, how=named.how)


def load(name: str, *, split: Split, root: Path | None = None, seed: int = 0, limit: int | None = None) -> Dataset:
    """Reads one split of `digits`, `mnist`, `cifar10`, `tinyimagenet`, an .npz file or a folder of class folders.

    Args:
        root: where named sets are looked for; default: see `roots`.
        seed: draws the splits; the official test sets do not depend on it.
        limit: keep only the first `limit` images.

    Raises:
        UsageError: unknown name, split or limit.
        DataError: missing or out of contract, with where it was looked for and how to get it.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}.")
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; it must be at least 1.")
    if name == "digits":
        data = _digits(split, seed)
    elif name in _NAMED:
        data = _named(name, split, root, seed)
    elif Path(name).suffix == ".npz":
        data = _npz(Path(name), split, seed)
    elif Path(name).is_dir():
        data = _folder(Path(name), split, seed)
    else:
        hint = meant(name, DATA_NAMES, "; did you mean {}?", ".")
        known = f"{', '.join(DATA_NAMES)}, a FILE.npz or an existing folder with one sub-folder a class"
        raise UsageError(f"data {name!r} is neither {known}{hint}")
    return data if limit is None else data.take(limit)


def _stratified(labels: Array, shares: tuple[float, float], seed: int) -> dict[str, Array]:
    """Shuffled indices of train and validation (`shares` of every class, rounded) and test (the rest)."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = [order[labels[order] == c] for c in np.unique(labels)]
    cuts = [(round(len(i) * shares[0]), round(len(i) * (shares[0] + shares[1]))) for i in by_class]
    parts = {
        "train": [i[:a] for i, (a, _) in zip(by_class, cuts, strict=True)],
        "validation": [i[a:b] for i, (a, b) in zip(by_class, cuts, strict=True)],
        "test": [i[b:] for i, (_, b) in zip(by_class, cuts, strict=True)],
    }
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels))
    return {split: (joined := np.concatenate(part))[np.argsort(rank[joined])] for split, part in parts.items()}


def _digits(split: Split, seed: int) -> Dataset:
    with (
        importlib.resources.files("citrus_tool").joinpath("assets", "digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        x, y = archive["x"], archive["y"]  # (1797, 8, 8) from 0 to 16 and (1797,), both uint8
    index = np.sort(_stratified(y, (0.6, 0.2), seed)[split])
    images = torch.from_numpy((x[index] / 16).astype(np.float32)).unsqueeze(1)
    labels = torch.from_numpy(y[index].astype(np.int64))
    return Dataset(
        name="digits", split=split, images=images, labels=labels, num_classes=10, class_names=CLASS_NAMES["digits"]
    )


def _named(name: str, split: Split, root: Path | None, seed: int) -> Dataset:
    named, source = _NAMED[name], locate(name, root)
    if source.found is None:
        looked = ", ".join(f"{base}/{part}".removesuffix("/.") for base in source.searched for part in named.folders)
        raise DataError(f"data {name} was not found (looked in {looked}); {source.how}")
    images, labels = named.read(source.found, "test" if split == "test" else "train")
    index: Array = np.arange(len(labels))
    if split != "test":
        if isinstance(named.validation, int):
            order = np.random.default_rng(seed).permutation(len(labels))
            drawn = {"validation": order[: named.validation], "train": order[named.validation :]}
        else:
            drawn = _stratified(labels, (1 - named.validation, named.validation), seed)
        index = np.sort(drawn[split]) if isinstance(named.validation, int) else drawn[split]
    return Dataset(
        name=name,
        split=split,
        images=torch.from_numpy(np.ascontiguousarray(images[index])),
        labels=torch.from_numpy(labels[index].astype(np.int64)),
        num_classes=named.num_classes,
        class_names=CLASS_NAMES.get(name) or _wordnet(source.found),
    )


def _read_idx(folder: Path, stem: str, axes: int) -> Array:
    """An idx-ubyte file (LeCun's MNIST format), plain or gzipped, as uint8 with `axes` axes."""
    plain, packed = folder / stem, folder / f"{stem}.gz"
    path = plain if plain.exists() else packed
    try:
        raw = gzip.decompress(path.read_bytes()) if path == packed else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the MNIST files again.") from None
    start = 4 + 4 * axes  # big-endian: a magic number with the count of axes, then their sizes
    header = [int.from_bytes(raw[i : i + 4], "big") for i in range(0, start, 4)]
    shape = tuple(header[1:])
    if header[0] != 0x0800 + axes or len(raw) != start + math.prod(shape):
        raise DataError(f"{path}: not an idx-ubyte file with {axes} axes; fetch the MNIST files again.")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def _read_mnist(folder: Path, part: str) -> tuple[Array, Array]:
    stem = {"train": "train", "test": "t10k"}[part]
    images = _read_idx(folder, f"{stem}-images-idx3-ubyte", 3)
    labels = _read_idx(folder, f"{stem}-labels-idx1-ubyte", 1)
    return images[:, None], labels


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers, nothing that could run code."""

    ALLOWED = frozenset({("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        short = module.rpartition(".")[2]
        if module.partition(".")[0] != "numpy" or (short, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_cifar10(folder: Path, part: str) -> tuple[Array, Array]:
    names = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
    images, labels = [], []
    for path in (folder / name for name in names):
        try:
            with path.open("rb") as file:
                batch = _ArraysOnly(file, encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[b"labels"], dtype=np.int64))
        except (OSError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not a CIFAR-10 batch ({error}); fetch the python version again.") from None
    return np.concatenate(images), np.concatenate(labels)


def _read_tinyimagenet(folder: Path, part: str) -> tuple[Array, Array]:
    wnids = sorted((folder / "wnids.txt").read_text().split())  # the class order of torchvision's ImageFolder
    if part == "train":
        classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
        files = [p for c in classes for p in sorted((folder / "train" / c / "images").glob("*.JPEG"), key=_number)]
        labels = [wnids.index(path.parent.parent.name) for path in files]
    else:
        rows = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
        files = [folder / "val" / "images" / row[0] for row in rows]
        labels = [wnids.index(row[1]) for row in rows]
    return _decoded_once(files, "RGB", (64, 64)), np.asarray(labels, dtype=np.int64)


def _wordnet(folder: Path) -> tuple[str, ...]:
    """The first word of every class of TinyImageNet, by label; () where words.txt is not there."""
    try:
        lines = (folder / "words.txt").read_text(encoding="utf-8").splitlines()
        words = dict(line.split("\t", 1) for line in lines)
        return tuple(words[wnid].split(",")[0] for wnid in sorted((folder / "wnids.txt").read_text().split()))
    except (OSError, ValueError, KeyError):
        return ()


def _number(path: Path) -> tuple[int, str]:
    digits = "".join(ch for ch in path.stem.partition("_")[2] if ch.isdigit())
    return int(digits or 0), path.name


def _decoded_once(files: Sequence[Path], mode: str, size: tuple[int, int]) -> Array:
    """Decoded images (N, C, H, W) uint8, cached under `cache_dir` by the files' names and sizes."""
    if not files:
        raise DataError("tinyimagenet: the folder holds no JPEG files; unpack the archive again.")
    key = hashlib.sha256("\n".join(f"{p.parent.name}/{p.name} {p.stat().st_size}" for p in files).encode()).hexdigest()
    cached = cache_dir() / f"tinyimagenet-{key[:16]}.npy"
    if cached.exists():
        with contextlib.suppress(OSError, ValueError):  # a damaged cache is made again
            kept: Array = np.load(cached, allow_pickle=False)
            if len(kept) == len(files):
                return kept
    images = np.stack([_decode(path, mode, size) for path in files])
    with contextlib.suppress(OSError):  # no cache is slower, not wrong
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, suffix=".part", delete=False) as file:
            np.save(file, images)
        Path(file.name).replace(cached)
    return images


def _decode(path: Path, mode: str, size: tuple[int, int] | None) -> Array:
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


def _npz(path: Path, split: Split, seed: int) -> Dataset:
    """x (NCHW; NHWC where that is the only reading) and y of an .npz file; `layout`, `num_classes`, `class_names`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            entries = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        what = f"cannot be read as .npz ({error})" if path.exists() else "does not exist"
        hint = ("" if path.exists() else near(path)) or "; write it with numpy.savez(FILE, x=images, y=labels)."
        raise DataError(f"{path}: {what}{hint}") from None
    missing = sorted({"x", "y"} - entries.keys())
    if missing:
        raise DataError(f"{path}: has no array {missing[0]!r}, only {sorted(entries)}; save x=images and y=labels.")
    if "num_classes" in entries and entries["num_classes"].size != 1:
        raise DataError(f"{path}: num_classes must be one integer.")
    names = entries.get("class_names", np.array([], dtype=str))
    if names.ndim != 1 or (names.dtype.kind != "U" and len(names)):
        raise DataError(f"{path}: class_names must be a list of texts, one for each class in the order of the labels.")
    # the whole file is checked, so that an error names an index of the file and not of a split
    whole = _of_arrays(
        entries["x"],
        entries["y"],
        layout=str(entries["layout"]) if "layout" in entries else None,
        num_classes=int(entries["num_classes"]) if "num_classes" in entries else None,
        class_names=tuple(names.tolist()),
        where=str(path),
        name=str(path),
        split="whole file",
    )
    return _split_of(whole, split, seed)


def _array(values: Array | Tensor | Sequence[int]) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _of_arrays(
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
    """A data set of images x (NCHW; NHWC where that is the only reading) and labels y; `where` starts every error."""
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


def _split_of(whole: Dataset, split: Split, seed: int) -> Dataset:
    index = torch.from_numpy(_stratified(whole.labels.numpy(), (0.70, 0.15), seed)[split])
    return Dataset(
        name=whole.name,
        split=split,
        images=whole.images[index],
        labels=whole.labels[index],
        num_classes=whole.num_classes,
        classes_known=whole.classes_known,
        class_names=whole.class_names,
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


def _folder(path: Path, split: Split, seed: int) -> Dataset:
    """One sub-folder a class, in sorted order of names; all images of one size, grey or RGB."""
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
    images = np.stack([_decode(file, "L" if grey else "RGB", size) for file, _ in files])
    labels = torch.tensor([label for _, label in files])
    whole = Dataset(
        name=str(path),
        split="whole folder",
        images=torch.from_numpy(images),
        labels=labels,
        num_classes=len(classes),
        class_names=tuple(entry.name for entry in classes),
    )
    return _split_of(whole, split, seed)


_ELSEWHERE = "and pass --data-root ROOT (or set CITRUS_DATA)."
_TORCHVISION = (
    "on a machine with internet run python -c \"import torchvision; torchvision.datasets.{}('ROOT', download=True)\" "
    + _ELSEWHERE
)

_DIGITS = tuple(str(digit) for digit in range(10))
CLASS_NAMES: Mapping[str, tuple[str, ...]] = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
"""Class names of the data sets that do not bring them along, by label."""

_NAMED: dict[str, _Named] = {
    "mnist": _Named(
        folders=("MNIST/raw", "mnist", "."),
        marker="t10k-images-idx3-ubyte",
        how=_TORCHVISION.format("MNIST"),
        read=_read_mnist,
        num_classes=10,
        validation=NAMED_VALIDATION,
    ),
    "cifar10": _Named(
        folders=("cifar-10-batches-py", "."),
        marker="test_batch",
        how=_TORCHVISION.format("CIFAR10"),
        read=_read_cifar10,
        num_classes=10,
        validation=NAMED_VALIDATION,
    ),
    "tinyimagenet": _Named(
        folders=("tiny-imagenet-200", "."),
        marker="wnids.txt",
        how=f"on a machine with internet fetch Stanford's tiny-imagenet-200.zip, unpack it into ROOT {_ELSEWHERE}",
        read=_read_tinyimagenet,
        num_classes=200,
        validation=0.05,
    ),
}
if set(DATA_NAMES) != {"digits", *_NAMED}:
    raise ValueError("choices.DATA_NAMES and the data sets here are not the same")
