"""Random certificates on tiny networks, held against onnxruntime, the checker and what has to follow from them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from citrus_tool.certification.individual import held
from citrus_tool.certification.uap import certify_uap
from citrus_tool.checker.check import check
from citrus_tool.choices import Arithmetic, BoundsName
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import Dataset
from citrus_tool.errors import CheckFailedError, DataError, SoundnessError, UnsupportedNetworkError
from citrus_tool.network import Affine, Network, Reshape, chain
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.results.certificate import Certificate
from citrus_tool.threat import Threat
from tests.certification.toys import CLASSES, SHAPE, as_onnx, data_for, tiny_chain, tiny_residual

POINTS = 3000
"""Shared perturbations that are tried on each group, a third of them corners of the box."""
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL")


def _smooth(seed: int) -> Network:
    """Two hidden layers with sigmoid, tanh or leaky ReLU."""
    torch.manual_seed(seed)
    kinds: list[nn.Module] = [nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(0.1)]
    layers = [nn.Linear(4, 5), kinds[seed % 3], nn.Linear(5, 5), kinds[(seed + 1) % 3], nn.Linear(5, CLASSES)]
    return chain([Reshape((4,)), *layers], SHAPE).eval()


def _pooled(seed: int) -> Network:
    """Normalisation, convolution, batch norm, max or average pool."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight)
    pool: nn.Module = nn.MaxPool2d(2) if seed % 2 else nn.AvgPool2d(2)
    front = Affine(torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1), -1.5))
    layers = [front, nn.Conv2d(1, 3, 3, padding=1), norm, nn.ReLU(), pool, Reshape((3,)), nn.Linear(3, CLASSES)]
    return chain(layers, SHAPE).eval()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network, its data, a threat and settings; made from `seed` alone."""

    seed: int
    bounds: BoundsName | None = None
    arithmetic: Arithmetic | None = None

    @cached_property
    def _random(self) -> random.Random:
        return random.Random(self.seed)

    @cached_property
    def network(self) -> Network:
        """Weights of ordinary size, scaled by 1e-6 to 1e6, or with a pair of hidden units that cancels."""
        choice = random.Random(self.seed)
        make = choice.choice([tiny_chain, tiny_chain, tiny_residual, _smooth, _pooled])
        network = make(self.seed)
        weighted = [node.layer for node in network.nodes if isinstance(node.layer, nn.Linear | nn.Conv2d)]
        first, last = weighted[0], weighted[-1]
        with torch.no_grad():
            kind = choice.random()
            if kind < 0.25 and make is tiny_chain:
                first.weight[1], first.bias[1] = first.weight[0], first.bias[0]  # type: ignore[index]
                last.weight[:, 0] += 10 ** choice.uniform(2, 7) * torch.randn(CLASSES)
                last.weight[:, 1] = -last.weight[:, 0] + 0.1 * torch.randn(CLASSES)
            elif kind < 0.4:
                scale = 10 ** choice.uniform(-6, 6)
                for layer in weighted:
                    layer.weight *= scale
                    layer.bias *= scale  # type: ignore[operator]
            elif kind < 0.5:
                first.bias -= 100.0  # type: ignore[operator]
        return network

    @cached_property
    def data(self) -> Dataset:
        """Eight inputs, sometimes one of them twice."""
        data = data_for(self.network, 8, self.seed)
        if self.seed % 7 == 0:
            data.images[1] = data.images[0]
        return data

    @cached_property
    def threat(self) -> Threat:
        """Eps from 0 to 1, with and without clip and target."""
        choice = random.Random(self.seed + 1)
        eps = choice.choice([0.0, 0.003, 0.01, 0.03, 0.1, 0.1, 0.3, 1.0])
        return Threat(eps=eps, clip=choice.random() < 0.25, target=choice.choice([None, None, None, 0]))

    @cached_property
    def settings(self) -> CertifySettings:
        """Small efforts; groups of 1 to 6."""
        choice = random.Random(self.seed + 2)
        return CertifySettings(
            arithmetic=self.arithmetic or choice.choice(["float32", "float32", "real"]),
            bounds=self.bounds or choice.choice(["ibp", "crown", "alpha", "full"]),
            group_size=choice.choice([1, 2, 3, 4, 6]),
            scope=choice.choice(["groups", "groups", "dataset"]),
            solver=choice.choice(["cbc", "highs", "highs"]),
            attack_steps=10,
            attack_restarts=1,
            branch_nodes=60,
            branch_seconds=1.0,
            time_limit=1.0,
        )


def violations(case: Case, folder: Path) -> Iterator[str]:
    """What is wrong with a case's certificate, in words."""
    if case.threat.target == 0 and bool((case.data.labels == 0).all()):
        return
    try:
        model = as_onnx(case.network, folder, f"{case.seed}.onnx")
        certificate = _certified(case, model, folder)
    except (DataError, UnsupportedNetworkError):
        return
    except SoundnessError as error:
        yield f"the run contradicts itself: {error}"
        return
    except CheckFailedError as error:
        yield f"the checker refuses a proof: {error}"
        return
    if case.settings.arithmetic == "float32":
        yield from _beyond_onnxruntime(case, model, certificate)
    else:
        yield from _beyond_real(case, certificate)
    yield from _metamorphic(case, model, certificate)


