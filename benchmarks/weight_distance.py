"""How far the weights of two networks of one architecture are apart: was one trained on from the other?

    python benchmarks/weight_distance.py A.onnx B.onnx

For every parameter and for all of them together: the cosine of the angle between the two, and |a - b| / |b|, Euclidean.
Networks of different initial weights have cosines near 0, since hidden neurons have no fixed order.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from citrus_tool import onnx_io


def parameters(path: Path) -> list[tuple[str, Tensor]]:
    """The network's parameters in the graph's order, in float64."""
    return [(name, value.detach().double()) for name, value in onnx_io.read(path).network.named_parameters()]


def row(name: str, a: Tensor, b: Tensor) -> str:
    """A line of the table."""
    cosine = float(torch.dot(a.flatten(), b.flatten()) / (a.norm() * b.norm()))
    return f"| {name} | {'x'.join(map(str, a.shape))} | {cosine:.5f} | {float((a - b).norm() / b.norm()):.4f} |"


def main() -> None:
    """Prints the table."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    first, second = (parameters(Path(path)) for path in sys.argv[1:])
    if [value.shape for _, value in first] != [value.shape for _, value in second]:
        sys.exit("the two networks have parameters of different shapes; this compares networks of one architecture.")
    print("| parameter | shape | cosine | relative distance |\n|---|---|---|---|")
    for (name, a), (_, b) in zip(first, second, strict=True):
        print(row(name, a, b))
    print(row("all", *(torch.cat([value.flatten() for _, value in side]) for side in (first, second))))


if __name__ == "__main__":
    main()
