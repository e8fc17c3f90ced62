"""The clipped and the targeted threat, against exact oracles on tiny networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from citrus_tool.bounds.crown import crown
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import Dataset
from citrus_tool.errors import DataError, UsageError
from citrus_tool.network import Network, Reshape, chain
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.results.certificate import Certificate, Status
from citrus_tool.threat import Threat
from citrus_tool.threat.clip import clipped, perturbed_network
from tests.certification.oracle import fooled_at_most
from tests.certification.toys import SHAPE, as_onnx, data_for, in_context, tiny_chain, tiny_residual

Make = Callable[[int], Network]
QUICK = CertifySettings(
    group_size=3, bounds="full", branch_nodes=200, attack_steps=20, attack_restarts=4, time_limit=120, solver="highs"
)
THREATS = [Threat(eps=0.2, clip=True), Threat(eps=0.3, target=1), Threat(eps=0.3, clip=True, target=0)]


def saturated(network: Network, count: int, seed: int, *, noise: float = 0.1) -> Dataset:
    """Images of which most pixels are 0 or 1, or near them, where the clip bites."""
    data = data_for(network, count, seed)
    images = (1.8 * data.images - 0.4).clamp(0, 1)
    with torch.no_grad():
        labels = network(images).argmax(dim=1)
    wrong = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < noise
    labels = torch.where(wrong, (labels + 1) % network.num_classes, labels)
    return replace(data, images=images, labels=labels)


def certify(
    model: OnnxModel, data: Dataset, threat: Threat, settings: CertifySettings = QUICK, **more: Any
) -> Certificate:
    return certify_uap(model, data, threat, settings, **in_context(more))


def left(logits: Tensor, labels: Tensor, threat: Threat) -> Tensor:
    """Flags, literally: inputs that are not lost."""
    chosen = labels if threat.target is None else torch.full_like(labels, threat.target)
    others = logits.scatter(1, chosen[:, None], -torch.inf).amax(dim=1)
    own = logits.gather(1, chosen[:, None])[:, 0]
    return own > others if threat.target is None else own < others


@pytest.mark.parametrize("make", [tiny_chain, tiny_residual])
def test_clip_layer_is_the_clip(make: Make) -> None:
    network = make(0)
    front = clipped(network)
    z = torch.rand(500, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 - 1
    z[::7] = z[::7].round()
    double = network.frozen(dtype=torch.float64)
    torch.testing.assert_close(front.frozen(dtype=torch.float64)(z), double(z.clamp(0, 1)), rtol=1e-13, atol=1e-13)
    names = [node.name for node in front.nodes]
    assert names[-len(network.nodes) :] == [node.name for node in network.nodes]
    assert front.nodes[-1].layer is network.nodes[-1].layer


@pytest.mark.parametrize("threat", THREATS, ids=["clip", "target", "both"])
@pytest.mark.parametrize("make", [tiny_chain, tiny_residual])
@pytest.mark.parametrize("seed", range(2))
def test_brackets_the_truth(make: Make, seed: int, threat: Threat, tmp_path: Path) -> None:
    network = make(seed)
    data = saturated(network, 12, seed)
    model = as_onnx(network, tmp_path)
    seen = perturbed_network(network, threat)
    for bounds in ("ibp", "crown", "full"):
        certificate = certify(model, data, threat, replace(QUICK, bounds=bounds))
        assert all(int(data.labels[i]) != threat.target for group in certificate.groups for i in group.indices)
        for group in certificate.groups:
            index = torch.tensor(group.indices)
            x, labels = data.pixels(index), data.labels[index]
            with torch.no_grad():
                clean = left(network(x), labels, threat)
            assert group.clean_correct == int(clean.sum())
            truth = int(clean.sum()) - fooled_at_most(seen, x[clean], labels[clean], threat.eps, threat.target)
            assert group.certified <= truth <= group.attacked
            if bounds == "full" and threat.target is None:
                assert group.attacked == truth


@pytest.mark.parametrize("threat", THREATS, ids=["clip", "target", "both"])
def test_contains_samples_on_the_literal_threat(threat: Threat, tmp_path: Path) -> None:
    exact = 0
    for seed in range(3):
        network = tiny_residual(seed)
        data = saturated(network, 9, seed, noise=0.3)
        certificate = certify(as_onnx(network, tmp_path), data, threat)
        u = (torch.rand(300, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * threat.eps
        u[:150] = u[:150].sign() * threat.eps
        for group in certificate.groups:
            exact += group.status is Status.EXACT
            index = torch.tensor(group.indices)
            x, labels = data.pixels(index), data.labels[index]
            shifted = x[None] + u[:, None]
            shifted = shifted.clamp(0, 1) if threat.clip else shifted
            with torch.no_grad():
                logits = network(shifted.flatten(0, 1))
            count = left(logits, labels.repeat(len(u)), threat).reshape(len(u), -1).sum(dim=1)
            assert int(count.min()) >= group.certified
    assert exact > 0


def test_clip_bounds_are_no_looser(tmp_path: Path) -> None:
    """Fewer points are reached with the clip, so more inputs are proven one by one."""
    gained = 0
    for seed in range(3):
        network = tiny_residual(seed)
        data, model = saturated(network, 12, seed), as_onnx(network, tmp_path)
        plain, clip = (certify(model, data, Threat(eps=0.25, clip=clip)) for clip in (False, True))
        assert clip.individually_certified >= plain.individually_certified
        assert clip.ibp_certified >= plain.ibp_certified
        gained += clip.individually_certified - plain.individually_certified
    assert gained > 0


def test_hidden_bounds_behind_the_clip_are_exact_intervals() -> None:
    """CROWN refines nothing where an interval is exact: its rows could only be looser."""
    network = clipped(chain([Reshape((4,)), nn.Linear(4, 3)], SHAPE)).frozen(dtype=torch.float64)
    x = torch.tensor([0.0, 1.0, 0.5, 0.95]).reshape(1, *SHAPE)
    found = crown(network, Threat(eps=0.1).enclosure(x), torch.tensor([0]))
    weight, bias = network.nodes[-1].layer.weight, network.nodes[-1].layer.bias  # type: ignore[union-attr]
    row, constant = weight[0] - weight[1:], bias[0] - bias[1:]
    low, high = (x.double() - 0.1).clamp(0, 1).flatten(), (x.double() + 0.1).clamp(0, 1).flatten()
    exact = row.clamp(min=0) @ low + row.clamp(max=0) @ high + constant
    torch.testing.assert_close(found.lower[0, 1:], exact, rtol=1e-9, atol=1e-9)
    assert (found.lower[0, 1:] <= exact).all()


@pytest.mark.parametrize("threat", [Threat(eps=0.0, clip=True), Threat(eps=0.0, target=2)], ids=["clip", "target"])
def test_eps_0(threat: Threat, tmp_path: Path) -> None:
    network = tiny_residual(1)
    data = saturated(network, 20, 1, noise=0.3)
    certificate = certify(as_onnx(network, tmp_path), data, threat)
    assert certificate.ibp_certified == certificate.certified == certificate.attacked == certificate.clean_correct
    index = torch.tensor([i for group in certificate.groups for i in group.indices])
    with torch.no_grad():
        expected = left(network(data.pixels(index)), data.labels[index], threat)
    assert certificate.clean_correct == int(expected.sum())


def test_target_judges_misclassified_inputs_by_the_target_alone(tmp_path: Path) -> None:
    """Protocol `all`: an input that is misclassified as a third class is not driven to the target."""
    network = tiny_chain(0)
    data = saturated(network, 30, 0, noise=0.6)
    threat = Threat(eps=0.0, target=2)
    with torch.no_grad():
        seen = network(data.pixels()).argmax(dim=1)
    wrong = (seen != data.labels) & (data.labels != 2)
    assert bool((wrong & (seen == 2)).any())
    assert bool((wrong & (seen != 2)).any())
    model = as_onnx(network, tmp_path)
    whole = certify(model, data, threat)
    assert whole.inputs == int((data.labels != 2).sum())
    assert whole.clean_correct == int(((seen != 2) & (data.labels != 2)).sum())
    kept = certify(model, data, threat, replace(QUICK, protocol="correct", limit=5))
    first = torch.nonzero(data.labels != 2).flatten()[:15]
    right = first[seen[first] == data.labels[first]][:5].tolist()
    assert [i for group in kept.groups for i in group.indices] == right
    assert kept.clean_correct == len(right) > 2


def test_targets_cover_less_than_any_class(tmp_path: Path) -> None:
    """One u cannot drive more inputs to one class than to any wrong one."""
    network = tiny_chain(3)
    data, model = saturated(network, 12, 3, noise=0.0), as_onnx(network, tmp_path)
    untargeted = {i: g.certified for g in certify(model, data, Threat(eps=0.2)).groups for i in g.indices}
    one_each = replace(QUICK, group_size=1)
    single = {g.indices[0]: g.certified for g in certify(model, data, Threat(eps=0.2), one_each).groups}
    for target in range(3):
        for group in certify(model, data, Threat(eps=0.2, target=target), one_each).groups:
            assert group.certified >= single[group.indices[0]]
    assert 0 < sum(single.values()) < len(untargeted)


def test_certificate_and_journal_name_the_threat(tmp_path: Path) -> None:
    network = tiny_chain(0)
    data, model = saturated(network, 9, 0), as_onnx(network, tmp_path)
    journal = tmp_path / "journal.jsonl"
    threat = Threat(eps=0.1, clip=True, target=1)
    content = certify(model, data, threat, journal=journal).to_json()
    assert content["threat"] == {"eps": 0.1, "clip": True, "target": 1}
    assert content["eps"] == 0.1
    first = json.loads(journal.read_text().splitlines()[0])["run"]
    assert (first["eps"], first["clip"], first["target"]) == (0.1, True, 1)
    journal.write_text(journal.read_text().splitlines()[0] + "\n")
    with pytest.raises(UsageError, match="is of a run with clip True, this run has False"):
        certify(model, data, replace(threat, clip=False), journal=journal, resume=True)


def test_witnesses_are_replayed_on_the_clipped_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from citrus_tool.onnx_io import OnnxRunner

    seen: list[Tensor] = []
    honest = OnnxRunner.logits

    def watched(self: OnnxRunner, x: Tensor) -> Any:
        seen.append(x)
        return honest(self, x)

    monkeypatch.setattr(OnnxRunner, "logits", watched)
    network = tiny_chain(0)
    certificate = certify(as_onnx(network, tmp_path), saturated(network, 9, 0), Threat(eps=0.4, clip=True))
    assert certificate.attacked < certificate.clean_correct
    assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x in seen)


@pytest.mark.parametrize("target", [-1, 1.0, "2"])
def test_no_class(target: Any) -> None:
    with pytest.raises(UsageError, match=r"target is .*; it must be a class, counted from 0"):
        Threat(eps=0.1, target=target)


def test_target_that_the_network_lacks(tmp_path: Path) -> None:
    network = tiny_chain(0)
    with pytest.raises(UsageError, match="target is 3; the network has 3 classes, choose one of 0 to 2"):
        certify(as_onnx(network, tmp_path), data_for(network, 3, 0), Threat(eps=0.1, target=3))


def test_nothing_but_the_target(tmp_path: Path) -> None:
    network = tiny_chain(0)
    data = replace(data_for(network, 3, 0), labels=torch.full((3,), 2))
    with pytest.raises(DataError, match="every input has the label 2, which is the target"):
        certify(as_onnx(network, tmp_path), data, Threat(eps=0.1, target=2))


def test_words() -> None:
    assert Threat(eps=0.1).words == "x + u, |u| <= 0.1"
    assert Threat(eps=0.1, clip=True, target=3).words == "clip(x + u, 0, 1), |u| <= 0.1, driven to class 3"
    assert np.isclose(Threat(eps=0.1, clip=True).inputs(torch.ones(1), torch.full((1,), 0.1)), 1.0)
