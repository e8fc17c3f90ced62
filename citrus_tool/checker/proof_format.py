"""The words and numbers of the proof format (docs/certificate.md), and how a claim that does not hold is reported."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from citrus_tool.errors import CheckFailedError

FORMAT: Final = 1
"""The only version of the format."""
GUARD: Final = 2.0**-18
"""Margins count above this fraction of the input's largest clean |logit|: half of what the prover asks for. The other
half pays for what the two compute differently, which is rounding."""
GRID: Final = 255
"""Steps from slope 0 to slope 1: slopes are stored in one byte, as multiples of 1 / GRID."""
LEAVES: Final = 256
"""Leaves that are bounded together: bounds the memory of their coefficients."""

Atom = tuple[int, int]
"""(position of the input in its group, wrong label)."""
Splits = tuple[tuple[int, int], ...]
"""The splits of a part of the box: (neuron, sign), in the order in which they were made."""
Member = tuple[int, int]
"""(position of the input in its group, number of the view of its execution)."""


def digest_of(content: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def require(condition: bool, where: str, what: str) -> None:
    """Raises CheckFailedError unless the condition holds."""
    if not condition:
        raise CheckFailedError(f"the certificate does not hold: {where}: {what}.")
