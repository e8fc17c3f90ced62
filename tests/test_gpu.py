"""The same numbers on a GPU as on the CPU; skipped where there is none. benchmarks/gpu.sh runs this and more."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from citrus_tool import architectures, onnx_io
from citrus_tool.bounds.crown import crown
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.data import load
from citrus_tool.network import Network
from citrus_tool.threat import Threat
from citrus_tool.training import trainer
from citrus_tool.training.citrus import citrus_loss
from citrus_tool.training.citrus_plus import citrus_plus_loss
from citrus_tool.training.method import Batch
from citrus_tool.training.methods import METHODS

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device, which PyTorch does not find"
)

MODEL = Path(__file__).resolve().parents[1] / "models" / "digits_convtiny_citrus.onnx"
RECIPE = Recipe(
    eps=0.05,
    tau_ratio=0.5,
    epochs=2,
    warmup_epochs=0,
    ramp_epochs=1,
    groups_per_batch=10,
    pgd_steps=2,
    init="shi",
    certified_inputs=20,
    worst=1,
    pool=2,
)


def _batch(device: str, dtype: torch.dtype) -> tuple[Batch, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((20, 1, 8, 8), generator=generator, dtype=dtype)
    v = (torch.rand(x.shape, generator=generator, dtype=dtype) * 2 - 1) * 0.025
    labels = torch.randint(0, 10, (20,), generator=generator)
    return Batch(x=x.to(device), labels=labels.to(device)), v.to(device)


def _network(device: str, dtype: torch.dtype) -> Network:
    return architectures.build("cnn7", (1, 8, 8), 10, seed=1).to(device=device, dtype=dtype)


@pytest.mark.parametrize("loss", [citrus_loss, citrus_plus_loss])
def test_losses_and_gradients(loss) -> None:  # type: ignore[no-untyped-def]
    found = []
    for device in ("cpu", "cuda"):
        network = _network(device, torch.float64)
        batch, v = _batch(device, torch.float64)
        value = loss(network, batch, v, 0.05, 0.025, RECIPE).loss
        gradients = torch.autograd.grad(value, list(network.parameters()))
        found.append((value.item(), [gradient.cpu() for gradient in gradients]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_bounds() -> None:
    lower = []
    for device in ("cpu", "cuda"):
        network = onnx_io.read(MODEL, input_shape=(1, 8, 8)).network.frozen(dtype=torch.float64, device=device)
        batch, _ = _batch(device, torch.float64)
        with torch.no_grad():
            lower.append(crown(network, Threat(eps=0.02).box(batch.x), batch.labels).lower.cpu())
    torch.testing.assert_close(*lower, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_resumes(tmp_path: Path, method: str) -> None:
    train, validation = load("digits", split="train").take(200), load("digits", split="validation").take(50)
    network, recipe = architectures.build("convtiny", (1, 8, 8), 10), dataclasses.replace(RECIPE, method=method)
    result = trainer.fit(network, train, validation, recipe, RunContext(run_dir=tmp_path, device="cuda"))
    assert result.history[-1]["validation_standard_accuracy"] >= 0
    assert all(parameter.device.type == "cpu" for parameter in result.network.parameters())
    again = trainer.fit(network, train, validation, recipe, RunContext(run_dir=tmp_path, resume=True, device="cuda"))
    assert again.best_epoch == result.best_epoch


@pytest.mark.parametrize("bounds", ["crown", "full"])
def test_certificates(bounds: str) -> None:
    data = load("digits", split="test").take(50)
    model = onnx_io.read(MODEL, input_shape=(1, 8, 8))
    settings = CertifySettings(bounds=bounds)  # type: ignore[arg-type]
    one, other = (
        certify_uap(model, data, Threat(eps=0.05), settings, RunContext(device=device)).to_json()
        for device in ("cpu", "cuda")
    )
    for name in ("clean_correct", "ibp_certified", "individually_certified", "certified", "attacked"):
        assert one[name] == other[name], name
