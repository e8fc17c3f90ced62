"""What a run keeps of each input of a group beside the counts: label, verdict, and the worst perturbation found.

The counts of a GroupResult follow from the verdicts; the perturbation lets a reader replay what `attacked` claims
(citrus_tool/reports/replay.py).
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Verdict(Enum):
    """What is known of one input, each verdict with its sentence for the user."""

    LOST = "lost"
    IBP = "ibp"
    PROVEN = "proven"
    FOOLED = "fooled"
    OPEN = "open"

    @property
    def sentence(self) -> str:
        """What the verdict means, for the user."""
        return _SENTENCES[self]


_SENTENCES = {
    Verdict.LOST: "lost without any perturbation",
    Verdict.IBP: "proven for every perturbation, by interval bounds",
    Verdict.PROVEN: "proven for every perturbation, by stronger bounds than intervals",
    Verdict.FOOLED: "not proven, and lost under the worst shared perturbation found",
    Verdict.OPEN: "not proven by itself, and not lost under the worst shared perturbation found",
}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The inputs of one group, in the order of its indices.

    Attributes:
        labels: classes in the data.
        verdicts: one for each input.
        perturbation: the u (C, H, W) float32, pixel space, under which the inputs with verdict `fooled` are lost on
            onnxruntime and in float64; None where there are none.
    """

    labels: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    perturbation: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    def without_perturbation(self, places: Sequence[int]) -> Evidence:
        """Labels and verdicts of some of the inputs."""
        return Evidence(
            labels=tuple(self.labels[place] for place in places),
            verdicts=tuple(self.verdicts[place] for place in places),
        )

    def to_json(self) -> dict[str, Any]:
        """Labels and verdicts by name."""
        return {"labels": list(self.labels), "verdicts": [verdict.value for verdict in self.verdicts]}

    def packed(self) -> dict[str, Any]:
        """`to_json` and the perturbation as base64 of a zlib-packed .npy file (None where there is none)."""
        return {**self.to_json(), "perturbation": None if self.perturbation is None else pack(self.perturbation)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Evidence | None:
        """What `to_json` or `packed` wrote; None for an entry that has none (of citrus before it kept evidence).

        Raises KeyError, TypeError or ValueError for what they cannot have written.
        """
        if "verdicts" not in content:
            return None
        packed = content.get("perturbation")
        return Evidence(
            labels=tuple(int(label) for label in content["labels"]),
            verdicts=tuple(Verdict(word) for word in content["verdicts"]),
            perturbation=None if packed is None else unpack(packed),
        )


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
