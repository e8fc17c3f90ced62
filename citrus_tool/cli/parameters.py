"""The types of options: how a word on the command line, or in a TOML file, becomes a value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from citrus_tool.names import meant
from citrus_tool.threat import parse_eps


class Eps(click.ParamType[float]):
    """A radius in pixel space: 0.1, 2/255 or 1e-2."""

    name = "eps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Raises UsageError for what is not a number in [0, 1]."""
        return value if isinstance(value, float) else parse_eps(str(value))


class EpsList(click.ParamType[tuple[float, ...]]):
    """One radius or several with commas between them, as `--eps 1/255,2/255`; a number or a list in a TOML file."""

    name = "eps list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Raises UsageError for what is not a number in [0, 1]."""
        if isinstance(value, float):
            return (value,)
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        return tuple(Eps().convert(part, param, ctx) for part in parts)


class PartOption(click.ParamType[tuple[int, int]]):
    """One of several parts, as `2/8`; a list of two numbers in a TOML file."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Raises a usage error that shows the text."""
        text = "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{text!r} is no part; write I/N with I from 1 to N, e.g. 2/8.", param, ctx)
        return int(found[1]), int(found[2])


class Ranges(click.ParamType[frozenset[int]]):
    """Whole numbers as `0-99,105`."""

    name = "ranges"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[int]:
        """The numbers; fails with what it should be."""
        if isinstance(value, frozenset):
            return value
        found: set[int] = set()
        for part in str(value).split(","):
            first, _, last = part.strip().partition("-")
            if not (first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first) < 10**7):
                self.fail(f"{value!r} is no list of inputs; write 0-99 or 0-99,105.", param, ctx)
            found.update(range(int(first), int(last or first) + 1))
        return frozenset(found)


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them, as `--mean 0.49,0.48,0.45`; a list in a TOML file."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Raises a usage error that shows the text."""
        parts = str(value).split(",") if not isinstance(value, list | tuple) else value
        try:
            return tuple(float(part) for part in parts)
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers; write 0.49,0.48,0.45.", param, ctx)


PATH = click.Path(path_type=Path)


class Choice(click.Choice[str]):
    """A choice that says which one a mistyped value is near to."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Click's sentence, and what may have been meant."""
        hint = meant(str(value), map(str, self.choices), " Did you mean {!r}?")
        return super().get_invalid_choice_message(value, ctx) + hint


class NameOrPath(click.ParamType[str]):
    """One of `names`, or a path; the names are for the shell's completion, a command judges the value itself."""

    name = "name or path"

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Any text."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Paths, and the names that begin so."""
        names = [CompletionItem(name) for name in self._names if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file"), *names]
