"""TAPS (Mao et al. 2023, "Connecting Certified and Adversarial Training"): IBP in front, PGD in the latent box behind.

The network is cut in two. A box of the input goes through the front part; in the box at the cut, PGD looks for a point
of each wrong label c that lowers f_y - f_c (the multi-estimator, their section 3.2). The rectified linear gradient
connector takes the points' gradients back to the box (section 3.3), and the loss is the product of this one with
IBP's on the whole network (section 3.4).

Differs from the paper in: (1) one start for the latent PGD, drawn uniformly, and the recipe's shrinking steps;
(2) where a latent box has no width its two ends get half the gradient each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from citrus_tool.attacks.pgd import ATTACKED
from citrus_tool.choices.recipe import Recipe, Taps
from citrus_tool.errors import UsageError
from citrus_tool.network import Network, walk
from citrus_tool.threat import Box
from citrus_tool.training.batch_norm_statistics import CLEAN
from citrus_tool.training.interval_margins import box_margins, logit_margins, robust_cross_entropy, uniform_box
from citrus_tool.training.method import Batch, LossParts


def taps(
    network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe, generator: torch.Generator
) -> LossParts:
    """TAPS on B(x, eps); tau plays no part."""
    return taps_loss(network, uniform_box(batch.x, eps), batch.labels, recipe.taps, generator)


def taps_loss(network: Network, box: Box, labels: Tensor, settings: Taps, generator: torch.Generator) -> LossParts:
    """The product of TAPS' and IBP's loss of each input, averaged, for one input box and label (n,) an input."""
    boxes: dict[str, Box] = {}
    by_ibp = robust_cross_entropy(box_margins(network, box, labels, record=boxes))
    cut = cut_node(network, settings.classifier_layers)
    latent = boxes[cut]
    lower, upper = latent.lower, latent.upper.expand_as(latent.centre)
    points = latent_attack(network, cut, lower.detach(), upper.detach(), labels, settings, generator)
    by_taps = latent_loss(network, cut, lower, upper, points, labels, settings.connector)
    # value p * q; gradient 2 a q grad p + 2 (1 - a) p grad q
    a, p, q = settings.balance, by_taps, by_ibp
    product = 2 * a * p * q.detach() + 2 * (1 - a) * p.detach() * q - (p * q).detach()
    parts = {"loss": product.mean().detach(), "ibp": by_ibp.mean().detach(), "taps": by_taps.mean().detach()}
    return LossParts(loss=product.mean(), parts=parts, boxes=boxes)


def cut_node(network: Network, classifier_layers: int) -> str:
    """The node whose value enters the last `classifier_layers` weight layers; every later node depends on it alone.

    Raises:
        UsageError: the network has fewer weight layers, or branches that pass the cut by.
    """
    nodes = network.nodes
    weighted = [index for index, node in enumerate(nodes) if isinstance(node.layer, nn.Conv2d | nn.Linear)]
    if len(weighted) <= classifier_layers:
        raise UsageError(
            f"taps.classifier_layers is {classifier_layers}, but the network has {len(weighted)} weight layers;"
            " leave at least one in front."
        )
    first = weighted[-classifier_layers]
    cut = nodes[first].inputs[0]
    position = next(index for index, node in enumerate(nodes) if node.name == cut)
    later = {node.name for node in nodes[position:]}
    if any(name not in later for node in nodes[position + 1 :] for name in node.inputs):
        raise UsageError(f"TAPS cannot cut the network at {cut!r}: a branch passes it by; set taps.classifier_layers.")
    return cut


def latent_attack(
    network: Network,
    cut: str,
    lower: Tensor,
    upper: Tensor,
    labels: Tensor,
    settings: Taps,
    generator: torch.Generator,
) -> Tensor:
    """Points (n, c, *latent) of the latent boxes [lower, upper] (n, *latent), the one at [i, c] attacking input i's
    margin f_y - f_c.
    """
    n, classes = len(labels), network.num_classes
    low, half = (each.repeat_interleave(classes, dim=0) for each in (lower, (upper - lower) / 2))
    own = labels.repeat_interleave(classes)
    wrong = torch.arange(classes, device=labels.device).repeat(n)
    z = low + 2 * half * torch.rand(low.shape, generator=generator, dtype=low.dtype, device=low.device)
    for fraction in settings.step_size.sizes(settings.steps):
        z.requires_grad_(True)
        with torch.enable_grad():
            logits = walk(network, ATTACKED, z, start=cut)
            margin = logits.gather(1, own[:, None]) - logits.gather(1, wrong[:, None])
        (gradient,) = torch.autograd.grad(margin.sum(), z)
        z = torch.clamp(z.detach() - fraction * half * gradient.sign(), low, low + 2 * half)
    return z.reshape(n, classes, *z.shape[1:])


def latent_loss(
    network: Network, cut: str, lower: Tensor, upper: Tensor, points: Tensor, labels: Tensor, connector: float
) -> Tensor:
    """Cross entropy (n,) of the margins f_y - f_c at the points (n, c, *latent shape) of label c; 0 at the true one."""
    n, classes = points.shape[:2]
    low, high = (each.repeat_interleave(classes, dim=0) for each in (lower, upper))
    z: Tensor = _Connect.apply(low, high, points.flatten(0, 1), connector)  # type: ignore[no-untyped-call]
    each = logit_margins(walk(network, CLEAN, z, start=cut), labels.repeat_interleave(classes))
    return robust_cross_entropy(each.reshape(n, classes, classes).diagonal(dim1=1, dim2=2))


class _Connect(torch.autograd.Function):
    """The points z of boxes [l, u], with dz/dl = relu(1 - (z - l) / (c (u - l))) and dz/du alike from the other end."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor, upper: Tensor, points: Tensor, connector: float) -> Tensor:
        width = upper - lower
        flat = width <= 0
        share = (points - lower) / width.masked_fill(flat, 1.0)
        at_lower, at_upper = ((1 - part / connector).clamp_min(0).masked_fill(flat, 0.5) for part in (share, 1 - share))
        ctx.save_for_backward(at_lower, at_upper)
        return points.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        at_lower, at_upper = ctx.saved_tensors
        return grads[0] * at_lower, grads[0] * at_upper, None, None
