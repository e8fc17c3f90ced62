"""The checker's bounds against runs in float32: sums in random orders, with and without FMA, and onnxruntime's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, helper
from scipy import sparse

from citrus_tool.checker.bounds import Execution
from citrus_tool.checker.graph import AffineMap, Graph, read_graph
from citrus_tool.checker.intervals import Intervals
from tests.checker.test_reader import graph_file

node = helper.make_node
LEVELS: Final = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL")
RADIUS: Final = 0.02
SHAPE: Final = [2, 4, 4]
Built = tuple[list[NodeProto], dict[str, Any]]
Single = NDArray[np.float32]


def some(rng: np.random.Generator, *shape: int, scale: float = 0.5) -> Single:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def cancelling(rng: np.random.Generator) -> Built:
    """Two hidden units that are 1e7 larger than they need to be, and are subtracted from each other."""
    w1, b1, w2 = some(rng, 32, 8), some(rng, 8), some(rng, 8, 3)
    b1[:2], w2[0], w2[1] = 1e7, [1, 0, 1], [-1, 0, -1]
    nodes = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w1", "b1"], ["h"]), node("Relu", ["h"], ["r"])]
    return [*nodes, node("Gemm", ["r", "w2", "b2"], ["y"])], {"w1": w1, "b1": b1, "w2": w2, "b2": some(rng, 3)}


def biased(rng: np.random.Generator) -> Built:
    """Large biases that the next layer's take away again."""
    w1, b1, w2 = some(rng, 32, 8), np.full(8, 1e5, dtype=np.float32), some(rng, 8, 3)
    constants = {"w1": w1, "b1": b1, "w2": w2, "b2": -(b1 @ w2)}
    nodes = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w1", "b1"], ["h"]), node("Relu", ["h"], ["r"])]
    return [*nodes, node("Gemm", ["r", "w2", "b2"], ["y"])], constants


