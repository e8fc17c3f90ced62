"""Results as JSON values and back, both derived from the fields of their dataclass: a new field is one line there.

A field is written under its name, in the order of the fields, and read by its type. `about` says where a field differs:
other names, values that are stated beside it, arrays that are packed. What cannot have been written is an
InputFileError that names file and field.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from citrus_tool.errors import CitrusError, InputFileError

T = TypeVar("T")
_KEY: Final = "record"
"""Where a field's metadata holds its About."""
_WORDS: Final[Mapping[type, str]] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_OBJECT, _LIST = "an object", "a list"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where JSON values stand, and what to do about wrong ones: both belong to the sentence of an error."""

    where: str
    remedy: str = "; make the result again."

    def wrong(self, what: str) -> InputFileError:
        """The error for something wrong here."""
        return InputFileError(f"{self.where}: {what}" if self.where else what)

    def inside(self, name: str) -> Place:
        """A part of it."""
        return dataclasses.replace(self, where=f"{self.where}: {name}" if self.where else name)


@dataclass(frozen=True, kw_only=True)
class About:
    """How a field differs from being written under its name and read by its type.

    Attributes:
        key: its name in JSON.
        stated: properties of the record that are written in front of it; they follow from fields and are not read.
        written: whether it is; where it is not, it is read if it is there.
        flat: the fields of the record that it holds stand among those of this one.
        sign: the name without which a flat record is None.
        absent: not written where it is None.
        write, read: in place of what its type says; `read` gets the value, its name and its place.
    """

    key: str = ""
    stated: tuple[str, ...] = ()
    written: bool = True
    flat: bool = False
    sign: str = ""
    absent: bool = False
    write: Callable[[Any], Any] | None = None
    read: Callable[[Any, str, Place], Any] | None = None


def about(*, default: Any = dataclasses.MISSING, default_factory: Any = dataclasses.MISSING, **known: Any) -> Any:
    """A field of a record; `known` are fields of About, or `compare` and `repr` of the dataclass field."""
    own = {name: known.pop(name) for name in ("compare", "repr") if name in known}
    return dataclasses.field(default=default, default_factory=default_factory, metadata={_KEY: About(**known)}, **own)


def _about(field: dataclasses.Field[Any]) -> About:
    found: About = field.metadata.get(_KEY, About())
    return found


def to_json(record: Any) -> dict[str, Any]:
    """The record's fields as JSON values, in their order."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        known, value = _about(field), getattr(record, field.name)
        found |= {name: plain(getattr(record, name)) for name in known.stated}
        if known.flat:
            found |= {} if value is None else to_json(value)
        elif known.written and not (known.absent and value is None):
            found[known.key or field.name] = plain(value) if known.write is None else known.write(value)
    return found


class JsonRecord:
    """A result that is written as its fields say."""

    def to_json(self) -> dict[str, Any]:
        """Every field as JSON values, in their order."""
        return to_json(self)


def plain(value: Any) -> Any:
    """A value of a record as JSON values."""
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, Mapping):
        return {str(plain(name)): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value.value if isinstance(value, Enum) else str(value) if isinstance(value, Path) else value


def from_json(kind: type[T], content: Any, place: Place, **given: Any) -> T:
    """The record that `to_json` wrote; `given` are fields that are known otherwise.

    A field whose default is empty or None may be missing. Names that the record does not know are passed over.

    Raises InputFileError for what cannot have been written, and whatever the record itself refuses, with its place.
    """
    if not isinstance(content, Mapping):
        raise place.wrong(f"is {type(content).__name__}, not an object{place.remedy}")
    hints, found = _hints(kind), dict(given)  # type: ignore[arg-type]
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        known, name = _about(field), _about(field).key or field.name
        if field.name in given:
            continue
        if known.flat:
            if not known.sign or known.sign in content:
                found[field.name] = from_json(_optional(hints[field.name])[0], content, place)
        elif name in content:
            read = known.read or functools.partial(_value, hints[field.name])
            found[field.name] = read(content[name], name, place)
        elif field.default if field.default_factory is dataclasses.MISSING else False:  # MISSING is true
            raise place.wrong(f"{name} is missing{place.remedy}")
    try:
        return kind(**found)
    except CitrusError as error:
        raise type(error)(f"{place.where}: {error}" if place.where else str(error)) from None


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _optional(kind: Any) -> tuple[Any, bool]:
    """The type without its None, and whether it had one."""
    if get_origin(kind) in (Union, types.UnionType) and types.NoneType in get_args(kind):
        rest = [one for one in get_args(kind) if one is not types.NoneType]
        return (rest[0] if len(rest) == 1 else Union[tuple(rest)]), True  # noqa: UP007 (made at run time)
    return kind, False


def _value(kind: Any, value: Any, name: str, place: Place) -> Any:
    """A value by its type."""
    kind, optional = _optional(kind)
    if optional and value is None:
        return None
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if kind is Any or origin in (Union, types.UnionType):
        return value
    if dataclasses.is_dataclass(kind):
        return from_json(kind, value, place.inside(name))  # type: ignore[arg-type]
    if origin is Literal:
        if value not in inner:
            raise _misfit(value, name, f"one of {', '.join(map(str, inner))}", place)
        return value
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list):
            raise _misfit(value, name, _LIST, place)
        kinds = [inner[0]] * len(value) if origin is not tuple or inner[1:] == (...,) else list(inner)
        if len(kinds) != len(value):
            raise _misfit(value, name, f"a list of {len(kinds)}", place)
        read = [
            _value(one, entry, f"{name}[{n}]", place) for n, (one, entry) in enumerate(zip(kinds, value, strict=True))
        ]
        return read if origin is list else tuple(read)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _misfit(value, name, _OBJECT, place)
        return {str(key): _value(inner[1], entry, str(key), place.inside(name)) for key, entry in value.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError as error:
            raise place.wrong(str(error)) from None
    return Path(_scalar(str, value, name, place)) if kind is Path else _scalar(kind, value, name, place)


def _scalar(kind: Any, value: Any, name: str, place: Place) -> Any:
    """Text, a flag, a whole number of at least 0, or a finite number."""
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise _misfit(value, name, _WORDS[kind], place)
    if kind is int and value < 0:
        raise place.wrong(f"{name} is {value}; it must be at least 0.")
    if kind is float and not math.isfinite(value):
        raise place.wrong(f"{name} is {value}; it must be finite.")
    return kind(value)


def value_of(kind: type[T], content: Mapping[str, Any], name: str, place: Place) -> T:
    """One value of an object that is no record: of text, a number, a flag, or a type of these."""
    if name not in content:
        raise place.wrong(f"{name} is missing{place.remedy}")
    found: T = _value(kind, content[name], name, place)
    return found


def _misfit(value: Any, name: str, words: str, place: Place) -> InputFileError:
    return place.wrong(f"{name} is {json.dumps(value)[:40]}, not {words}{place.remedy}")
