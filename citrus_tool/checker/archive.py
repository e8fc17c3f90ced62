"""Reads zip files, JSON and .npy arrays that nobody vouches for: within limits, exactly, and without pickle.

Every failure is a CheckFailedError that names the member. What a zip file's directory says of a member's size is
checked before the member is read, and no more than that is decompressed.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from citrus_tool.checker.proof_format import refuse, require, shown

MEMBERS: Final = 2**20
"""Members of a zip file: more groups than any data set has inputs."""
JSON_BYTES: Final = 2**26
"""Bytes of a JSON text: some 100 times what a group of a thousand inputs needs."""
ARRAY_BYTES: Final = 2**31
"""Bytes of one array."""
TOTAL_BYTES: Final = 2**33
"""Bytes of all members of one zip file, decompressed."""
RATIO: Final = 1100
"""Decompressed bytes for each compressed one: deflate does not exceed 1032, so that more is a lie about sizes."""
DEPTH: Final = 16
"""Brackets inside brackets of a JSON text; the schema needs 5."""
DIGITS: Final = 20
"""Digits of a whole number; the schema's largest has 10."""
HEADER: Final = re.compile(
    rb"\{'descr': '([<|][a-z]\d)', 'fortran_order': False, 'shape': \((|\d{1,10},|\d{1,10}(?:, \d{1,10})+)\), \} *\n"
)
"""What numpy writes in front of an array (version 1.0 of the .npy format)."""
NPY: Final = b"\x93NUMPY\x01\x00"

_ZIP_ERRORS: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error)
"""What Python's zipfile raises for damaged files (NotImplementedError is a RuntimeError)."""


class Archive:
    """The members of a zip file, by name.  where: what messages call the file.

    compressed: whether members may be deflated; otherwise they are stored as they are.

    Raises CheckFailedError for a damaged file, a name that is there twice, encryption, another compression, and for
    members, or all together, beyond the limits; zipfile.BadZipFile for no zip file.
    """

    def __init__(self, file: IO[bytes], where: str, *, compressed: bool) -> None:
        self.where = where
        try:
            self._file = zipfile.ZipFile(file)
        except zipfile.BadZipFile:
            raise
        except _ZIP_ERRORS as error:
            raise zipfile.BadZipFile(str(error)) from None
        members = self._file.infolist()
        require(len(members) <= MEMBERS, where, f"has {len(members)} members, more than {MEMBERS}")
        self._members = {member.filename: member for member in members}
        require(len(self._members) == len(members), where, "has two members of one name")
        total = 0
        for member in members:
            kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if compressed else (zipfile.ZIP_STORED,)
            plain = member.compress_type in kinds and not member.flag_bits & 1
            require(plain, self._named(member.filename), "is encrypted, or not compressed as a proof's members are")
            most = member.compress_size * (RATIO if member.compress_type == zipfile.ZIP_DEFLATED else 1)
            require(member.file_size <= most, self._named(member.filename), "says that it is larger than it can be")
            total += member.file_size
        require(total <= TOTAL_BYTES, where, f"holds {total} bytes, more than {TOTAL_BYTES}")

    def _named(self, name: str) -> str:
        return f"{self.where}, member {shown(name)}"

    @property
    def names(self) -> set[str]:
        """Of all members."""
        return set(self._members)

    def require_names(self, wanted: Sequence[str]) -> None:
        """Raises CheckFailedError unless these are the members."""
        missing, others = sorted(set(wanted) - self.names), sorted(self.names - set(wanted))
        require(not missing, self.where, f"has no member {shown(missing[0]) if missing else ''}")
        require(not others, self.where, f"has a member {shown(others[0]) if others else ''} that no proof has there")

    def read(self, name: str, limit: int = TOTAL_BYTES) -> bytes:
        """A member, of at most `limit` bytes."""
        require(name in self._members, self.where, f"has no member {shown(name)}")
        member = self._members[name]
        require(member.file_size <= limit, self._named(name), f"has {member.file_size} bytes, more than {limit}")
        try:
            with self._file.open(member) as file:
                content = file.read(member.file_size)
                more = file.read(1)
        except _ZIP_ERRORS:
            content, more = b"", b"damaged"
        require(not more and len(content) == member.file_size, self._named(name), "is damaged")
        return content


def parse_json(content: bytes, where: str) -> Any:
    """A JSON text (UTF-8) as Python values; refuses what is nested too deep, huge numbers, NaN, and keys twice."""
    bare = np.frombuffer(re.sub(rb'"(?:[^"\\]|\\.)*"', b"", content, flags=re.DOTALL), dtype=np.uint8)
    steps = np.isin(bare, list(b"[{")).astype(np.int64) - np.isin(bare, list(b"]}"))
    require(not len(steps) or int(np.cumsum(steps).max()) <= DEPTH, where, "is nested too deep")

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        require(len(found) == len(pairs), where, f"has a key twice among {shown([key for key, _ in pairs])}")
        return found

    def whole(text: str) -> int:
        require(len(text) <= DIGITS, where, "has a huge number")
        return int(text)

    def real(text: str) -> float:
        value = float(text)
        require(math.isfinite(value), where, f"has the number {shown(text)}")
        return value

    try:
        return json.loads(
            content.decode(), object_pairs_hook=once, parse_int=whole, parse_float=real, parse_constant=real
        )
    except ValueError:
        refuse(where, "is no JSON text")


def parse_array(content: bytes, dtype: str, where: str) -> NDArray[Any]:
    """An .npy array (of any shape) of the type `dtype` ("<f4"), as numpy writes it: version 1.0, rows first."""
    start = 10 + int.from_bytes(content[8:10], "little")
    header = HEADER.fullmatch(content[10:start])
    if content[:8] != NPY or len(content) < start or header is None:
        refuse(where, "is no array as numpy writes it")
    require(header[1].decode() == dtype, where, f"has the type {shown(header[1].decode())}, not {dtype}")
    shape = tuple(int(axis) for axis in header[2].split(b",") if axis)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    require(len(content) == start + size, where, f"has {len(content) - start} bytes for the shape {shown(shape)}")
    return np.frombuffer(content, dtype=dtype, offset=start).reshape(shape)
