"""Writes local-robustness and UAP queries for the shipped digits networks, and instances.csv.

    python vnnlib/generate_properties.py SEED [FOLDER]

As VNN-COMP asks: the seed draws the inputs (test images that every network classifies correctly), the files
state the UNSAFE set, and instances.csv holds `onnx,vnnlib,timeout` relative to itself. A query is sat when
some z with |z - x|_inf <= eps (not clipped to [0, 1]) gets another class's logit at least as high as the
true one's. Bounds are exact decimals: pixels are sixteenths, eps is a decimal.

UAP queries ask for one u with |u|_inf <= eps that fools the first k of the inputs together: as VNN-LIB 2.0 with
equal-to copies (all k are fooled), and as a product network over u with a VNN-LIB 1.0 property (at least half are).
"""

from __future__ import annotations

import csv
import io
import os
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
from torch import Tensor

from citrus_tool import data
from citrus_tool.onnx_io import OnnxModel, OnnxRunner, export, read
from citrus_tool.queries import text1, text2
from citrus_tool.queries.export import fooled_property, joint_query, product_network

MODELS = Path(__file__).resolve().parents[1] / "models"
NETWORKS = ("digits_convtiny.onnx", "digits_convtiny_citrus.onnx")
RADII = (Decimal("0.02"), Decimal("0.05"), Decimal("0.1"))
INPUTS = 4
GROUPS = (2, 4)
TIMEOUT = 60


def query(pixels: list[Decimal], label: int, classes: int, eps: Decimal, title: str) -> str:
    """The text of one query: `pixels` flattened (C, H, W), `label` the true class."""
    lines = [f"; {title}", ""]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(pixels))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(classes)]
    lines += ["", f"; input: true class {label}, every pixel within {eps}"]
    for i, pixel in enumerate(pixels):
        lines += [f"(assert (>= X_{i} {pixel - eps:f}))", f"(assert (<= X_{i} {pixel + eps:f}))"]
    others = [j for j in range(classes) if j != label]
    lines += ["", "; unsafe: another class reaches the true one", "(assert (or"]
    lines += [f"    (and (>= Y_{j} Y_{label}))" for j in others]
    return "\n".join([*lines, "))", ""])


def uap_queries(model: OnnxModel, images: Tensor, labels: list[int], folder: Path) -> list[tuple[str, str]]:
    """Writes one group's queries, and its product network; returns the first two fields of their instances."""
    k = len(labels)
    stem = f"{model.path.stem}_uap_{k}"
    export(product_network(model.network, images, labels), folder / f"{stem}_product.onnx", metadata={"inputs": str(k)})
    fields = []
    for eps in RADII:
        joint, half = f"{stem}_eps_{eps}.vnnlib", f"{stem}_product_eps_{eps}_{(k + 1) // 2}.vnnlib"
        (folder / joint).write_text(text2(joint_query(model, images, labels, float(eps))), encoding="utf-8")
        spec = fooled_property(images[0].numel(), k, (k + 1) // 2, float(eps))
        (folder / half).write_text(text1(spec), encoding="utf-8")
        fields.append((str([("f1", os.path.relpath(model.path, folder))]), joint))
        fields.append((f"{stem}_product.onnx", half))
    return fields


def generate(seed: int, folder: Path) -> list[str]:
    """Writes the queries and instances.csv to `folder`; returns the csv's lines."""
    test = data.load("digits", split="test")
    correct = np.ones(len(test), dtype=bool)
    for name in NETWORKS:
        model = read(MODELS / name, input_shape=test.shape)
        correct &= OnnxRunner(model).logits(test.pixels()).argmax(axis=1) == test.labels.numpy()
    chosen = np.sort(np.random.default_rng(seed).choice(np.flatnonzero(correct), INPUTS, replace=False))
    rows = []
    for index in chosen:
        sixteenths = (test.images[index].double() * 16).round().int().flatten().tolist()
        for eps in RADII:
            file = f"digits_test_{index}_eps_{eps}.vnnlib"
            title = f"scikit-learn digits, test image {index}, eps {eps} in pixel space [0, 1]"
            pixels = [Decimal(value) / 16 for value in sixteenths]
            text = query(pixels, int(test.labels[index]), test.num_classes, eps, title)
            (folder / file).write_text(text, encoding="utf-8")
            rows += [f"{os.path.relpath(MODELS / name, folder)},{file},{TIMEOUT}" for name in NETWORKS]
    images, labels = test.pixels()[chosen], test.labels[chosen].tolist()
    table = io.StringIO()
    for name in NETWORKS:
        model = read(MODELS / name, input_shape=test.shape)
        for k in GROUPS:
            for fields in uap_queries(model, images[:k], labels[:k], folder):
                csv.writer(table, lineterminator="\n").writerow([*fields, TIMEOUT])
    rows += table.getvalue().splitlines()
    (folder / "instances.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return rows


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3 or not sys.argv[1].isdigit():
        sys.exit(__doc__)
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).resolve().parent
    print(f"{len(generate(int(sys.argv[1]), target))} instances written to {target}")
