"""Interval bounds of the checker, many inputs at a time, and the errors of runs in float32 (docs/soundness.md).

A run may err at every layer on its own, by at most gamma32(n) times the sum of the absolute values of n terms, and it
rounds x + u; all bounds hold whatever these errors are. What the checker itself rounds is in bounds.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import sparse

from citrus_tool.checker.graph import AffineMap, Floats, Graph, Matrix, Relu
from citrus_tool.errors import UnsupportedNetworkError

WIDER: Final = 2.0**-50
"""Relative growth that covers a few roundings, each of at most 2^-53."""
TINY: Final = np.finfo(np.float64).tiny
"""The least normal number: covers what underflow loses."""
SPARE: Final = 8
"""Roundings of a term in float32 beside those of its sum: of constants that a runtime folds into others, and of the
operations on the sum. Seven are the most that occur."""
FLOOR: Final = 2.0**-66
"""What a term loses to underflow in float32, 2^-126, times LARGEST, which may multiply it."""
LARGEST: Final = 2.0**60
"""Magnitude of values and constants up to which no product of two overflows float32."""
HOPELESS: Final = 2.0**700
"""Error of values above LARGEST, and of the logits behind them: more than any margin, so that nothing is shown."""


def gamma(terms: int) -> float:
    """The relative error of a sum of so many products, twice over."""
    return terms * 2.0**-52


def gamma32(terms: int) -> float:
    """The relative error of a sum of so many products in float32 (Higham 2002, lemma 3.1)."""
    product = terms * 2.0**-24
    return product / (1 - product) if product < 1 else np.inf


def require_moderate(graph: Graph) -> None:
    """Raises UnsupportedNetworkError for constants with which runs in float32 may overflow.

    Between two ReLUs a runtime may multiply constants with each other before it multiplies them with values.
    """
    together = [1.0]
    for layer in graph.layers:
        largest = 0.0
        if isinstance(layer, AffineMap):
            each = [np.asarray(size.data if sparse.issparse(size) else size).max(initial=1.0) for size in layer.sizes]
            largest = max(float(one) * together[source] for one, source in zip(each, layer.sources, strict=True))
            largest = max(largest, float(layer.bias_size.max(initial=0.0)))
        together.append(max(largest, 1.0))
    if not max(graph.largest, *together) <= LARGEST:
        raise UnsupportedNetworkError("a file with constants above 2^60, with which float32 may overflow, is not read.")


class Intervals:
    """Interval bounds of n boxes, of every run in float32 or in real arithmetic.

    Attributes:
        lower, upper: by node, (entries, n): bounds over the boxes.
        noise: by node, (entries, n): what this computation rounds in one step back through it, per unit of coefficient.
        errors: by node, (entries, n): the most that a run of the file differs by there; 0 in real arithmetic, and where
            the next layer is alone to take the node and has its errors among its own, or makes nothing of them.
    """

    def __init__(self, graph: Graph, x: Floats, radius: float, arithmetic: str) -> None:
        """`x` (d, n): the centres; `arithmetic`: `float32` or `real`."""
        self.graph, self.radius, self.float32 = graph, radius, arithmetic == "float32"
        self._hopeless = np.zeros(x.shape[1], dtype=np.bool_)
        self.noise: list[Floats] = [np.zeros((0, x.shape[1]))]
        self.errors: list[Floats] = [np.zeros(x.shape)]
        if self.float32:
            require_moderate(graph)
            self.errors[0] = 1.01 * 2.0**-24 * (np.abs(x) + radius) + FLOOR
        self.lower = [np.nextafter(x - radius - self.errors[0], -np.inf)]
        self.upper = [np.nextafter(x + radius + self.errors[0], np.inf)]
        for node, layer in enumerate(graph.layers, start=1):
            if isinstance(layer, Relu):
                self._relu(node, layer)
            else:
                self._affine(layer)

    def size(self, node: int) -> Floats:
        """The largest |value| of the node's entries in the boxes."""
        return np.maximum(np.abs(self.lower[node]), np.abs(self.upper[node]))

    def _affine(self, layer: AffineMap) -> None:
        middle = layer.bias[:, None]
        wide, noise = np.zeros((1, 1)), np.abs(middle)
        terms = layer.terms if self.float32 else None
        sums = [] if terms is None else [layer.bias_size[:, None]]
        for whole, size, source in zip(layer.matrices, layer.sizes, layer.sources, strict=True):
            matrix, absolute = (layer.windows, layer.windows.sizes()) if layer.windows else (whole, size)
            centre = (self.upper[source] + self.lower[source]) / 2
            reach = np.maximum(self.upper[source] - centre, centre - self.lower[source]) * (1 + WIDER)
            middle, n = middle + matrix @ centre, centre.shape[1]
            spread = absolute @ (reach if terms is None else np.concatenate([reach, self.size(source)], axis=1))
            wide = wide + spread[:, :n]
            sums += [] if terms is None else [spread[:, n:]]
            noise = noise + size.sum(axis=1)[:, None] * self.size(source).max(axis=0)
        unit = gamma(sum(self.graph.sizes) + 64)  # no sum here or in a step back has more terms
        error = 4 * unit * noise + TINY
        own = np.zeros_like(middle) if terms is None else self._own([*sums[1:], sums[0]], terms)
        if len(self.lower) == len(self.graph.layers):
            own = np.where(self._hopeless, HOPELESS, own)
        self.lower.append(middle - wide - error - own)
        self.upper.append(middle + wide + error + own)
        self.noise.append(unit * (noise + self.size(-1)) + TINY)
        source = layer.sources[0]
        if self.float32 and layer.diagonal and self.graph.users[source] == 1:
            own = own + layer.sizes[0] @ self.errors[source] * (1 + WIDER)
            self.errors[source] = np.zeros_like(own)
        self.errors.append(own)

    def _own(self, sums: Sequence[Floats], terms: Sequence[int]) -> Floats:
        """What a run in float32 errs by at a layer: `sums` (entries, n) of absolute values, each through its terms."""
        total = sums[-1] + sum(sums[:-1])
        beyond = ~(total <= LARGEST)
        self._hopeless |= beyond.any(axis=0)
        own = sum(gamma32(n + SPARE) * size + (n + SPARE) * FLOOR for size, n in zip(sums, terms, strict=True))
        return np.where(beyond, HOPELESS, own)

    def _relu(self, node: int, layer: Relu) -> None:
        source, floor = layer.source, layer.floor
        self.lower[source], self.upper[source] = self._refined(node, layer)
        lower, upper = self.lower[source], self.upper[source]
        own = np.zeros_like(lower)
        if self.float32 and floor:
            own = gamma32(SPARE) * floor * self.size(source) + SPARE * FLOOR
        low, high = floor * lower, floor * upper
        if floor:  # and else 0 exactly, no denormal number, with which products are slow
            low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
        self.lower.append(np.where(lower > 0, lower, low) - own)
        self.upper.append(np.where(upper > 0, upper, high) + own)
        self.noise.append(gamma(8) * self.size(source) + TINY)
        self.errors.append(own)

    def _refined(self, node: int, layer: Relu) -> tuple[Floats, Floats]:
        """The bounds of the layer's input."""
        return self.lower[layer.source], self.upper[layer.source]

    def interval_margins(self, rival: int) -> Floats:
        """Lower bounds (classes, n) of logit[rival] - logit[c], by the values before the last affine layers."""
        node, coefficient = len(self.graph.layers), against(rival, self.graph.sizes[-1])
        least = np.zeros((len(coefficient), 1))
        while node and isinstance(layer := self.graph.layers[node - 1], AffineMap) and len(layer.sources) == 1:
            paid = np.abs(coefficient) @ (self.noise[node] + self.errors[node] * (1 + WIDER))
            least = least + (coefficient @ layer.bias)[:, None] - paid
            coefficient, node = dense(coefficient @ layer.matrices[0]), layer.sources[0]
        positive, negative = np.maximum(coefficient, 0), np.minimum(coefficient, 0)
        slack = gamma(coefficient.shape[1] + 64) * (np.abs(coefficient) @ self.size(node))
        worst: Floats = positive @ self.lower[node] + negative @ self.upper[node]
        return least + worst - slack


def against(rival: int, classes: int) -> Floats:
    """AffineForms of unit[rival] - unit[c]."""
    coefficient = -np.eye(classes)
    coefficient[:, rival] += 1
    return coefficient


def dense(matrix: Matrix) -> Floats:
    """The matrix as a dense array."""
    found: Floats = matrix.toarray() if sparse.issparse(matrix) else matrix
    return found
