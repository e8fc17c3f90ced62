"""The exact answer of a query on tiny ReLU networks: one linear program per case and activation pattern."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import nn

from citrus_tool.network import chain
from citrus_tool.onnx_io import export
from citrus_tool.queries import Constraint, Spec


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """x -> w2 relu(w1 x + b1) + b2, and its ONNX file."""

    w1: NDArray[np.float64]
    b1: NDArray[np.float64]
    w2: NDArray[np.float64]
    b2: NDArray[np.float64]
    path: Path


def tiny(path: Path, seed: int, *, inputs: int, hidden: int, outputs: int) -> Tiny:
    """A random one, with weights that are float32 numbers."""
    rng = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]
    for layer in (layers[0], layers[2]):
        for parameter in layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=rng)
    export(chain(layers, (inputs,)), path, metadata={})
    first, last = layers[0], layers[2]
    values = [p.detach().double().numpy() for p in (first.weight, first.bias, last.weight, last.bias)]
    return Tiny(w1=values[0], b1=values[1], w2=values[2], b2=values[3], path=path)


def slack(spec: Spec, networks: Mapping[str, Tiny]) -> float:
    """The largest s such that some point satisfies every constraint of a case by s (equalities exactly).

    Positive: sat; negative: unsat (-inf: no point even fits the equalities); at most 10 when every case is that easy.
    """
    return max(_case(spec, networks, pattern, case) for case in spec.cases() for pattern in _patterns(spec, networks))


def _patterns(spec: Spec, networks: Mapping[str, Tiny]) -> list[tuple[int, ...]]:
    total = sum(len(networks[network.equal_to or network.name].b1) for network in spec.networks)
    return list(itertools.product((0, 1), repeat=total))


def _case(spec: Spec, networks: Mapping[str, Tiny], pattern: tuple[int, ...], case: object) -> float:
    """Variables: all inputs, then s. Every activation and output is affine in the inputs under the pattern."""
    from citrus_tool.queries import Case

    assert isinstance(case, Case)
    if case.empty:
        return -np.inf
    starts: dict[str, int] = {}
    width = 0
    for tensor in spec.inputs.values():
        starts[tensor.name] = width
        width += tensor.size
    below: list[NDArray[np.float64]] = []
    limits: list[float] = []
    affine: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    position = 0
    for network in spec.networks:
        net = networks[network.equal_to or network.name]
        here = slice(starts[network.inputs[0].name], starts[network.inputs[0].name] + net.w1.shape[1])
        on = np.array(pattern[position : position + len(net.b1)], dtype=float)
        position += len(net.b1)
        z = np.zeros((len(net.b1), width))
        z[:, here] = net.w1
        for row, offset, active in zip(z, net.b1, on, strict=True):  # z >= 0 where active
            sign = -1.0 if active else 1.0
            below.append(np.append(sign * row, 0.0))
            limits.append(-sign * offset)
        affine[network.outputs[0].name] = (net.w2 * on) @ z, (net.w2 * on) @ net.b1 + net.b2

    def linear(row: Constraint) -> tuple[NDArray[np.float64], float]:
        coefficient, offset = np.zeros(width), 0.0
        for variable, factor in row.terms:
            if variable.tensor in starts:
                coefficient[starts[variable.tensor] + variable.flat] += float(factor)
            else:
                a, b = affine[variable.tensor]
                coefficient += float(factor) * a[variable.flat]
                offset += float(factor) * b[variable.flat]
        return coefficient, float(row.bound) - offset

    equal: list[NDArray[np.float64]] = []
    targets: list[float] = []
    for row in (*case.outputs, *case.mixed):
        coefficient, bound = linear(row)
        if row.relation == "==":
            equal.append(np.append(coefficient, 0.0))
            targets.append(bound)
        else:
            below.append(np.append(coefficient, 1.0))
            limits.append(bound)
    boxes = [case.boxes[name] for name in spec.inputs]
    sides = [(low, high) for box in boxes for low, high in zip(box.lower.ravel(), box.upper.ravel(), strict=True)]
    found = linprog(
        np.append(np.zeros(width), -1.0),
        A_ub=np.array(below),
        b_ub=limits,
        A_eq=np.array(equal) if equal else None,
        b_eq=targets if equal else None,
        bounds=[*sides, (None, 10.0)],
        method="highs",
    )
    return -np.inf if found.status == 2 else float(-found.fun)
