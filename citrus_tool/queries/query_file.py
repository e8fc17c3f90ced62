"""Query files as text: plain or gzipped, of bounded size, with a position for every character."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from citrus_tool.errors import InputFileError
from citrus_tool.files import write_bytes
from citrus_tool.names import nearest as most_alike

MAX_BYTES = 1 << 28
"""Largest query text, after decompression (256 MiB): a gzip bomb is refused before it fills the memory."""


class VnnlibError(InputFileError):
    """What is wrong with a query file, where, and what the writer may have meant.

    `line` and `column` count from 1; 0 where the file as a whole, or the whole line, is meant.
    """

    def __init__(self, name: str, problem: str, hint: str = "", line: int = 0, column: int = 0) -> None:
        self.name, self.problem, self.hint, self.line, self.column = name, problem, hint, line, column
        place = ":".join([name, *(str(number) for number in (line, column) if number)])
        super().__init__(f"{place}: {problem}" + (f"; {hint}." if hint else "."))


@dataclass(frozen=True, kw_only=True)
class QueryText:
    """The text of one query; `name` (its path, or `<text>`) stands in front of every error."""

    name: str
    text: str

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column, from 1, of the character at `offset`."""
        return self.text.count("\n", 0, offset) + 1, offset - self.text.rfind("\n", 0, offset)

    def error(self, offset: int, problem: str, hint: str = "") -> VnnlibError:
        """The error to raise for what stands at `offset`."""
        return VnnlibError(self.name, problem, hint, *self.position(offset))

    @staticmethod
    def of(path: Path) -> QueryText:
        """Reads `path`, gzipped or not (told by its first bytes).

        Bytes that are not UTF-8 become U+FFFD: harmless in comments, an unexpected character elsewhere. Raises
        VnnlibError (cannot be read, damaged gzip data, more than MAX_BYTES).
        """
        try:
            with path.open("rb") as file:
                packed = file.read(2) == b"\x1f\x8b"
                file.seek(0)
                if packed:
                    with gzip.open(file) as unpacked:
                        data = unpacked.read(MAX_BYTES + 1)
                else:
                    data = file.read(MAX_BYTES + 1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise VnnlibError(str(path), f"damaged gzip data ({error})", "fetch or write the file again") from None
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise VnnlibError(str(path), f"cannot be read ({reason})", "check the path") from None
        if len(data) > MAX_BYTES:
            raise VnnlibError(
                str(path), f"holds more than {MAX_BYTES >> 20} MiB of text", "no query needs that much; split it"
            )
        return QueryText(name=str(path), text=data.decode("utf-8-sig", errors="replace"))


def write(path: Path, text: str) -> None:
    """Writes a query whole or not at all; gzipped, without a time stamp, where the name ends in .gz."""
    data = text.encode()
    write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The name in `known` that `word` most likely stands for, or None."""
    names = list(known)
    folded = {name.casefold().replace("_", ""): name for name in reversed(names)}
    alike = folded.get(word.casefold().replace("_", ""))
    if alike is not None:
        return alike
    # difflib is quadratic in the length of a name: enough names for real files, few enough to stay quick
    return most_alike(word[:40], names[:2000], cutoff=0.7)
