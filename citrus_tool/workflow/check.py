"""Verifying a proof, and that its inputs are those of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from citrus_tool.checker.check import Checked, check
from citrus_tool.checker.expected import Expected
from citrus_tool.choices import Split
from citrus_tool.context import RunContext
from citrus_tool.errors import DataError
from citrus_tool.sources import DataChoice


def check_file(
    proof: Path,
    model: Path,
    choice: DataChoice | None,
    context: RunContext,
    *,
    split: Split = "test",
    expected: Expected | None = None,
) -> Checked:
    """Verifies a proof that `certify_file` wrote, and that it is about what is expected.

    With a choice of data also that its inputs are those of the split.

    Raises as `check.check`; DataError where an input is beyond the data.
    """
    progress = context.progress
    images = None
    if choice is not None:
        dataset = choice.load(split)

        def images(indices: Sequence[int]) -> tuple[NDArray[np.float32], list[int]]:
            if max(indices) >= len(dataset) or min(indices) < 0:
                raise DataError(
                    f"data {dataset.name} ({dataset.split}) has no input {max(indices)}; choose other data."
                )
            index = torch.tensor(indices)
            return dataset.pixels(index).numpy(), dataset.labels[index].tolist()

    progress.start("check", None, "groups")
    found = check(proof, model, images=images, expected=expected, progress=progress.advance)
    progress.finish()
    return found
