"""What a run keeps of single inputs: verdicts that give the counts, perturbations that do what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.errors import InterruptedRunError
from citrus_tool.onnx_io import OnnxRunner
from citrus_tool.progress import Progress
from citrus_tool.results.certificate import Certificate
from citrus_tool.results.evidence import Verdict
from citrus_tool.threat import Threat
from tests.certification.toys import as_onnx, data_for, tiny_chain

QUICK: dict[str, Any] = {"group_size": 3, "attack_steps": 20, "attack_restarts": 4, "time_limit": 120}


def kept(certificate: Certificate) -> list[Any]:
    return [(one.labels, one.verdicts) for group in certificate.groups if (one := group.evidence) is not None]


@pytest.mark.parametrize("bounds", ["ibp", "crown", "full"])
@pytest.mark.parametrize("eps", [0.03, 0.15])
def test_verdicts_give_the_counts_and_perturbations_the_fooled(bounds: Any, eps: float, tmp_path: Path) -> None:
    network = tiny_chain(1)
    data, model = data_for(network, 15, 1), as_onnx(network, tmp_path)
    found = certify_uap(model, data, Threat(eps=eps), CertifySettings(**QUICK, bounds=bounds))
    runner = OnnxRunner(model)
    for group in found.groups:
        one = group.evidence
        assert one is not None
        index = torch.tensor(group.indices)
        assert list(one.labels) == data.labels[index].tolist()
        said = {verdict: one.verdicts.count(verdict) for verdict in Verdict}
        assert said[Verdict.LOST] == len(group.indices) - group.clean_correct
        assert said[Verdict.IBP] == group.ibp_certified
        assert said[Verdict.IBP] + said[Verdict.PROVEN] == group.individually_certified
        assert said[Verdict.FOOLED] == group.clean_correct - group.attacked
        assert (one.perturbation is None) == (said[Verdict.FOOLED] == 0)
        if one.perturbation is not None:
            u = torch.from_numpy(one.perturbation)
            assert float(u.abs().max()) <= eps
            seen = runner.logits(data.pixels(index) + u).argmax(axis=1)
            for verdict, label, winner in zip(one.verdicts, one.labels, seen, strict=True):
                assert (verdict is Verdict.FOOLED) <= (label != winner)
                assert (verdict in (Verdict.IBP, Verdict.PROVEN, Verdict.OPEN)) <= (label == winner)


class StopsAfter(Progress):
    """Ctrl-C when that many groups are done."""

    def __init__(self, groups: int) -> None:
        self._left, self._counts = groups, False

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self._counts = stage == "groups"

    def advance(self, amount: int = 1, note: str = "") -> None:
        if self._counts and amount:
            self._left -= amount
            if self._left == 0:
                raise KeyboardInterrupt

    def finish(self) -> None:
        pass


def test_a_resumed_run_keeps_the_same(tmp_path: Path) -> None:
    network = tiny_chain(1)
    data, model = data_for(network, 15, 1), as_onnx(network, tmp_path)
    arguments = (model, data, Threat(eps=0.15), CertifySettings(**QUICK))
    whole = certify_uap(*arguments, journal=tmp_path / "whole.jsonl")
    with pytest.raises(InterruptedRunError):
        certify_uap(*arguments, journal=tmp_path / "cut.jsonl", progress=StopsAfter(2))
    again = certify_uap(*arguments, journal=tmp_path / "cut.jsonl", resume=True)
    assert kept(again) == kept(whole)
    pairs = [
        (one.evidence.perturbation, other.evidence.perturbation)
        for one, other in zip(again.groups, whole.groups, strict=True)
        if one.evidence is not None and other.evidence is not None
    ]
    assert any(u is not None for u, _ in pairs)
    for u, v in pairs:
        assert (u is None) == (v is None)
        if u is not None and v is not None:
            assert (u == v).all()