def normalised(rng: np.random.Generator) -> Built:
    """Batch norms of large means and small deviations, which runtimes fuse into the convolutions before them."""
    constants = {
        "k1": some(rng, 4, 2, 3, 3),
        "c1": np.full(4, 1e4, dtype=np.float32),
        **{"g": some(rng, 4) + 1, "b": some(rng, 4), "m": np.full(4, 1e4, dtype=np.float32)},
        "v": np.full(4, 1e-4, dtype=np.float32),
        **{"w": some(rng, 64, 3, scale=0.1), "wb": some(rng, 3)},
    }
    nodes = [
        node("Conv", ["x", "k1", "c1"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("Flatten", ["r"], ["f"]),
        node("Gemm", ["f", "w", "wb"], ["y"]),
    ]
    return nodes, constants


def residual(rng: np.random.Generator) -> Built:
    """A branch that adds 1e6, and one that takes it away."""
    constants = {
        **{"k1": some(rng, 2, 2, 3, 3), "c1": np.full(2, 1e6, dtype=np.float32)},
        **{"k2": some(rng, 2, 2, 3, 3), "c2": np.full(2, -1e6, dtype=np.float32)},
        **{"w": some(rng, 2, 3), "wb": some(rng, 3)},
    }
    nodes = [
        node("Conv", ["x", "k1", "c1"], ["a"], pads=[1, 1, 1, 1]),
        node("Conv", ["x", "k2", "c2"], ["b"], pads=[1, 1, 1, 1]),
        node("Add", ["a", "b"], ["s"]),
        node("Relu", ["s"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w", "wb"], ["y"]),
    ]
    return nodes, constants


def summed(matrix: Any, z: Single, bias: NDArray[np.float64], rng: np.random.Generator, *, fused: bool) -> Single:
    """matrix @ z + bias in float32, each row in an order of its own; `fused`: products are not rounded."""
    wide = matrix.toarray() if sparse.issparse(matrix) else matrix
    entries = np.concatenate([wide.astype(np.float32), bias.astype(np.float32)[:, None]], axis=1)
    given = np.append(z, np.float32(1))
    total = np.zeros(len(wide), dtype=np.float32)
    order = np.argsort(rng.random(entries.shape), axis=1)
    for column in order.T:
        a, b = entries[np.arange(len(wide)), column], given[column]
        product = a.astype(np.float64) * b if fused else a * b
        total = (total + product).astype(np.float32)
    return total


def run(graph: Graph, x: Single, rng: np.random.Generator) -> NDArray[np.float64]:
    """The logits of one run in float32."""
    values = [x]
    for layer in graph.layers:
        if not isinstance(layer, AffineMap):
            z = values[layer.source]
            values.append(np.where(z > 0, z, np.float32(layer.floor) * z))
            continue
        parts = [
            summed(matrix, values[source], layer.bias * (place == 0), rng, fused=bool(rng.integers(2)))
            for place, (matrix, source) in enumerate(zip(layer.matrices, layer.sources, strict=True))
        ]
        values.append(np.sum(parts, axis=0, dtype=np.float32))
    return values[-1].astype(np.float64)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("build", [cancelling, biased, normalised, residual])
def test_runs_in_float32_lie_inside_and_not_without_their_errors(build: Any, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    path = graph_file(*build(rng), tmp_path, SHAPE)
    graph = read_graph(path, SHAPE, mean=(0.0,), std=(1.0,), layout="nchw", clip=False)
    sessions = []
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        sessions.append(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
    x = rng.random(graph.sizes[0]).astype(np.float32)
    centre = x.astype(np.float64)
    bounds = {kind: Intervals(graph, centre[:, None], 0.0, kind) for kind in ("float32", "real")}
    execution = Execution(graph, centre, RADIUS, {}, "float32")
    least = execution.least(execution.margins(0), execution.lines)
    outside = 0
    for step in range(60):
        u = rng.uniform(-RADIUS, RADIUS, len(x)) if step % 2 else np.zeros(len(x))
        given = (centre + u).astype(np.float32)
        runs = [run(graph, given, rng) for _ in range(3)]
        for session in sessions:
            (found,) = session.run(None, {"x": given.reshape(1, *SHAPE)})
            runs.append(np.asarray(found, dtype=np.float64).ravel())
        for logits in runs:
            assert bool((least <= logits[0] - logits).all())
            if not step % 2:
                one, exact = bounds["float32"], bounds["real"]
                assert bool(((one.lower[-1][:, 0] <= logits) & (logits <= one.upper[-1][:, 0])).all())
                outside += bool(((logits < exact.lower[-1][:, 0]) | (logits > exact.upper[-1][:, 0])).any())
    assert outside


def test_an_answer_that_only_rounding_changes_is_not_shown(tmp_path: Path) -> None:
    """1e7 is added to 1/4 and taken away, which leaves 1/4 in real arithmetic, and 0 in float32."""
    w1 = np.zeros((32, 2), dtype=np.float32)
    w1[0, 0] = 1
    constants = {
        **{"w1": w1, "b1": np.array([1e7, 1e7], dtype=np.float32)},
        **{"w2": np.array([[1, 0], [-1, 0]], dtype=np.float32), "b2": np.array([0, 0.1], dtype=np.float32)},
    }
    nodes = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w1", "b1"], ["h"]), node("Relu", ["h"], ["r"])]
    path = graph_file([*nodes, node("Gemm", ["r", "w2", "b2"], ["y"])], constants, tmp_path, SHAPE)
    graph = read_graph(path, SHAPE, mean=(0.0,), std=(1.0,), layout="nchw", clip=False)
    x = np.full(32, 0.25)
    (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": x.astype(np.float32).reshape(1, *SHAPE)})
    assert found[0, 0] < found[0, 1]
    for kind, shown in (("real", True), ("float32", False)):
        execution = Execution(graph, x, RADIUS, {}, kind)
        assert bool(execution.least(execution.margins(0), execution.lines)[1] > 0) is shown
        assert bool(execution.interval_margins(0)[1, 0] > 0) is shown


@pytest.mark.parametrize("build", [cancelling, biased, normalised, residual])
def test_errors_that_go_into_the_next_layers_cost_the_same(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = graph_file(*build(np.random.default_rng(0)), tmp_path, SHAPE)
    found, columns = [], []
    for kind, together in (("float32", True), ("float32", False), ("real", True)):
        graph = read_graph(path, SHAPE, mean=(0.4, 0.5), std=(0.2, 0.3), layout="nchw", clip=False)
        if not together:
            monkeypatch.setattr(Graph, "users", property(lambda self: (2,) * len(self.sizes)))
        execution = Execution(graph, np.full(graph.sizes[0], 0.5), RADIUS, {}, kind)
        rows = execution.margins(0)
        found.append(np.append(execution.least(rows, execution.lines)[1:], execution.interval_margins(0)[1:, 0]))
        columns.append(rows.at_e.shape[1])
    assert columns[0] < columns[1]
    price = found[2] - found[1]
    assert bool((price > 0).all())
    assert np.allclose(found[0], found[1], rtol=0, atol=1e-6 * price.min())
