"""Images per second of a CITRUS training step, fast and literal, in one run.

    python benchmarks/train_step.py [--threads 2] [--pgd-steps 20] [--groups 50] [--steps 8] [--literal-steps 40]

Both train ConvSmall on MNIST-shaped data with k = 5 at eps 0.1, tau 0.04. "Literal" is Algorithm 1 as the paper
prints it: a batch of 5, plain PGD, nested loops over i and j != i with one interval propagation for each box, one
optimiser step. "Fast" is what `citrus harden` runs. Every step is timed by itself; the medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from citrus_tool import architectures
from citrus_tool.attacks.pgd import SABR_STEPS
from citrus_tool.bounds.interval import margins
from citrus_tool.harden import schedule
from citrus_tool.harden.method import Batch
from citrus_tool.harden.methods import METHODS
from citrus_tool.harden.recipes import Recipe
from citrus_tool.harden.step import Stepper
from citrus_tool.network import Network
from citrus_tool.threat import Threat

EPS, TAU, GROUP = 0.1, 0.04, 5


def literal_step(
    network: Network, optimiser: torch.optim.Optimizer, x: Tensor, labels: Tensor, steps: int, l1: float
) -> None:
    """One pass of Algorithm 1's inner loop (lines 4 to 9) on one batch."""
    radius = EPS - TAU
    v = (torch.rand_like(x) * 2 - 1) * radius
    for size in SABR_STEPS.sizes(steps):
        v.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(x + v), labels), v)
        v = (v.detach() + size * radius * gradient.sign()).clamp(-radius, radius)
    loss = x.new_zeros(())
    for i in range(len(x)):
        for j in range(len(x)):
            if j != i:
                box = Threat(eps=TAU).box((x[i] + v[j])[None])
                loss = loss + F.cross_entropy(-margins(network, box, labels[i, None], true_class=0.0), labels[i, None])
    for parameter in network.parameters():
        if parameter.dim() > 1:
            loss = loss + l1 * parameter.abs().sum()
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 10.0)
    optimiser.step()


def median_rate(step: Callable[[], None], images: int, repeats: int) -> float:
    """Images per second by the median step; two steps warm up."""
    step(), step()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return images / statistics.median(seconds)


def main() -> None:
    """Prints both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pgd-steps", type=int, default=20)
    parser.add_argument("--groups", type=int, default=50, help="groups of 5 in a fast step")
    parser.add_argument("--steps", type=int, default=8, help="timed fast steps")
    parser.add_argument("--literal-steps", type=int, default=40, help="timed literal steps")
    parser.add_argument("--bfloat16", action="store_true", help="run the fast step's attack in bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    recipe = Recipe(
        eps=EPS, tau_ratio=TAU / EPS, epochs=1, warmup_epochs=0, ramp_epochs=0, group_size=GROUP, l1=1e-5,
        groups_per_batch=options.groups, pgd_steps=options.pgd_steps, pgd_bfloat16=options.bfloat16,
    )  # fmt: skip
    x, labels = torch.rand(recipe.batch_size, 1, 28, 28), torch.randint(0, 10, (recipe.batch_size,))

    stepper = Stepper(architectures.build("convsmall", (1, 28, 28), 10), recipe, METHODS["citrus"])
    point, generator = schedule.at(recipe, 0, 0, 1), torch.Generator().manual_seed(0)
    batch = Batch(x=x, labels=labels)
    fast = median_rate(lambda: void(stepper.step(batch, point, generator)), recipe.batch_size, options.steps)

    network = architectures.build("convsmall", (1, 28, 28), 10)
    adam = torch.optim.Adam(network.parameters(), lr=recipe.lr)
    literal = median_rate(
        lambda: literal_step(network, adam, x[:GROUP], labels[:GROUP], options.pgd_steps, recipe.l1),
        GROUP,
        options.literal_steps,
    )

    print(f"ConvSmall, k = {GROUP}, {options.pgd_steps} PGD steps, {options.threads} threads, float32")
    print(f"literal Algorithm 1  {literal:10.1f} images/s   {60_000 / literal:8.1f} s per MNIST epoch")
    print(f"fast step            {fast:10.1f} images/s   {60_000 / fast:8.1f} s per MNIST epoch")
    print(f"ratio                {fast / literal:10.1f}")


def void(value: object) -> None:
    """Drops a value."""


if __name__ == "__main__":
    main()
