"""The checker's bounds of float32 runs: against runs whose layers err by all that is allowed, which is made much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from citrus_tool.checker import intervals
from citrus_tool.checker.bounds import Execution, SharedNeurons, Signs, lowest
from citrus_tool.checker.graph import AffineMap, Graph
from citrus_tool.checker.intervals import Intervals
from citrus_tool.errors import UnsupportedNetworkError
from tests.certification.toys import as_onnx, tiny_residual
from tests.checker.test_check import deep_chain, graph_of, neurons

RADIUS = 0.05
Values = list[NDArray[np.float64]]


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "gamma32", lambda terms: terms * 2.0**-11)


def erring(run: Intervals, graph: Graph, x: NDArray[np.float64], rng: np.random.Generator) -> Values:
    """Every node's values in a run whose layers err by all of their allowance, in directions of their own."""

    def off(value: NDArray[np.float64], node: int) -> NDArray[np.float64]:
        return value + run.errors[node][:, 0] * rng.choice([-1.0, 1.0], len(value))

    values = [off(x, 0)]
    for node, layer in enumerate(graph.layers, start=1):
        if isinstance(layer, AffineMap):
            parts = zip(layer.matrices, layer.sources, strict=True)
            value = layer.bias + sum(matrix @ values[source] for matrix, source in parts)
        else:
            z = values[layer.source]
            value = np.where(z > 0, z, layer.floor * z)
        values.append(off(value, node))
    return values


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_planes_hold_for_erring_runs_and_not_without_their_errors(seed: int, clip: bool, tmp_path: Path) -> None:
    network = tiny_residual(seed, channels=3) if seed % 2 else deep_chain(seed, slope=0.2)
    graph = graph_of(as_onnx(network, tmp_path), clip=clip)
    rng = np.random.default_rng(seed)
    x, broken = rng.random(4), 0
    execution = Execution(graph, x, RADIUS, {}, "float32")
    exact = Execution(graph, x, RADIUS, {}, "real")
    rows, plain = execution.margins(0), exact.margins(0)
    intervals = Intervals(graph, x[:, None], RADIUS, "float32").interval_margins(0)[:, 0]
    units = len(execution.floor)
    for _ in range(300):
        u = rng.choice([-RADIUS, RADIUS], 4)
        values = erring(execution, graph, x + u, rng)
        true = values[-1][0] - values[-1]
        for lower, upper, value in zip(execution.lower, execution.upper, values, strict=True):
            assert bool(((lower[:, 0] - 1e-12 <= value) & (value <= upper[:, 0] + 1e-12)).all())
        assert bool((intervals <= true + 1e-12).all())
        z, _ = neurons(execution, graph, values)
        low = rng.uniform(execution.floor, 1.0, (4, units))
        neuron = rng.choice(units, min(2, units), replace=False)
        signs = Signs(
            row=np.repeat(np.arange(4), len(neuron)),
            neuron=np.tile(neuron, 4),
            side=np.tile(np.where(z[neuron] >= 0, 1.0, -1.0), 4),
            beta=rng.random(4 * len(neuron)),
        )
        first = execution.stages.get(0)
        some = np.arange(0 if first is None else first.stop)[:: int(rng.integers(1, 3))]
        share = rng.random((len(some), 4))
        planes = replace(execution.lines, above=execution.planes_above(some, share)) if len(some) else execution.lines
        for lines in (execution.lines, planes):
            a, offset = execution.plane(rows.pick(np.arange(4) % len(true)), lines, low, signs)
            assert bool((a @ (u / RADIUS) + offset <= true[np.arange(4) % len(true)] + 1e-12).all())
        a, offset = execution.plane(rows, execution.lines)
        assert bool((lowest(a, offset) <= true + 1e-12).all())
        a, offset = exact.plane(plain, exact.lines)
        broken += bool((a @ (u / RADIUS) + offset > true + 1e-12).any())
    assert broken


def test_what_executions_share_errs_in_each_on_its_own(tmp_path: Path) -> None:
    graph = graph_of(as_onnx(deep_chain(1, slope=0.2), tmp_path), clip=False)
    rng = np.random.default_rng(0)
    centres = rng.random(4) + rng.random((2, 4)) * 0.01
    found = {}
    for arithmetic in ("float32", "real"):
        executions = [Execution(graph, x, RADIUS, {}, arithmetic) for x in centres]
        found[arithmetic] = executions, SharedNeurons(executions, [one.lines for one in executions])
    broken = 0
    for _ in range(200):
        u = rng.choice([-RADIUS, RADIUS], 4)
        runs = [erring(one, graph, x + u, rng) for one, x in zip(found["float32"][0], centres, strict=True)]
        for arithmetic, (executions, shared) in found.items():
            left, true = [], 0.0
            for one, run, apart in zip(executions, runs, shared.apart, strict=True):
                z, _ = neurons(one, graph, run)
                h = np.maximum(z, one.floor * z)
                weight, slope = rng.normal(size=(1, len(apart))), rng.random((1, len(apart)))
                left.append((weight, slope))
                true += float((weight[0] * h[apart] - slope[0] * z[apart]).sum())
            none = np.zeros(0, dtype=np.int64)
            signs = [Signs(row=none, neuron=none, side=np.zeros(0), beta=np.zeros(0)) for _ in executions]
            least, empty = shared.least(left, signs)
            if arithmetic == "float32":
                assert not empty[0]
                assert float(least[0]) <= true + 1e-9
            else:
                broken += float(least[0]) > true
    assert broken


def test_values_that_may_overflow_show_nothing_and_such_constants_are_refused(tmp_path: Path) -> None:
    graph = graph_of(as_onnx(deep_chain(1), tmp_path), clip=False)
    large = Intervals(graph, np.full((4, 1), 2.0**61), 0.0, "float32")
    assert bool((np.delete(large.interval_margins(0)[:, 0], 0) < -1e200).all())
    assert bool((Intervals(graph, np.full((4, 1), 2.0**20), 0.0, "float32").interval_margins(0) > -1e200).all())
    first, *rest = graph.layers
    assert isinstance(first, AffineMap)
    huge = replace(first, bias_size=first.bias_size + 2.0**61)
    with pytest.raises(UnsupportedNetworkError, match="may overflow"):
        Intervals(replace(graph, layers=(huge, *rest)), np.full((4, 1), 0.5), 0.1, "float32")
