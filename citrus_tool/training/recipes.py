"""Named recipes with their sources, and recipes as TOML files; the record itself is `choices.recipe.Recipe`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from citrus_tool.choices.recipe import Recipe, StepSchedule, Taps, Uat
from citrus_tool.errors import UsageError
from citrus_tool.files import read_toml
from citrus_tool.names import meant


@dataclass(frozen=True, kw_only=True)
class NamedRecipe:
    """A recipe and where its numbers come from.

    Attributes:
        data: the data set it is for; None: any.
        methods: what a method replaces in it, by method and field.
    """

    recipe: Recipe
    source: str
    notes: str = field(default="")
    data: str | None = None
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_SCRATCH = Recipe(eps=0.1, tau_ratio=0.4, epochs=70, milestones=(50, 60), l1=1e-5, init="shi")
_CIFAR = dataclasses.replace(
    _SCRATCH,
    eps=2 / 255,
    tau_ratio=0.1,
    epochs=160,
    ramp_epochs=80,
    milestones=(120, 140),
    l1=1e-6,
    flip=True,
    crop_padding=2,
    validate_every=10,
)
_PAPER = (
    "CITRUS, appendix C (group size 5, 20 PGD steps, SABR's tau); schedule of Mueller et al. 2022 (SABR), appendix C;"
    " ReLU shrinking ibid.; alpha and attack radius of De Palma et al. 2023 (expressive losses), appendix"
)


def _expressive(alpha: float, **changes: float) -> dict[str, Mapping[str, Any]]:
    """One alpha for the three expressive losses, which attack with 8 steps as SABR does."""
    return {name: {"alpha": alpha, "pgd_steps": 8, **changes} for name in ("mtl-ibp", "cc-ibp", "exp-ibp")}


_SABR = {"pgd_steps": 8}
_PLAIN = {"init": "keep", "shi_lambda": 0.0, "l1": 0.0, "ramp_epochs": 0, "warmup_epochs": 0}
"""Adversarial training needs neither the initialisation and regularisers of certified training nor its ramp."""
_ADVERSARIAL: dict[str, Mapping[str, Any]] = {"pgd": _PLAIN | _SABR, "uat": _PLAIN, "cw-uat": _PLAIN}

RECIPES: Mapping[str, NamedRecipe] = {
    "digits": NamedRecipe(
        recipe=Recipe(
            eps=0.11,
            tau_ratio=0.85,
            epochs=100,
            warmup_epochs=0,
            ramp_epochs=33,
            milestones=(75, 92),
            lr=8e-3,
            groups_per_batch=24,
            l1=1e-5,
            pgd_steps=3,
            certified_inputs=200,
            validate_every=5,
        ),
        source="this project: scikit-learn's digits on two CPU cores, from the network's own weights",
        notes="chosen on the validation split for convtiny at eps .11",
        data="digits",
    ),
    "mnist-cpu": NamedRecipe(
        recipe=Recipe(
            eps=0.1,
            tau_ratio=0.5,
            epochs=42,
            warmup_epochs=1,
            ramp_epochs=9,
            milestones=(26, 36),
            lr=1.5e-3,
            groups_per_batch=25,
            l1=1e-5,
            pgd_steps=5,
        ),
        source="this project: mnist-0.1 cut to half an hour of two CPU cores, with larger steps and boxes and a shorter"
        " attack; best with --init shi",
    ),
    "mnist-0.1": NamedRecipe(
        recipe=_SCRATCH,
        source=_PAPER,
        notes="tau/eps searched in .2 to .6; also eps .2",
        data="mnist",
        methods={"sabr": _SABR, **_expressive(0.02), **_ADVERSARIAL},
    ),
    "mnist-0.3": NamedRecipe(
        recipe=dataclasses.replace(_SCRATCH, eps=0.3, tau_ratio=0.6, l1=1e-6),
        source=_PAPER,
        notes="tau/eps searched in .6 to .9; alpha in .08 to .5",
        data="mnist",
        methods={"sabr": _SABR, **_expressive(0.3), **_ADVERSARIAL},
    ),
    "cifar10-2": NamedRecipe(
        recipe=_CIFAR,
        source=_PAPER,
        data="cifar10",
        notes="tau/eps searched in .01 to .1, ReLU shrinking in .4 to .8; also eps 3/255; attack radius 2.1 eps",
        methods={
            "sabr": {**_SABR, "relu_shrink": 0.8},
            **_expressive(0.01, attack_ratio=2.1),
            **_ADVERSARIAL,
        },
    ),
    "cifar10-8": NamedRecipe(
        recipe=dataclasses.replace(_CIFAR, eps=8 / 255, tau_ratio=0.7, epochs=180, milestones=(140, 160), l1=0.0),
        source=_PAPER,
        notes="tau/eps searched in .5 to .9; up to 240 epochs with a ramp of 120",
        data="cifar10",
        methods={"sabr": _SABR, **_expressive(0.5), **_ADVERSARIAL},
    ),
    "tinyimagenet-1": NamedRecipe(
        recipe=dataclasses.replace(_CIFAR, eps=1 / 255, tau_ratio=0.4, shi_lambda=0.2, crop_padding=4),
        source=_PAPER,
        notes="tau/eps searched in .1 to .4; L1 1e-6 to 5e-5; alpha .01 to .05",
        data="tinyimagenet",
        methods={"sabr": _SABR, **_expressive(0.02), **_ADVERSARIAL},
    ),
    "standard": NamedRecipe(
        recipe=Recipe(
            method="standard",
            eps=0.0,
            tau_ratio=1.0,
            epochs=40,
            warmup_epochs=0,
            ramp_epochs=0,
            milestones=(28, 36),
            groups_per_batch=10,
            lr=1e-3,
            shi_lambda=0.0,
            certified_inputs=0,
        ),
        source="this project: plain training of a small network from scratch or from a file",
    ),
}
"""Recipes by name."""


def named(name: str, method: str | None = None) -> Recipe:
    """The recipe of that name, for a method where one is given; raises UsageError that lists the names."""
    if name not in RECIPES:
        hint = meant(name, RECIPES, " Did you mean {!r}?")
        raise UsageError(f"there is no recipe {name!r}; recipes are {', '.join(RECIPES)}.{hint}")
    entry = RECIPES[name]
    if method is None:
        return entry.recipe
    return dataclasses.replace(entry.recipe, method=method, **entry.methods.get(method, {}))


def automatic(data: str, eps: float) -> str:
    """The name of the published recipe for a data set whose eps (pixel space) is nearest by ratio.

    Raises UsageError without one.
    """
    fitting = {name: entry.recipe.eps for name, entry in RECIPES.items() if entry.data == data}
    if not fitting or eps <= 0:
        known = ", ".join(sorted({entry.data for entry in RECIPES.values() if entry.data}))
        raise UsageError(f"--recipe auto knows no recipe for {data} at eps {eps:g}; it has some for {known}: name one.")
    return min(fitting, key=lambda name: abs(math.log(eps / fitting[name])))


def read(path: Path, method: str | None = None, defaults: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from a TOML file: `base` names the recipe it changes, every other entry is a field; tables are nested.

    Args:
        method: the method, where another one than the file's is wanted.
        defaults: fields that replace the base's where the file does not set them.

    Raises:
        InputFileError: the file cannot be read or is not TOML.
        UsageError: it has no base, an unknown field or a value that makes no sense; names file and field.
    """
    entries = read_toml(path)
    base = entries.pop("base", None)
    if not isinstance(base, str):
        raise UsageError(f'{path}: needs the recipe it changes; add base = "mnist-0.1", or another of the recipes.')
    defaults = defaults or {}
    try:
        own = entries.pop("method", None)
        if own is not None and not isinstance(own, str):
            raise UsageError(f"method is {own!r}; it must be of the kind of 'citrus'.")
        recipe = named(base, method or own or defaults.get("method"))
        kept = {name: value for name, value in defaults.items() if name != "method" and name not in entries}
        return _changed(recipe, {**kept, **entries})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def to_toml(recipe: Recipe, base: str = "mnist-cpu") -> str:
    """The text that `read` makes the recipe of: what differs from the named recipe `base`, tables last."""
    plain, basis = recipe.to_json(), named(base, recipe.method).to_json()
    lines = [f"base = {json.dumps(base)}", f"method = {json.dumps(recipe.method)}"]
    changed = {name: value for name, value in plain.items() if value != basis[name]}
    lines += [f"{name} = {_toml(value)}" for name, value in changed.items() if not isinstance(value, dict)]
    for name, table in changed.items():
        if isinstance(table, dict):
            lines += _table(name, table)
    return "\n".join(lines) + "\n"


