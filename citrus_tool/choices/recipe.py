"""Recipes: every number of a training run in one frozen record."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from citrus_tool.choices import BOX_LOSSES, INITS, TRAIN_ON, BoxLoss, Init, TrainOn
from citrus_tool.choices.fields import Rule, check, needed, one_of, option
from citrus_tool.errors import UsageError


def _within(low: float, high: float = math.inf, *, open_low: bool = False, hint: str = "") -> Rule:
    left, right = "(" if open_low else "[", f"{high:g}]" if math.isfinite(high) else "inf)"
    demand = f"it must lie in {left}{low:g}, {right}{'; ' + hint if hint else ''}."
    return Rule(low=low, high=high, open_low=open_low, demand=demand)


def _from(low: int, hint: str = "") -> Rule:
    return Rule(low=low, whole=True, demand=f"it must be a whole number >= {low}{'; ' + hint if hint else ''}.")


_WORD = "it must be one of {}."
_FACTOR = _within(0.0)
_POSITIVE = _within(0.0, open_low=True)
_SHARE = _within(0.0, 1.0)
_POSITIVE_SHARE = _within(0.0, 1.0, open_low=True)


@dataclass(frozen=True, kw_only=True)
class StepSchedule:
    """Step sizes in units of the ball's radius: `first`, times `decay` after each milestone (fraction of all steps)."""

    first: float = 0.5
    decay: float = 0.1
    milestones: tuple[float, ...] = (0.5, 0.8, 0.9)

    def sizes(self, steps: int) -> list[float]:
        """The sizes of `steps` steps, as fractions of the radius."""
        return [self.first * self.decay ** sum(step >= m * steps for m in self.milestones) for step in range(steps)]


SABR_STEPS = StepSchedule()
"""SABR's schedule: 0.5 of the radius, times 0.1 at 50, 80 and 90 % of the steps (Mueller et al. 2022, C.2)."""


@dataclass(frozen=True, kw_only=True)
class Taps:
    """What TAPS and STAPS do in the latent space.

    Attributes:
        classifier_layers: weight layers of the part that is attacked; boxes are propagated through the others.
        steps: PGD steps in the latent box, for every wrong label apart.  step_size: in units of its half widths.
        connector: c of the rectified linear gradient connector (Mao et al. 2023, section 3.3).
        balance: alpha of the two gradients of the product of losses (section 3.4); .5 is the plain product rule.
    """

    classifier_layers: int = option(2, rule=_from(1))
    steps: int = option(20, rule=_from(0))
    step_size: StepSchedule = SABR_STEPS
    connector: float = option(0.5, rule=_POSITIVE_SHARE)
    balance: float = option(0.5, rule=_SHARE)

    def __post_init__(self) -> None:
        check(self, "taps.")


@dataclass(frozen=True, kw_only=True)
class Uat:
    """What UAT and CW-UAT do with their persistent perturbation.

    Attributes:
        step: size of the signed step that follows every batch, in units of eps.
        clip: beta, what one input's loss may add at most to the perturbation's objective.
    """

    step: float = option(0.25, rule=_within(0.0, 2.0, open_low=True))
    clip: float = option(9.0, rule=_POSITIVE)

    def __post_init__(self) -> None:
        check(self, "uat.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run. Epochs are counted from 0: warm-up (eps 0, natural), then the ramp of eps, then full eps.

    Attributes:
        method: a name in choices.METHODS.
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
    eps: float = needed(rule=_within(0.0, 1.0, hint="it is in pixel space [0, 1], e.g. 0.1 or 2/255"))
    tau_ratio: float = needed(rule=_POSITIVE_SHARE, help="Radius of the training boxes over eps")
    tau_from: float = option(0.0, rule=_within(0.0, 1.0, hint="0 holds tau_ratio throughout"))
    group_size: int = option(5, rule=_from(2, "a perturbation is shared by at least two inputs"))
    groups_per_batch: int = option(50, rule=_from(1), help="Groups in one optimiser step")
    epochs: int = needed(rule=_from(1))
    warmup_epochs: int = option(1, rule=_from(0))
    ramp_epochs: int = option(20, rule=_from(0))
    milestones: tuple[int, ...] = ()
    pretrain: str = ""
    pretrain_epochs: int = option(0, rule=_from(0))
    lr: float = option(5e-4, rule=_POSITIVE, help="Learning rate")
    lr_decay: float = option(0.2, rule=_POSITIVE_SHARE)
    l1: float = option(0.0, rule=_FACTOR, help="Factor of the weights' L1 norm")
    clip_norm: float = option(10.0, rule=_POSITIVE)
    average: float = option(0.0, rule=_SHARE)
    pgd_steps: int = option(20, rule=_from(0), help="Steps of the training attack")
    pgd_step_size: StepSchedule = SABR_STEPS
    pgd_bfloat16: bool = False
    attack_ratio: float = option(1.0, rule=_within(0.0, 10.0, open_low=True))
    alpha: float = option(0.5, rule=_SHARE)
    worst: int = option(0, rule=_from(0))
    pool: int = option(0, rule=_from(0))
    distil: float = option(0.0, rule=_FACTOR)
    distil_temperature: float = option(1.0, rule=_POSITIVE)
    common: int = option(2, rule=_from(2, "k = 2 is CITRUS"))
    relu_shrink: float = option(1.0, rule=_POSITIVE_SHARE)
    taps: Taps = Taps()
    uat: Uat = Uat()
    shi_lambda: float = option(0.5, rule=_FACTOR)
    shi_tolerance: float = option(0.5, rule=_POSITIVE_SHARE)
    same_input: bool = option(False, help="Also train on each input's own perturbation (CITRUS + SI).")
    box_loss: BoxLoss = option("sum", rule=one_of(BOX_LOSSES, _WORD))
    init: Init = option(
        "keep",
        rule=one_of(INITS, _WORD),
        help="keep trains on from the file's weights, shi draws new ones.",
    )
    flip: bool = False
    crop_padding: int = option(0, rule=_from(0))
    certified_inputs: int = option(500, rule=_from(0))
    validate_every: int = option(1, rule=_from(1))
    train_on: TrainOn = option(
        "train",
        rule=one_of(TRAIN_ON, _WORD),
        help="all: the validation split too; then the last epoch is kept.",
    )
    seed: int = option(0, rule=_from(0))

    def __post_init__(self) -> None:
        check(self)
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

    @property
    def batch_size(self) -> int:
        """Inputs in one optimiser step."""
        return self.group_size * self.groups_per_batch

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