def _certified(case: Case, model: OnnxModel, folder: Path) -> Certificate:
    settings, path = case.settings, None
    piecewise = not any(isinstance(node.layer, nn.Sigmoid | nn.Tanh | nn.MaxPool2d) for node in case.network.nodes)
    if settings.bounds == "full" and settings.scope == "groups" and piecewise:
        path = folder / f"{case.seed}.proof"
    found = certify_uap(model, case.data, case.threat, settings, proof=path)
    if path is not None:
        shown = check(path, model.path)
        if shown.certified != found.certified:
            raise CheckFailedError(f"the proof shows {shown.certified}, the certificate {found.certified}")
    return found


def _perturbations(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed)
    u = (torch.rand(POINTS, *SHAPE, generator=generator) * 2 - 1) * case.threat.inner
    u[: POINTS // 3] = u[: POINTS // 3].sign() * case.threat.inner
    u[0] = 0.0
    return u


def _groups(case: Case, certificate: Certificate) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """(name, certified, pixels, labels) of everything that one perturbation is shared by."""
    if certificate.scope == "dataset":
        indices = torch.tensor([index for group in certificate.groups for index in group.indices])
        yield "data set", certificate.certified, case.data.pixels(indices), case.data.labels[indices]
        return
    for group in certificate.groups:
        indices = torch.tensor(group.indices)
        yield f"group {group.index}", group.certified, case.data.pixels(indices), case.data.labels[indices]


def _beyond_onnxruntime(case: Case, model: OnnxModel, certificate: Certificate) -> Iterator[str]:
    u = _perturbations(case)
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        for where, certified, x, labels in _groups(case, certificate):
            kept = np.zeros(POINTS, dtype=np.int64)
            for one, label in zip(x, labels.tolist(), strict=True):
                logits = session.run(None, {name: case.threat.inputs(one, u).numpy()})[0]
                kept += held(logits, np.full(POINTS, label), case.threat.target)
            if kept.min() < certified:
                yield f"{where}: {certified} certified, {kept.min()} stay correct on onnxruntime ({level})"


def _beyond_real(case: Case, certificate: Certificate) -> Iterator[str]:
    network, u = case.network.frozen(dtype=torch.float64), _perturbations(case).double()
    for where, certified, x, labels in _groups(case, certificate):
        kept = np.zeros(POINTS, dtype=np.int64)
        for one, label in zip(x.double(), labels.tolist(), strict=True):
            moved = (one + u).clamp(0, 1) if case.threat.clip else one + u
            logits = network(moved).numpy()
            top = np.abs(logits).max() * 1e-12  # what float64 itself rounds is no violation
            own = np.eye(logits.shape[1])[label] * (top if case.threat.target is None else -top)
            kept += held(logits + own, np.full(POINTS, label), case.threat.target)
        if kept.min() < certified:
            yield f"{where}: {certified} certified, {kept.min()} stay correct in real arithmetic"


def _metamorphic(case: Case, model: OnnxModel, certificate: Certificate) -> Iterator[str]:
    """Interval and CROWN bounds prove no more inputs for a larger eps, and as many of the inputs in another order."""
    if case.settings.bounds not in ("ibp", "crown") or case.threat.eps > 0.5:
        return
    proven = certificate.individually_certified
    larger = replace(case.threat, eps=min(1.0, 1.5 * case.threat.eps + 0.01))
    more = certify_uap(model, case.data, larger, case.settings).individually_certified
    if more > proven:
        yield f"{proven} inputs are proven at eps {case.threat.eps}, {more} at {larger.eps}"
    order = torch.arange(len(case.data) - 1, -1, -1)
    turned = replace(case.data, images=case.data.images[order], labels=case.data.labels[order])
    again = certify_uap(model, turned, case.threat, case.settings).individually_certified
    if again != proven:
        yield f"{proven} inputs are proven, {again} in another order"
