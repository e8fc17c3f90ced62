"""Recipes: every wrong value is one clear sentence; named ones hold."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from citrus_tool.errors import UsageError
from citrus_tool.harden.methods import METHODS
from citrus_tool.harden.recipes import RECIPES, Recipe, Taps, Uat, named

GOOD = Recipe(eps=0.1, tau_ratio=0.4, epochs=30)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eps": -0.1}, r"eps is -0.1; it must lie in \[0, 1\]; it is in pixel space"),
        ({"eps": float("nan")}, r"eps is nan; it must lie in \[0, 1\]"),
        ({"tau_ratio": 0.0}, r"tau_ratio is 0.0; it must lie in \(0, 1\]"),
        ({"tau_ratio": 1.5}, r"tau_ratio is 1.5; it must lie in \(0, 1\]"),
        ({"group_size": 1}, "group_size is 1; it must be a whole number >= 2; a perturbation is shared"),
        ({"group_size": 2.5}, "group_size is 2.5; it must be a whole number"),
        ({"groups_per_batch": 0}, "groups_per_batch is 0; it must be a whole number >= 1"),
        ({"pgd_steps": -1}, "pgd_steps is -1; it must be a whole number >= 0"),
        ({"lr": 0.0}, r"lr is 0.0; it must lie in \(0, inf\)"),
        ({"l1": -1.0}, r"l1 is -1.0; it must lie in \[0, inf\)"),
        ({"clip_norm": float("inf")}, "clip_norm is inf; it must lie in"),
        ({"epochs": 21}, "1 warm-up and 20 ramp epochs leave none of 21 epochs at full eps; raise epochs"),
        ({"milestones": (25, 12)}, r"milestones are \(25, 12\); they must rise and lie between 1 and epochs - 1 = 29"),
        ({"milestones": (30,)}, r"milestones are \(30,\); they must rise"),
        ({"common": 1}, "common is 1; it must be a whole number >= 2; k = 2 is CITRUS"),
        ({"alpha": 1.5}, r"alpha is 1.5; it must lie in \[0, 1\]"),
        ({"relu_shrink": 0.0}, r"relu_shrink is 0.0; it must lie in \(0, 1\]"),
        ({"attack_ratio": 0.0}, r"attack_ratio is 0.0; it must lie in \(0, 10\]"),
        ({"box_loss": "max"}, "box_loss is 'max'; it must be one of sum, mean"),
        ({"init": "random"}, "init is 'random'; it must be one of keep, shi"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(GOOD, **values)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Taps, {"classifier_layers": 0}, r"taps.classifier_layers is 0; it must be a whole number >= 1"),
        (Taps, {"steps": -1}, r"taps.steps is -1; it must be a whole number >= 0"),
        (Taps, {"connector": 0.0}, r"taps.connector is 0.0; it must lie in \(0, 1\]"),
        (Taps, {"balance": 1.1}, r"taps.balance is 1.1; it must lie in \[0, 1\]"),
        (Uat, {"step": 0.0}, r"uat.step is 0.0; it must lie in \(0, 2\]"),
        (Uat, {"clip": 0.0}, r"uat.clip is 0.0; it must lie in \(0, inf\)"),
    ],
)
def test_a_wrong_value_of_a_method_is_named(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind(**values)


def test_unknown_recipe_lists_the_names() -> None:
    with pytest.raises(
        UsageError, match=r"there is no recipe 'mnist-01'; recipes are digits.*Did you mean 'mnist-0.1'\?"
    ):
        named("mnist-01")


@pytest.mark.parametrize("name", RECIPES)
def test_named_recipes_use_known_methods_and_survive_json(name: str) -> None:
    recipe = named(name)
    assert recipe.method in METHODS
    assert RECIPES[name].source
    assert json.loads(json.dumps(recipe.to_json())) == recipe.to_json()
    assert set(recipe.to_json()) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 50, 500])
def test_with_epochs_keeps_the_shares(name: str, epochs: int) -> None:
    recipe, changed = named(name), named(name).with_epochs(epochs)
    assert changed.epochs == epochs
    assert changed.ramp_epochs == pytest.approx(recipe.ramp_epochs * epochs / recipe.epochs, abs=1.0)
    if epochs >= 50:
        assert len(changed.milestones) == len(recipe.milestones)


def test_with_epochs_refuses_none() -> None:
    with pytest.raises(UsageError, match="epochs is 0; it must be at least 1"):
        GOOD.with_epochs(0)


def test_published_recipes_carry_the_papers_numbers() -> None:
    recipe = named("mnist-0.1")
    assert (recipe.eps, recipe.epochs, recipe.warmup_epochs, recipe.ramp_epochs) == (0.1, 70, 1, 20)
    assert (recipe.group_size, recipe.pgd_steps, recipe.lr, recipe.milestones) == (5, 20, 5e-4, (50, 60))
    assert recipe.box_loss == "sum"
    assert not recipe.same_input
    assert (named("cifar10-8").eps, named("cifar10-8").l1) == (8 / 255, 0.0)
    assert named("tinyimagenet-1").shi_lambda == 0.2
