"""Images per second of a training step of every method, and of CITRUS fast and literal, in one run.

    python benchmarks/train_step.py [--threads 2] [--pgd-steps 20] [--groups 50] [--steps 8] [--literal-steps 40]
    python benchmarks/train_step.py --methods all --data cifar10 --pgd-steps 8

All train ConvSmall (or --architecture) with k = 5 at eps 0.1, tau 0.04. "Literal" is Algorithm 1 as the paper prints
it: a batch of 5, plain PGD, nested loops over i and j != i with one interval propagation for each box, one optimiser
step. "Fast" is what `citrus harden` runs. Every step is timed by itself, methods in turn; the medians are compared.
`--device cuda` times the fast steps there, each to its end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from citrus_tool import architectures
from citrus_tool.bounds.interval import margins
from citrus_tool.choices.recipe import SABR_STEPS, Recipe, Taps
from citrus_tool.network import Network
from citrus_tool.threat import Threat
from citrus_tool.training import schedule
from citrus_tool.training.method import Batch
from citrus_tool.training.methods import METHODS
from citrus_tool.training.optimiser import Optimiser

EPS, TAU, GROUP = 0.1, 0.04, 5
Shape = tuple[int, int, int]
SHAPES: Mapping[str, tuple[Shape, int]] = {"mnist": ((1, 28, 28), 60_000), "cifar10": ((3, 32, 32), 50_000)}
"""Image shape and size of the training set."""


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


def median_rates(
    steps: Mapping[str, Callable[[], object]], images: int, repeats: int, device: str = "cpu"
) -> dict[str, float]:
    """Images per second by the median step of each; the steps take turns, two rounds warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: images / statistics.median(each) for name, each in seconds.items()}


def stepper_of(method: str, recipe: Recipe, options: argparse.Namespace, shape: Shape) -> Callable[[], object]:
    """One optimiser step of `method` on random images."""
    where = torch.device(options.device)
    network = architectures.build(options.architecture, shape, 10).to(where)
    optimiser = Optimiser(network, recipe, METHODS[method])
    point, generator = schedule.at(recipe, 0, 0, 1), torch.Generator(where).manual_seed(0)
    x, labels = torch.rand(recipe.batch_size, *shape), torch.randint(0, 10, (recipe.batch_size,))
    batch = Batch(x=x.to(where), labels=labels.to(where))
    return lambda: optimiser.step(batch, point, generator)


def main() -> None:
    """Prints the rates and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", default="citrus,sabr", help="names with commas between them, or all")
    parser.add_argument("--data", choices=SHAPES, default="mnist", help="whose image shape")
    parser.add_argument("--architecture", default="convsmall")
    parser.add_argument("--pgd-steps", type=int, default=20)
    parser.add_argument("--groups", type=int, default=50, help="groups of 5 in a fast step")
    parser.add_argument("--steps", type=int, default=8, help="timed fast steps of each method")
    parser.add_argument("--literal-steps", type=int, default=40, help="timed literal steps; 0: none")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="run the fast step's attack in bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shape, images = SHAPES[options.data]
    recipe = Recipe(
        eps=EPS,
        tau_ratio=TAU / EPS,
        epochs=1,
        warmup_epochs=0,
        ramp_epochs=0,
        group_size=GROUP,
        l1=1e-5,
        groups_per_batch=options.groups,
        pgd_steps=options.pgd_steps,
        pgd_bfloat16=options.bfloat16,
        worst=1,
        taps=Taps(steps=options.pgd_steps),
    )
    names = list(METHODS) if options.methods == "all" else options.methods.split(",")
    steps = {name: stepper_of(name, recipe, options, shape) for name in names}
    rates = median_rates(steps, recipe.batch_size, options.steps, options.device)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} threads"
    print(f"{options.architecture}, {options.data}, k = {GROUP}, {options.pgd_steps} PGD steps, {where}")
    for name, rate in rates.items():
        against = f"   {rates['sabr'] / rate:6.2f} times the cost of sabr" if "sabr" in rates else ""
        print(f"{name:20} {rate:10.1f} images/s   {images / rate:8.1f} s per epoch{against}")
    if options.literal_steps and "citrus" in rates:
        network = architectures.build(options.architecture, shape, 10)
        adam = torch.optim.Adam(network.parameters(), lr=recipe.lr)
        x, labels = torch.rand(GROUP, *shape), torch.randint(0, 10, (GROUP,))

        def literal() -> None:
            literal_step(network, adam, x, labels, options.pgd_steps, recipe.l1)

        rate = median_rates({"literal": literal}, GROUP, options.literal_steps)["literal"]
        print(f"{'literal Algorithm 1':20} {rate:10.1f} images/s   {images / rate:8.1f} s per epoch")
        print(f"{'citrus over it':20} {rates['citrus'] / rate:10.1f}")


if __name__ == "__main__":
    main()
