"""Optimised slopes and input splitting for networks with sigmoid, tanh and max pooling: sound, better than CROWN."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from citrus_tool.bounds.crown import crown, relax
from citrus_tool.bounds.relaxation import SIGMOID, TANH, SShaped
from citrus_tool.bounds.rounding import exact_products
from citrus_tool.network import Network, Reshape, chain
from citrus_tool.onnx_io import export
from citrus_tool.queries import input_splitting, parse
from citrus_tool.queries.input_splitting import Bisection
from citrus_tool.queries.slopes import SlopeAscent, _offset
from citrus_tool.queries.verify import Verdict, read_models, verify
from citrus_tool.threat import Box, Threat

FOREVER = math.inf


def random_network(kind: type[nn.Module], seed: int, inputs: int = 6, width: int = 10) -> Network:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for size in (inputs, width, width):
        layers += [nn.Linear(size, width), kind()]
    network = chain([*layers, nn.Linear(width, 3)], (inputs,))
    for parameter in network.parameters():
        parameter.data *= 2.5
    return network.frozen(dtype=torch.float64)


def pooled_network(seed: int) -> Network:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), Reshape((12,)), nn.Linear(12, 6), nn.ReLU()]
    return chain([*layers, nn.Linear(6, 3)], (1, 6, 6)).frozen(dtype=torch.float64)


NETWORKS = {
    "sigmoid": lambda seed: random_network(nn.Sigmoid, seed),
    "tanh": lambda seed: random_network(nn.Tanh, seed),
    "pool": pooled_network,
}


def ascended(network: Network, box: Box, goal: float = math.inf) -> Tensor:
    with torch.no_grad(), exact_products():
        boxes = relax(network, box).boxes
        ascent = SlopeAscent(network, boxes, torch.tensor([1, 2]), goal)
        ascent.grow(FOREVER)
    assert ascent.done
    return ascent.lower


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_and_are_no_worse_than_crown(kind: str, seed: int) -> None:
    network = NETWORKS[kind](seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, *network.input_shape, generator=generator, dtype=torch.float64)
    box = Threat(eps=0.15).enclosure(x)
    lower = ascended(network, box)
    plain = crown(network, box, torch.zeros(1, dtype=torch.long)).lower[0, 1:]
    assert bool((lower >= plain - 1e-9).all())
    assert kind == "pool" or float((lower - plain).max()) > 1e-3
    v = torch.rand(4000, *network.input_shape, generator=generator, dtype=torch.float64) * 2 - 1
    v[::2] = v[::2].sign()
    with torch.no_grad():
        logits = network(x + 0.15 * v)
    reached = (logits[:, :1] - logits[:, 1:]).amin(0)
    assert bool((lower <= reached).all())


@pytest.mark.parametrize(("f", "greatest"), [(SIGMOID, 0.25), (TANH, 1.0)])
def test_the_offset_of_any_slope_is_sound_and_its_derivative_right(f: SShaped, greatest: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ends = (torch.rand(2, 200, generator=generator, dtype=torch.float64) * 8 - 4).sort(0).values
    box = Box.from_bounds(ends[:1], ends[1:])
    slope = (torch.rand(1, 200, generator=generator, dtype=torch.float64) * greatest).clamp(min=1e-7)
    share = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    z = ends[0] + (ends[1] - ends[0]) * share
    for above in (False, True):
        free = slope.clone().requires_grad_()
        offset = _offset(f, box, free, above=above)
        line = slope * z + offset.detach()
        assert bool(((line - f.value(z)) * (1 if above else -1) >= 0).all())
        (gradient,) = torch.autograd.grad(offset.sum(), free)
        step = 1e-6
        moved = [_offset(f, box, (slope + s).clamp(min=0), above=above) for s in (step, -step)]
        numeric = (moved[0] - moved[1]) / (2 * step)
        assert torch.isclose(gradient, numeric, atol=1e-3).double().mean() > 0.98  # kinks aside


def test_slopes_that_suffice_end_the_ascent() -> None:
    network = random_network(nn.Sigmoid, 0)
    box = Threat(eps=0.01).enclosure(torch.full((1, 6), 0.5, dtype=torch.float64))
    assert bool((ascended(network, box, goal=-100.0) > -100.0).all())


@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "pool"])
def test_parts_prove_what_the_whole_box_does_not(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing that is not so: the same margin shifted to what a sample reaches stays open."""
    monkeypatch.setattr(input_splitting, "MOST", 3000)
    network = NETWORKS[kind](1)
    if kind == "pool":
        box = Box(centre=torch.full((1, 1, 6, 6), 0.5, dtype=torch.float64), radius=torch.zeros(1, 1, 6, 6).double())
        box.radius[..., 2, 1:4] = 0.5
    else:
        box = Box(centre=torch.full((1, 6), 0.5, dtype=torch.float64), radius=torch.zeros(1, 6, dtype=torch.float64))
        box.radius[:, :3] = 0.4
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        v = torch.rand(5000, *network.input_shape, generator=generator, dtype=torch.float64) * 2 - 1
        v[::2] = v[::2].sign()
        logits = network(box.centre + v * box.radius)
        reached = float((logits[:, 0] - logits[:, 1]).min())
        whole = float(crown(network, box, torch.zeros(1, dtype=torch.long)).lower[0, 1])
        assert whole < reached
        for goal, provable in ((reached - 0.5 * (reached - whole), True), (reached + 1e-6, False)):
            search = Bisection(network, box, torch.tensor([1]), goal, lambda points: False)
            search.grow(FOREVER)
            assert (search.proven, search.stuck) == (provable, not provable)
            assert provable == (search.parts < 3000)


