"""What became of one instance of a VNN-COMP run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
