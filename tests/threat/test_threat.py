from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from citrus_tool.errors import UsageError
from citrus_tool.threat import Threat, parse_eps

RADII = st.one_of(st.floats(0, 1), st.integers(0, 255).map(lambda n: n / 255))


@given(RADII)
def test_inner_is_the_largest_float32_that_is_not_above_eps(eps: float) -> None:
    inner = np.float32(Threat(eps=eps).inner)
    assert float(inner) == Threat(eps=eps).inner <= eps < float(np.nextafter(inner, np.float32(2)))


@given(RADII)
def test_inner_box_and_outer_are_nested(eps: float) -> None:
    threat, x = Threat(eps=eps), torch.rand(2, 1, 2, 2)
    assert threat.inner <= eps <= threat.outer
    assert bool((threat.box(x).radius <= torch.tensor(eps)).all())
    enclosure = threat.enclosure(x)
    assert torch.equal(enclosure.centre, x.double())
    assert torch.equal(enclosure.radius, torch.full_like(x.double(), threat.outer))
    assert threat.outer == (np.nextafter(eps, 2) if eps else 0)


@given(RADII)
def test_what_is_projected_stepped_or_a_corner_is_allowed(eps: float) -> None:
    threat, drawn = Threat(eps=eps), torch.randn(3, 1, 4, 4)
    projected, corners = threat.projected(drawn), threat.corners(drawn.sign())
    for u in (projected, corners, threat.stepped(projected, -drawn, 2.0)):
        assert threat.allows(u)
    assert torch.equal(threat.stepped(torch.zeros_like(drawn), -drawn, 2.0), corners)
    assert torch.equal(threat.projected(projected), projected)


def test_what_is_outside_is_not_allowed() -> None:
    threat = Threat(eps=0.1)
    assert threat.allows(torch.tensor([0.1, -0.1], dtype=torch.float64))
    for value in (0.1000001, -0.2, float("nan")):
        assert not threat.allows(torch.tensor([0.0, value], dtype=torch.float64))


@pytest.mark.parametrize("text", ["x", "1/0", "2", "-0.1", "nan"])
def test_a_radius_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"eps '{text}'"):
        parse_eps(text)


def test_a_radius_is_read_without_torch() -> None:
    code = "import sys; from citrus_tool.threat import Box, Threat, parse_eps, spelled; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
