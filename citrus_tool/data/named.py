"""The data sets that have names: digits, which comes with citrus, and the published ones in their own file formats."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.resources
import math
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from citrus_tool.choices import DATA_NAMES, Split
from citrus_tool.data.dataset import Array, Dataset
from citrus_tool.data.images import decode
from citrus_tool.data.lookup import DOWNLOADS, cache_dir, locate
from citrus_tool.data.splits import stratified
from citrus_tool.errors import DataError

_VALIDATION_IMAGES = 5000
"""Images drawn for the validation split of MNIST and CIFAR-10; so many that an accuracy's standard error is at most 0.7
percent, and most of the official training set is left to train on.
"""

_DIGITS = tuple(str(digit) for digit in range(10))
CLASS_NAMES: Mapping[str, tuple[str, ...]] = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
"""Class names of the data sets that do not bring them along, by label."""


@dataclass(frozen=True, kw_only=True)
class _Named:
    """How a published data set is read and split."""

    read: Callable[[Path, str], tuple[Array, Array]]  # (folder, "train"|"test") -> uint8 images NCHW, labels
    num_classes: int
    validation: int | float  # images (int) drawn from train, or a share of it (float), stratified


def read_digits(split: Split, seed: int) -> Dataset:
    """One split of the 8 x 8 digits that citrus brings along, in their own order."""
    with (
        importlib.resources.files("citrus_tool").joinpath("assets", "digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        x, y = archive["x"], archive["y"]  # (1797, 8, 8) from 0 to 16 and (1797,), both uint8
    index = np.sort(stratified(y, (0.6, 0.2), seed)[split])
    images = torch.from_numpy((x[index] / 16).astype(np.float32)).unsqueeze(1)
    labels = torch.from_numpy(y[index].astype(np.int64))
    return Dataset(
        name="digits", split=split, images=images, labels=labels, num_classes=10, class_names=CLASS_NAMES["digits"]
    )


def read_downloaded(name: str, split: Split, root: Path | None, seed: int) -> Dataset:
    """One split of a published data set; raises DataError where it is missing or damaged."""
    named, place = _NAMED[name], locate(name, root)
    if place.found is None:
        folders = DOWNLOADS[name].folders
        looked = ", ".join(f"{base}/{part}".removesuffix("/.") for base in place.searched for part in folders)
        raise DataError(f"data {name} was not found (looked in {looked}); {place.how}")
    images, labels = named.read(place.found, "test" if split == "test" else "train")
    index: Array = np.arange(len(labels))
    if split != "test":
        if isinstance(named.validation, int):
            order = np.random.default_rng(seed).permutation(len(labels))
            drawn = {"validation": order[: named.validation], "train": order[named.validation :]}
        else:
            drawn = stratified(labels, (1 - named.validation, named.validation), seed)
        index = np.sort(drawn[split]) if isinstance(named.validation, int) else drawn[split]
    return Dataset(
        name=name,
        split=split,
        images=torch.from_numpy(np.ascontiguousarray(images[index])),
        labels=torch.from_numpy(labels[index].astype(np.int64)),
        num_classes=named.num_classes,
        class_names=CLASS_NAMES.get(name) or _wordnet(place.found),
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
    images = np.stack([decode(path, mode, size) for path in files])
    with contextlib.suppress(OSError):  # no cache is slower, not wrong
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, suffix=".part", delete=False) as file:
            np.save(file, images)
        Path(file.name).replace(cached)
    return images


_NAMED = {
    "mnist": _Named(read=_read_mnist, num_classes=10, validation=_VALIDATION_IMAGES),
    "cifar10": _Named(read=_read_cifar10, num_classes=10, validation=_VALIDATION_IMAGES),
    "tinyimagenet": _Named(read=_read_tinyimagenet, num_classes=200, validation=0.05),
}
if not set(DATA_NAMES) - {"digits"} == _NAMED.keys() == DOWNLOADS.keys():
    raise ValueError("choices.DATA_NAMES and the data sets here are not the same")
