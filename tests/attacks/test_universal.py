from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from citrus_tool.attacks import universal
from citrus_tool.attacks.effort import Effort
from citrus_tool.attacks.margin import margins
from citrus_tool.attacks.universal import attack_groups
from citrus_tool.network import Network, Reshape, chain
from citrus_tool.threat import Threat
from tests.certification.oracle import fooled_at_most
from tests.certification.toys import CLASSES, SHAPE, tiny_chain, tiny_residual


@pytest.fixture(autouse=True, scope="module")
def _one_thread(_threads: None) -> Iterator[None]:
    """The networks are tiny: threads only cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def groups(network: Network, g: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images (g, k, ...), the network's own labels, all present."""
    images = torch.rand(g, k, *network.input_shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        labels = network(images.flatten(0, 1)).argmax(dim=1).reshape(g, k)
    return images, labels, torch.ones(g, k, dtype=torch.bool)


def attack(
    network: Network,
    images: Tensor,
    labels: Tensor,
    present: Tensor,
    eps: float = 0.15,
    *,
    steps: int = 20,
    restarts: int = 6,
    seed: int = 0,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    generator, effort = torch.Generator().manual_seed(seed), Effort(steps=steps, restarts=restarts)
    return attack_groups(network, images, labels, present, Threat(eps=eps), effort, generator, starts=starts)


def recount(network: Network, images: Tensor, labels: Tensor, present: Tensor, u: Tensor) -> Tensor:
    g, k = labels.shape
    with torch.no_grad():
        left = margins(network, (images + u[:, None]).flatten(0, 1), labels.flatten()).reshape(g, k)
    return ((left <= 0) & present).sum(dim=1)


@pytest.mark.parametrize("make", [tiny_chain, tiny_residual])
def test_finds_the_true_maximum_of_tiny_networks(make: type) -> None:
    met = total = 0
    for seed in range(5):
        network = make(seed)
        images, labels, present = groups(network, 4, 4, seed)
        _, fooled = attack(network, images, labels, present)
        for i in range(4):
            exact = fooled_at_most(network, images[i], labels[i], 0.15)
            assert int(fooled[i]) <= exact
            met += int(fooled[i]) == exact
            total += 1
    assert met >= 0.9 * total


@pytest.mark.parametrize("eps", [0.1, 0.13, 2 / 255, 8 / 255, 1 / 3, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_u_lies_within_eps_also_in_float32(eps: float, dtype: torch.dtype) -> None:
    network = tiny_chain(0).frozen(dtype=dtype)
    images, labels, present = groups(tiny_chain(0), 3, 2)
    u, _ = attack(network, images.to(dtype), labels, present, eps)
    assert u.dtype == dtype
    for values in (u.numpy(), u.numpy().astype(np.float32)):
        assert np.abs(values.astype(np.float64)).max() <= eps
    if eps >= 0.1:
        assert np.abs(u.numpy()).max() == Threat(eps=eps).inner


@pytest.mark.parametrize("value", [0.0, 0.1, 0.5, 1 / 3, 2 / 255, 1.0])
def test_attacks_use_the_largest_float32_within_eps(value: float) -> None:
    below = Threat(eps=value).inner
    assert below == float(np.float32(below)) <= value
    assert float(np.nextafter(np.float32(below), np.float32(2))) > value


def test_counts_are_those_of_the_perturbation_and_absent_inputs_do_not_count() -> None:
    network = tiny_chain(2)
    images, labels, present = groups(network, 6, 5)
    present[:, 3:] = False
    present[4] = False
    u, fooled = attack(network, images, labels, present)
    assert torch.equal(fooled, recount(network, images, labels, present, u))
    assert int(fooled[4]) == 0
    assert not u[4].any()
    changed = images.clone()
    changed[:, 3:] = 0.5
    again, _ = attack(network, changed, labels, present)
    assert torch.equal(u, again)


def test_misclassified_inputs_count_as_fooled() -> None:
    network = tiny_chain(2)
    images, labels, present = groups(network, 3, 2)
    _, fooled = attack(network, images, (labels + 1) % CLASSES, present, 0.0)
    assert fooled.tolist() == [2, 2, 2]


def test_ties_count_as_fooled() -> None:
    layer = nn.Linear(4, CLASSES)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    network = chain([Reshape((4,)), layer], SHAPE).eval()
    images = torch.rand(2, 3, *SHAPE)
    _, fooled = attack(network, images, torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool))
    assert fooled.tolist() == [3, 3]


def test_same_generator_same_result() -> None:
    network = tiny_residual(1)
    inputs = groups(network, 20, 4)
    first, again, other = (attack(network, *inputs, seed=seed, steps=3)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_starts_are_judged_and_clamped() -> None:
    network = tiny_chain(1)
    images, labels, present = groups(network, 4, 4)
    u, fooled = attack(network, images, labels, present)
    starts = torch.stack([torch.zeros_like(u), u * 10])
    found, count = attack(network, images, labels, present, steps=0, restarts=0, starts=starts)
    assert float(found.abs().max()) <= 0.15
    clamped = recount(network, images, labels, present, Threat(eps=0.15).projected(u * 10))
    assert torch.equal(count, clamped)
    kept, same = attack(network, images, labels, present, steps=0, restarts=0, starts=u[None])
    assert torch.equal(same, fooled)
    assert torch.equal(recount(network, images, labels, present, kept), fooled)


def test_more_restarts_are_never_worse() -> None:
    network = tiny_residual(3)
    inputs = groups(network, 6, 5)
    few, many = (attack(network, *inputs, restarts=r, steps=10)[1].sum() for r in (1, 12))
    assert int(few) <= int(many)


def test_batches_do_not_change_what_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_chain(0)
    inputs = groups(network, 7, 3)
    whole = attack(network, *inputs)[1]
    monkeypatch.setattr(universal, "ROWS", 4)
    assert torch.equal(attack(network, *inputs)[1], whole)


def test_the_networks_mode_does_not_matter_and_is_left_alone() -> None:
    torch.manual_seed(0)
    network = chain(
        [nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), Reshape((8,)), nn.Linear(8, CLASSES)], SHAPE
    ).eval()
    inputs = groups(network, 3, 3)
    u, _ = attack(network, *inputs)
    network.train()
    again, _ = attack(network, *inputs)
    assert torch.equal(u, again)
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