def test_a_witness_ends_the_splitting() -> None:
    network = random_network(nn.Tanh, 2)
    box = Threat(eps=0.3).enclosure(torch.full((1, 6), 0.5, dtype=torch.float64))
    seen: list[Tensor] = []

    def look(points: Tensor) -> bool:
        seen.append(points)
        return True

    with torch.no_grad():
        search = Bisection(network, box, torch.tensor([1, 2]), 1e6, look)
        search.grow(FOREVER)
    assert (search.proven, search.stuck, len(seen)) == (False, True, 1)
    assert bool(((seen[0] - box.centre).abs() <= box.radius * (1 + 1e-9)).all())


def test_time_is_kept(tmp_path: Path) -> None:
    network = random_network(nn.Sigmoid, 3)
    with torch.no_grad():
        boxes = relax(network, Threat(eps=0.2).enclosure(torch.full((1, 6), 0.5, dtype=torch.float64))).boxes
        ascent = SlopeAscent(network, boxes, torch.tensor([1, 2]), math.inf)
        ascent.grow(time.monotonic() - 1)
        assert not ascent.done
        ascent.grow(FOREVER)
    assert ascent.done


@pytest.mark.parametrize("kind", [nn.Sigmoid, nn.Tanh])
def test_queries_are_decided_on_either_side_of_the_minimum(kind: type[nn.Module], tmp_path: Path) -> None:
    network = random_network(kind, 4, inputs=2, width=5)
    path = tmp_path / "n.onnx"
    export(network.frozen(dtype=torch.float32), path, metadata={})
    axis = torch.linspace(0, 1, 301, dtype=torch.float64)
    with torch.no_grad():
        least = float(network(torch.cartesian_prod(axis, axis))[:, 0].min())
    text = "".join(f"(declare-const X_{i} Real)" for i in range(2)) + "".join(
        f"(declare-const Y_{j} Real)" for j in range(3)
    )
    text += "".join(f"(assert (>= X_{i} 0.0))(assert (<= X_{i} 1.0))" for i in range(2))
    for shift, expected in ((0.01, Verdict.SAT), (-0.01, Verdict.UNSAT)):
        spec = parse(text + f"(assert (<= Y_0 {least + shift:.9f}))")
        found = verify(spec, read_models(spec, {"N": path}), seconds=60)
        assert found.verdict is expected
