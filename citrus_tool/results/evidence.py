"""What a run keeps of each input of a group beside the counts: label, verdict, and the worst perturbation found.

The counts of a GroupResult follow from the verdicts; the perturbation lets a reader replay what `attacked` claims
(citrus_tool/reports/replay.py).
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from citrus_tool.results.record import JsonRecord, Place, about


class InputVerdict(Enum):
    """What is known of one input, each verdict with its sentence for the user."""

    LOST = "lost"
    IBP = "ibp"
    PROVEN = "proven"
    FOOLED = "fooled"
    OPEN = "open"

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"{value!r} is not a valid Verdict")

    @property
    def sentence(self) -> str:
        """What the verdict means, for the user."""
        return _SENTENCES[self]


_SENTENCES = {
    InputVerdict.LOST: "lost without any perturbation",
    InputVerdict.IBP: "proven for every perturbation, by interval bounds",
    InputVerdict.PROVEN: "proven for every perturbation, by stronger bounds than intervals",
    InputVerdict.FOOLED: "not proven, and lost under the worst shared perturbation found",
    InputVerdict.OPEN: "not proven by itself, and not lost under the worst shared perturbation found",
}


def pack(perturbation: NDArray[np.float32]) -> str:
    """A perturbation (C, H, W) as base64 of a zlib-packed .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, perturbation)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode()


def unpack(text: str) -> NDArray[np.float32]:
    """The perturbation (C, H, W) that `pack` wrote; raises ValueError for what it cannot have written."""
    try:
        array = np.load(io.BytesIO(zlib.decompress(base64.b64decode(text, validate=True))), allow_pickle=False)
    except (zlib.error, EOFError, OSError) as error:
        raise ValueError(f"perturbation: {error}") from None
    if array.dtype != np.float32 or array.ndim != 3:
        raise ValueError(f"perturbation: {array.dtype} of shape {array.shape}")
    found: NDArray[np.float32] = array
    return found


def unpacked(value: object, name: str, place: Place) -> NDArray[np.float32] | None:
    """`unpack` of a value of a file; None where there is none."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise place.wrong(f"{name} is {str(value)[:40]}, not text{place.remedy}")
    try:
        return unpack(value)
    except ValueError as error:
        raise place.wrong(f"{error}{place.remedy}") from None


@dataclass(frozen=True, kw_only=True)
class Evidence(JsonRecord):
    """The inputs of one group, in the order of its indices.

    Attributes:
        labels: classes in the data.
        verdicts: one for each input.
        perturbation: the u (C, H, W) float32, pixel space, under which the inputs with verdict `fooled` are lost, on
            onnxruntime or in real arithmetic, whichever is certified; None where there are none.
    """

    labels: tuple[int, ...]
    verdicts: tuple[InputVerdict, ...]
    perturbation: NDArray[np.float32] | None = about(
        default=None, written=False, read=unpacked, compare=False, repr=False
    )

    def without_perturbation(self, places: Sequence[int]) -> Evidence:
        """Labels and verdicts of some of the inputs."""
        return Evidence(
            labels=tuple(self.labels[place] for place in places),
            verdicts=tuple(self.verdicts[place] for place in places),
        )

    def packed(self) -> dict[str, Any]:
        """`to_json` and the perturbation as base64 of a zlib-packed .npy file (None where there is none)."""
        return {**self.to_json(), "perturbation": None if self.perturbation is None else pack(self.perturbation)}
