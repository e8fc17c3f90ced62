"""Linear relaxations of single neurons: sound on a grid for any interval and slope, tight where they should be."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from citrus_tool.bounds.relaxation import (
    OPEN,
    RELAXATIONS,
    SIGMOID,
    TANH,
    Lines,
    ProductRelaxation,
    SShaped,
    s_shaped_lines,
    s_shaped_offset,
)
from citrus_tool.network import Multiply
from citrus_tool.threat import Box

ENDS = [-40.0, -9.0, -2.5, -1.0, -0.3, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.2, 1.0, 3.0, 8.0, 40.0]
INTERVALS = [(a, b) for a, b in itertools.product(ENDS, ENDS) if a <= b]
LOWER, UPPER = torch.tensor(INTERVALS, dtype=torch.float64).T
GRID = LOWER + torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None] * (UPPER - LOWER)
ELEMENTWISE = [nn.ReLU(), nn.LeakyReLU(0.1), nn.LeakyReLU(1.0), nn.Sigmoid(), nn.Tanh()]


def _lines(layer: nn.Module) -> tuple[Lines, Tensor]:
    lines = RELAXATIONS[type(layer)](layer, Box.from_bounds(LOWER, UPPER))
    below = torch.zeros_like(LOWER) if lines.lower_offset is None else lines.lower_offset
    return lines, below


@pytest.mark.parametrize("layer", ELEMENTWISE, ids=str)
def test_lines_enclose_the_function(layer: nn.Module) -> None:
    lines, below = _lines(layer)
    assert (lines.lower_slope * GRID + below <= layer(GRID) + 1e-15).all()
    assert (lines.upper_slope * GRID + lines.upper_offset >= layer(GRID) - 1e-15).all()
    for slope in (lines.lower_slope, lines.upper_slope):
        assert ((slope >= 0) & (slope <= 1 + 1e-9)).all()


@pytest.mark.parametrize("layer", ELEMENTWISE, ids=str)
def test_lines_touch_the_function(layer: nn.Module) -> None:
    lines, below = _lines(layer)
    coarse = 1e-5 * (1 + UPPER - LOWER)  # the grid's own error
    assert ((layer(GRID) - lines.lower_slope * GRID - below).amin(0) <= coarse).all()
    assert ((lines.upper_slope * GRID + lines.upper_offset - layer(GRID)).amin(0) <= coarse).all()


def test_relu_slopes() -> None:
    box = Box.from_bounds(torch.tensor([-1.0, -3.0, -2.0, 1.0, -2.0]), torch.tensor([3.0, 1.0, 2.0, 2.0, -1.0]))
    lines = RELAXATIONS[nn.ReLU](nn.ReLU(), box)
    torch.testing.assert_close(lines.lower_slope, torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0]))  # 1 where u > -l
    torch.testing.assert_close(lines.upper_slope, torch.tensor([0.75, 0.25, 0.5, 1.0, 0.0]))
    torch.testing.assert_close(lines.upper_offset, torch.tensor([0.75, 0.75, 1.0, 0.0, 0.0]))


@pytest.mark.parametrize("function", [SIGMOID, TANH], ids=["sigmoid", "tanh"])
@pytest.mark.parametrize("share", [0.0, 1e-12, 0.01, 0.3, 0.7, 1.0, 3.0])
def test_offsets_of_s_shapes_are_sound_for_any_slope(function: SShaped, share: float) -> None:
    slope = torch.full_like(LOWER, share) * function.derivative(torch.zeros((), dtype=torch.float64))
    gap = function.value(GRID) - slope * GRID
    above = s_shaped_offset(function, LOWER, UPPER, slope, above=True)
    below = s_shaped_offset(function, LOWER, UPPER, slope, above=False)
    assert (gap <= above).all()
    assert (gap >= below).all()
    assert ((above - gap.amax(0)) <= 1e-4).all()
    assert ((gap.amin(0) - below) <= 1e-4).all()


@pytest.mark.parametrize("function", [SIGMOID, TANH], ids=["sigmoid", "tanh"])
def test_bent_lines_pass_through_the_end(function: SShaped) -> None:
    """Where the chord cuts the function, the line above is the tangent from the lower end; below, its mirror image."""
    lower = torch.tensor([-3.0, -1.0, -0.5, -2.0], dtype=torch.float64)
    upper = torch.tensor([9.0, 8.0, 5.0, 7.0], dtype=torch.float64)
    lines = s_shaped_lines(lower, upper, function)
    at_end = lines.upper_slope * lower + lines.upper_offset
    torch.testing.assert_close(at_end, function.value(lower), atol=1e-6, rtol=0)
    mirrored = s_shaped_lines(-upper, -lower, function)
    torch.testing.assert_close(mirrored.lower_slope, lines.upper_slope)


def test_which_entries_are_open() -> None:
    """A kink inside, not at an end; a curve wherever the box is no point; NaN counts as open."""
    lower = torch.tensor([[-1.0, -1.0, 0.0, 1.0, 0.0, torch.nan]])
    upper = torch.tensor([[1.0, 0.0, 2.0, 1.0, 0.0, torch.nan]])
    box = Box(centre=(lower + upper) / 2, radius=(upper - lower) / 2)
    for layer in (nn.ReLU, nn.LeakyReLU):
        assert OPEN[layer](box).tolist() == [[True, False, False, False, False, True]]
    for layer in (nn.Sigmoid, nn.Tanh, nn.MaxPool2d):
        assert OPEN[layer](box).tolist() == [[True, True, True, False, False, True]]


def test_lines_of_a_product_by_hand() -> None:
    """x y = 2 x + 3 y - 6 + (x - 3)(y - 2), and the last term is within .5 * 4."""
    x, y = (Box(centre=torch.tensor([[c]]), radius=torch.tensor([[r]])) for c, r in ((3.0, 0.5), (2.0, 4.0)))
    found = RELAXATIONS[Multiply](Multiply(), x, y)
    assert isinstance(found, ProductRelaxation)
    assert [one.item() for one in (found.left, found.right, found.constant, found.spread)] == [3.0, 2.0, 6.0, 2.0]
