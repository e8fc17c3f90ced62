"""Figures published for plain CROWN, on the published networks and MNIST test images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from citrus_tool import data, onnx_io
from citrus_tool.bounds.crown import crown
from citrus_tool.bounds.interval import INTERVAL
from citrus_tool.choices import Intermediate
from citrus_tool.network import Network, walk
from citrus_tool.threat import Threat

pytestmark = pytest.mark.slow

Mnist = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def mnist(data_root: Callable[[str], Path]) -> Mnist:
    test = data.load("mnist", split="test", root=data_root("mnist"), limit=1000)
    return test.pixels(), test.labels


def _network(folder: Path, name: str) -> Network:
    return onnx_io.read(folder / f"{name}.onnx").network.frozen(dtype=torch.float64)


def _verified(network: Network, mnist: Mnist, eps: float, intermediate: Intermediate) -> int:
    parts = zip(*(t.split(50) for t in mnist), strict=True)
    return sum(
        int(crown(network, Threat(eps=eps).enclosure(x), y, intermediate=intermediate).verified.sum()) for x, y in parts
    )


@pytest.mark.parametrize(("intermediate", "count"), [("crown", 53), ("intersect", 54)])
def test_racoon_row_individual(shared_models: Path, mnist: Mnist, intermediate: Intermediate, count: int) -> None:
    """RACoon (ICML 2024), mnistconvSmallRELUDiffAI at .13, k = 10, P = 10: CROWN proves 53 of 100 one by one."""
    network = _network(shared_models, "mnistconvSmallRELUDiffAI")
    x, y = (t[:300] for t in mnist)
    kept = (network(x.double()).argmax(1) == y).nonzero()[:100, 0]
    assert _verified(network, (x[kept], y[kept]), 0.13, intermediate) == count


@pytest.mark.parametrize(
    ("name", "interval", "published"),
    [("citrus_convsmall_1", 525, 941), ("sabr_convsmall_1", 625, 935), ("mnistconvSmallRELUDiffAI", 802, 919)],
)
def test_first_thousand_one_by_one(shared_models: Path, mnist: Mnist, name: str, interval: int, published: int) -> None:
    """Published: intervals on the logits, and CROWN without eliding or re-propagating; ours may only prove more."""
    network = _network(shared_models, name)
    output = walk(network, INTERVAL, Threat(eps=0.1).enclosure(mnist[0]))
    rest = output.upper.scatter(1, mnist[1][:, None], -torch.inf).amax(1)
    assert int((output.lower.gather(1, mnist[1][:, None])[:, 0] > rest).sum()) == interval
    assert published <= _verified(network, mnist, 0.1, "intersect") <= published + 5
