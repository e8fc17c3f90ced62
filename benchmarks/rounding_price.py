"""What float32 costs: margins by CROWN with and without the file's rounding, on the same inputs.

python benchmarks/rounding_price.py [--inputs N] prints, for each published network, how much margins lose, how many
inputs are proven with either arithmetic, and the ratio of the times.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from citrus_tool import data, onnx_io
from citrus_tool.bounds.crown import crown
from citrus_tool.network import Evaluation
from citrus_tool.threat import Threat

ROOT = Path(__file__).resolve().parents[1]
CASES = (
    ("citrus_convsmall_1", "mnist", 0.1),
    ("citrus_convsmall_2", "cifar10", 2 / 255),
    ("resnet_2b", "cifar10", 1 / 255),
)
BATCH = 20


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models-root", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--inputs", type=int, default=100)
    options = parser.parse_args()
    for name, which, eps in CASES:
        read = onnx_io.read(options.models_root / f"{name}.onnx").network
        test = data.load(which, split="test", root=options.data_root, limit=options.inputs)
        lower, seconds = {}, {}
        for arithmetic in ("real", "float32", "real", "float32"):  # the second time counts
            evaluation = Evaluation(arithmetic=arithmetic, rounds_input=True)  # type: ignore[arg-type]
            network = read.frozen(dtype=torch.float64, evaluation=evaluation)
            batches = zip(test.pixels().split(BATCH), test.labels.split(BATCH), strict=True)
            start = time.perf_counter()
            parts = [crown(network, Threat(eps=eps).enclosure(x), y, skip_decided=False).lower for x, y in batches]
            seconds[arithmetic], lower[arithmetic] = time.perf_counter() - start, torch.cat(parts)
        lost = lower["real"] - lower["float32"]
        lost = lost[torch.isfinite(lost)]
        proven = {kind: int((margins.amin(1) > 0).sum()) for kind, margins in lower.items()}
        print(
            f"{name} at {eps:.4g}, {len(test)} inputs: margins lose {float(lost.median()):.2g} in the median, at most"
            f" {float(lost.max()):.2g}; proven {proven['real']} real, {proven['float32']} float32; time"
            f" {seconds['float32'] / seconds['real']:.2f}"
        )


if __name__ == "__main__":
    main()
