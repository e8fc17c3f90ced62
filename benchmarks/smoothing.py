"""Randomized smoothing of a base network against the same threat (Cohen et al. 2019, algorithm Certify).

    python benchmarks/smoothing.py M.onnx --data cifar10 --eps 2/255 [--sigma 0.1,0.25] [--limit 200] [--samples 1000]

The smoothed classifier g(x) is the class that the network gives most often to x + N(0, sigma^2 I). Where its lower
confidence bound p on the top class's probability is above 1/2, g is constant on the l2 ball of radius
sigma * Phi^-1(p), which holds every u with |u|_inf <= eps once the radius is at least eps * sqrt(d), d the number of
pixels. Such an input survives every shared u, so their share bounds g's worst-case UAP accuracy from below.

That is another guarantee than a certificate of the network's own: it is about g, which takes thousands of forward
passes for one answer; it holds with probability 1 - alpha for each input, not always; and it holds for the l2 ball,
which is far larger than the l_inf ball inside. Differs from the paper in: abstentions and wrong answers count as lost.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from scipy.stats import beta, norm
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from citrus_tool import data, onnx_io
from citrus_tool.network import Network
from citrus_tool.threat import parse_eps

ALPHA = 0.001
"""Probability of a wrong claim for one input."""
CHOOSING = 100
"""Samples that choose the class; the others bound its probability."""


def counts(network: Network, x: Tensor, sigma: float, samples: int, generator: torch.Generator) -> Tensor:
    """How often the network gives each class to x (C, H, W) with noise."""
    total = torch.zeros(network.num_classes, dtype=torch.long)
    for start in range(0, samples, 500):
        noise = torch.randn((min(500, samples - start), *x.shape), generator=generator) * sigma
        total += torch.bincount(network(x + noise).argmax(1), minlength=network.num_classes)
    return total


def radius(network: Network, x: Tensor, sigma: float, samples: int, generator: torch.Generator) -> tuple[int, float]:
    """The smoothed class and its certified l2 radius, 0 where nothing is certified."""
    chosen = int(counts(network, x, sigma, CHOOSING, generator).argmax())
    hits = int(counts(network, x, sigma, samples, generator)[chosen])
    low = float(beta.ppf(ALPHA, hits, samples - hits + 1)) if hits else 0.0
    return chosen, float(sigma * norm.ppf(low)) if low > 0.5 else 0.0


def main() -> None:
    """Prints one row for each sigma."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--eps", type=parse_eps, required=True)
    parser.add_argument("--sigma", default="0.05,0.1,0.25", help="standard deviations, with commas between them")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    test = data.load(options.data, split="test", root=options.data_root, limit=options.limit)
    network = onnx_io.read(options.model, input_shape=test.shape, samples=test.take(16).pixels()).network.eval()
    needed = options.eps * math.sqrt(math.prod(test.shape))
    print(
        f"{options.model.name}: {len(test)} inputs, {options.samples} samples, an l2 radius of {needed:.3f} is needed"
    )
    print("sigma  smoothed accuracy in %  certified in %  mean radius of the correct")
    for text in options.sigma.split(","):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            found = [radius(network, x, float(text), options.samples, generator) for x in test.pixels()]
        right = [r for (chosen, r), label in zip(found, test.labels.tolist(), strict=True) if chosen == label]
        held = sum(r >= needed for r in right)
        mean = sum(right) / max(1, len(right))
        print(f"{text:>5}  {100 * len(right) / len(test):22.2f}  {100 * held / len(test):14.2f}  {mean:26.3f}")


if __name__ == "__main__":
    main()
