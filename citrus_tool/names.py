"""What a mistyped name may have meant, and in what two runs differ."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The one of `known` that is most like `word` (difflib's ratio, at least `cutoff`), or None."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def meant(word: str, known: Iterable[str], shown: str, otherwise: str = "") -> str:
    """`shown` with the nearest of `known` in place of its {}, or `otherwise` where none is near."""
    near = nearest(word, known)
    return otherwise if near is None else shown.format(near)


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first field in which what two runs are made of differs, an absent one counting as None; None: in none.

    Fields are looked at in the order of `now`, then those that only `before` has.
    """
    return next((name for name in {**now, **before} if before.get(name) != now.get(name)), None)
