"""Where the named data sets lie on this machine, and how to get the ones that are missing; nothing is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Location:
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
class Download:
    """A data set to be fetched: its possible folders under a root, a file that must be there, how to get it."""

    folders: tuple[str, ...]
    marker: str
    how: str


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


def locate(name: str, root: Path | None = None) -> Location:
    """Looks for a named data set (choices.DATA_NAMES) without reading it."""
    if name == "digits":
        return Location(name=name, found=None, searched=(), how="It comes with citrus.", embedded=True)
    download = DOWNLOADS[name]
    searched = roots(root)
    for base in searched:
        for folder in (base / part for part in download.folders):
            if any((folder / f"{download.marker}{suffix}").exists() for suffix in ("", ".gz")):
                return Location(name=name, found=folder, searched=searched, how=download.how)
    return Location(name=name, found=None, searched=searched, how=download.how)


_ELSEWHERE = "and pass --data-root ROOT (or set CITRUS_DATA)."
_TORCHVISION = (
    "on a machine with internet run python -c \"import torchvision; torchvision.datasets.{}('ROOT', download=True)\" "
    + _ELSEWHERE
)
DOWNLOADS = {
    "mnist": Download(
        folders=("MNIST/raw", "mnist", "."), marker="t10k-images-idx3-ubyte", how=_TORCHVISION.format("MNIST")
    ),
    "cifar10": Download(folders=("cifar-10-batches-py", "."), marker="test_batch", how=_TORCHVISION.format("CIFAR10")),
    "tinyimagenet": Download(
        folders=("tiny-imagenet-200", "."),
        marker="wnids.txt",
        how=f"on a machine with internet fetch Stanford's tiny-imagenet-200.zip, unpack it into ROOT {_ELSEWHERE}",
    ),
}
