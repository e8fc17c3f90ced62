"""Checkpoints: one safetensors file, written under a temporary name and renamed, so that it is whole or absent.

Tensors lie under `network.`, `average.`, `best.`, `adam.`, `sums.` and `carried.`; everything else is one JSON
document in the file's metadata.
Random numbers need no state: every generator is seeded by (recipe seed, epoch, batch), see trainer.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from citrus_tool.errors import InputFileError, UsageError

FILE_NAME = "checkpoint.safetensors"
_FORMAT = 1
"""Version of the file's layout; another one is refused."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """`tensors` of any shape by name and `state`, a JSON document."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Replaces the run folder's checkpoint. Raises InputFileError when the folder cannot be written."""
    target = run_dir / FILE_NAME
    part = target.with_suffix(".part")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    metadata = {"state": json.dumps({"format": _FORMAT, **checkpoint.state})}
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, metadata=metadata)
        part.replace(target)
    except (OSError, SafetensorError) as error:
        raise InputFileError(f"run folder {run_dir} cannot be written ({error}); choose another --run-dir.") from None


def exists(run_dir: Path) -> bool:
    """Whether the run folder holds a checkpoint."""
    return (run_dir / FILE_NAME).is_file()


def load(run_dir: Path) -> Checkpoint:
    """The run folder's checkpoint, on the CPU.

    Raises:
        UsageError: there is none.
        InputFileError: it is damaged or of another version.
    """
    path = run_dir / FILE_NAME
    if not path.is_file():
        raise UsageError(f"run folder {run_dir} holds no checkpoint to continue; start the run without --resume.")
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputFileError(
            f"{path} is not a readable checkpoint ({error}); start again in a new --run-dir."
        ) from None
    if state.get("format") != _FORMAT:
        raise InputFileError(f"{path} has checkpoint format {state.get('format')}, not {_FORMAT}; start a new run.")
    return Checkpoint(tensors=tensors, state=state)
