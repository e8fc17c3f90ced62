"""Accuracies of a network: standard, under PGD, and those of a certificate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from citrus_tool.attacks.pgd import pgd
from citrus_tool.context import RunContext
from citrus_tool.data import Dataset
from citrus_tool.devices import resolve_device
from citrus_tool.network import Network
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.results.certificate import Certificate
from citrus_tool.results.evaluation import Figures
from citrus_tool.threat import Threat

BATCH = 256
"""Inputs in one forward pass of a figure that needs no gradients: it bounds memory, figures do not depend on it."""


def judged_figures(model: OnnxModel, dataset: Dataset, certificate: Certificate, context: RunContext) -> Figures:
    """Standard accuracy on all of `dataset`, the rest from the certificate."""
    inputs = certificate.inputs
    return Figures(
        standard_accuracy=standard_accuracy(model, dataset, context),
        ibp_certified_accuracy=100 * certificate.ibp_certified / inputs,
        certified_uap_accuracy=100 * certificate.certified / inputs,
        attacked_uap_accuracy=100 * certificate.attacked / inputs,
    )


def standard_accuracy(
    model: OnnxModel, dataset: Dataset, context: RunContext, *, stage: str = "standard accuracy"
) -> float:
    """Percent of `dataset` that the file on onnxruntime classifies correctly; a tie is not correct."""
    runner = OnnxRunner(model)
    context.progress.start(stage, len(dataset), "inputs")
    correct = 0
    for start in range(0, len(dataset), BATCH):
        part = slice(start, min(start + BATCH, len(dataset)))
        correct += int(_correct(runner.logits(dataset.pixels(part)), dataset.labels[part].numpy()).sum())
        context.progress.advance(part.stop - part.start)
    return 100 * correct / len(dataset)


def pgd_accuracy(network: Network, dataset: Dataset, threat: Threat, steps: int, context: RunContext) -> float:
    """Percent of all inputs that stay correct, clean and under their own PGD perturbation of that many steps."""
    device, progress = resolve_device(context.device), context.progress
    frozen = network.frozen(dtype=torch.float32, device=device)
    generator = torch.Generator(device=device).manual_seed(context.seed)
    progress.start("pgd", len(dataset), "inputs")
    correct = 0
    for start in range(0, len(dataset), BATCH):
        part = slice(start, min(start + BATCH, len(dataset)))
        x, labels = dataset.pixels(part).to(device), dataset.labels[part].to(device)
        v = pgd(frozen, x, labels, radius=threat.eps, steps=steps, generator=generator)
        with torch.no_grad():
            clean, moved = frozen(x).cpu().numpy(), frozen(x + v).cpu().numpy()
        truth = dataset.labels[part].numpy()
        correct += int((_correct(clean, truth) & _correct(moved, truth)).sum())
        progress.advance(part.stop - part.start)
    return 100 * correct / len(dataset)


def _correct(logits: np.ndarray[Any, np.dtype[Any]], labels: np.ndarray[Any, np.dtype[Any]]) -> Any:
    """Flags (n,): the true class's logit is above every other one; a tie is not correct."""
    rows = np.arange(len(labels))
    true = logits[rows, labels]
    others = logits.copy()
    others[rows, labels] = -np.inf
    return true > others.max(axis=1)