def _table(name: str, table: Mapping[str, Any]) -> list[str]:
    lines = ["", f"[{name}]", *(f"{k} = {_toml(v)}" for k, v in table.items() if not isinstance(v, dict))]
    for inner, value in table.items():
        lines += _table(f"{name}.{inner}", value) if isinstance(value, dict) else []
    return lines


def _toml(value: Any) -> str:
    """A string, truth value, number or list of these as TOML; JSON writes all but infinity alike."""
    return repr(value) if isinstance(value, float) else json.dumps(value)


T = TypeVar("T", bound=Recipe | Taps | Uat | StepSchedule)


def _changed(record: T, entries: Mapping[str, Any], prefix: str = "") -> T:
    """`record` with its fields replaced by TOML entries, tables inside it alike."""
    known = {entry.name: getattr(record, entry.name) for entry in dataclasses.fields(record)}
    changes: dict[str, Any] = {}
    for name, value in entries.items():
        if name not in known:
            hint = meant(name, known, "did you mean {}?", f"fields are {', '.join(known)}.")
            raise UsageError(f"{prefix}{name} is no field of a recipe; {hint}")
        old = known[name]
        if isinstance(old, Recipe | Taps | Uat | StepSchedule):
            if not isinstance(value, dict):
                raise UsageError(f"{prefix}{name} is {value!r}; it must be a table with {name}'s fields.")
            changes[name] = _changed(old, value, f"{prefix}{name}.")
        elif isinstance(old, bool) != isinstance(value, bool) or isinstance(old, str) != isinstance(value, str):
            raise UsageError(f"{prefix}{name} is {value!r}; it must be of the kind of {old!r}.")
        else:
            changes[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(record, **changes)
