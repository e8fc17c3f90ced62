"""The executions of open inputs: what joint proofs need to know of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from citrus_tool.bounds.ascent import ROOT
from citrus_tool.bounds.crown import relax
from citrus_tool.bounds.execution import FoldedExecution
from citrus_tool.bounds.rounding import exact_products
from citrus_tool.certification.joint import Member
from citrus_tool.network import Network
from citrus_tool.threat import Threat


@dataclass(frozen=True, kw_only=True)
class OpenExecution:
    """An input that the individual stages leave open: pixels (C, H, W) float32 and its execution."""

    x: Tensor
    member: Member


def executions(
    network: Network,
    x: Tensor,
    reference: Sequence[int],
    rivals: Sequence[tuple[int, ...]],
    threat: Threat,
) -> list[OpenExecution]:
    """Open inputs x (n, C, H, W) float32 with their executions, hidden bounds optimised; `network` in float64."""
    with torch.no_grad(), exact_products():
        relaxed = relax(network, threat.enclosure(x))
        found = []
        for number, own in enumerate(reference):
            execution = FoldedExecution.of(relaxed, own, number).tightened(ROOT)
            member = Member(execution=execution, rivals=rivals[number])
            found.append(OpenExecution(x=x[number].float(), member=member))
    return found
