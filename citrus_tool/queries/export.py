"""UAP problems of a group of inputs, written for other tools.

As one VNN-LIB 2.0 query with `equal-to` copies (queries/uap.py), and as a product network over the shared u, with the
k margins max over c != y of f_c - f_y as outputs and initializers that the copies share, plus a VNN-LIB 1.0 property
"at least m of the k inputs are fooled". Ties count as fooled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from citrus_tool.errors import UsageError
from citrus_tool.network import INPUT, Affine, Concat, GraphBuilder, Network, size
from citrus_tool.onnx_io import OnnxModel, export
from citrus_tool.queries.constraint import Clause, Variable, at_least, at_most
from citrus_tool.queries.formula import evaluated, extremum, linear
from citrus_tool.queries.spec import NetworkVariable, Spec, TensorVariable
from citrus_tool.queries.uap import uap_query
from citrus_tool.queries.vnnlib1 import write1
from citrus_tool.queries.vnnlib2 import write2

MAX_SUBSETS = 20_000
"""Most conjunctions that a 1.0 property may list: each is written out."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The files of one group: `query` (2.0, for the original network), `product` and its `property` (1.0)."""

    query: Path
    product: Path
    property: Path


def joint_query(model: OnnxModel, images: Tensor, labels: Sequence[int], eps: float) -> Spec:
    """The 2.0 query "one u with |u| <= eps in pixel space fools all k images (k, C, H, W)".

    Inputs stand in the file's own units and shape: where the contract normalises, images and eps are normalised too.
    Raises UsageError as `uap_query`.
    """
    contract = model.contract
    inputs = contract.to_file(images)
    scale = torch.tensor(contract.std, dtype=torch.float64).reshape(-1, *(1,) * (len(contract.pixel_shape) - 1))
    radius = (eps / scale).expand(contract.pixel_shape)
    if contract.layout == "nhwc":
        radius = radius.permute(1, 2, 0)
    shape = (1, *contract.file_shape)
    return uap_query(
        inputs.reshape(len(inputs), *shape), labels, radius.reshape(shape).numpy(), model.network.num_classes
    )


def product_network(network: Network, images: Tensor, labels: Sequence[int]) -> Network:
    """u -> (max over c != y_i of f_c(x_i + u) - f_{y_i}(x_i + u)) for i = 1..k, float32; the copies share their layers.

    `images` x (k, C, H, W). The maxima are built from ReLUs.
    """
    base = network.frozen(dtype=torch.float64)
    builder = GraphBuilder(base.input_shape)
    ends = []
    for image in images:
        names = {INPUT: builder.add(Affine(torch.ones_like(image.double()), image.double()), INPUT)}
        for node in base.nodes:
            names[node.name] = builder.add(node.layer, *(names[i] for i in node.inputs))
        ends.append(names[base.output_name])
    last = builder.add(Concat(0), *ends) if len(ends) > 1 else ends[0]
    classes = base.num_classes
    difference = torch.zeros(len(labels) * (classes - 1), len(labels) * classes, dtype=torch.float64)
    targets = []
    row = 0
    for number, label in enumerate(labels):
        for other in (c for c in range(classes) if c != label):
            difference[row, number * classes + other] = 1.0
            difference[row, number * classes + label] = -1.0
            row += 1
        targets.append(extremum("max", range(row - classes + 1, row)))
    last, chosen = evaluated(builder, builder.add(linear(difference), last), row, targets)
    builder.add(linear(chosen), last)
    return builder.build().frozen(dtype=torch.float32)


def fooled_property(entries: int, k: int, at_least_fooled: int, eps: float) -> Spec:
    """The 1.0 property of a product network: |X_i| <= eps, and at least m of Y_0 .. Y_{k-1} are >= 0.

    `eps` is in pixel space. Raises UsageError for m outside 1..k, and where C(k, m) exceeds MAX_SUBSETS.
    """
    m = at_least_fooled
    if not 1 <= m <= k:
        raise UsageError(f"at least {m} of {k} inputs makes no sense; give a number from 1 to {k}.")
    if math.comb(k, m) > MAX_SUBSETS:
        raise UsageError(
            f"at least {m} of {k} inputs is a disjunction of {math.comb(k, m)} cases, more than {MAX_SUBSETS}; choose "
            "a smaller group, or a number nearer to 1 or to the group's size."
        )
    network = NetworkVariable(
        name="N",
        inputs=(TensorVariable(name="X", shape=(entries,)),),
        outputs=(TensorVariable(name="Y", shape=(k,)),),
    )
    radius = Fraction(str(eps))
    assertions: list[Clause] = []
    for entry in range(entries):
        x = Variable("X", entry)
        assertions += [((at_least(x, -radius),),), ((at_most(x, radius),),)]
    zero = Fraction(0)
    subsets = itertools.combinations(range(k), m)
    assertions.append(tuple(tuple(at_least(Variable("Y", i), zero) for i in subset) for subset in subsets))
    return Spec.of([network], assertions, "1.0")


def export_group(
    model: OnnxModel, images: Tensor, labels: Sequence[int], eps: float, folder: Path, stem: str, *, at_least: int
) -> Exported:
    """Writes the three files of a group into `folder`, names starting with `stem`.

    `images` (k, C, H, W); `eps` in pixel space.

    Raises UsageError as `fooled_property`, before anything is written.
    """
    found = fooled_property(size(model.network.input_shape), len(images), at_least, eps)
    files = Exported(
        query=folder / f"{stem}.vnnlib",
        product=folder / f"{stem}_product.onnx",
        property=folder / f"{stem}_product_{at_least}.vnnlib",
    )
    write2(joint_query(model, images, labels, eps), files.query)
    network = product_network(model.network, images, labels)
    export(network, files.product, metadata={"citrus_query": stem, "eps": str(np.float64(eps))})
    write1(found, files.property)
    return files
