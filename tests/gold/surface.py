"""Prints the public names of `import citrus_tool` with the public members of classes, as JSON."""

from __future__ import annotations

import enum
import inspect
import json
import sys

import citrus_tool


def described(name: str) -> object:
    thing = getattr(citrus_tool, name)
    if not inspect.isclass(thing):
        return "function" if callable(thing) else type(thing).__name__
    if issubclass(thing, enum.Enum):
        return {member.name: str(member.value) for member in thing}
    own = [base for base in thing.__mro__ if base.__module__.startswith("citrus_tool")]  # what it inherits counts
    values = {key: value for base in own for key, value in vars(base).items()}
    members = (key for key, value in values.items() if inspect.isroutine(value) or isinstance(value, property))
    return sorted(member for member in members if not member.startswith("_"))


sys.stdout.write(json.dumps({name: described(name) for name in sorted(citrus_tool.__all__)}, indent=1) + "\n")
