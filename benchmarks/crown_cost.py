"""CROWN's cost for each ReLU, of this code and of an earlier commit's side by side, on the same files and images.

    python benchmarks/crown_cost.py [--against COMMIT] [--networks NAME ...] [--models-root DIR] [--repeats N]

Networks that this file makes, with weights drawn from the seed: convsmall (the yardstick), maxpool (two convolutions
and two max pools), mobilenet (inverted residuals with batch norm), cnn7 (batch norm, 230,000 ReLUs on CIFAR-10's
shape). Published ones, where --models-root has them: resnet_2b, marabou. Every hidden neuron is bounded, as if all were
open (intermediate="crown"), for one image of noise. The commit's package is unpacked into a temporary folder; each
measurement has a process of its own with one thread, and its seconds are the processor's: the least of --repeats runs.
An old cnn7 takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn
from zoo_networks import CLASSES, Residual, conv_norm, pooled_head

ROOT = Path(__file__).resolve().parents[1]
EPS = 1 / 255
PUBLISHED = {"resnet_2b": "resnet_2b.onnx", "marabou": "marabou_cifar10_small.onnx"}


def convsmall() -> nn.Module:
    """ERAN's ConvSmall for MNIST's shape."""
    tower = (nn.Conv2d(1, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*tower, nn.Linear(800, 100), nn.ReLU(), nn.Linear(100, CLASSES))


def maxpool() -> nn.Module:
    """An ordinary small CNN with two max pools, for CIFAR-10's shape."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, CLASSES)),
    )


def mobilenet() -> nn.Module:
    """Inverted residuals (Sandler et al. 2018), few and narrow, with ReLU for ReLU6."""

    def block(a: int, b: int, stride: int) -> nn.Module:
        wide = 4 * a
        body = nn.Sequential(
            conv_norm(a, wide, 1), conv_norm(wide, wide, stride=stride, groups=wide), conv_norm(wide, b, 1, act="")
        )
        return Residual(body) if (a, stride) == (b, 1) else body

    blocks = (block(8, 8, 1), block(8, 16, 2), block(16, 16, 1))
    return nn.Sequential(conv_norm(3, 8, stride=2), *blocks, conv_norm(16, 64, 1), pooled_head(64))


def cnn7() -> nn.Module:
    """CNN7 of the certified-training literature (Shi et al. 2021), with batch norm."""
    widths = ((3, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1))
    tower = [conv_norm(a, b, stride=stride) for a, b, stride in widths]
    head = (nn.Flatten(), nn.Linear(32768, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, CLASSES))
    return nn.Sequential(*tower, *head)


MADE = {"convsmall": convsmall, "maxpool": maxpool, "mobilenet": mobilenet, "cnn7": cnn7}
SHAPES = {"convsmall": (1, 28, 28)}


def write(name: str, path: Path, seed: int) -> None:
    """The network as an ONNX file in which batch norms stand by themselves."""
    torch.manual_seed(seed)
    module = MADE[name]().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(1, *SHAPES.get(name, (3, 32, 32))),),
            path,
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            dynamo=False,
        )


def measure(path: Path, found: Path, seed: int, repeats: int) -> None:
    """Bounds one image with the package that PYTHONPATH names: planes to `found`, ReLUs and seconds to stdout."""
    from citrus_tool import onnx_io  # whose package it is, the parent decides
    from citrus_tool.bounds.crown import crown
    from citrus_tool.threat import Threat

    network = onnx_io.read(path).network.frozen(dtype=torch.float64)
    image = torch.rand(1, *network.input_shape, generator=torch.Generator().manual_seed(seed))
    box, label = Threat(eps=EPS).enclosure(image), torch.zeros(1, dtype=torch.long)
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        margins = crown(network, box, label, intermediate="crown", skip_decided=False)
        seconds.append(time.process_time() - start)
    torch.save({"lower": margins.lower, "coefficient": margins.coefficient}, found)
    relus = sum(torch.Size(node.shape).numel() for node in network.nodes if isinstance(node.layer, nn.ReLU))
    print(json.dumps({"relus": relus, "seconds": min(seconds)}))


def run(package: Path, path: Path, found: Path, options: argparse.Namespace) -> tuple[int, float]:
    """(ReLUs, seconds) of a measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(path), "--found", str(found)]
    command += ["--seed", str(options.seed), "--repeats", str(options.repeats)]
    place = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=place, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return result["relus"], result["seconds"]


def compared(old: Path, new: Path) -> str:
    """How far the bounds and planes of two measurements lie apart."""
    before, after = (torch.load(path) for path in (old, new))
    rise = (after["lower"] - before["lower"]).nan_to_num(0.0)
    scale = before["lower"][torch.isfinite(before["lower"])].abs().amax().item()
    apart = (after["coefficient"] - before["coefficient"]).abs().amax().item()
    return f"bounds {rise.amin():+.1e} to {rise.amax():+.1e} (largest {scale:.1e}), planes {apart:.1e}"


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default=None, help="a commit of this repository")
    parser.add_argument("--networks", nargs="+", default=[*MADE, *PUBLISHED], choices=[*MADE, *PUBLISHED])
    parser.add_argument("--models-root", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure, options.found, options.seed, options.repeats)
    yardstick = None
    with tempfile.TemporaryDirectory(prefix="citrus-") as temporary:
        folder = Path(temporary)
        if options.against:
            packed = subprocess.run(
                ["git", "archive", options.against, "citrus_tool"], cwd=ROOT, check=True, stdout=subprocess.PIPE
            ).stdout
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                archive.extractall(folder / "old", filter="data")
        print(f"torch {torch.__version__}, one thread, eps 1/255, seed {options.seed}, against {options.against}")
        for name in sorted(options.networks, key=lambda name: name != "convsmall"):
            path = options.models_root / PUBLISHED[name] if name in PUBLISHED else folder / f"{name}.onnx"
            if name in MADE:
                write(name, path, options.seed)
            elif not path.exists():
                print(f"{name:<10} skipped: there is no {path.name} in {options.models_root}")
                continue
            relus, new = run(ROOT, path, folder / "new.pt", options)
            each = new / relus * 1e6
            yardstick = each if name == "convsmall" else yardstick
            share = f" ({each / yardstick:5.1f} x convsmall)" if yardstick else ""
            line = f"{name:<10}{relus:>7} ReLUs: {new:8.3f} s, {each:7.1f} us each{share}"
            if options.against:
                _, old = run(folder / "old", path, folder / "old.pt", options)
                line += f"; old {old:8.3f} s: {old / new:5.1f} x; {compared(folder / 'old.pt', folder / 'new.pt')}"
            print(line, flush=True)
    return None


if __name__ == "__main__":
    main()
