"""What `tune` searches: ranges and values of a recipe's fields, the usual ones of a method, and --search in words."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from citrus_tool.choices.recipe import Recipe
from citrus_tool.errors import UsageError
from citrus_tool.names import meant

Scalar = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Range:
    """Every number from `low` to `high`, drawn by its logarithm when `log`; whole numbers only when `whole`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest number."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def nearest(self, value: float) -> float:
        """The number of the range that is nearest to `value`."""
        low, high = self.ends
        return min(max(value, low), high)


@dataclass(frozen=True, kw_only=True)
class Values:
    """Any of these values."""

    values: tuple[Scalar, ...]

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """All of them, since they have no order."""
        return self.values

    def nearest(self, value: Scalar) -> Scalar:
        """`value` where it is one of them, the first one otherwise."""
        return value if value in self.values else self.values[0]


Space = Mapping[str, Range | Values]
"""What is searched, by field of the recipe."""

_FIXED = ("method", "eps", "train_on", "seed")
_WITH_TAU = ("sabr", "staps", "citrus", "citrus-si", "kcp", "citrus-plus")
_MIXED = ("mtl-ibp", "cc-ibp", "exp-ibp", "citrus-plus")


def default_space(recipe: Recipe) -> Space:
    """What is searched for the recipe's method: the numbers that published work tunes, in the ranges that it reports.

    The learning rate up to three times either way; L1 from 1e-7 to 1e-4; the ramp from half to twice as long; tau / eps
    where boxes have their own radius, alpha and the attack's radius where an attack's loss is mixed in, ReLU shrinking
    for SABR and the number of boxes for citrus-plus.
    """
    space: dict[str, Range | Values] = {
        "lr": Range(low=recipe.lr / 3, high=recipe.lr * 3, log=True),
        "l1": Range(low=1e-7, high=1e-4, log=True),
    }
    if recipe.ramp_epochs > 0:
        most = min(2 * recipe.ramp_epochs, recipe.epochs - recipe.warmup_epochs - 1)
        space["ramp_epochs"] = Range(low=max(1, recipe.ramp_epochs // 2), high=most, whole=True)
    if recipe.method in _WITH_TAU:
        space["tau_ratio"] = Range(low=0.05, high=1.0)
    if recipe.method in _MIXED:
        space |= {"alpha": Range(low=0.005, high=1.0, log=True), "attack_ratio": Range(low=0.5, high=2.5)}
    if recipe.method == "sabr":
        space["relu_shrink"] = Range(low=0.4, high=1.0)
    if recipe.method == "citrus-plus":
        space["worst"] = Values(values=(0, 1, 2))
    return space


def dimension(text: str) -> tuple[str, Range | Values]:
    """A field and its values from `FIELD=LOW:HIGH`, `FIELD=LOW:HIGH:log` or `FIELD=A,B,C`.

    Raises UsageError: no such field, one that is not a single number or word, or values that are none.
    """
    name, equals, given = text.partition("=")
    example = "write FIELD=LOW:HIGH, FIELD=LOW:HIGH:log or FIELD=A,B,C"
    if not equals or not given:
        raise UsageError(f"--search {text!r} says no values; {example}.")
    kinds = {
        field.name: type(value)
        for field in dataclasses.fields(Recipe)
        if isinstance(value := field.default, Scalar) and field.name not in _FIXED
    } | {"tau_ratio": float, "epochs": int}
    if name not in kinds:
        hint = meant(name, kinds, "did you mean {}?", f"fields are {', '.join(kinds)}.")
        raise UsageError(f"--search {text!r}: {name!r} is no field that can be searched; {hint}")
    kind = kinds[name]
    try:
        if ":" not in given:
            return name, Values(values=tuple(_scalar(part, kind) for part in given.split(",")))
        low, high, *rest = given.split(":")
        found = Range(low=float(low), high=float(high), log=rest == ["log"], whole=kind is int)
    except ValueError:
        raise UsageError(f"--search {text!r}: {given!r} is not what {name} takes; {example}.") from None
    ordered = math.isfinite(found.low) and math.isfinite(found.high) and found.low < found.high
    if kind not in (int, float) or rest not in ([], ["log"]) or not ordered or (found.log and found.low <= 0):
        raise UsageError(f"--search {text!r}: {given!r} is no range of {name}; {example}, and a log range above 0.")
    return name, found


def _scalar(text: str, kind: type) -> Scalar:
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError
        return text == "true"
    value: Scalar = kind(text)
    return value


def with_fields(recipe: Recipe, fields: Mapping[str, Any]) -> Recipe:
    """The recipe with these fields; raises UsageError where they make none."""
    return dataclasses.replace(recipe, **fields)


def require_recipes(recipe: Recipe, space: Space) -> None:
    """Raises UsageError when an end of a dimension makes no recipe, all others being as they stand."""
    if not space:
        raise UsageError("nothing is searched; name a field with --search.")
    for name, values in space.items():
        for value in values.ends:
            try:
                with_fields(recipe, {name: value})
            except UsageError as error:
                raise UsageError(f"--search {name}: {value} makes no recipe: {error}") from None


def plain(space: Space) -> dict[str, Any]:
    """The space as JSON values."""
    return {name: json.loads(json.dumps(dataclasses.asdict(values))) for name, values in space.items()}
