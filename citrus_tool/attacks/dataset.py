"""One perturbation for a whole data set: minibatch ascent on a smooth count of the fooled inputs.

Shafahi et al., "Universal adversarial training" (AAAI 2020), algorithm 1: stochastic gradients over minibatches with
signed steps. Differs from the paper in: (1) the loss is a sum of sigmoids of the margins, a smooth count, where the
paper clips the cross entropy: inputs far from the boundary on either side hardly pull; (2) momentum and a step that
falls to 0; (3) restarts, and the u with the best count over all inputs is kept.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from citrus_tool.attacks.effort import Effort
from citrus_tool.attacks.margin import margins
from citrus_tool.devices import device_of
from citrus_tool.network import Network
from citrus_tool.threat import Threat

BATCH: Final = 256
"""Images in one step."""
SHARPNESS: Final = (10.0, 4.0, 20.0)
"""Steepness of the smooth count in units of the median clean margin, by restart in turn."""
MOMENTUM: Final = 0.9
"""Weight of the past gradients."""
FIRST_STEP: Final = 0.2
"""Size of the first step, as a fraction of eps; it falls to 0 linearly."""


def attack_dataset(
    network: Network,
    images: Float[Tensor, "n C H W"],
    labels: Int[Tensor, " n"],
    threat: Threat,
    effort: Effort,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "C H W"], int]:
    """The perturbation found that fools most of the inputs, and how many it fools by the network's own arithmetic.

    Args:
        network, images: of one dtype; each minibatch is moved to the network's device.
        effort: minibatch steps of each restart, with at least one pass over the data where they are not 0; restarts,
            the first from 0, the others from random corners; without any u = 0.
        generator: on the CPU; the result is a function of its state.

    Returns: u with |u| <= eps, also after a cast to float32, on the CPU, and the count (margin <= 0).
    """
    device = device_of(network)
    best = torch.zeros_like(images[0], device=device)
    clean = _margins(network, images, labels, best, threat.target)
    most, scale = int((clean <= 0).sum()), float(clean.abs().median().clamp_min(1e-6))
    batches = max(1, -(-len(images) // BATCH))
    total = max(effort.steps, batches) if effort.steps else 0
    for restart in range(effort.restarts if total else 0):
        corners = torch.randint(0, 2, best.shape, generator=generator) * 2.0 - 1.0
        u = torch.zeros_like(best) if restart == 0 else threat.corners(corners).to(best)
        trend, sharpness = torch.zeros_like(u), SHARPNESS[restart % len(SHARPNESS)]
        order = torch.randperm(len(images), generator=generator)
        for step in range(total):
            place = step % batches
            rows = order[place * BATCH : (place + 1) * BATCH]
            u = u.detach().requires_grad_(True)
            margin = margins(network, images[rows].to(device) + u, labels[rows].to(device), threat.target)
            (gradient,) = torch.autograd.grad(-torch.sigmoid(-sharpness * margin / scale).sum(), u)
            length = gradient.abs().mean().clamp_min(torch.finfo(u.dtype).tiny)
            trend = MOMENTUM * trend + gradient / length
            u = threat.stepped(u.detach(), trend, FIRST_STEP * threat.inner * (1 - step / total))
            if place == batches - 1 or step == total - 1:
                fooled = int((_margins(network, images, labels, u, threat.target) <= 0).sum())
                if fooled > most:
                    best, most = u, fooled
    return best.cpu(), most


def _margins(network: Network, images: Tensor, labels: Tensor, u: Tensor, target: int | None) -> Tensor:
    """All margins at x + u, (n,)."""
    with torch.no_grad():
        parts = [
            margins(network, x.to(u.device) + u, y.to(u.device), target)
            for x, y in zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True)
        ]
    return torch.cat(parts)
