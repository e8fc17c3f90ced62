"""Networks of layers that pick, bend and multiply entries: every bound against sampled values and float32 runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from citrus_tool.bounds.crown import EXACTNESS, Exactness, crown, relax
from citrus_tool.bounds.interval import INTERVAL
from citrus_tool.bounds.rounding import enclosures
from citrus_tool.choices import Intermediate
from citrus_tool.network import Evaluation, Reshape, Select, chain, walk
from citrus_tool.threat import Box
from citrus_tool.training.interval_margins import TRAINING, box_margins, robust_cross_entropy, uniform_box
from tests.bounds.networks import margins_at, random_box, samples, values_at, varied_network
from tests.bounds.test_float32 import FILE, LABELS, coarse, erring, margins_of, small_box  # noqa: F401

SEEDS = range(30)


@pytest.mark.parametrize("intermediate", ["crown", "intersect"])
def test_every_bound_contains_sampled_values(intermediate: Intermediate) -> None:
    for seed in SEEDS:
        network, box = varied_network(seed), random_box(seed)
        points = samples(box, seed)
        values, true = values_at(network, points), margins_at(network, points, LABELS)
        with torch.no_grad():
            boxes, plain = relax(network, box, intermediate=intermediate).boxes, enclosures(network, box).boxes
            found = crown(network, box, LABELS, intermediate=intermediate, skip_decided=False)
        for name, value in values.items():
            for bounds in (boxes, plain):
                assert (value >= bounds[name].lower).all(), (seed, name)
                assert (value <= bounds[name].upper).all(), (seed, name)
        planes = torch.einsum("ncd,snd->snc", found.coefficient.flatten(2), (points - box.centre).flatten(2))
        finite = torch.isfinite(found.offset)
        assert (true >= planes + found.offset - 1e-12)[:, finite].all(), seed
        assert (true >= found.lower - 1e-12)[:, finite].all(), seed


def test_a_point_box_is_the_forward_pass() -> None:
    for seed in SEEDS:
        network, box = varied_network(seed), random_box(seed, radius=0.0)
        with torch.no_grad():
            lower = crown(network, box, LABELS, skip_decided=False).lower
        want = margins_at(network, box.centre[None], LABELS)[0]
        torch.testing.assert_close(lower, want, rtol=1e-6, atol=1e-6, msg=f"seed {seed}")
        assert (lower <= want).all(), seed


@pytest.mark.usefixtures("coarse")
def test_erring_runs_stay_in_every_box_and_above_every_plane() -> None:
    for seed in SEEDS:
        network, box = varied_network(seed).frozen(dtype=torch.float64, evaluation=FILE), small_box(seed)
        with torch.no_grad():
            relaxed = relax(network, box)
            points = samples(box, seed)
            values = erring(relaxed, points, seed)
            for boxes in (relaxed.boxes, enclosures(network, box).boxes):
                for name, value in values.items():
                    assert (value >= boxes[name].lower - 1e-12).all(), (seed, name)
                    assert (value <= boxes[name].upper + 1e-12).all(), (seed, name)
            true, found = margins_of(values, network), crown(network, box, LABELS, skip_decided=False)
        plane = torch.einsum("snd,ncd->snc", (points - box.centre).flatten(2), found.coefficient.flatten(2))
        finite = torch.isfinite(found.offset)
        assert (true >= plane + found.offset - 1e-12)[:, finite].all(), seed
        assert (true >= found.lower - 1e-12)[:, finite].all(), seed


def test_margins_train_with_finite_gradients() -> None:
    for seed in SEEDS:
        network = varied_network(seed)
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        x = random_box(seed).centre
        for eps in (0.0, 0.01):
            robust_cross_entropy(box_margins(network, uniform_box(x, eps), LABELS)).mean().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), (seed, name)


def test_selected_entries() -> None:
    layer = Select(torch.tensor([[3, -1], [0, 0]]))
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    assert layer(x).tolist() == [[[4.0, 0.0], [1.0, 1.0]], [[8.0, 0.0], [5.0, 5.0]]]
    box = TRAINING[Select](layer, Box(centre=x, radius=torch.full((1, 2, 2), 0.5)))  # one radius for both
    assert box.radius.tolist() == [[[0.5, 0.0], [0.5, 0.5]]]


@pytest.mark.parametrize(
    ("index", "exactness"),
    [([2, 1, -1, -1], Exactness.ENTRYWISE), ([2, 1, 2, -1], Exactness.LOOSE)],
)
def test_sums_of_entries_that_are_taken_twice_are_not_bounded_exactly(index: list[int], exactness: Exactness) -> None:
    network = chain([Select(torch.tensor(index)), nn.Linear(4, 3)], (4,))
    assert walk(network, EXACTNESS, Exactness.POINTWISE) is exactness


def test_rows_of_an_entry_that_is_taken_twice_add_up() -> None:
    """z2 - z2 is 0 whatever z is: rows know it, intervals do not."""
    difference = nn.Linear(3, 2, bias=False).requires_grad_(False)
    difference.weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]))
    layers = [Select(torch.tensor([2, 2, -1])), difference, nn.ReLU(), Reshape((2,)), nn.Linear(2, 2)]
    network = chain(layers, (3,)).frozen(dtype=torch.float64, evaluation=Evaluation())
    box = Box(centre=torch.ones(1, 3, dtype=torch.float64), radius=torch.ones(1, 3, dtype=torch.float64))
    loose = walk(network, INTERVAL, box, stop=network.nodes[1].name)
    assert float(loose.upper[0, 0]) == 2.0
    with torch.no_grad():
        tight = relax(network, box).boxes[network.nodes[1].name]
    assert float(tight.upper.abs().max()) < 1e-10
