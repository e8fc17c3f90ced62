"""What every training method is: one pure function from network and batch to LossParts.

A method neither changes the network nor keeps state; randomness comes from the generator alone. What it wants to know
again at its next call (a persistent perturbation) it returns as `LossParts.carried` and finds in `Batch.carried`; the
trainer carries it along and saves it with every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network
from citrus_tool.threat import Box


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs x (n, C, H, W) in pixel space and labels (n,); with groups of k, rows i*k to i*k+k-1 are group i.

    `carried` is what the method returned last time, by name; empty at its first call.
    """

    x: Tensor
    labels: Tensor
    carried: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LossParts:
    """What a method returns.

    Attributes:
        loss: scalar to minimise, the mean over the batch's inputs; differentiable in the network's parameters.
        parts: detached scalars for the history, by name.
        boxes: boxes of the propagation by node name and INPUT, for Shi et al.'s regularisers; empty when none.
        terms: how many losses are summed for each input; the L1 penalty grows with it.
        carried: detached tensors for the next call's `Batch.carried`, by name.
    """

    loss: Tensor
    parts: Mapping[str, Tensor]
    boxes: Mapping[str, Box] = field(default_factory=dict)
    terms: int = 1
    carried: Mapping[str, Tensor] = field(default_factory=dict)


Method = Callable[[Network, Batch, float, float, Recipe, torch.Generator], LossParts]
"""method(network, batch, eps, tau, recipe, generator); eps and tau are the scheduled values, in pixel space.

The generator lives on the batch's device. BatchNorm is read with the statistics that the network holds."""
