"""What the command line tests share: the outcome of a run, and small ONNX files that are right or wrong in one way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one command line returned and printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def classifier(
    path: Path,
    *,
    shape: tuple[int, ...] = (1, 8, 8),
    classes: int = 10,
    weight: float | None = None,
    operator: str = "Relu",
) -> Path:
    """An ONNX file: Flatten, Gemm 8, `operator`, Gemm; `weight` replaces the first weight."""
    rng = np.random.default_rng(0)
    first = rng.normal(0, 0.3, (int(np.prod(shape)), 8)).astype(np.float32)
    if weight is not None:
        first[0, 0] = weight
    second = rng.normal(0, 0.3, (8, classes)).astype(np.float32)
    tensors: dict[str, Any] = {
        "w1": first,
        "b1": np.zeros(8, np.float32),
        "w2": second,
        "b2": np.zeros(classes, np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["hidden"], name="dense1"),
        helper.make_node(operator, ["hidden"], ["active"], name="act"),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["y"], name="dense2"),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path
