"""Certificates against exact rational arithmetic: at corners, samples and the worst point that a MILP finds.

What is counted is what fractions say: floating point only picks the points. A claim about every float32 run holds for
the run without any error, too, so that certificates of both arithmetics are held against this.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from citrus_tool.network import INPUT, Add, Affine, MatMul, Multiply, Network, Reshape, Select, Transpose
from citrus_tool.threat import Threat
from citrus_tool.threat.clip import clipped
from tests.certification.oracle import worst

Exact = NDArray[np.object_]
CLOSEST = 12
"""Perturbations, of all that are tried, at which most inputs come close to being lost: judged in fractions."""
LARGEST_WEIGHT, LEAST_MARGIN = 1e3, 1e-5
"""What the tolerances of the MILP's solver (1e-6) allow: it gets no larger weights, and fools by this margin."""


def fractions(values: Tensor | NDArray[np.floating]) -> Exact:
    """The numbers as they are, of the same shape."""
    array = values.detach().double().numpy() if isinstance(values, Tensor) else values
    return np.vectorize(Fraction, otypes=[object])(array) if array.size else array.astype(object)


def _conv(layer: nn.Conv2d, x: Exact) -> Exact:
    weight, bias = fractions(layer.weight), fractions(layer.bias)  # type: ignore[arg-type]
    assert layer.groups == 1
    (top, left), (down, right) = layer.padding, layer.stride  # type: ignore[misc]
    padded = np.pad(x, ((0, 0), (top, top), (left, left)), constant_values=Fraction(0))
    height, width = weight.shape[2:]
    rows = range(0, padded.shape[1] - height + 1, down)
    columns = range(0, padded.shape[2] - width + 1, right)
    windows = [padded[:, i : i + height, j : j + width].flatten() for i, j in product(rows, columns)]
    return np.array([[w.flatten() @ one + b for one in windows] for w, b in zip(weight, bias, strict=True)]).reshape(
        len(weight), len(rows), len(columns)
    )


def _pool(layer: nn.MaxPool2d | nn.AvgPool2d, x: Exact) -> Exact:
    """The whole map (2, 2) to one entry."""
    assert (layer.kernel_size, x.shape[1:]) == (2, (2, 2))
    flat = x.reshape(len(x), 4)
    one = flat.max(axis=1) if isinstance(layer, nn.MaxPool2d) else flat.sum(axis=1) / 4
    return np.asarray(one).reshape(-1, 1, 1)


def _layer(layer: nn.Module, inputs: list[Exact]) -> Exact | None:
    """The layer's value (*shape,); None for one that fractions do not have."""
    x = inputs[0]
    if isinstance(layer, nn.Linear):
        return np.asarray(fractions(layer.weight) @ x + fractions(layer.bias))
    if isinstance(layer, nn.Conv2d):
        return _conv(layer, x)
    if isinstance(layer, nn.ReLU):
        return np.maximum(x, Fraction(0))
    if isinstance(layer, nn.LeakyReLU):
        slope = Fraction(float(np.float32(layer.negative_slope)))
        return np.where(x < 0, slope * x, x)
    if isinstance(layer, Affine):
        return x * fractions(layer.scale) + fractions(layer.shift)
    if isinstance(layer, Add):
        return inputs[0] + inputs[1]
    if isinstance(layer, Multiply | MatMul):
        return np.asarray(inputs[0] * inputs[1] if isinstance(layer, Multiply) else inputs[0] @ inputs[1])
    if isinstance(layer, Select):
        return np.append(x.flatten(), Fraction(0))[layer.index.numpy()]  # its -1 is the zero at the end
    if isinstance(layer, Transpose):
        return x.transpose(layer.axes)
    if isinstance(layer, Reshape):
        return x.reshape(layer.shape)
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        return _pool(layer, x)
    return None


