"""Recipes: every number of a training run in one frozen record, and named ones with their sources."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from citrus_tool.attacks.pgd import SABR_STEPS, StepSchedule
from citrus_tool.errors import InputFileError, UsageError


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False, hint: str = "") -> None:
    inside = isinstance(value, int | float) and math.isfinite(value) and low <= value <= high
    if not inside or (open_low and value == low):
        left = "(" if open_low else "["
        right = f"{high:g}]" if math.isfinite(high) else "inf)"
        raise UsageError(f"{name} is {value!r}; it must lie in {left}{low:g}, {right}{'; ' + hint if hint else ''}.")


def _at_least(name: str, value: int, low: int, *, hint: str = "") -> None:
    if not isinstance(value, int) or value < low:
        raise UsageError(f"{name} is {value!r}; it must be a whole number >= {low}{'; ' + hint if hint else ''}.")


@dataclass(frozen=True, kw_only=True)
class Taps:
    """What TAPS and STAPS do in the latent space.

    Attributes:
        classifier_layers: weight layers of the part that is attacked; boxes are propagated through the others.
        steps: PGD steps in the latent box, for every wrong label apart.  step_size: in units of its half widths.
        connector: c of the rectified linear gradient connector (Mao et al. 2023, section 3.3).
        balance: alpha of the two gradients of the product of losses (section 3.4); .5 is the plain product rule.
    """

    classifier_layers: int = 2
    steps: int = 20
    step_size: StepSchedule = SABR_STEPS
    connector: float = 0.5
    balance: float = 0.5

    def __post_init__(self) -> None:
        _at_least("taps.classifier_layers", self.classifier_layers, 1)
        _at_least("taps.steps", self.steps, 0)
        _within("taps.connector", self.connector, 0.0, 1.0, open_low=True)
        _within("taps.balance", self.balance, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Uat:
    """What UAT and CW-UAT do with their persistent perturbation.

    Attributes:
        step: size of the signed step that follows every batch, in units of eps.
        clip: beta, what one input's loss may add at most to the perturbation's objective.
    """

    step: float = 0.25
    clip: float = 9.0

    def __post_init__(self) -> None:
        _within("uat.step", self.step, 0.0, 2.0, open_low=True)
        _within("uat.clip", self.clip, 0.0, math.inf, open_low=True)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run. Epochs are counted from 0: warm-up (eps 0, natural), then the ramp of eps, then full eps.

    Attributes:
        method: a name in methods.METHODS.
        eps: the perturbation radius to be robust against at the end, pixel space.
        tau_ratio: tau / eps; 1 makes every box B(x_i, eps).
        tau_from: tau / eps at the end of the warm-up, from where it goes linearly to `tau_ratio` at the first milestone
            (without one: at the run's end); 0: tau_ratio throughout.
        group_size: k, inputs that share perturbations.  groups_per_batch: groups in one optimiser step.
        epochs, warmup_epochs, ramp_epochs: warm-up and ramp are part of `epochs`.
        milestones: epochs at whose start the learning rate is multiplied by `lr_decay`.
        pretrain, pretrain_epochs: another method that takes the first `pretrain_epochs` of `epochs`, by the same
            schedule and numbers; `method` trains on from there. Empty and 0: none.
        l1: factor of the L1 norm of conv and linear weights; multiplied by the number of boxes of an input when
            `box_loss` is "sum", so that "sum" and "mean" regularise alike.
        clip_norm: largest gradient norm.
        average: decay of the weights' exponential moving average, which is then what is judged and kept; 0: none.
        pgd_steps, pgd_step_size: the attack; `pgd_bfloat16` runs it in bfloat16 (its points stay in the same ball).
        attack_ratio: radius of the attack over eps in the methods that mix an attack's loss with a bound's.
        alpha: weight of the bound's part in that mixture (mtl-ibp, cc-ibp, exp-ibp, citrus-plus).
        common: k of the k-CP losses (kcp): a box stands at a perturbation that k - 1 other inputs have in common.
        worst: how many boxes an input gets in citrus-plus, those with the largest concrete losses; 0: all.
        pool: how many universal perturbations citrus-plus carries from batch to batch, as one further centre for every
            input; they move as UAT's do (uat.step, uat.clip).
        distil, distil_temperature: weight of the divergence from the given network's own answers, of any method
            (distil.py), and its temperature; the network must have been trained.
        relu_shrink: factor of the upper bounds of unstable ReLUs (sabr); 1 leaves boxes as they are.
        taps, uat: what these methods need besides.
        shi_lambda, shi_tolerance: Shi et al.'s regularisers during warm-up and ramp; 0 switches them off.
        same_input: CITRUS + SI.  box_loss: sum over an input's boxes (the paper) or their mean.
        init: "keep" trains on from the network's weights, "shi" draws new ones (shi.initialise).
        flip, crop_padding: random mirroring and random crops of the edge-padded image.
        certified_inputs: inputs of the validation split that choose the epoch by certified accuracy.
        validate_every: epochs at full eps between two validations; the last epoch is always validated.
        train_on: "train" keeps the validation split apart, to choose the epoch; "all" trains on it too, for when the
            recipe has been chosen: nothing is validated then, and the last epoch is kept.

    Raises:
        UsageError: a value makes no sense; the message names the field.
    """

    method: str = "citrus"
    eps: float
    tau_ratio: float
    tau_from: float = 0.0
    group_size: int = 5
    groups_per_batch: int = 50
    epochs: int
    warmup_epochs: int = 1
    ramp_epochs: int = 20
    milestones: tuple[int, ...] = ()
    pretrain: str = ""
    pretrain_epochs: int = 0
    lr: float = 5e-4
    lr_decay: float = 0.2
    l1: float = 0.0
    clip_norm: float = 10.0
    average: float = 0.0
    pgd_steps: int = 20
    pgd_step_size: StepSchedule = SABR_STEPS
    pgd_bfloat16: bool = False
    attack_ratio: float = 1.0
    alpha: float = 0.5
    worst: int = 0
    pool: int = 0
    distil: float = 0.0
    distil_temperature: float = 1.0
    common: int = 2
    relu_shrink: float = 1.0
    taps: Taps = Taps()
    uat: Uat = Uat()
    shi_lambda: float = 0.5
    shi_tolerance: float = 0.5
    same_input: bool = False
    box_loss: Literal["sum", "mean"] = "sum"
    init: Literal["keep", "shi"] = "keep"
    flip: bool = False
    crop_padding: int = 0
    certified_inputs: int = 500
    validate_every: int = 1
    train_on: Literal["train", "all"] = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        _within("eps", self.eps, 0.0, 1.0, hint="it is in pixel space [0, 1], e.g. 0.1 or 2/255")
        _within("tau_ratio", self.tau_ratio, 0.0, 1.0, open_low=True)
        _within("tau_from", self.tau_from, 0.0, 1.0, hint="0 holds tau_ratio throughout")
        _within("average", self.average, 0.0, 1.0)
        for name in ("alpha", "relu_shrink"):
            _within(name, getattr(self, name), 0.0, 1.0, open_low=name == "relu_shrink")
        _within("attack_ratio", self.attack_ratio, 0.0, 10.0, open_low=True)
        _within("lr_decay", self.lr_decay, 0.0, 1.0, open_low=True)
        for name in ("lr", "clip_norm", "distil_temperature"):
            _within(name, getattr(self, name), 0.0, math.inf, open_low=True)
        for name in ("l1", "shi_lambda", "distil"):
            _within(name, getattr(self, name), 0.0, math.inf)
        _within("shi_tolerance", self.shi_tolerance, 0.0, 1.0, open_low=True)
        _at_least("group_size", self.group_size, 2, hint="a perturbation is shared by at least two inputs")
        _at_least("common", self.common, 2, hint="k = 2 is CITRUS")
        for name in ("groups_per_batch", "epochs", "validate_every"):
            _at_least(name, getattr(self, name), 1)
        natural = ("warmup_epochs", "ramp_epochs", "pgd_steps", "crop_padding", "certified_inputs", "worst", "pool")
        for name in (*natural, "seed", "pretrain_epochs"):
            _at_least(name, getattr(self, name), 0)
        if bool(self.pretrain) != bool(self.pretrain_epochs):
            raise UsageError(
                f"pretrain is {self.pretrain!r} and pretrain_epochs {self.pretrain_epochs}; give both, or neither."
            )
        if self.pretrain_epochs >= self.epochs:
            raise UsageError(
                f"pretrain_epochs is {self.pretrain_epochs}; it must leave some of the {self.epochs} epochs to"
                f" {self.method}."
            )
        if self.warmup_epochs + self.ramp_epochs >= self.epochs and self.eps > 0.0:
            raise UsageError(
                f"{self.warmup_epochs} warm-up and {self.ramp_epochs} ramp epochs leave none of {self.epochs} epochs at"
                " full eps; raise epochs, or lower warmup_epochs or ramp_epochs."
            )
        rising = list(self.milestones) == sorted(set(self.milestones))
        if not rising or any(not 0 < m < self.epochs for m in self.milestones):
            raise UsageError(
                f"milestones are {self.milestones};"
                f" they must rise and lie between 1 and epochs - 1 = {self.epochs - 1}."
            )
        choices = {"box_loss": ("sum", "mean"), "init": ("keep", "shi"), "train_on": ("train", "all")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}.")

    @property
    def batch_size(self) -> int:
        """Inputs in one optimiser step."""
        return self.group_size * self.groups_per_batch

    @property
    def pgd_dtype(self) -> torch.dtype | None:
        """bfloat16 where the attack runs in it; None: the network's dtype."""
        return torch.bfloat16 if self.pgd_bfloat16 else None

    def with_epochs(self, epochs: int) -> Recipe:
        """The recipe stretched or shrunk to `epochs`: warm-up, ramp, milestones and pretraining keep their
        shares (rounded).
        """
        if epochs < 1:
            raise UsageError(f"epochs is {epochs}; it must be at least 1.")
        factor = epochs / self.epochs
        warmup = min(round(self.warmup_epochs * factor), epochs - 1)
        ramp = min(round(self.ramp_epochs * factor), epochs - 1 - warmup)
        milestones = sorted({round(m * factor) for m in self.milestones} - {0, epochs})
        pretrain = min(round(self.pretrain_epochs * factor), epochs - 1)
        return dataclasses.replace(
            self,
            epochs=epochs,
            warmup_epochs=warmup,
            ramp_epochs=ramp,
            milestones=tuple(milestones),
            pretrain=self.pretrain if pretrain else "",
            pretrain_epochs=pretrain,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, by field name."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON reads them back."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


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
        near = difflib.get_close_matches(name, RECIPES, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"there is no recipe {name!r}; recipes are {', '.join(RECIPES)}.{meant}")
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
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputFileError(f"{path}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path}: is not TOML ({error}).") from None
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
            near = difflib.get_close_matches(name, known, n=1)
            meant = f" did you mean {near[0]}?" if near else f" fields are {', '.join(known)}."
            raise UsageError(f"{prefix}{name} is no field of a recipe;{meant}")
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
