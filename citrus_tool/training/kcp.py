"""k-CP losses (Xu and Singh, section 3.2 and equation 6) for any k >= 2; k = 2 is CITRUS.

Theorem 2's argument holds for every k: the k-common perturbations that include x_i lie in the (k-1)-common ones of the
other inputs of the group. So x_i meets the boxes B(x_i + v_S, tau) of every set S of k - 1 others, where v_S is one
perturbation in B(0, eps - tau) that attacks all of S.

Differs from the paper in: (1) the paper stops at k = 2; (2) v_S is the signed ascent on the summed cross entropy of S,
which need not fool all of S; (3) as citrus.py does.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from citrus_tool.attacks.pgd import ATTACKED
from citrus_tool.choices.recipe import Recipe
from citrus_tool.errors import UsageError
from citrus_tool.network import Network, walk
from citrus_tool.threat import Box
from citrus_tool.training.interval_margins import box_margins, robust_cross_entropy, uniform_box
from citrus_tool.training.method import Batch, LossParts


def kcp(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """The k-CP loss on a batch of groups; `recipe` gives common (k), group_size, the PGD steps and box_loss.

    Raises:
        UsageError: k is larger than the group.
    """
    members, _ = subsets(recipe.group_size, recipe.common)
    k = recipe.group_size
    x, labels = batch.x.reshape(-1, k, *batch.x.shape[1:]), batch.labels.reshape(-1, k)
    u = common_attack(network, x[:, members], labels[:, members], eps - tau, recipe, generator)
    return kcp_loss(network, batch, u, tau, recipe)


def kcp_loss(network: Network, batch: Batch, u: Tensor, tau: float, recipe: Recipe) -> LossParts:
    """The loss for given common perturbations u (g, s, C, H, W), one for each group and set of `subsets`."""
    k = recipe.group_size
    _, foreign = subsets(k, recipe.common)
    x = batch.x.reshape(-1, k, *batch.x.shape[1:])
    centres = (x[:, :, None] + u[:, foreign]).flatten(0, 2)
    boxes: dict[str, Box] = {}
    losses = robust_cross_entropy(box_margins(network, uniform_box(centres, tau), batch.labels, record=boxes))
    terms = foreign.shape[1] if recipe.box_loss == "sum" else 1
    loss = losses.mean() * terms
    return LossParts(loss=loss, parts={"loss": loss.detach()}, boxes=boxes, terms=terms)


@lru_cache(maxsize=8)
def subsets(group_size: int, common: int) -> tuple[Tensor, Tensor]:
    """The sets of common - 1 inputs of a group (s, common - 1), and for each input (group_size, m) the sets without it.

    Raises:
        UsageError: `common` exceeds the group's size, so that no such set exists.
    """
    if common > group_size:
        raise UsageError(f"common is {common}, but groups have {group_size} inputs; lower it or raise group_size.")
    sets = list(combinations(range(group_size), common - 1))
    foreign = [[index for index, members in enumerate(sets) if i not in members] for i in range(group_size)]
    return torch.tensor(sets), torch.tensor(foreign)


def common_attack(
    network: Network, x: Tensor, labels: Tensor, radius: float, recipe: Recipe, generator: torch.Generator
) -> Tensor:
    """One perturbation (g, s, C, H, W) in B(0, radius), pixel space, for each set of inputs x (g, s, m, C, H, W).

    Signed ascent on the set's summed cross entropy from a uniform start, with the recipe's steps; detached.
    """
    u = (torch.rand(x[:, :, 0].shape, generator=generator, dtype=x.dtype, device=x.device) * 2 - 1) * radius
    for fraction in recipe.pgd_step_size.sizes(recipe.pgd_steps):
        u.requires_grad_(True)
        with torch.enable_grad():
            logits = walk(network, ATTACKED, (x + u[:, :, None]).flatten(0, 2))
            loss = F.cross_entropy(logits, labels.flatten(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, u)
        u = torch.clamp(u.detach() + fraction * radius * gradient.sign(), -radius, radius)
    return u
