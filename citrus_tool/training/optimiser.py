"""One optimiser step of any method: loss, L1, Shi et al.'s regularisers, clipped gradient, Adam."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from citrus_tool.choices.recipe import Recipe
from citrus_tool.errors import UsageError
from citrus_tool.network import Network
from citrus_tool.threat import Box
from citrus_tool.training import shi
from citrus_tool.training.batch_norm_statistics import batch_statistics
from citrus_tool.training.distil import distillation
from citrus_tool.training.interval_margins import box_margins, uniform_box
from citrus_tool.training.method import Batch, LossParts, Method
from citrus_tool.training.schedule import Point
from citrus_tool.training.standard import standard

_WARM_RADIUS = 0.01
"""Radius of the boxes that Shi et al.'s regularisers read in the warm-up, in units of the target tau.

Near eps = 0, where the ramp begins, and not 0: the regularisers are ratios of widths.
"""


class Optimiser:
    """Trains `network` in place, one batch at a time; its state is Adam's moments and what the method carries.

    `teacher` is the network to learn from when the recipe distils.

    Raises:
        UsageError: the network has no weights.
    """

    def __init__(self, network: Network, recipe: Recipe, method: Method, teacher: Network | None = None) -> None:
        self.network, self.recipe, self.method, self.teacher = network, recipe, method, teacher
        for parameter in network.parameters():
            if parameter.dim() == 4:  # faster convolutions; the values are the same
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.parameters = [parameter.requires_grad_(True) for parameter in network.parameters()]
        if not self.parameters:
            raise UsageError("the network has no weights to train.")
        self._weights = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        self.carried: Mapping[str, Tensor] = {}
        self._adam = torch.optim.Adam(self.parameters, lr=recipe.lr, fused=self.parameters[0].is_cuda)

    def step(self, batch: Batch, point: Point, generator: torch.Generator) -> Mapping[str, Tensor]:
        """One step; returns the loss parts by name, each a detached scalar. The host never waits here."""
        recipe = self.recipe
        for group in self._adam.param_groups:
            group["lr"] = point.lr
        with batch_statistics(self.network, batch.x):
            if point.natural:
                found = self._natural(batch, point, generator)
            else:
                batch = dataclasses.replace(batch, carried=self.carried)
                found = self.method(self.network, batch, point.eps, point.tau, recipe, generator)
                self.carried = found.carried
            objective, parts = found.loss, dict(found.parts)
            if recipe.l1 > 0:
                norm = torch.stack([weight.abs().sum() for weight in self._weights]).sum()
                objective = objective + recipe.l1 * found.terms * norm
            if found.boxes and recipe.shi_lambda > 0 and not point.full:
                term = shi.regulariser(self.network, found.boxes, recipe.shi_tolerance)
                objective = objective + recipe.shi_lambda * (1 - point.eps / recipe.eps) * term
                parts["shi"] = term.detach()
            if self.teacher is not None and recipe.distil > 0:
                term = distillation(self.network, self.teacher, batch.x, recipe.distil_temperature)
                objective = objective + recipe.distil * term
                parts["distil"] = term.detach()
            gradients = torch.autograd.grad(objective, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        parts["gradient_norm"] = nn.utils.clip_grad_norm_(self.parameters, recipe.clip_norm)
        self._adam.step()
        return parts

    def _natural(self, batch: Batch, point: Point, generator: torch.Generator) -> LossParts:
        """The warm-up's loss, with small boxes around the clean inputs when the regularisers want some."""
        recipe = self.recipe
        found = standard(self.network, batch, point.eps, point.tau, recipe, generator)
        if recipe.shi_lambda == 0 or recipe.eps == 0:
            return found
        boxes: dict[str, Box] = {}
        radius = _WARM_RADIUS * recipe.tau_ratio * recipe.eps
        box_margins(self.network, uniform_box(batch.x, radius), batch.labels, record=boxes)
        return dataclasses.replace(found, boxes=boxes)

    def moments(self) -> dict[str, Tensor]:
        """Adam's state by `parameter index.name`, each shaped like its parameter, or a scalar."""
        return {
            f"{index}.{name}": tensor
            for index, parameter in enumerate(self.parameters)
            for name, tensor in self._adam.state.get(parameter, {}).items()
        }

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Takes over what `moments` returned, shaped like it."""
        for name, tensor in moments.items():
            index, _, key = name.partition(".")
            parameter = self.parameters[int(index)]
            on_host = key == "step" and not parameter.is_cuda
            self._adam.state[parameter][key] = tensor if on_host else tensor.to(parameter.device)
