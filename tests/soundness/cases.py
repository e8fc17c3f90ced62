"""Random certificates on tiny networks, held against onnxruntime, the checker and what has to follow from them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

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
from citrus_tool.network import MatMul, Multiply, Network, Pointwise, Select
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.results.certificate import Certificate
from citrus_tool.threat import Threat
from tests.certification.toys import CLASSES, SHAPE, data_for, tiny_chain, tiny_residual
from tests.checker.corruption import Content, corruptions, pictures
from tests.checker.forgeries import FORGERIES
from tests.soundness.exact import beyond_exact
from tests.soundness.families import as_model, deep, gated, pooled, smooth, strided
from tests.soundness.rules import RULES

POINTS = 3000
"""Shared perturbations that are tried on each group, a third of them corners of the box."""
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL")


Family = Literal["any", "deep", "strided", "gated"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network of a family, its data, a threat and settings; made from `seed` alone."""

    seed: int
    family: Family = "any"
    bounds: BoundsName | None = None
    arithmetic: Arithmetic | None = None

    @cached_property
    def _random(self) -> random.Random:
        return random.Random(self.seed)

    @cached_property
    def network(self) -> Network:
        """Weights of ordinary size, scaled by 1e-6 to 1e6, or with a pair of hidden units that cancels."""
        if self.family != "any":
            return {"deep": deep, "strided": strided, "gated": gated}[self.family](self.seed)
        choice = random.Random(self.seed)
        make = choice.choice([tiny_chain, tiny_chain, tiny_residual, smooth, pooled])
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
        model = as_model(case.network, folder, f"{case.seed}.onnx")
    except (CheckFailedError, UnsupportedNetworkError):  # onnxruntime differs by more than rounding explains, at export
        return
    try:
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
    for where, certified, x, labels in _groups(case, certificate):
        for words in beyond_exact(case.network, x, labels, case.threat, certified, case.seed):
            yield f"{where}: {words}"
    rule = RULES[case.seed % len(RULES)]
    for words in rule(case, certificate, folder):
        yield f"rule {rule.__name__}: {words}"
    if (proof := _proof(case, folder)) is not None:
        yield from _forged(case, proof, model)


def _proof(case: Case, folder: Path) -> Path | None:
    """Where the case's proof is written; None for one that has none."""
    unread = nn.Sigmoid | nn.Tanh | nn.MaxPool2d | Pointwise | Multiply | MatMul | Select
    readable = not any(isinstance(node.layer, unread) for node in case.network.nodes)
    provable = case.settings.bounds == "full" and case.settings.scope == "groups" and readable
    return folder / f"{case.seed}.proof" if provable else None


def _forged(case: Case, proof: Path, model: OnnxModel) -> Iterator[str]:
    """Changes of the proof that the checker accepts."""
    genuine = Content.of(proof)
    for forgery in random.Random(case.seed + 3).sample(FORGERIES, 3):
        content = deepcopy(genuine)
        try:
            if not forgery.change(content) or _written(content) == _written(genuine):
                continue
        except StopIteration:  # the forgery's place is not in this proof
            continue
        try:
            check(content.write(proof.with_suffix(".forged")), model.path)
        except CheckFailedError:
            continue
        yield f"the checker accepts a forged proof: {forgery.name}"
    if any(group.facts["proofs"] for group in genuine.groups):
        effort = {"count": 3, "classes": CLASSES, "seed": case.seed}
        for _, what, refused in corruptions(proof, model.path, pictures(case.data), proof.parent, **effort):
            if refused is None:
                yield f"the checker accepts a proof with another {what}"


def _written(content: Content) -> tuple[str, list[tuple[str, str, bytes]]]:
    """All of a proof, with types."""
    arrays = [(name, str((v.dtype, v.shape)), v.tobytes()) for one in content.groups for name, v in one.arrays.items()]
    return json.dumps([content.head, *(one.facts for one in content.groups)], default=repr), arrays


def _certified(case: Case, model: OnnxModel, folder: Path) -> Certificate:
    settings, path = case.settings, _proof(case, folder)
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
        options.intra_op_num_threads = 1
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
