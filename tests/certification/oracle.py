"""The exact worst case of tiny ReLU networks under one shared perturbation: a MILP with every ReLU as a binary.

Independent of citrus_tool.bounds and citrus_tool.certification: HiGHS through SciPy, intervals of its own.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from citrus_tool.network import INPUT, Add, Network, size

Array = NDArray[np.float64]


class _Program:
    """Variables with bounds, and rows, grown one by one."""

    def __init__(self) -> None:
        self.lower: list[float] = []
        self.upper: list[float] = []
        self.integer: list[int] = []
        self.rows: list[tuple[dict[int, float], float]] = []  # sum <= bound

    def variable(self, lower: float, upper: float, *, binary: bool = False) -> int:
        self.lower.append(lower)
        self.upper.append(upper)
        self.integer.append(int(binary))
        return len(self.lower) - 1

    def at_most(self, terms: dict[int, float], bound: float) -> None:
        self.rows.append((terms, bound))

    def maximise(self, objective: list[int]) -> tuple[float, Array]:
        """The optimum and a point that reaches it."""
        n = len(self.lower)
        matrix = np.zeros((len(self.rows), n))
        for i, (terms, _) in enumerate(self.rows):
            for j, value in terms.items():
                matrix[i, j] = value
        cost = np.zeros(n)
        cost[objective] = -1.0
        found = milp(
            cost,
            constraints=LinearConstraint(matrix, ub=np.array([bound for _, bound in self.rows])),
            integrality=np.array(self.integer),
            bounds=Bounds(np.array(self.lower), np.array(self.upper)),
            options={"mip_rel_gap": 0.0},
        )
        assert found.success, found.message
        return float(-found.fun), np.asarray(found.x)


class _Value:
    """One tensor of affine expressions in the program's variables, one row of `matrix` an entry."""

    def __init__(self, matrix: Array, constant: Array) -> None:
        self.matrix, self.constant = matrix, constant  # (entries, variables), (entries,)

    def wide(self, variables: int) -> Array:
        return np.pad(self.matrix, ((0, 0), (0, variables - self.matrix.shape[1])))


def fooled_at_most(network: Network, x: Tensor, labels: Tensor, eps: float, target: int | None = None) -> int:
    """The largest number of inputs `x` (k, *shape) that one |u|_inf <= eps fools (margin <= 0).

    With a target class: that it drives there, so that the target's logit is at or above every other one.
    """
    return worst(network, x, labels, eps, target)[0]


def worst(
    network: Network, x: Tensor, labels: Tensor, eps: float, target: int | None = None, *, by: float = 0.0
) -> tuple[int, Array]:
    """`fooled_at_most` with margins <= -by, and a perturbation (d,) that reaches it, up to the solver's tolerances."""
    network = network.frozen(dtype=torch.float64)
    program = _Program()
    dimension = size(network.input_shape)
    for _ in range(dimension):
        program.variable(-eps, eps)
    objective = []
    for image, label in zip(x.double(), labels.tolist(), strict=True):
        logits = _encode(program, network, image)

        def wins(z: int, over: int, winner: int, logits: _Value = logits) -> None:
            """z = 1 only where logit `winner` is at or above logit `over`."""
            rows = logits.wide(len(program.lower))
            row, constant = rows[over] - rows[winner], float(logits.constant[over] - logits.constant[winner])
            _, high = _range(program, row, constant)
            big = max(high + by, 0.0)
            program.at_most({**_terms(row), z: big}, big - constant - by)

        fooled = []
        for winner in range(network.num_classes) if target is None else [target]:
            if target is None and winner == label:
                continue
            z = program.variable(0, 1, binary=True)
            fooled.append(z)
            for over in [label] if target is None else set(range(network.num_classes)) - {target}:
                wins(z, over, winner)
        program.at_most(dict.fromkeys(fooled, 1.0), 1.0)
        objective += fooled
    count, point = program.maximise(objective)
    return round(count), np.clip(point[:dimension], -eps, eps)


def _encode(program: _Program, network: Network, image: Tensor) -> _Value:
    dimension = size(network.input_shape)
    values = {INPUT: _Value(np.eye(dimension), image.flatten().numpy())}
    shapes = {INPUT: network.input_shape}
    for node in network.nodes:
        shapes[node.name] = node.shape
        sources = [values[name] for name in node.inputs]
        if isinstance(node.layer, nn.ReLU):
            values[node.name] = _relu(program, sources[0])
        elif isinstance(node.layer, Add):
            n = len(program.lower)
            values[node.name] = _Value(
                sources[0].wide(n) + sources[1].wide(n), sources[0].constant + sources[1].constant
            )
        else:
            values[node.name] = _linear(node.layer, sources[0], shapes[node.inputs[0]])
    return values[network.output_name]


def _linear(layer: nn.Module, value: _Value, shape: tuple[int, ...]) -> _Value:
    with torch.no_grad():
        base = layer(torch.zeros(1, *shape, dtype=torch.float64))
        moved = layer(torch.from_numpy(value.constant).reshape(1, *shape))
        columns = layer(torch.from_numpy(value.matrix.T.copy()).reshape(-1, *shape)) - base
    return _Value(columns.flatten(1).numpy().T.copy(), moved.flatten().numpy())


def _relu(program: _Program, value: _Value) -> _Value:
    rows = value.wide(len(program.lower))
    out = np.zeros((len(rows), 0))
    constant = np.zeros(len(rows))
    for entry, row in enumerate(rows):
        low, high = _range(program, row, float(value.constant[entry]))
        if low >= 0:
            out = _put(out, entry, row)
            constant[entry] = value.constant[entry]
        elif high > 0:
            y, a = program.variable(0.0, high), program.variable(0, 1, binary=True)
            terms = _terms(row)
            program.at_most({**terms, y: -1.0}, -float(value.constant[entry]))  # y >= z
            negative = {j: -v for j, v in terms.items()}
            program.at_most({**negative, y: 1.0, a: -low}, float(value.constant[entry]) - low)  # y <= z - low (1 - a)
            program.at_most({y: 1.0, a: -high}, 0.0)  # y <= high a
            one = np.zeros(y + 1)
            one[y] = 1.0
            out = _put(out, entry, one)
    return _Value(out, constant)


def _put(matrix: Array, entry: int, row: Array) -> Array:
    if len(row) > matrix.shape[1]:
        matrix = np.pad(matrix, ((0, 0), (0, len(row) - matrix.shape[1])))
    matrix[entry, : len(row)] = row
    return matrix


def _terms(row: Array) -> dict[int, float]:
    return {int(j): float(row[j]) for j in np.flatnonzero(row)}


def _range(program: _Program, row: Array, constant: float) -> tuple[float, float]:
    low, high = np.array(program.lower[: len(row)]), np.array(program.upper[: len(row)])
    up, down = np.maximum(row, 0), np.minimum(row, 0)
    return constant + float(up @ low + down @ high), constant + float(up @ high + down @ low)
