"""What became of one instance of a VNN-COMP run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from citrus_tool.results import lines
from citrus_tool.results.record import Place, from_json

Word = Literal["sat", "unsat", "unknown", "timeout", "error"]
"""What VNN-COMP calls a verdict."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of an instance; `timeout` in seconds.

    `witness`: whether the replay confirmed it, None for other verdicts than sat; `note`: the last thing the verifier
    said, or why the witness does not hold.
    """

    onnx: str
    vnnlib: str
    timeout: float
    verdict: Word
    seconds: float
    witness: bool | None
    note: str


def read_records(path: Path) -> list[Record]:
    """The records of a run, in their order; none where there is no file. Raises InputFileError naming a bad line."""
    found = lines.read(path, damaged="is damaged ({reason}); remove the line to run its instance again.")
    return [from_json(Record, one, Place(where=f"{path}, line {number}")) for number, one in enumerate(found, start=1)]
