"""Exported UAP problems of 2 to 10 inputs: verify, certify-uap and brute force give one answer, in both forms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from citrus_tool import onnx_io
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.cli import main
from citrus_tool.data import Dataset
from citrus_tool.network import Network, Reshape, chain
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.queries import parse, read
from citrus_tool.queries.export import export_group
from citrus_tool.queries.verify import Verdict, read_models, verify
from citrus_tool.threat import Threat
from tests.certification.oracle import fooled_at_most
from tests.queries.exact_queries import slack, tiny

SHAPE, CLASSES, HIDDEN, GRID = (1, 1, 2), 3, 4, 151
CLEAR = 0.03
"""Radii are such that the answer is the same for radii smaller or larger by this share."""


@dataclass(frozen=True)
class Group:
    """Inputs of two pixels, so that every u can be tried; `fooled`: how many one u fools at most."""

    model: OnnxModel
    images: Tensor
    labels: list[int]
    eps: float
    fooled: int

    @property
    def k(self) -> int:
        return len(self.labels)


def by_grid(network: Network, images: Tensor, labels: list[int], eps: float) -> int:
    """How many inputs a u of a fine grid, borders included, fools at most."""
    axis = torch.linspace(-eps, eps, GRID, dtype=torch.float64)
    u = torch.cartesian_prod(axis, axis).reshape(-1, *SHAPE)
    twin = network.frozen(dtype=torch.float64)
    count = torch.zeros(len(u), dtype=torch.long)
    with torch.no_grad():
        for image, label in zip(images.double(), labels, strict=True):
            logits = twin(image + u)
            others = logits.clone()
            others[:, label] = -torch.inf
            count += others.amax(1) >= logits[:, label]
    return int(count.max())


def group(k: int, path: Path) -> Group:
    """The first random network and radius whose answer is clear and lies between 0 and k; k itself for k = 4."""
    for seed in range(100 * k, 100 * k + 100):
        torch.manual_seed(seed)
        network = chain([Reshape((2,)), nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)], SHAPE)
        images = torch.rand(k, *SHAPE)
        with torch.no_grad():
            labels = network(images).argmax(1).tolist()
        eps = float(np.random.default_rng(seed).choice([0.125, 0.25, 0.5]))
        most = by_grid(network, images, labels, eps * (1 + CLEAR))
        if most == 0 or (most == k) != (k == 4) or by_grid(network, images, labels, eps * (1 - CLEAR)) != most:
            continue
        if fooled_at_most(network, images, torch.tensor(labels), eps) == most:
            model = onnx_io.export(network, path, metadata={})
            return Group(model=model, images=images, labels=labels, eps=eps, fooled=most)
    pytest.fail(f"no network for {k} inputs")


@pytest.mark.parametrize("k", range(2, 11))
def test_both_forms_agree_with_certify_uap_and_with_brute_force(k: int, tmp_path: Path) -> None:
    found = group(k, tmp_path / "toy.onnx")
    data = Dataset(
        name="toy", split="test", images=found.images, labels=torch.tensor(found.labels), num_classes=CLASSES
    )
    (certified,) = certify_uap(
        found.model, data, Threat(eps=found.eps), CertifySettings(group_size=k, bounds="full")
    ).groups
    assert certified.certified <= k - found.fooled <= certified.attacked
    assert (certified.certified, certified.status.value) == (k - found.fooled, "exact")
    for m in sorted({1, found.fooled, min(found.fooled + 1, k), k}):
        files = export_group(found.model, found.images, found.labels, found.eps, tmp_path, "g", at_least=m)
        spec = read(files.property)
        verdict = verify(spec, read_models(spec, {"N": files.product}), seconds=60).verdict
        assert verdict is (Verdict.SAT if m <= found.fooled else Verdict.UNSAT), m
    spec = read(files.query)
    verdict = verify(spec, read_models(spec, {"f1": found.model.path}), seconds=60).verdict
    assert verdict is (Verdict.SAT if found.fooled == k else Verdict.UNSAT)


EXAMPLE = (  # notes of the project, on formats
    "(vnnlib-version <2.0>)\n"
    "(declare-network f1 (declare-input X1 real [1,4]) (declare-output Y1 real [1,3]))\n"
    "(declare-network f2 (equal-to f1) (declare-input X2 real [1,4]) (declare-output Y2 real [1,3]))\n"
    + "".join(f"(assert (>= X1[0,{i}] 0.4)) (assert (<= X1[0,{i}] 0.6))\n" for i in range(4))
    + "".join(f"(assert (== (- X2[0,{i}] X1[0,{i}]) -0.25))\n" for i in range(4))
    + "(assert (or (<= Y1[0,0] Y1[0,1]) (<= Y1[0,0] Y1[0,2])))\n"
    + "(assert (or (<= Y2[0,1] Y2[0,0]) (<= Y2[0,1] Y2[0,2])))\n"
)


def test_the_example_query_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command line, for networks whose exact answer linear programs give; sat names a u that fools both."""
    query = tmp_path / "uap.vnnlib"
    query.write_text(EXAMPLE)
    verdicts = []
    for seed in range(8):
        network = tiny(tmp_path / f"{seed}.onnx", seed, inputs=4, hidden=3, outputs=3)
        exact = slack(parse(EXAMPLE), {"f1": network})
        if abs(exact) < 1e-3:
            continue
        code = main(["verify", str(query), "--network", f"f1={network.path}", "--threads", "1", "--quiet"])
        first, *rest = capsys.readouterr().out.splitlines()
        assert (code, first) == (0, "sat" if exact > 0 else "unsat"), seed
        verdicts.append(first)
        if first == "sat":
            x1, x2 = _tensor(rest, "X1"), _tensor(rest, "X2")
            assert np.allclose(x2 - x1, -0.25, atol=1e-6)
            assert np.abs(x1 - 0.5).max() <= 0.1
            for x, label in ((x1, 0), (x2, 1)):
                logits = np.maximum(x @ network.w1.T + network.b1, 0) @ network.w2.T + network.b2
                assert np.delete(logits, label).max() >= logits[label] - 1e-5
    assert {"sat", "unsat"} == set(verdicts)


def _tensor(lines: list[str], name: str) -> NDArray[np.float64]:
    start = next(i for i, line in enumerate(lines) if line.split()[0] == name)
    return np.array([float(line) for line in lines[start + 1 : start + 5]])
