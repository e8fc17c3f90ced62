"""What changes from batch to batch: eps, tau and the learning rate.

eps is 0 in the warm-up, then ramps to its target: the first quarter of the ramp follows t^4, the rest is linear, and
value and slope agree where they meet (the "smoothed" schedule of Xu et al. 2020, auto_LiRPA; used by Shi et al. 2021
and SABR). tau = tau_ratio * eps throughout, or falls there from tau_from * eps.
"""

from __future__ import annotations

from dataclasses import dataclass

from citrus_tool.choices.recipe import Recipe

_JOIN = 0.25
"""Share of the ramp that follows t^4, of the smoothed schedule of Xu et al. 2020."""
_SCALE = 1 / (4 * _JOIN**3 - 3 * _JOIN**4)
"""Factor of the ramp that makes ramp(1) = 1."""


def ramp(t: float) -> float:
    """Rises from 0 at t = 0 to 1 at t = 1, continuously differentiable; constant outside."""
    t = min(max(t, 0.0), 1.0)
    if t <= _JOIN:
        return _SCALE * t**4
    return _SCALE * (_JOIN**4 + 4 * _JOIN**3 * (t - _JOIN))


@dataclass(frozen=True, kw_only=True)
class Point:
    """The schedule at one batch, eps and tau in pixel space.

    `natural`: in the warm-up (eps is 0); `full`: eps has reached its target.
    """

    eps: float
    tau: float
    lr: float
    natural: bool
    full: bool


def at(recipe: Recipe, epoch: int, batch: int, batches: int) -> Point:
    """The schedule at batch `batch` of `batches` in epoch `epoch`, all counted from 0.

    The first batch of the ramp has eps > 0, and its last one reaches the target.
    """
    lr = recipe.lr * recipe.lr_decay ** sum(epoch >= milestone for milestone in recipe.milestones)
    if epoch < recipe.warmup_epochs:
        return Point(eps=0.0, tau=0.0, lr=lr, natural=True, full=False)
    done = (epoch - recipe.warmup_epochs) * batches + batch + 1
    total = recipe.ramp_epochs * batches
    full = epoch >= recipe.warmup_epochs + recipe.ramp_epochs
    eps = recipe.eps if done >= total else recipe.eps * ramp(done / total)
    tau = _ratio(recipe, done / batches) * eps
    return Point(eps=eps, tau=tau, lr=lr, natural=recipe.eps == 0.0, full=full)


def _ratio(recipe: Recipe, done: float) -> float:
    """tau / eps when `done` epochs after the warm-up are over."""
    if recipe.tau_from == 0.0:
        return recipe.tau_ratio
    end = next((milestone for milestone in recipe.milestones if milestone > recipe.warmup_epochs), recipe.epochs)
    share = min(1.0, done / (end - recipe.warmup_epochs))
    return recipe.tau_from + share * (recipe.tau_ratio - recipe.tau_from)
