"""What attacks lower: the margin of an input, at or below 0 where it is fooled.

Objective f_6 of Carlini and Wagner, "Towards evaluating the robustness of neural networks" (S&P 2017), without its cut.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from citrus_tool.attacks.pgd import ATTACKED
from citrus_tool.network import Network, walk
from citrus_tool.threat import Threat


def margins(
    network: Network,
    x: Float[Tensor, "n C H W"],
    labels: Int[Tensor, " n"],
    target: int | None = None,
    *,
    wrong: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, " n"]:
    """f_y(x) - max over c != y of f_c(x), y the label; differentiable at x.

    Args:
        target: a class that is to win everywhere: max over c != t of f_c(x) - f_t(x) instead.
        wrong: one class w for each input: f_y(x) - f_w(x) instead.
    """
    logits = walk(network, ATTACKED, x)
    if wrong is not None:
        return (logits.gather(1, labels[:, None]) - logits.gather(1, wrong[:, None]))[:, 0]
    one = labels if target is None else torch.full_like(labels, target)
    chosen = torch.nn.functional.one_hot(one, logits.shape[1]).bool()
    margin = logits[chosen] - logits.masked_fill(chosen, -torch.inf).amax(dim=1)
    return margin if target is None else -margin


def reach(
    network: Network,
    x: Float[Tensor, "n C H W"],
    labels: Int[Tensor, " n"],
    threat: Threat,
    *,
    wrong: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, " n"]:
    """The unit in which attacks compare margins: |margin at x| + eps ||its gradient||_1, (n,), above 0.

    The second term is what a linear network could change, so an input with a tiny clean margin does not outweigh the
    others; the first is there for flat networks.
    """
    at = x.detach().requires_grad_(True)
    with torch.enable_grad():
        margin = margins(network, at, labels, threat.target, wrong=wrong)
        (gradient,) = torch.autograd.grad(margin.sum(), at)
    return (margin.detach().abs() + threat.inner * gradient.abs().flatten(1).sum(dim=1)).clamp_min(1e-6)
