"""Which recipe a network is trained by: of the data set, by name, or from a TOML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from citrus_tool.choices.recipe import Recipe
from citrus_tool.errors import UsageError
from citrus_tool.training import recipes, trainer

RECIPE_OF_DATA: Mapping[str, str] = {
    "digits": "digits",
    "mnist": "mnist-cpu",
    "cifar10": "cifar10-2",
    "tinyimagenet": "tinyimagenet-1",
}
"""The recipe that `harden` takes for a data set when none is named; other data take mnist-cpu."""


def choose_recipe(
    dataset: str,
    *,
    name: str | None,
    eps: float,
    epochs: int | None,
    changes: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe called `name` for the wanted method, at `eps` (pixel space), stretched to `epochs`, fields replaced.

    Args:
        name: a recipe's name, a TOML file (recipes.read), `auto` (recipes.automatic), or None for RECIPE_OF_DATA's.
        changes: what the user asked for, by field; None asks for nothing.
        defaults: fields that a command sets where neither `changes` nor a TOML file does.

    Raises:
        UsageError: an unknown name or senseless values.
        InputFileError: the TOML file cannot be read.
    """
    changes = {field: value for field, value in changes.items() if value is not None}
    defaults = defaults or {}
    if name is not None and name.endswith(".toml"):
        recipe = recipes.read(Path(name), changes.get("method"), defaults)
        try:
            trainer.methods_of(recipe)
        except UsageError as error:
            raise UsageError(f"{name}: {error}" if "method" not in changes else str(error)) from None
    else:
        chosen = recipes.automatic(dataset, eps) if name == "auto" else name or RECIPE_OF_DATA.get(dataset, "mnist-cpu")
        named = recipes.named(chosen, changes.get("method", defaults.get("method")))
        recipe = dataclasses.replace(named, **{k: v for k, v in defaults.items() if k != "method"})
    if epochs is not None:
        recipe = recipe.with_epochs(epochs)
    return dataclasses.replace(recipe, eps=eps, **changes)


def require_no_teacher(recipe: Recipe) -> None:
    """Raises UsageError for a recipe that distils, where training begins with an untrained network."""
    if recipe.distil > 0:
        raise UsageError("distil needs a trained network to learn from; harden a file, or set distil = 0.")
