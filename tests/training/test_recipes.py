"""Recipes: every wrong value is one clear sentence; named ones hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from citrus_tool.choices.recipe import SABR_STEPS, Recipe, Taps, Uat
from citrus_tool.errors import InputFileError, UsageError
from citrus_tool.threat import parse_eps
from citrus_tool.training.methods import METHODS
from citrus_tool.training.recipes import RECIPES, automatic, named, read, to_toml

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
        ({"average": 1.5}, r"average is 1.5; it must lie in \[0, 1\]"),
        ({"tau_from": 1.5}, r"tau_from is 1.5; it must lie in \[0, 1\]; 0 holds tau_ratio throughout"),
        ({"pretrain": "sabr"}, "pretrain is 'sabr' and pretrain_epochs 0; give both, or neither"),
        ({"pretrain_epochs": 2}, "pretrain is '' and pretrain_epochs 2; give both, or neither"),
        ({"pretrain_epochs": -1}, "pretrain_epochs is -1; it must be a whole number >= 0"),
        (
            {"pretrain": "sabr", "pretrain_epochs": 30},
            "pretrain_epochs is 30; it must leave some of the 30 epochs to citrus",
        ),
        ({"pool": -1}, "pool is -1; it must be a whole number >= 0"),
        ({"distil": -0.1}, r"distil is -0.1; it must lie in \[0, inf\)"),
        ({"distil_temperature": 0.0}, r"distil_temperature is 0.0; it must lie in \(0, inf\)"),
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


def test_with_epochs_keeps_the_share_of_pretraining() -> None:
    recipe = dataclasses.replace(GOOD, epochs=100, pretrain="sabr", pretrain_epochs=90)
    assert (recipe.with_epochs(20).pretrain, recipe.with_epochs(20).pretrain_epochs) == ("sabr", 18)
    assert (recipe.with_epochs(3).pretrain, recipe.with_epochs(3).pretrain_epochs) == ("sabr", 2)
    assert (recipe.with_epochs(1).pretrain, recipe.with_epochs(1).pretrain_epochs) == ("", 0)


def test_with_epochs_refuses_none() -> None:
    with pytest.raises(UsageError, match="epochs is 0; it must be at least 1"):
        GOOD.with_epochs(0)


@pytest.mark.parametrize("name", RECIPES)
def test_methods_of_a_recipe(name: str) -> None:
    for method in METHODS:
        recipe = named(name, method)
        assert recipe.method == method
        changes = RECIPES[name].methods.get(method, {})
        assert all(getattr(recipe, field) == value for field, value in changes.items())
    assert set(RECIPES[name].methods) <= set(METHODS)


def test_published_recipes_are_those_of_the_table() -> None:
    """Every number of the table of recipes in the project's notes."""
    notes = Path(__file__).resolve().parents[2].parent / "shared" / "notes" / "training.md"
    if not notes.is_file():
        pytest.skip("needs ../shared/notes, which is absent")
    rows = {
        cells[0]: cells[1:]
        for cells in ([c.strip() for c in line.strip("|\n ").split("|")] for line in notes.read_text().splitlines())
        if len(cells) == 5 and "/ 1-" in cells[1]
    }
    names = {"MNIST .1": "mnist-0.1", "MNIST .3": "mnist-0.3", "CIFAR 2/255": "cifar10-2", "CIFAR 8/255": "cifar10-8"}
    for row, name in {**names, "TIN 1/255": "tinyimagenet-1"}.items():
        recipe = named(name)
        schedule, eps, tau, l1 = rows[row][0], *rows[row][1:4]
        epochs, ramp, milestones = (part.strip() for part in schedule.split(" / "))
        assert recipe.epochs == int(epochs.split("-")[0]), name
        assert (recipe.warmup_epochs, recipe.warmup_epochs + recipe.ramp_epochs) == tuple(
            int(n) for n in ramp.split("..")[0].split("-")
        ), name
        assert recipe.milestones == tuple(int(part.split("..")[0]) for part in milestones.split("..")[0].split(",")), (
            name
        )
        assert recipe.eps == pytest.approx(parse_eps(eps.split()[0]), rel=1e-12), name
        assert recipe.tau_ratio == float(tau.split()[0]), name
        low, high = tau.partition("(")[2].rstrip(")").split("-")
        assert float(low) <= recipe.tau_ratio <= float(high), name
        assert recipe.l1 == float(l1.split("..")[0]), name
        assert (recipe.lr, recipe.lr_decay, recipe.clip_norm) == (5e-4, 0.2, 10.0), name
        assert (recipe.pgd_steps, recipe.group_size, recipe.box_loss) == (20, 5, "sum"), name
    alphas = {"mnist-0.1": (0.01, 0.02), "mnist-0.3": (0.08, 0.5), "cifar10-2": (0.004, 0.01), "cifar10-8": (0.5, 0.6)}
    for name, (least, most) in {**alphas, "tinyimagenet-1": (0.01, 0.05)}.items():
        assert least <= named(name, "mtl-ibp").alpha <= most, name
    assert named("cifar10-2", "mtl-ibp").attack_ratio == 2.1
    assert 0.4 <= named("cifar10-2", "sabr").relu_shrink <= 0.8
    assert named("mnist-0.3", "sabr").pgd_steps == 8


