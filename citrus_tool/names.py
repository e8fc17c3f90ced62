"""What a mistyped name may have meant, in what two runs differ, and names that are loaded on first use."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
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


def on_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that stays quick to import: loads a name from its home when it is first asked for.

    Homes are modules, `module:name` where the name is another one there.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, there = homes[name].partition(":")
        return getattr(importlib.import_module(module), there or name)

    return load
