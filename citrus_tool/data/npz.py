"""Data sets in .npz files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from citrus_tool.choices import Split
from citrus_tool.data.dataset import Dataset, of_arrays
from citrus_tool.data.splits import split_of
from citrus_tool.errors import DataError
from citrus_tool.files import near


def read_npz(path: Path, split: Split, seed: int) -> Dataset:
    """One split of an .npz file of x (as `of_arrays`) and y; it may say `layout`, `num_classes` and `class_names`.

    Raises DataError for a file that cannot be read or is out of contract.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            entries = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        # what is no archive NumPy takes for a pickle, and advises to trust it, or for one array, a TypeError
        reason = error if zipfile.is_zipfile(path) or isinstance(error, OSError) else "it is no zip archive"
        what = f"cannot be read as .npz ({reason})" if path.exists() else "does not exist"
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
    whole = of_arrays(
        entries["x"],
        entries["y"],
        layout=str(entries["layout"]) if "layout" in entries else None,
        num_classes=int(entries["num_classes"]) if "num_classes" in entries else None,
        class_names=tuple(names.tolist()),
        where=str(path),
        name=str(path),
        split="whole file",
    )
    return split_of(whole, split, seed)