@pytest.mark.parametrize(
    ("data", "eps", "name"),
    [
        ("mnist", 0.1, "mnist-0.1"),
        ("mnist", 0.25, "mnist-0.3"),
        ("cifar10", 2 / 255, "cifar10-2"),
        ("cifar10", 8 / 255, "cifar10-8"),
        ("tinyimagenet", 1 / 255, "tinyimagenet-1"),
        ("digits", 0.1, "digits"),
    ],
)
def test_automatic_choice(data: str, eps: float, name: str) -> None:
    assert automatic(data, eps) == name


def test_automatic_choice_of_nothing() -> None:
    with pytest.raises(UsageError, match=r"auto knows no recipe for mine at eps 0\.1; it has some for cifar10, digits"):
        automatic("mine", 0.1)


def test_a_recipe_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        'base = "mnist-0.1"\nlr = 1e-3\nmilestones = [40, 65]\n[taps]\nsteps = 3\n[pgd_step_size]\nfirst = 0.2\n'
    )
    recipe = read(path)
    base = named("mnist-0.1")
    expected = dataclasses.replace(
        base, lr=1e-3, milestones=(40, 65), taps=Taps(steps=3), pgd_step_size=dataclasses.replace(SABR_STEPS, first=0.2)
    )
    assert recipe == expected
    assert read(path, "mtl-ibp").alpha == named("mnist-0.1", "mtl-ibp").alpha


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("lr = ", InputFileError, r"r\.toml: is not TOML"),
        ("lr = 1e-3", UsageError, r"r\.toml: needs the recipe it changes; add base ="),
        ('base = "mnist"', UsageError, r"r\.toml: there is no recipe 'mnist'; recipes are"),
        ('base = "digits"\nlrr = 1', UsageError, r"r\.toml: lrr is no field of a recipe; did you mean lr\?"),
        ('base = "digits"\nzzzz = 1', UsageError, r"zzzz is no field of a recipe; fields are method, eps"),
        ('base = "digits"\nlr = -1', UsageError, r"r\.toml: lr is -1; it must lie in"),
        ('base = "digits"\ntaps = 3', UsageError, r"taps is 3; it must be a table with taps's fields"),
        ('base = "digits"\n[taps]\nstep = 3', UsageError, r"taps\.step is no field of a recipe; did you mean steps\?"),
        ('base = "digits"\nflip = "yes"', UsageError, r"flip is 'yes'; it must be of the kind of False"),
    ],
)
def test_errors_in_a_recipe_file(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read(path)


def test_a_recipe_file_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"none\.toml: cannot be read"):
        read(tmp_path / "none.toml")


def test_published_recipes_carry_the_papers_numbers() -> None:
    recipe = named("mnist-0.1")
    assert (recipe.eps, recipe.epochs, recipe.warmup_epochs, recipe.ramp_epochs) == (0.1, 70, 1, 20)
    assert (recipe.group_size, recipe.pgd_steps, recipe.lr, recipe.milestones) == (5, 20, 5e-4, (50, 60))
    assert recipe.box_loss == "sum"
    assert not recipe.same_input
    assert (named("cifar10-8").eps, named("cifar10-8").l1) == (8 / 255, 0.0)
    assert named("tinyimagenet-1").shi_lambda == 0.2


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_survives_its_file(tmp_path: Path, name: str, method: str) -> None:
    path = tmp_path / "r.toml"
    recipe = dataclasses.replace(
        named(name, method),
        alpha=0.123456789,
        flip=True,
        tau_from=1.0,
        uat=Uat(step=0.1),
        taps=Taps(steps=2, step_size=dataclasses.replace(SABR_STEPS, milestones=(0.25,))),
        init="shi",
        seed=3,
    )
    for base in ("mnist-cpu", "digits", "cifar10-8"):
        path.write_text(to_toml(recipe, base))
        assert read(path) == recipe


def test_what_a_file_says_wins_over_defaults_but_not_over_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('base = "mnist-0.1"\nmethod = "mtl-ibp"\ngroup_size = 7\n')
    defaults = {"method": "citrus", "init": "keep", "group_size": 5}
    recipe = read(path, None, defaults)
    assert (recipe.method, recipe.init, recipe.group_size) == ("mtl-ibp", "keep", 7)
    assert recipe.alpha == named("mnist-0.1", "mtl-ibp").alpha
    assert read(path).init == "shi"
    assert read(path, "sabr", defaults).method == "sabr"
    path.write_text('base = "mnist-0.1"\n')
    assert read(path, None, defaults).method == "citrus"
    path.write_text('base = "mnist-0.1"\nmethod = 3\n')
    with pytest.raises(UsageError, match="method is 3; it must be of the kind of 'citrus'"):
        read(path)
