"""Theorem 1's sequence of bounds, measured on a network, and what regions more precise than boxes are worth.

    python benchmarks/kcp_bounds.py M.onnx --data mnist --eps 0.1 [--limit 200] [--steps 20] [--tau-ratio 0.4]

Groups of 5 test inputs are the theorem's X. For every subset S of a group one perturbation that attacks all of S is
searched (training/kcp.py's common attack), and every perturbation found is tried on the whole group. kappa(u) is the
number of inputs that u fools, u* the perturbation found with the largest mean loss over the group, and

    E(k) = mean over x in the group of the largest L(f(x + u)) among the u found with kappa(u) >= k.

These are lower estimates of the theorem's terms from one pool, so mean L(f(x + u*)) <= E(kappa(u*)) <= ... <= E(1)
holds by construction; how fast the sequence rises is what is measured. Groups are counted apart by kappa(u*); those
with 0, of which the theorem says nothing, are left out of the means.

The second table compares two readings of CITRUS's boxes B(x_i + v_j, tau):
interval bounds and CROWN-IBP (training/crown_ibp.py). The last line is the paper's Fig. 4: the loss of the box at
the own perturbation (j = i) beside the sum and the largest of the others.
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from citrus_tool import data, onnx_io
from citrus_tool.bench.box_sizes import own_and_others
from citrus_tool.choices.recipe import Recipe
from citrus_tool.network import Network
from citrus_tool.threat import Box, parse_eps
from citrus_tool.training.adversarial import attack
from citrus_tool.training.citrus import centres
from citrus_tool.training.crown_ibp import crown_margins
from citrus_tool.training.interval_margins import box_margins, robust_cross_entropy, uniform_box
from citrus_tool.training.kcp import common_attack
from citrus_tool.training.method import Batch

GROUP = 5


def sequence(network: Network, x: Tensor, labels: Tensor, eps: float, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """For groups x (g, 5, C, H, W), labels (g, 5): kappa(u*) (g,), the left side (g,), and E(1) to E(5) (g, 5).

    E(k) is -inf where no perturbation with kappa >= k was found.
    """
    generator = torch.Generator().manual_seed(0)
    found = [torch.zeros_like(x[:, 0])]
    for size in range(1, GROUP + 1):
        for members in combinations(range(GROUP), size):
            own, wanted = x[:, None, list(members)], labels[:, None, list(members)]
            found.append(common_attack(network, own, wanted, eps, recipe, generator)[:, 0])
    pool = torch.stack(found, dim=1)  # g u C H W
    moved = (x[:, None] + pool[:, :, None]).flatten(0, 2)
    every = labels[:, None].expand(-1, pool.shape[1], -1)
    with torch.no_grad():
        logits = torch.cat([network(part) for part in moved.split(1000)])
    losses = F.cross_entropy(logits, every.flatten(), reduction="none").reshape(every.shape)  # g u 5
    kappa = (logits.argmax(1).reshape(every.shape) != every).sum(2)  # g u
    left, best = losses.mean(2).max(1)
    allowed = [torch.where((kappa >= k)[:, :, None], losses, -torch.inf) for k in range(1, GROUP + 1)]
    return kappa.gather(1, best[:, None])[:, 0], left, torch.stack([each.amax(1).mean(1) for each in allowed], dim=1)


def readings(network: Network, batch: Batch, eps: float, tau: float, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """CITRUS's box losses (n * m,) by interval bounds and by CROWN-IBP."""
    v = attack(network, batch, eps - tau, recipe, torch.Generator().manual_seed(0))
    found = centres(batch.x, v, recipe)
    boxes: dict[str, Box] = {}
    m = found.shape[1]
    with torch.no_grad():
        by_ibp = box_margins(network, uniform_box(found.flatten(0, 1), tau), batch.labels, record=boxes)
        by_crown = crown_margins(network, boxes, batch.labels.repeat_interleave(m))
    return robust_cross_entropy(by_ibp), robust_cross_entropy(by_crown)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--eps", type=parse_eps, default=0.1)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tau-ratio", type=float, default=0.4)
    options = parser.parse_args()
    test = data.load(options.data, split="test", root=options.data_root, limit=options.limit // GROUP * GROUP)
    network = onnx_io.read(options.model, input_shape=test.shape, samples=test.take(16).pixels()).network.eval()
    recipe = Recipe(
        eps=options.eps, tau_ratio=options.tau_ratio, epochs=1, warmup_epochs=0, ramp_epochs=0, pgd_steps=options.steps
    )
    x, labels = test.pixels(), test.labels
    kappa, left, bounds = sequence(
        network, x.reshape(-1, GROUP, *test.shape), labels.reshape(-1, GROUP), options.eps, recipe
    )
    print(f"{options.model.name}, {options.data}, eps {options.eps:.4g}, {len(test)} inputs in groups of {GROUP}")
    print("kappa*  groups  left side  " + "  ".join(f"  E({k})" for k in range(1, GROUP + 1)))
    for value in range(1, GROUP + 1):
        here = kappa == value
        if here.any():
            terms = "  ".join(f"{term:6.3f}" for term in bounds[here, :value].mean(0).tolist())
            print(f"{value:6}  {int(here.sum()):6}  {left[here].mean():9.3f}  {terms}")
    tau = options.tau_ratio * options.eps
    by_ibp, by_crown = readings(network, Batch(x=x, labels=labels), options.eps, tau, recipe)
    share = (by_crown < by_ibp).double().mean() * 100
    print(f"boxes at tau {tau:.4g}: loss by intervals {by_ibp.mean():.4f}, by CROWN-IBP {by_crown.mean():.4f},")
    print(f"CROWN-IBP lower for {share:.1f} % of {len(by_ibp)} boxes")
    batch = Batch(x=x, labels=labels)
    v = attack(network, batch, options.eps - tau, recipe, torch.Generator().manual_seed(0))
    own, others = own_and_others(network, batch, v, tau, recipe)
    total, largest = others.sum(1).mean(), others.amax(1).mean()
    print(f"box losses: own {own.mean():.4f}, sum of the others {total:.4f}, largest of the others {largest:.4f}")


if __name__ == "__main__":
    main()
