"""One split of any data set, from whatever names it."""

from __future__ import annotations

from pathlib import Path

from citrus_tool.choices import DATA_NAMES, SPLITS, Split
from citrus_tool.data.dataset import Dataset
from citrus_tool.data.images import read_folder
from citrus_tool.data.lookup import DOWNLOADS
from citrus_tool.data.named import read_digits, read_downloaded
from citrus_tool.data.npz import read_npz
from citrus_tool.errors import UsageError
from citrus_tool.names import meant


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
        data = read_digits(split, seed)
    elif name in DOWNLOADS:
        data = read_downloaded(name, split, root, seed)
    elif Path(name).suffix == ".npz":
        data = read_npz(Path(name), split, seed)
    elif Path(name).is_dir():
        data = read_folder(Path(name), split, seed)
    else:
        hint = meant(name, DATA_NAMES, "; did you mean {}?", ".")
        known = f"{', '.join(DATA_NAMES)}, a FILE.npz or an existing folder with one sub-folder a class"
        raise UsageError(f"data {name!r} is neither {known}{hint}")
    return data if limit is None else data.take(limit)
