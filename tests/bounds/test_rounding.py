"""Rounding margins: enclosures in exact arithmetic, CROWN in float32 against float64, TF32 settings."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from citrus_tool.bounds import linear, rounding
from citrus_tool.bounds.crown import crown
from citrus_tool.bounds.interval import INTERVAL
from citrus_tool.network import CANONICAL, Pointwise
from citrus_tool.threat import Box, Threat
from tests.bounds.networks import margins_at, random_box, random_network

LABELS = torch.tensor([0, 1, 3])


def test_every_canonical_layer_has_a_gain() -> None:
    assert set(rounding.GAINS) == set(CANONICAL)


@pytest.mark.parametrize("eps", [0.0, 0.1, 2 / 255, 8 / 255, 1.0])
def test_the_input_box_contains_every_perturbation(eps: float) -> None:
    x = torch.tensor([0.0, 1 / 255, 0.1, 254 / 255, 1.0])
    box = Threat(eps=eps).enclosure(x)
    assert box.centre.dtype == torch.float64
    for pixel, centre, radius in zip(x.tolist(), box.centre.tolist(), box.radius.tolist(), strict=True):
        assert Fraction(centre) == Fraction(pixel)
        assert Fraction(radius) >= Fraction(eps)
        assert (radius > 0) == (eps > 0)


@pytest.mark.parametrize("text", ["0.1", "2/255", "8/255", "0.3"])
def test_the_radius_covers_the_number_that_the_user_typed(text: str) -> None:
    exact = Fraction(text)
    assert Fraction(Threat(eps=float(exact)).enclosure(torch.zeros(1)).radius.item()) >= exact


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1))
@settings(derandomize=True, deadline=None)
def test_enclosed_bounds(pairs: list[tuple[float, float]]) -> None:
    lower = torch.tensor([min(p) for p in pairs], dtype=torch.float64)
    upper = torch.tensor([max(p) for p in pairs], dtype=torch.float64)
    box = rounding.enclose_bounds(lower, upper)
    for low, high, c, r in zip(lower.tolist(), upper.tolist(), box.centre.tolist(), box.radius.tolist(), strict=True):
        assert Fraction(c) - Fraction(r) <= Fraction(low)
        assert Fraction(c) + Fraction(r) >= Fraction(high)
    assert (box.lower <= lower).all()
    assert (box.upper >= upper).all()


@pytest.mark.parametrize("scale", [1.0, 1e8])
def test_an_outward_linear_layer_contains_the_exact_image(scale: float) -> None:
    """Exact rational arithmetic on a sum that cancels; the plain rule misses it."""
    torch.manual_seed(0)
    layer = nn.Linear(50, 20).double()
    with torch.no_grad():
        layer.weight[:, 1::2] = -layer.weight[:, ::2] * scale
        layer.weight[:, ::2] *= scale
    box = Box(centre=torch.rand(1, 50).double(), radius=torch.rand(1, 50).double() * 1e-18)
    misses = {}
    for name, rules in (("plain", INTERVAL), ("outward", rounding.OUTWARD_INTERVAL)):
        with torch.no_grad():
            got = rules[nn.Linear](layer, box)
        misses[name] = sum(_misses(layer, box, got, i) for i in range(20))
    assert misses["outward"] == 0
    assert misses["plain"] > 0


def _misses(layer: nn.Linear, box: Box, got: Box, i: int) -> bool:
    w = [Fraction(v) for v in layer.weight[i].tolist()]
    c, r = ([Fraction(v) for v in t[0].tolist()] for t in (box.centre, box.radius))
    centre = sum((a * b for a, b in zip(w, c, strict=True)), Fraction(layer.bias[i].item()))
    radius = sum((abs(a) * b for a, b in zip(w, r, strict=True)), Fraction(0))
    low, high = Fraction(got.centre[0, i].item()), Fraction(got.radius[0, i].item())
    return low - high > centre - radius or low + high < centre + radius


def _shortfall(seed: int) -> int:
    """How many margins of CROWN in float32 over point boxes lie above the margin in float64."""
    network, box = random_network(seed).float(), random_box(seed, radius=0.0)
    box = Box(centre=box.centre.float(), radius=box.radius.float())
    lower = crown(network, box, LABELS, skip_decided=False).lower
    true = margins_at(network.double(), box.centre.double()[None], LABELS)[0]
    return int((lower.double() > true).sum())


def test_crown_in_float32_lies_below_the_exact_margin() -> None:
    assert [_shortfall(seed) for seed in range(25)] == [0] * 25


def test_without_the_margin_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rounding, linear):
        monkeypatch.setattr(module, "SAFETY", 0.0)
    assert sum(_shortfall(seed) for seed in range(25)) > 0


@pytest.mark.parametrize("flag", [True, False])
def test_tf32_is_off_inside_and_restored_after(flag: bool) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = flag
        with pytest.raises(KeyError, match="False False"), rounding.exact_products():
            raise KeyError(f"{torch.backends.cuda.matmul.allow_tf32} {torch.backends.cudnn.allow_tf32}")
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == flag
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_too_many_terms_give_no_bound() -> None:
    assert rounding.gamma(2**53, torch.float64) == math.inf
    assert 0 < rounding.gamma(1000, torch.float64) < 1.2e-13


def test_one_entry_beyond_all_bounds_leaves_the_others_alone() -> None:
    """Of a pointwise function's box: an entry of e^700, one outside the domain."""
    centre = torch.tensor([[700.0, 0.0, -3.0]], dtype=torch.float64)
    box = Box(centre=centre, radius=torch.full_like(centre, 0.5))
    grown = rounding.OUTWARD_INTERVAL[Pointwise](Pointwise("exp"), box)
    assert (grown.lower[0, 1:] > 0).all()
    assert torch.allclose(grown.lower[0, 1:], box.lower[0, 1:].exp())
    roots = rounding.OUTWARD_INTERVAL[Pointwise](Pointwise("sqrt"), Box(centre=centre.abs(), radius=box.radius))
    assert roots.radius[0].isnan().tolist() == [False, True, False]
