"""The words and numbers of the proof format (docs/proof-format.md), and how a claim that does not hold is reported."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, NoReturn

from citrus_tool.errors import CheckFailedError

FORMATS: Final = (1, 2)
"""The versions of the format that are read. 1 says nothing of arithmetic, scope and protocol; it is about real
arithmetic."""
GRID: Final = 255
"""Steps from slope 0 to slope 1: slopes are stored in one byte, as multiples of 1 / GRID."""
LEAVES: Final = 256
"""Leaves that are bounded together: bounds the memory of their coefficients."""
SHOWN: Final = 72
"""Characters of a value that a message or table shows: most of a line."""

Atom = tuple[int, int]
"""(position of the input in its group, wrong label)."""
Splits = tuple[tuple[int, int], ...]
"""The splits of a part of the box: (neuron, sign), in the order in which they were made."""
Member = tuple[int, int]
"""(position of the input in its group, number of the view of its execution)."""


def digest_of(content: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def refuse(where: str, what: str) -> NoReturn:
    """Raises CheckFailedError."""
    raise CheckFailedError(f"the certificate does not hold: {where}: {what}.")


def require(condition: bool, where: str, what: str) -> None:
    """Raises CheckFailedError unless the condition holds."""
    if not condition:
        refuse(where, what)


def escaped(text: str) -> str:
    """The text with escapes for what does not print: no line break or terminal code of a file reaches a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any) -> str:
    """A value of a proof as messages show it: in one printable line, cut."""
    return cut(ascii(value) if not isinstance(value, int) or abs(value) < 2**64 else "a huge number")


def cut(text: str) -> str:
    """At most SHOWN characters of the text."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
