"""Witnesses that only the file's rounding makes: numbers that cancel in real arithmetic and not in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from citrus_tool.api import load
from citrus_tool.certification.group import OpenGroup
from citrus_tool.certification.replay import Replayer
from citrus_tool.certification.rounding_attack import rounding_witness
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import Dataset
from citrus_tool.errors import SoundnessError
from citrus_tool.network import Evaluation, Network, Reshape, chain
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.results.certificate import Certificate
from citrus_tool.threat import Threat
from tests.certification.toys import SHAPE, as_onnx, tiny_chain

EPS = 0.1
TARGET = (0.05, -0.05)
"""Where the last two pixels' perturbation has to be for the large numbers to appear."""


def cancelling(sharp: float, large: float) -> Network:
    """Logits x_0 + large t - 3 (large / 3) t and 0.3, with t > 0 within 1 / sharp of TARGET alone (in l1)."""
    first, spike, pair, last = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(2, 3), nn.Linear(3, 2)
    with torch.no_grad():
        for layer in (first, spike, pair, last):
            layer.weight.zero_()
            assert layer.bias is not None
            layer.bias.zero_()
        for row, (pixel, sign) in enumerate([(2, 1.0), (2, -1.0), (3, 1.0), (3, -1.0)]):
            first.weight[row, pixel] = sign * sharp
            first.bias[row] = -sign * sharp * (0.5 + TARGET[pixel - 2])
        first.weight[4, 0] = 1.0
        spike.weight[0, :4] = -1.0
        spike.bias[0] = spike.weight[1, 4] = 1.0
        pair.weight.copy_(torch.tensor([[large, 0.0], [large / 3, 0.0], [0.0, 1.0]]))
        last.weight[0] = torch.tensor([1.0, -3.0, 1.0])
        last.bias[1] = 0.3
    layers = [first, nn.ReLU(), spike, nn.ReLU(), pair, nn.ReLU(), last]
    return chain([Reshape((4,)), *layers], SHAPE).eval()


def grey() -> Dataset:
    """Ten images whose first pixel is in [0.5, 0.6], so that its margin is at least 0.1."""
    images = torch.full((10, *SHAPE), 0.5)
    images[:, 0, 0, 0] += 0.01 * torch.arange(10)
    labels = torch.zeros(10, dtype=torch.int64)
    return Dataset(name="toy", split="test", images=images, labels=labels, num_classes=2)


def certified(model: OnnxModel, **settings: Any) -> Certificate:
    quick = {"attack_steps": 20, "attack_restarts": 3, "branch_nodes": 50, "branch_seconds": 2.0, "time_limit": 5.0}
    return certify_uap(model, grey(), Threat(eps=EPS), CertifySettings(**(quick | settings)))


def in_box(model: OnnxModel, u: Tensor) -> int:
    """How many of the images the file still classifies correctly at x + u."""
    return int((OnnxRunner(model).logits(grey().images + u).argmax(axis=1) == 0).sum())


@pytest.mark.parametrize("bounds", ["ibp", "crown", "full"])
def test_attacked_is_about_the_file(bounds: Any, tmp_path: Path) -> None:
    model = as_onnx(cancelling(sharp=64.0, large=3e7), tmp_path)
    found = certified(model, bounds=bounds)
    assert (found.clean_correct, found.certified, found.attacked) == (10, 0, 0)
    for group in found.groups:
        assert group.evidence is not None
        assert group.evidence.perturbation is not None
        u = torch.from_numpy(group.evidence.perturbation)
        assert float(u.abs().max()) <= EPS
        assert in_box(model, u) <= 10 - len(group.indices)
    exact = certified(model, bounds=bounds, arithmetic="real")
    assert (exact.clean_correct, exact.attacked) == (10, 10)
    assert exact.certified == (0 if bounds == "ibp" else 10)


class Counting:
    """The file, and how many inputs it ran."""

    def __init__(self, model: OnnxModel) -> None:
        self.runner, self.ran = OnnxRunner(model), 0

    def logits(self, x: Tensor) -> NDArray[np.float32]:
        self.ran += len(x)
        return self.runner.logits(x)


def replayer(network: Network, runner: Any, eps: float) -> Replayer:
    evaluation = Evaluation(arithmetic="float32", rounds_input=True)
    return Replayer(
        network=network.frozen(dtype=torch.float64, evaluation=evaluation),
        runner=runner,
        threat=Threat(eps=eps),
        device=torch.device("cpu"),
        stage="crown",
    )


def test_nothing_is_run_where_float32_is_far_from_deciding(tmp_path: Path) -> None:
    network = tiny_chain(1)
    runner = Counting(as_onnx(network, tmp_path))
    x = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(x)
    clear = logits.topk(2).values.diff().flatten() < -0.05
    assert int(clear.sum()) > 5
    judge, starts = replayer(network, runner, 0.02), torch.zeros(1, *SHAPE)
    x, reference, none = x[clear], logits[clear].argmax(1), torch.zeros(int(clear.sum()), dtype=torch.bool)
    found = rounding_witness(judge, x, reference, none, starts, torch.Generator().manual_seed(0))
    assert found is None
    assert not runner.ran


def test_a_proof_that_the_file_contradicts_stops_the_run(tmp_path: Path) -> None:
    """In real arithmetic every input is proven; at this u the file gets one of them wrong."""
    network, data = cancelling(sharp=8.0, large=3e7), grey()
    judge = replayer(network, OnnxRunner(as_onnx(network, tmp_path)), EPS)
    near = 0.02 * torch.rand(100, 1, 1, 2, generator=torch.Generator().manual_seed(0)) - 0.01
    points = torch.cat([torch.zeros(100, 1, 1, 2), near + torch.tensor(TARGET)], dim=2)
    found = [torch.from_numpy(judge.outcome(data.images, u, data.labels).lost) for u in points]
    u, lost = max(zip(points, found, strict=True), key=lambda pair: int(pair[1].sum()))
    assert int(lost.sum()) > 1
    proven = torch.ones(10, dtype=torch.bool)
    proven[lost.nonzero()[0]] = False
    group = OpenGroup(
        index=3,
        indices=tuple(range(20, 30)),
        labels=tuple(data.labels.tolist()),
        x=data.images,
        reference=data.labels,
        held=torch.ones(10, dtype=torch.bool),
        ibp=proven,
        proven=proven,
        u=torch.zeros_like(u),
        fallen=torch.zeros(10, dtype=torch.bool),
        seconds={},
    )
    number = 20 + int(lost.nonzero()[1])
    with pytest.raises(SoundnessError, match=rf"group 3: a perturbation within eps 0.1 fools input {number} although"):
        judge.replayed(group, u, lambda place, rivals, point: True)
    real = replace(judge, network=network.frozen(dtype=torch.float64))
    assert real.replayed(group, u, lambda place, rivals, point: True).fooled == 0


@pytest.mark.parametrize(("arithmetic", "left"), [("float32", 0), ("real", 10)])
def test_an_attack_says_what_it_is_about(arithmetic: Any, left: int, tmp_path: Path) -> None:
    """`attack-uap` finds what the file's rounding makes, and counts it in float32 alone."""
    model = load(as_onnx(cancelling(sharp=64.0, large=3e7), tmp_path).path)
    found = model.attack(grey(), eps=EPS, group_size=5, steps=10, restarts=2, arithmetic=arithmetic)
    assert (found.correct, found.attacked, found.arithmetic) == (10, left, arithmetic)
    assert found.to_json()["arithmetic"] == arithmetic
    assert arithmetic in found.table().columns[0]
