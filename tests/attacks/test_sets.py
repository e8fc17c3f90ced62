from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from citrus_tool.attacks.effort import Effort
from citrus_tool.attacks.margin import margins
from citrus_tool.attacks.sets import Descent, around, attack_set, attack_sets
from citrus_tool.network import Network
from citrus_tool.threat import Threat
from citrus_tool.threat.clip import clipped
from tests.certification.oracle import fooled_at_most
from tests.certification.toys import SHAPE, tiny_chain, tiny_residual


@pytest.fixture(autouse=True, scope="module")
def _one_thread(_threads: None) -> Iterator[None]:
    """The networks are tiny: threads only cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(network: Network, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images and the network's own labels."""
    images = torch.rand(count, *network.input_shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return images, network(images).argmax(dim=1)


@pytest.mark.parametrize("make", [tiny_chain, tiny_residual])
def test_fools_a_whole_set_whenever_one_u_can(make: type) -> None:
    met = possible = 0
    for seed in range(24):
        network = make(seed)
        images, labels = drawn(network, 3, seed)
        with torch.no_grad():
            if float(margins(network, images, labels).min()) < 1e-4:
                continue  # a tie but for rounding: the oracle's tolerance calls it fooled
        u, fooled = attack_set(network, images, labels, Threat(eps=0.25), start=torch.zeros(SHAPE))
        exact = fooled_at_most(network, images, labels, 0.25)
        assert int(fooled.sum()) <= exact
        assert float(u.abs().max()) <= 0.25
        with torch.no_grad():
            assert torch.equal(margins(network, images + u, labels) <= 0, fooled)
        possible += exact == 3
        met += int(fooled.sum()) == exact == 3
    assert met >= 0.9 * possible > 0


def test_wrong_labels_and_target_classes_are_what_counts() -> None:
    network = tiny_residual(3)
    images, labels = drawn(network, 2, 3)
    for wrong in product(range(3), repeat=2):
        targets = torch.tensor(wrong)
        if (targets == labels).any():
            continue
        u, fooled = attack_set(network, images, labels, Threat(eps=0.5), start=torch.zeros(SHAPE), wrong=targets)
        with torch.no_grad():
            logits = network(images + u)
        assert torch.equal(logits.gather(1, targets[:, None]) >= logits.gather(1, labels[:, None]), fooled[:, None])
    for target in range(3):
        u, fooled = attack_set(network, images, labels, Threat(eps=0.5, target=target), start=torch.zeros(SHAPE))
        with torch.no_grad():
            logits = network(images + u)
        assert torch.equal(logits[:, target] == logits.amax(dim=1), fooled)


def test_sets_of_all_sizes_do_not_meet() -> None:
    """What a set gets does not depend on the sets beside it, nor on which of these end first."""
    network = tiny_residual(5).frozen(dtype=torch.float64)
    images, labels = drawn(tiny_residual(5), 12, 5)
    images = images.double()
    of_set = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4])
    start = torch.zeros(5, *SHAPE, dtype=torch.float64)
    threat, descent = Threat(eps=0.3), Descent(steps=30)
    u, margin = attack_sets(network, images, labels, of_set, start, threat, descent)
    for number in range(5):
        rows = of_set == number
        alone = torch.zeros(int(rows.sum()), dtype=torch.int64)
        one, value = attack_sets(network, images[rows], labels[rows], alone, start[:1], threat, descent)
        torch.testing.assert_close(one[0], u[number])
        torch.testing.assert_close(value, margin[rows])
    ended = torch.zeros(5, dtype=torch.float64).scatter_reduce(0, of_set, margin, "amax", include_self=False)
    assert int((ended <= 0).sum()) in range(1, 5)


def test_start_eps_0_and_no_steps() -> None:
    network = tiny_chain(1)
    images, labels = drawn(network, 2, 1)
    u, fooled = attack_set(network, images, labels, Threat(eps=0.0), start=torch.ones(SHAPE))
    assert float(u.abs().max()) == 0
    assert not fooled.any()
    u, _ = attack_set(network, images, labels, Threat(eps=0.1), Effort(steps=0, restarts=3), start=torch.ones(SHAPE))
    assert torch.equal(u, torch.full(SHAPE, Threat(eps=0.1).inner))
    once = attack_set(network, images, labels, Threat(eps=0.1), start=torch.ones(SHAPE))[0]
    assert torch.equal(once, attack_set(network, images, labels, Threat(eps=0.1), start=torch.ones(SHAPE))[0])


def test_clipped_networks() -> None:
    network = tiny_chain(2)
    images, labels = drawn(network, 2, 2)
    images = images.round()
    u, fooled = attack_set(clipped(network), images, labels, Threat(eps=0.6), start=torch.zeros(SHAPE))
    with torch.no_grad():
        assert torch.equal(margins(network, (images + u).clamp(0, 1), labels) <= 0, fooled)


def test_starts_move_from_the_given_one_to_corners() -> None:
    start = torch.full((1, 10, 10), 0.05)
    starts = around(start, 4, Threat(eps=0.1), torch.Generator().manual_seed(0))
    moved = [int((one != start).sum()) for one in starts]
    assert moved == sorted(moved)
    assert 10 < moved[0] < 40
    assert moved[-1] == 100
    assert float((starts[-1].abs() - 0.1).abs().max()) < 1e-7
