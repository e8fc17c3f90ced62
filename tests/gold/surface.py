"""Prints the public names of `import citrus_tool` with their signatures, as JSON."""

from __future__ import annotations

import enum
import inspect
import json
import re
import sys

import citrus_tool


def signature(thing: object) -> str:
    try:
        text = str(inspect.signature(thing))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "?"
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # of functions that are defaults
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(\w+)", r"\1", text)  # modules may move


def described(name: str) -> object:
    thing = getattr(citrus_tool, name)
    if not inspect.isclass(thing):
        return signature(thing) if callable(thing) else type(thing).__name__
    if issubclass(thing, enum.Enum):
        return {member.name: str(member.value) for member in thing}
    members = {
        key: signature(value) if inspect.isfunction(value) else type(value).__name__
        for key, value in vars(thing).items()
        if not key.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))
    }
    return {"()": signature(thing), **dict(sorted(members.items()))}


sys.stdout.write(json.dumps({name: described(name) for name in sorted(citrus_tool.__all__)}, indent=1) + "\n")