def logits(network: Network, x: Exact) -> Exact | None:
    """The logits (classes,) of `x` (*shape,) in real arithmetic; None where a layer has no fractions."""
    values = {INPUT: x}
    for node in network.nodes:
        value = _layer(node.layer, [values[name] for name in node.inputs])
        if value is None:
            return None
        values[node.name] = value
    return values[network.output_name]


def kept(network: Network, x: Tensor, labels: Tensor, u: NDArray[np.floating], threat: Threat) -> int | None:
    """How many of `x` (k, *shape) u (*shape,) leaves correct, or away from the target; None: no fractions."""
    moved, count = fractions(u), 0
    assert all(abs(one) <= Fraction(threat.eps) for one in moved.flat)
    for one, label in zip(x, labels.tolist(), strict=True):
        seen = fractions(one) + moved
        found = logits(network, np.clip(seen, Fraction(0), Fraction(1)) if threat.clip else seen)
        if found is None:
            return None
        judged = label if threat.target is None else threat.target
        rivals = max(value for number, value in enumerate(found) if number != judged)
        count += bool(found[judged] > rivals) if threat.target is None else bool(found[judged] < rivals)
    return count


def _tried(network: Network, x: Tensor, labels: Tensor, threat: Threat, seed: int) -> NDArray[np.float64]:
    """(m, *shape) the corners and samples that bring most inputs closest to being lost, in float64."""
    shape, generator = network.input_shape, torch.Generator().manual_seed(seed)
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=int(np.prod(shape))))).reshape(-1, *shape)
    inside = torch.rand(200, *shape, generator=generator) * 2 - 1
    u = (threat.inner * torch.cat([signs, inside, torch.zeros(1, *shape)])).double()
    rows, margins = network.frozen(dtype=torch.float64), []
    for one, label in zip(x.double(), labels.tolist(), strict=True):
        found = rows((one + u).clamp(0, 1) if threat.clip else one + u)
        judged = label if threat.target is None else threat.target
        own, others = found[:, judged], found.index_fill(1, torch.tensor([judged]), -torch.inf).amax(dim=1)
        margins.append(own - others if threat.target is None else others - own)
    size = torch.stack(margins)  # (k, points)
    order = (size <= 0).sum(dim=0) - size.clamp(min=0).mean(dim=0) / (1 + size.abs().max())
    return u[order.topk(min(CLOSEST, len(order))).indices].numpy()


def _worst(network: Network, x: Tensor, labels: Tensor, threat: Threat) -> NDArray[np.float64] | None:
    """The worst perturbation (*shape,); None where the MILP has no encoding or no digits for the network."""
    fits = all(
        isinstance(node.layer, nn.Linear | nn.Conv2d | nn.ReLU | Add | Reshape | Affine) for node in network.nodes
    )
    small = all(tensor.abs().max() <= LARGEST_WEIGHT for tensor in network.state_dict().values() if tensor.numel())
    if not (fits and small and len(x)):
        return None
    whole = clipped(network) if threat.clip else network
    _, u = worst(whole, x, labels, threat.eps, threat.target, by=LEAST_MARGIN)
    return u.reshape(network.input_shape)


def beyond_exact(
    network: Network, x: Tensor, labels: Tensor, threat: Threat, certified: int, seed: int
) -> Iterator[str]:
    """Where fewer of `x` (k, *shape), which share a perturbation, stay correct than are certified, in words."""
    if threat.target is not None:
        left = labels != threat.target
        x, labels = x[left], labels[left]
    if not certified or not len(x):
        return
    points = [*_tried(network, x, labels, threat, seed)]
    if (u := _worst(network, x, labels, threat)) is not None:
        points.append(u)
    for number, point in enumerate(points):
        found = kept(network, x, labels, point, threat)
        if found is None:
            return
        if found < certified:
            which = "the MILP's worst point" if u is not None and number == len(points) - 1 else "a point"
            yield f"{certified} certified, {found} stay correct in fractions at {which}: {point.flatten().tolist()}"
            return
