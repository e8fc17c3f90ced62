"""Seconds per input of CROWN against a dense twin that computes every intermediate row, in one run.

    python benchmarks/crown.py [--models-root ../shared/models] [--data-root DIR] [--inputs 200] [--twin-inputs 20]

Network citrus_convsmall_1, MNIST test images, eps 0.1. Both bound the margins of all labels of every input (intervals
decide nothing in advance); the last line leaves out what intervals decide, as the certifier does. The twin is measured
with every row, and with the rows before the first ReLU spared. Its bounds are checked against ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from dense_crown import dense_crown

from citrus_tool import data, onnx_io
from citrus_tool.bounds.crown import crown
from citrus_tool.threat import Box, Threat

ROOT = Path(__file__).resolve().parents[1]
EPS = 0.1
BATCH = 50


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Median wall-clock seconds of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models-root", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--twin-inputs", type=int, default=20)
    options = parser.parse_args()
    network = onnx_io.read(options.models_root / "citrus_convsmall_1.onnx").network.frozen(dtype=torch.float64)
    test = data.load("mnist", split="test", root=options.data_root, limit=options.inputs)
    threat, labels = Threat(eps=EPS), test.labels
    box = threat.enclosure(test.pixels())
    parts = zip(test.pixels().split(BATCH), labels.split(BATCH), strict=True)
    batches = [(threat.enclosure(x), y) for x, y in parts]

    def ours(*, skip_decided: bool) -> list[torch.Tensor]:
        return [crown(network, b, y, skip_decided=skip_decided).lower for b, y in batches]

    def twin(*, first_by_intervals: bool) -> list[torch.Tensor]:
        pairs = list(zip(box.centre.split(1), box.radius.split(1), labels.tolist(), strict=True))[: options.twin_inputs]
        with torch.no_grad():
            return [
                dense_crown(network, Box(centre=c, radius=r), y, first_by_intervals=first_by_intervals)
                for c, r, y in pairs
            ]

    def parity() -> float:
        part = Box(centre=box.centre[: options.twin_inputs], radius=box.radius[: options.twin_inputs])
        same = crown(network, part, labels[: options.twin_inputs], intermediate="crown", skip_decided=False)
        least = same.offset - (same.coefficient.abs() * part.radius[:, None]).flatten(2).sum(2)
        return (torch.stack(twin(first_by_intervals=False)) - least).nan_to_num(0.0).abs().amax().item()

    print(f"citrus_convsmall_1, eps {EPS}, {torch.get_num_threads()} threads, {options.inputs} inputs")
    print(f"parity with the twin (intermediate bounds by CROWN alone, as the twin's): {parity():.1e}")
    dense = seconds(lambda: twin(first_by_intervals=False), repeats=1) / options.twin_inputs
    spared = seconds(lambda: twin(first_by_intervals=True), repeats=1) / options.twin_inputs
    print(f"dense twin, every row          {dense * 1e3:8.2f} ms an input ({options.twin_inputs} inputs)")
    print(f"dense twin, first by intervals {spared * 1e3:8.2f} ms an input")
    for text, skip in (("all labels", False), ("labels left open by intervals", True)):
        ours(skip_decided=skip)
        fast = seconds(lambda skip=skip: ours(skip_decided=skip)) / options.inputs
        print(f"ours, {text:<31} {fast * 1e3:6.2f} ms an input: {dense / fast:.1f} x and {spared / fast:.1f} x faster")


if __name__ == "__main__":
    main()
