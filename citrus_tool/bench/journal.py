"""The journal of measured runs: one JSON object a line, only ever appended to, small enough to be committed."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from citrus_tool.errors import InputFileError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished run. Accuracies in percent; `standard` of the full test set, the others of the first `inputs`.

    Attributes:
        recipe: digest of the recipe (contests.Job), or the file's name for a published network.
        certifier: digest of the certifier's settings.
        certified, attacked: bounds of the worst-case UAP accuracy from below and above; individually: of the inputs
            alone; ibp: by interval bounds.
        train_seconds, certify_seconds: wall time on `machine`, which may have had other work.
        model: sha256 of the ONNX file.
    """

    contest: str
    method: str
    recipe: str
    seed: int
    certifier: str
    standard: float
    certified: float
    attacked: float
    individually: float
    ibp: float
    inputs: int
    best_epoch: int
    train_seconds: float
    certify_seconds: float
    model: str
    command: str
    commit: str
    machine: str
    versions: dict[str, str]

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What makes two runs the same."""
        return (self.contest, self.method, self.recipe, self.seed, self.certifier)


def read(path: Path) -> list[Entry]:
    """The entries of a journal, in order; none when there is no file. Raises InputFileError naming a bad line.

    A last line without its line feed is what a killed process left, and is not read.
    """
    if not path.exists():
        return []
    entries = []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            entries.append(Entry(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InputFileError(f"{path}, line {number}: is no run ({error}); mend or remove the line.") from None
    return entries


def append(path: Path, entry: Entry) -> None:
    """Adds one line, flushed to the disk. Raises InputFileError when the file cannot be written."""
    plain: dict[str, Any] = dataclasses.asdict(entry)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes() if path.exists() else b""
        with path.open("ab") as file:
            if whole and not whole.endswith(b"\n"):
                file.truncate(whole.rfind(b"\n") + 1)
            file.write(json.dumps(plain, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputFileError(f"{path}: cannot be written ({error.strerror or error}); name another journal.") from None
