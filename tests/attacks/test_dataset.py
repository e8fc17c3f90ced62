from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from citrus_tool.attacks import dataset
from citrus_tool.attacks.dataset import attack_dataset
from citrus_tool.attacks.effort import Effort
from citrus_tool.attacks.margin import margins
from citrus_tool.threat import Threat
from tests.certification.oracle import fooled_at_most
from tests.certification.toys import SHAPE, tiny_chain, tiny_residual


@pytest.fixture(autouse=True, scope="module")
def _one_thread(_threads: None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("target", [None, 1])
def test_count_is_that_of_u_and_near_the_truth(target: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "BATCH", 4)
    found = exact = 0
    for make, seed in ((tiny_chain, 0), (tiny_chain, 2), (tiny_residual, 1), (tiny_residual, 3)):
        network = make(seed)
        images = torch.rand(10, *SHAPE, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            labels = network(images).argmax(dim=1)
        generator = torch.Generator().manual_seed(0)
        threat, effort = Threat(eps=0.2, target=target), Effort(steps=60, restarts=6)
        u, fooled = attack_dataset(network, images, labels, threat, effort, generator)
        assert float(u.abs().max()) <= 0.2
        with torch.no_grad():
            assert int((margins(network, images + u, labels, target) <= 0).sum()) == fooled
        most = fooled_at_most(network, images, labels, 0.2, target)
        assert fooled <= most
        found, exact = found + fooled, exact + most
    assert found >= 0.8 * exact


def test_no_effort_gives_zero_and_the_generator_decides() -> None:
    network = tiny_residual(1)
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(6, dtype=torch.int64)

    def attack(steps: int, restarts: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        effort = Effort(steps=steps, restarts=restarts)
        return attack_dataset(network, images, labels, Threat(eps=0.2), effort, generator)[0]

    assert float(attack(0, 3).abs().max()) == float(attack(10, 0).abs().max()) == 0
    assert torch.equal(attack(10, 3), attack(10, 3))
