"""The shared-perturbation attack on published settings: sums of margins alone, and with sets grown input by input.

    python benchmarks/attack.py [--rows 1,2,3,5] [--groups 10] [--steps 50] [--restarts 6] ...

Rows are those of benchmarks/uap_table.py: protocol `correct`, the first k P correctly classified of the first 3 k P
test images in P groups of k. Printed: inputs that stay correct, in percent, by the network as PyTorch runs it, and CPU
seconds for a group. Both variants attack every input alone in the same way first.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from uap_table import ROOT, ROWS, Row

from citrus_tool.attacks.effort import Effort
from citrus_tool.attacks.universal import attack_groups
from citrus_tool.certification.individual import clean_stage
from citrus_tool.onnx_io import OnnxRunner
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.threat import Threat, parse_eps


def main() -> None:
    """Parses the command line and prints a line a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2, 3, 5])
    parser.add_argument("--groups", type=int, default=10, help="P")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models-root", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--data-root", type=Path)
    options = parser.parse_args()
    print(f"{'network':<27} {'eps':>5} {'k':>4} | {'sums %':>7} {'s/group':>8} | {'grown %':>7} {'s/group':>8}")
    for number in options.rows:
        row = ROWS[number - 1]
        before, after = run(row, options, sets=0), run(row, options, sets=Effort.sets)
        print(
            f"{row.network:<27} {row.eps:>5} {row.group_size:>4} | {before[0]:7.1f} {before[1]:8.2f} |"
            f" {after[0]:7.1f} {after[1]:8.2f}",
            flush=True,
        )


def run(row: Row, options: argparse.Namespace, *, sets: int) -> tuple[float, float]:
    """Attacked accuracy in percent, and CPU seconds for a group."""
    k, groups = row.group_size, options.groups
    data = DataChoice(name=row.data, root=options.data_root).load("test").take(3 * k * groups)
    model = ModelChoice(path=options.models_root / f"{row.network}.onnx").read(data)
    double = model.network.frozen(dtype=torch.float64)
    clean = clean_stage(double, OnnxRunner(model), data.pixels(), data.labels)
    kept = torch.nonzero(clean.correct).flatten()[: k * groups]
    images = data.pixels(kept).reshape(-1, k, *data.shape)
    labels = data.labels[kept].reshape(-1, k)
    start = time.process_time()
    _, fooled = attack_groups(
        model.network.frozen(dtype=torch.float32),
        images,
        labels,
        torch.ones_like(labels, dtype=torch.bool),
        Threat(eps=parse_eps(row.eps)),
        Effort(steps=options.steps, restarts=options.restarts, sets=sets),
        torch.Generator().manual_seed(options.seed),
    )
    return 100 * (1 - int(fooled.sum()) / labels.numel()), (time.process_time() - start) / len(labels)


if __name__ == "__main__":
    main()
