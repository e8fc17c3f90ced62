"""What certificates of changed problems have to keep to: each rule certifies a second problem that bounds the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from citrus_tool.certification.uap import certify_uap
from citrus_tool.network import Network
from citrus_tool.results.certificate import Certificate
from tests.soundness.families import as_model

if TYPE_CHECKING:
    from tests.soundness.cases import Case

Rule = Callable[["Case", Certificate, Path], Iterator[str]]
"""(case, its certificate, folder for files) -> what contradicts it, in words."""
PLAIN = ("ibp", "crown")
"""Bounds without searches or clocks: equal problems have equal counts."""


def _last(network: Network) -> nn.Linear:
    return next(node.layer for node in reversed(network.nodes) if isinstance(node.layer, nn.Linear))


def larger_eps(case: Case, found: Certificate, folder: Path) -> Iterator[str]:
    """What is certified for a larger eps is not fooled by a smaller one."""
    eps = min(1.0, 1.5 * case.threat.eps + 0.01)
    model = as_model(case.network, folder, "rule.onnx")
    more = certify_uap(model, case.data, replace(case.threat, eps=eps), case.settings)
    if more.certified > found.attacked:
        yield f"{more.certified} certified at eps {eps}, {found.attacked} stay at {case.threat.eps}"


def split_groups(case: Case, found: Certificate, folder: Path) -> Iterator[str]:
    """A perturbation for each half fools at least as many as one for the group."""
    size = case.settings.group_size
    if found.scope != "groups" or size % 2:
        return
    model = as_model(case.network, folder, "rule.onnx")
    halves = certify_uap(model, case.data, case.threat, replace(case.settings, group_size=size // 2))
    if halves.certified > found.attacked:
        yield f"{halves.certified} certified in groups of {size // 2}, {found.attacked} stay in groups of {size}"


def untargeted(case: Case, found: Certificate, folder: Path) -> Iterator[str]:
    """What no wrong class wins, the target does not win."""
    if case.threat.target is None or found.scope != "groups":
        return
    left = case.data.labels != case.threat.target
    data = replace(case.data, images=case.data.images[left], labels=case.data.labels[left])
    model = as_model(case.network, folder, "rule.onnx")
    free = certify_uap(model, data, replace(case.threat, target=None), case.settings)
    if free.certified > found.attacked:
        yield f"{free.certified} certified against every class, {found.attacked} stay against {case.threat.target}"


def permuted_classes(case: Case, found: Certificate, folder: Path) -> Iterator[str]:
    """Classes have no order."""
    network, order = deepcopy(case.network), torch.tensor([2, 0, 1])
    last = _last(network)
    with torch.no_grad():
        last.weight.copy_(last.weight[order])
        last.bias.copy_(last.bias[order])
    position = order.argsort()
    data = replace(case.data, labels=position[case.data.labels])
    target = None if case.threat.target is None else int(position[case.threat.target])
    model = as_model(network, folder, "rule.onnx")
    other = certify_uap(model, data, replace(case.threat, target=target), case.settings)
    if case.settings.bounds in PLAIN and other.individually_certified != found.individually_certified:
        yield f"{found.individually_certified} proven, {other.individually_certified} with classes in another order"
    if other.certified > found.attacked:
        yield f"{other.certified} certified with classes in another order, {found.attacked} stay"


def scaled_logits(case: Case, found: Certificate, folder: Path) -> Iterator[str]:
    """Logits times 8 order the classes alike."""
    network = deepcopy(case.network)
    last = _last(network)
    with torch.no_grad():
        last.weight *= 8.0
        last.bias *= 8.0
    other = certify_uap(as_model(network, folder, "rule.onnx"), case.data, case.threat, case.settings)
    if case.settings.bounds in PLAIN and other.individually_certified != found.individually_certified:
        yield f"{found.individually_certified} proven, {other.individually_certified} with logits times 8"
    if other.certified > found.attacked:
        yield f"{other.certified} certified with logits times 8, {found.attacked} stay"


def turned_inputs(case: Case, found: Certificate, folder: Path) -> Iterator[str]:
    """Inputs have no order, but for the groups that they are in."""
    order = torch.arange(len(case.data) - 1, -1, -1)
    data = replace(case.data, images=case.data.images[order], labels=case.data.labels[order])
    other = certify_uap(as_model(case.network, folder, "rule.onnx"), data, case.threat, case.settings)
    if case.settings.bounds in PLAIN and other.individually_certified != found.individually_certified:
        yield f"{found.individually_certified} proven, {other.individually_certified} with inputs in another order"
    if found.scope == "dataset" and other.certified > found.attacked:
        yield f"{other.certified} certified with inputs in another order, {found.attacked} stay"


RULES: tuple[Rule, ...] = (larger_eps, split_groups, untargeted, permuted_classes, scaled_logits, turned_inputs)
