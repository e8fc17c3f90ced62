"""The ramp of eps and the learning rate, batch by batch."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest

from citrus_tool.choices.recipe import Recipe
from citrus_tool.training import schedule
from citrus_tool.training.recipes import named

RECIPE = Recipe(eps=0.1, tau_ratio=0.4, epochs=10, warmup_epochs=2, ramp_epochs=4, milestones=(7, 9), lr=1.0)
BATCHES = 50


def _points() -> list[schedule.Point]:
    return [schedule.at(RECIPE, epoch, batch, BATCHES) for epoch in range(10) for batch in range(BATCHES)]


def test_ramp_is_continuous_with_its_slope_and_reaches_one() -> None:
    assert schedule.ramp(0.0) == 0.0
    assert schedule.ramp(1.0) == pytest.approx(1.0, abs=1e-15)
    assert schedule.ramp(2.0) == schedule.ramp(1.0)
    join, h = 0.25, 1e-6
    before = (schedule.ramp(join) - schedule.ramp(join - h)) / h
    after = (schedule.ramp(join + h) - schedule.ramp(join)) / h
    assert before == pytest.approx(after, rel=1e-4)


def test_ramp_is_t4_then_linear() -> None:
    assert schedule.ramp(0.2) / schedule.ramp(0.1) == pytest.approx(16.0)
    slopes = [schedule.ramp(t + 0.1) - schedule.ramp(t) for t in (0.3, 0.5, 0.8)]
    assert slopes == pytest.approx([slopes[0]] * 3)


def test_eps_is_zero_then_rises_strictly_then_stays() -> None:
    points = _points()
    warm, rising, full = points[: 2 * BATCHES], points[2 * BATCHES : 6 * BATCHES], points[6 * BATCHES :]
    assert all(p.natural and p.eps == 0.0 and not p.full for p in warm)
    assert rising[0].eps > 0.0
    assert all(a.eps < b.eps for a, b in pairwise(rising))
    assert rising[-1].eps == RECIPE.eps
    assert all(p.full and p.eps == RECIPE.eps for p in full)
    assert not any(p.natural or p.full for p in rising)
    assert all(p.tau == pytest.approx(0.4 * p.eps) for p in points)


def test_tau_falls_to_its_ratio_until_the_first_milestone() -> None:
    recipe = dataclasses.replace(RECIPE, tau_from=1.0)
    points = [schedule.at(recipe, epoch, batch, BATCHES) for epoch in range(10) for batch in range(BATCHES)]
    ratios = [p.tau / p.eps for p in points if not p.natural]
    wanted = [1.0 - 0.6 * min(1.0, (n + 1) / (5 * BATCHES)) for n in range(8 * BATCHES)]  # from epoch 2 to 7
    assert ratios == pytest.approx(wanted)
    assert [p.eps for p in points] == [p.eps for p in _points()]
    last = schedule.at(dataclasses.replace(recipe, milestones=()), 9, BATCHES - 1, BATCHES)
    assert last.tau == pytest.approx(0.4 * 0.1)
    before = schedule.at(dataclasses.replace(recipe, milestones=(1,)), 9, 0, BATCHES)
    assert before.tau > 0.4 * 0.1


def test_learning_rate_drops_at_the_start_of_each_milestone() -> None:
    rates = [schedule.at(RECIPE, epoch, 0, BATCHES).lr for epoch in range(10)]
    assert rates == pytest.approx([1.0] * 7 + [0.2] * 2 + [0.04])


def test_without_a_ramp_the_first_batch_has_full_eps() -> None:
    recipe = Recipe(eps=0.1, tau_ratio=0.4, epochs=1, warmup_epochs=0, ramp_epochs=0)
    point = schedule.at(recipe, 0, 0, 3)
    assert (point.eps, point.full, point.natural) == (0.1, True, False)


def test_eps_zero_stays_natural() -> None:
    point = schedule.at(named("standard"), 3, 0, 10)
    assert (point.eps, point.full, point.natural) == (0.0, True, True)
