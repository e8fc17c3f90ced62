"""JSON lines: one object a line, each written and flushed by itself, so that a stopped run loses no more than one.

One rule for the end of a file: a last line without a line end is what a stopped machine left of it. Where it is no
whole object it is not read, and dropped when the file is continued. Any other line that is no object is an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, final

from citrus_tool.errors import InputFileError


def read(path: Path, *, damaged: str, unreadable: str = "cannot be read ({reason}).") -> list[dict[str, Any]]:
    """The objects of a file, one a line; none where there is no file.

    Raises InputFileError with file and line and `damaged` for a line that is no object, with file and `unreadable` for
    a file that is no text; {reason} in them is what was found.
    """
    if not path.exists():
        return []
    try:
        *whole, last = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputFileError(f"{path}: {unreadable.format(reason=reason)}") from None
    found = []
    for number, line in enumerate(whole, start=1):
        try:
            found.append(_object(line))
        except (ValueError, RecursionError) as error:
            raise InputFileError(f"{path}, line {number}: {damaged.format(reason=error)}") from None
    return [*found, _object(last)] if _is_whole(last) else found


def _object(line: str) -> dict[str, Any]:
    content = json.loads(line, parse_constant=_refuse)
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__}, not an object")
    return content


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number")


def _is_whole(line: str) -> bool:
    try:
        _object(line)
    except (ValueError, RecursionError):
        return False
    return True


@final
class Writer:
    """A file that lines are added to; use as a context manager.

    keep: goes on with the lines that are there, less a torn last one; else the file is begun anew.
    durable: each line is on the disk, not only with the operating system, before the next one.

    Raises OSError where the file cannot be written.
    """

    def __init__(self, path: Path, *, keep: bool, durable: bool = False) -> None:
        self._durable = durable
        self._file = path.open("ab" if keep else "wb")
        if keep:
            old = path.read_bytes()
            start = old.rfind(b"\n") + 1
            if _is_whole(old[start:].decode(errors="replace")):
                self._file.write(b"\n")
            else:
                self._file.truncate(start)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, content: Mapping[str, Any]) -> None:
        """Adds one object of JSON values; raises ValueError for a number that is not finite."""
        self._file.write(json.dumps(content, allow_nan=False).encode() + b"\n")
        self._file.flush()
        if self._durable:
            os.fsync(self._file.fileno())
