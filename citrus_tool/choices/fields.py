"""What a field of a settings class knows beside its type and default: which values it takes, and its `--help`.

The check of a value and its option on the command line are both derived from here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from citrus_tool.errors import UsageError

T = TypeVar("T")
_KEY = "citrus"
"""Where a field's metadata holds its Option."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which values are allowed: one of `words`, or a finite number from `low` to `high`.

    Attributes:
        demand: what a wrong value is answered with, after its name and value.
        open_low: `low` itself is not allowed.  whole: whole numbers only.
    """

    demand: str
    words: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    whole: bool = False

    def allows(self, value: Any) -> bool:
        """Whether a field may have this value."""
        if self.words:
            return value in self.words
        if not isinstance(value, int if self.whole else int | float) or not math.isfinite(value):
            return False
        return bool(self.low <= value <= self.high) and not (self.open_low and value == self.low)


@dataclass(frozen=True, kw_only=True)
class Option:
    """A field as an option of the command line.

    Attributes:
        rule: which values it takes; None: all of its type.
        help: its line of `--help`; empty: the command line has no such option.
        parameter: its name on the command line, where that is another one than the field's.
        unset: what is shown where the default is None.
    """

    rule: Rule | None = None
    help: str = ""
    parameter: str = ""
    metavar: str | None = None
    unset: str = ""


def one_of(words: Sequence[str], demand: str = "choose one of {}.") -> Rule:
    """One of these words; `demand` gets their list."""
    return Rule(words=tuple(words), demand=demand.format(", ".join(words)))


def option(default: T, **about: Any) -> T:
    """A field with this default; `about` are fields of Option."""
    field: T = dataclasses.field(default=default, metadata={_KEY: Option(**about)})
    return field


def needed(**about: Any) -> Any:
    """A field without a default."""
    return dataclasses.field(metadata={_KEY: Option(**about)})


def like(settings: type[Any], name: str, **changes: Any) -> Any:
    """A field that is one of another class's, flag and default included; `changes` are of its default and Option."""
    other = next(field for field in dataclasses.fields(settings) if field.name == name)
    default = changes.pop("default", other.default)
    known = dataclasses.replace(about(other), **{"parameter": parameter(other), **changes})
    return dataclasses.field(default=default, metadata={_KEY: known})


def about(field: dataclasses.Field[Any]) -> Option:
    """What is known of a field."""
    known: Option = field.metadata.get(_KEY, Option())
    return known


def parameter(field: dataclasses.Field[Any]) -> str:
    """The name of a field's parameter on the command line."""
    return about(field).parameter or field.name


def check(settings: Any, prefix: str = "") -> None:
    """Raises UsageError for the first field, in their order, that its rule does not allow; None may be a default."""
    for field in dataclasses.fields(settings):
        value, rule = getattr(settings, field.name), about(field).rule
        if rule is None or (value is None and field.default is None) or rule.allows(value):
            continue
        raise UsageError(f"{prefix}{field.name} is {value!r}; {rule.demand}")
