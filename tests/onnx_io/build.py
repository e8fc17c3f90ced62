"""Small ONNX files made by hand, and the plain onnxruntime answer to compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from citrus_tool.onnx_io import OnnxModel

SHAPE = (2, 6, 6)
"""Per-sample input shape of the files made here unless told otherwise."""

Array = NDArray[Any]


def weights(*shape: int, seed: int = 0) -> Array:
    """Seeded float32 weights of a size that keeps activations near 1."""
    fan = int(np.prod(shape[1:])) or 1
    values: Array = np.random.default_rng(seed).normal(size=shape, scale=fan**-0.5).astype(np.float32)
    return values


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def node(operator: str, inputs: str, output: str, *, name: str = "", **attributes: Any) -> onnx.NodeProto:
    """`inputs` and `output` are names between blanks; "-" is an absent optional input."""
    names = ["" if n == "-" else n for n in inputs.split()]
    return helper.make_node(operator, names, output.split(), name=name, **attributes)


def proto(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array] | None = None,
    *,
    shape: Sequence[int] = SHAPE,
    batch: int | str = "n",
    output: str = "y",
    opset: int = 13,
    ir_version: int = 8,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model with input x (batch, *shape) and one output of unstated shape."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", dtype, [batch, *shape])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def classifier(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array] | None = None, *, features: int, **options: Any
) -> onnx.ModelProto:
    """`nodes` from x to h, then Flatten and a Gemm to three logits."""
    head = [node("Flatten", "h", "flat"), node("Gemm", "flat head head_bias", "y", transB=1)]
    all_constants = {**(constants or {}), "head": weights(3, features, seed=7), "head_bias": weights(3, seed=8)}
    return proto([*nodes, *head], all_constants, **options)


def save(model: onnx.ModelProto, folder: Path, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def layer_names(model: OnnxModel) -> list[str]:
    return [type(n.layer).__name__ for n in model.network.nodes]


def answer(model: onnx.ModelProto, x: torch.Tensor) -> Array:
    """What onnxruntime makes of `x` (already in the file's layout), one input at a time."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = next(v.name for v in session.get_inputs())
    rows = [session.run(None, {name: x[i : i + 1].numpy()})[0].reshape(-1) for i in range(len(x))]
    return np.stack(rows)


def random_inputs(count: int, shape: Sequence[int] = SHAPE, seed: int = 3) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def require_agreement(model: OnnxModel, *, count: int = 5) -> None:
    """The Network and onnxruntime agree on a batch and on a single input, outside the reader's own check."""
    x = random_inputs(count, model.contract.pixel_shape)
    expected = answer(model.proto, torch.from_numpy(model.contract.to_file(x)))
    with torch.no_grad():
        np.testing.assert_allclose(model.network(x).numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(model.network(x[:1]).numpy(), expected[:1], atol=1e-5)
