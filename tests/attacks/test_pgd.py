"""PGD: its ball, its effect, its determinism, its step sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from citrus_tool import architectures
from citrus_tool.attacks.pgd import ATTACKED, pgd
from citrus_tool.choices.recipe import SABR_STEPS, StepSchedule
from citrus_tool.network import Network, Reshape, chain, walk


def _setting(n: int = 40) -> tuple[Network, torch.Tensor, torch.Tensor]:
    network = architectures.build("convtiny", (1, 8, 8), 10, seed=5).eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((n, 1, 8, 8), generator=generator)
    return network, x, network(x).argmax(1)


def _loss(network: Network, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return F.cross_entropy(network(x), labels, reduction="none")


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("radius", [0.0, 0.03, 0.2, torch.tensor(0.07)])
def test_stays_in_its_ball(radius: float | torch.Tensor, seed: int | None) -> None:
    network, x, labels = _setting()
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    v = pgd(network, x, labels, radius=radius, steps=5, generator=generator)
    assert v.shape == x.shape
    assert not v.requires_grad
    assert v.abs().max() <= torch.as_tensor(radius)


def test_raises_the_loss_of_nearly_every_input() -> None:
    network, x, labels = _setting()
    v = pgd(network, x, labels, radius=0.1, steps=10, generator=torch.Generator().manual_seed(0))
    random = (torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) * 2 - 1).sign() * 0.1
    attacked = _loss(network, x + v, labels)
    assert (attacked > _loss(network, x, labels)).float().mean() >= 0.95
    assert (attacked > _loss(network, x + random, labels)).float().mean() >= 0.95


def test_finds_the_exact_worst_case_of_a_linear_model() -> None:
    """For two classes the worst v is -radius * sign(w_y - w_c), reached from any start."""
    torch.manual_seed(0)
    network = chain([Reshape((9,)), nn.Linear(9, 2)], (1, 3, 3)).eval()
    weight = next(network.parameters()).detach()
    x, labels = torch.rand(6, 1, 3, 3), torch.tensor([0, 1, 0, 1, 1, 0])
    v = pgd(network, x, labels, radius=0.1, steps=20, generator=torch.Generator().manual_seed(0))
    worst = -0.1 * (weight[labels] - weight[1 - labels]).sign().reshape(x.shape)
    torch.testing.assert_close(v, worst)


def test_is_a_function_of_its_generator() -> None:
    network, x, labels = _setting()
    runs = [
        pgd(network, x, labels, radius=0.1, steps=3, generator=torch.Generator().manual_seed(seed))
        for seed in (4, 4, 5)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_leaves_network_and_its_gradients_alone() -> None:
    network, x, labels = _setting()
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pgd(network, x, labels, radius=0.1, steps=2, generator=None)
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_reads_batch_norm_with_its_own_statistics() -> None:
    network = architectures.build("cnn7", (1, 8, 8), 10, seed=0)
    x = torch.rand(4, 1, 8, 8)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
    network.train()
    got = walk(network, ATTACKED, x)
    torch.testing.assert_close(got, network.eval()(x))


def test_one_step_moves_by_the_sign_of_the_gradient() -> None:
    network, x, labels = _setting(8)
    z = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(z), labels, reduction="sum"), z)
    v = pgd(network, x, labels, radius=0.1, steps=1, step_size=StepSchedule(first=0.3), generator=None)
    torch.testing.assert_close(v, 0.03 * gradient.sign())


def test_bfloat16_still_attacks_in_the_ball() -> None:
    network, x, labels = _setting()
    v = pgd(network, x, labels, radius=0.1, steps=8, generator=None, dtype=torch.bfloat16)
    assert v.dtype == torch.float32
    assert v.abs().max() <= 0.1
    exact = _loss(network, x + pgd(network, x, labels, radius=0.1, steps=8, generator=None), labels).mean()
    clean = _loss(network, x, labels).mean()
    assert _loss(network, x + v, labels).mean() - clean >= 0.9 * (exact - clean)


def test_step_sizes_of_sabr() -> None:
    assert SABR_STEPS.sizes(8) == pytest.approx([0.5] * 4 + [0.05] * 3 + [0.005])
    assert SABR_STEPS.sizes(20) == pytest.approx([0.5] * 10 + [0.05] * 6 + [0.005] * 2 + [0.0005] * 2)
    assert SABR_STEPS.sizes(0) == []
