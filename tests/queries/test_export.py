"""Exported UAP problems: what the product computes, both forms agree with each other and with certify-uap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from citrus_tool import onnx_io
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import Dataset
from citrus_tool.errors import UsageError
from citrus_tool.network import Reshape, chain
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.queries import read
from citrus_tool.queries.export import export_group, fooled_property, product_network
from citrus_tool.queries.verify import Verdict, read_models, verify
from citrus_tool.threat import Threat

K, CLASSES = 3, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    torch.manual_seed(5)
    layers = [Reshape((6,)), torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, CLASSES)]
    path = tmp_path_factory.mktemp("export") / "toy.onnx"
    return onnx_io.export(chain(layers, (1, 2, 3)), path, metadata={})


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(K, 1, 2, 3, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def labels(model: OnnxModel, images: torch.Tensor) -> list[int]:
    found: list[int] = OnnxRunner(model).logits(images).argmax(axis=1).tolist()
    return found


def test_the_product_gives_every_margin(model: OnnxModel, images: torch.Tensor, labels: list[int]) -> None:
    product = product_network(model.network, images, labels)
    u = torch.rand(20, 1, 2, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        for i, label in enumerate(labels):
            logits = model.network(images[i] + u)
            others = logits.masked_fill(torch.nn.functional.one_hot(torch.tensor(label), CLASSES).bool(), -torch.inf)
            assert torch.allclose(product(u)[:, i], others.amax(1) - logits[:, label], atol=1e-5)


def test_copies_share_their_initializers(
    model: OnnxModel, images: torch.Tensor, labels: list[int], tmp_path: Path
) -> None:
    files = export_group(model, images, labels, 0.1, tmp_path, "g", at_least=2)
    proto = onnx.load(files.product)
    weights = [t for t in proto.graph.initializer if list(t.dims) == [5, 6]]
    assert len(weights) == 1
    assert sum(weights[0].name in node.input for node in proto.graph.node) == K


@pytest.mark.parametrize("eps", [0.05, 0.3, 0.8])
def test_verdicts_agree_with_certify_uap(
    model: OnnxModel, images: torch.Tensor, labels: list[int], tmp_path: Path, eps: float
) -> None:
    data = Dataset(name="toy", split="test", images=images, labels=torch.tensor(labels), num_classes=CLASSES)
    (group,) = certify_uap(
        model, data, Threat(eps=eps), CertifySettings(group_size=K, bounds="full", attack_steps=50, attack_restarts=6)
    ).groups
    verdicts = {}
    for m in (1, 2, 3):
        files = export_group(model, images, labels, eps, tmp_path, f"g{m}", at_least=m)
        spec = read(files.property)
        verdicts[m] = verify(spec, read_models(spec, {"N": files.product}), seconds=60).verdict
        assert verdicts[m] in (Verdict.SAT, Verdict.UNSAT)
        # fewer than `certified` correct cannot be; `attacked` correct has been reached
        if K - m < group.certified:
            assert verdicts[m] is Verdict.UNSAT
        if K - m >= group.attacked:
            assert verdicts[m] is Verdict.SAT
    spec = read(files.query)
    joint = verify(spec, read_models(spec, {"f1": model.path}), seconds=60).verdict
    assert joint is verdicts[3]


def test_normalised_inputs_carry_a_normalised_radius(model: OnnxModel, images: torch.Tensor, tmp_path: Path) -> None:
    normalised = onnx_io.read(model.path, mean=[0.5], std=[0.25])
    labels = OnnxRunner(normalised).logits(images).argmax(axis=1).tolist()
    files = export_group(normalised, images, labels, 0.1, tmp_path, "n", at_least=1)
    box = read(files.query).common_case.boxes["X2"]
    centre = (images[1].numpy() - 0.5) / 0.25
    assert np.allclose((box.lower + box.upper) / 2, centre[None], atol=1e-6)
    assert np.allclose((box.upper - box.lower) / 2, 0.4, atol=1e-6)


@pytest.mark.parametrize(("k", "m", "words"), [(3, 4, "makes no sense"), (40, 20, "137846528820 cases")])
def test_refusals(k: int, m: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fooled_property(4, k, m, 0.1)
