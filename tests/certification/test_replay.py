"""What a perturbation does, by the file and by the exact network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from citrus_tool.certification.individual import held
from citrus_tool.certification.replay import Replayer
from citrus_tool.network import Evaluation
from citrus_tool.onnx_io import OnnxRunner
from citrus_tool.threat import Threat
from citrus_tool.threat.clip import perturbed_network
from tests.certification.test_uap import constant_logits
from tests.certification.toys import SHAPE, as_onnx, data_for, tiny_chain, tiny_residual


def replayer(network: Any, folder: Path, threat: Threat, arithmetic: Any) -> Replayer:
    evaluation = Evaluation(arithmetic=arithmetic, rounds_input=True)
    return Replayer(
        network=perturbed_network(network, threat).frozen(dtype=torch.float64, evaluation=evaluation),
        runner=OnnxRunner(as_onnx(network, folder)),
        threat=threat,
        device=torch.device("cpu"),
        stage="crown",
    )


@pytest.mark.parametrize("arithmetic", ["float32", "real"])
@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("make", [tiny_chain, tiny_residual])
def test_far_from_ties_both_see_what_happens(
    make: Any, clip: bool, target: int | None, arithmetic: Any, tmp_path: Path
) -> None:
    """Compared with the network's own float64 logits at clip(x + u), whose margins are all clear here."""
    network = make(3)
    data = data_for(network, 40, 3)
    threat = Threat(eps=0.4, clip=clip, target=target)
    judge = replayer(network, tmp_path, threat, arithmetic)
    u = 0.4 * (torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    found = judge.outcome(data.images, u, data.labels)
    with torch.no_grad():
        moved = data.images.double() + u.double()
        logits = network.double()(moved.clamp(0, 1) if clip else moved).numpy()
    labels = data.labels.numpy()
    lost = ~held(logits, labels, target)
    np.testing.assert_array_equal(found.lost, lost)
    assert 0 < lost.sum() < len(lost)
    if target is None:
        winners = logits >= logits[np.arange(len(labels)), labels][:, None]
        winners[np.arange(len(labels)), labels] = False
    else:
        winners = lost[:, None] & (np.arange(3) == target)
    np.testing.assert_array_equal(found.winners, winners)


@pytest.mark.parametrize(("arithmetic", "lost"), [("float32", True), ("real", False)])
def test_a_tie_is_lost_on_the_file_and_undecided_in_float64(arithmetic: Any, lost: bool, tmp_path: Path) -> None:
    """What float64's own rounding leaves open is no witness."""
    judge = replayer(constant_logits(1.0, 1.0, 0.0), tmp_path, Threat(eps=0.1), arithmetic)
    found = judge.outcome(torch.rand(2, *SHAPE), torch.zeros(SHAPE), torch.zeros(2, dtype=torch.int64))
    assert found.lost.tolist() == [lost, lost]
