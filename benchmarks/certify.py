"""Seconds per group of `certify-uap`, stage by stage, and its CROWN stage against a dense twin, in one run.

    python benchmarks/certify.py [--models-root ../shared/models] [--data-root DIR] [--inputs 500] [--twin-inputs 10]

Network citrus_convsmall_1, MNIST test images, eps 0.1, groups of 5, protocol all. The ratio is per input that reaches
the CROWN stage (correct, left open by intervals); the twin (dense_crown.py) computes every intermediate row of the same
inputs and of as many others as --twin-inputs asks for.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from dense_crown import dense_crown

from citrus_tool import data, onnx_io
from citrus_tool.certification.individual import bound_individually, clean_stage
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.onnx_io import OnnxRunner
from citrus_tool.threat import Box, Threat

ROOT = Path(__file__).resolve().parents[1]
EPS = 0.1


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models-root", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--inputs", type=int, default=500)
    parser.add_argument("--twin-inputs", type=int, default=10)
    options = parser.parse_args()
    model = onnx_io.read(options.models_root / "citrus_convsmall_1.onnx")
    test = data.load("mnist", split="test", root=options.data_root, limit=options.inputs)
    settings = CertifySettings(limit=options.inputs)
    start = time.perf_counter()
    certificate = certify_uap(model, test, Threat(eps=EPS), settings)
    wall = time.perf_counter() - start
    groups = len(certificate.groups)
    print(f"citrus_convsmall_1, eps {EPS}, {torch.get_num_threads()} threads, {groups} groups of {settings.group_size}")
    print(
        f"clean {certificate.clean_correct}, IBP {certificate.ibp_certified}, individual"
        f" {certificate.individually_certified}, certified {certificate.certified}, attacked {certificate.attacked}"
        f" of {certificate.inputs}"
    )
    for stage, seconds in certificate.stages.items():
        print(f"{stage:<8}{seconds / groups * 1e3:9.2f} ms a group")
    print(f"{'all':<8}{wall / groups * 1e3:9.2f} ms a group, {wall:.1f} s")

    network = model.network.frozen(dtype=torch.float64)
    x, labels = test.pixels(), test.labels
    clean = clean_stage(network, OnnxRunner(model), x, labels)
    individual = bound_individually(network, x, clean, Threat(eps=EPS), bounds="crown", intermediate="intersect")
    reached = torch.nonzero(clean.correct & ~individual.ibp).flatten()
    ours = individual.seconds["crown"] / len(reached)
    box = Threat(eps=EPS).enclosure(x[reached[: options.twin_inputs]])
    start = time.perf_counter()
    with torch.no_grad():
        for i, label in enumerate(labels[reached[: options.twin_inputs]].tolist()):
            dense_crown(network, Box(centre=box.centre[i : i + 1], radius=box.radius[i : i + 1]), label)
    twin = (time.perf_counter() - start) / len(box.centre)
    print(f"CROWN stage {ours * 1e3:.2f} ms an input ({len(reached)} inputs), dense twin {twin * 1e3:.2f} ms:", end=" ")
    print(f"{twin / ours:.1f} x faster")


if __name__ == "__main__":
    main()
