"""Networks without a batch axis, and outputs of any shape: read as what onnxruntime computes, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from citrus_tool.errors import UnsupportedNetworkError
from citrus_tool.onnx_io.unbatched import read_whole
from citrus_tool.queries import parse
from citrus_tool.queries.verify import Verdict, read_models, verify

Node = onnx.NodeProto


def node(operator: str, inputs: str, outputs: str, **attributes: object) -> Node:
    return helper.make_node(operator, inputs.split(), outputs.split(), name=outputs.split()[0], **attributes)


def save(
    path: Path, nodes: list[Node], shape: list[int], out: list[int], constants: dict[str, object] | None = None
) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


F = np.float32
THIRDS = np.array([[1 / 3, -0.1, 2.0], [0.7, 1e-3, -5.0]], F)
GRAPHS: dict[str, tuple[list[Node], list[int], list[int], dict[str, object]]] = {
    "add, relu": ([node("Add", "x c", "h"), node("Relu", "h", "y")], [3], [3], {"c": THIRDS[0]}),
    "scalar": ([node("ReduceSum", "x", "s", keepdims=0), node("Sigmoid", "s", "y")], [4], [], {}),
    "matmul": ([node("MatMul", "c x", "h"), node("Tanh", "h", "y")], [3], [2], {"c": THIRDS}),
    "joined with a constant": ([node("Concat", "x c", "y", axis=0)], [2], [5], {"c": THIRDS[0]}),
    "split and joined again": (
        [node("Split", "x n", "a b", axis=0), node("Sub", "b a", "d"), node("Concat", "d a", "y", axis=0)],
        [4],
        [4],
        {"n": np.array([2, 2])},
    ),
    "axes move": (
        [node("Transpose", "x", "t", perm=[1, 0]), node("Reshape", "t s", "r"), node("ReduceMean", "r", "y", axes=[0])],
        [2, 3],
        [1, 2],
        {"s": np.array([3, 2])},
    ),
    "selection": (
        [node("Gather", "x i", "g", axis=1), node("Expand", "g s", "e"), node("Mul", "e c", "y")],
        [2, 3],
        [2, 2],
        {"i": np.array([2]), "s": np.array([2, 2]), "c": THIRDS[:, :2]},
    ),
    "one axis": ([node("Conv", "x w", "y")], [1, 1, 5], [1, 1, 3], {"w": THIRDS[:1, None]}),
    "shape": (
        [
            node("Shape", "x", "s"),
            node("ConstantOfShape", "s", "c", value=numpy_helper.from_array(np.ones(1, F))),
            node("Add", "x c", "y"),
        ],
        [2, 3],
        [2, 3],
        {},
    ),
    "residual": ([node("Relu", "x", "h"), node("Add", "x h", "y")], [3], [3], {}),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_what_onnxruntime_computes(name: str, tmp_path: Path) -> None:
    nodes, shape, out, constants = GRAPHS[name]
    path = save(tmp_path / "n.onnx", nodes, shape, out, constants)
    network = read_whole(path).network.frozen(dtype=torch.float32)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for _ in range(5):
        x = rng.normal(0, 2, shape).astype(F)
        (expected,) = session.run(None, {"x": x})
        with torch.no_grad():
            found = network(torch.from_numpy(x.reshape(1, -1)))[0].numpy()
        assert np.allclose(found, np.ravel(expected), atol=1e-5)


def test_constants_keep_every_bit(tmp_path: Path) -> None:
    path = save(
        tmp_path / "n.onnx",
        [node("Add", "x c", "h"), node("Mul", "h d", "y")],
        [3],
        [3],
        {"c": np.array([0.1, 1e-7, 3e4], F), "d": THIRDS[0]},
    )
    add, mul = (n.layer for n in read_whole(path).network.nodes)
    assert torch.equal(add.weight, torch.eye(3))
    assert add.bias.tolist() == np.array([0.1, 1e-7, 3e4], F).tolist()
    assert torch.equal(mul.weight, torch.diag(torch.from_numpy(THIRDS[0])))


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([node("Mul", "x x", "y")], "'y' .operator Mul, opset 17. is not supported .* not affine in the network's"),
        ([node("Div", "c x", "y")], "it divides by an activation"),
        ([node("Softmax", "x", "y")], "not affine in the network's input"),
        ([node("Cast", "x", "h", to=TensorProto.INT64), node("Cast", "h", "y", to=TensorProto.FLOAT)], "it rounds"),
        ([node("Identity", "c", "y")], "does not depend on the input"),
    ],
)
def test_what_is_not_read(nodes: list[Node], says: str, tmp_path: Path) -> None:
    path = save(tmp_path / "n.onnx", nodes, [3], [3], {"c": THIRDS[0]})
    with pytest.raises(UnsupportedNetworkError, match=says):
        read_whole(path)


def query(entries: int, outputs: int, unsafe: str) -> str:
    lines = [f"(declare-const X_{i} Real)" for i in range(entries)]
    lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    lines += [f"(assert (>= X_{i} -1.0))(assert (<= X_{i} 1.0))" for i in range(entries)]
    return "\n".join([*lines, unsafe])


@pytest.mark.parametrize(
    ("name", "outputs", "bound"),
    [("scalar", 1, 1 / (1 + np.exp(-4.0))), ("split and joined again", 4, 2.0), ("residual", 3, 2.0)],
)
def test_queries_on_them_are_decided(name: str, outputs: int, bound: float, tmp_path: Path) -> None:
    nodes, shape, out, constants = GRAPHS[name]
    path = save(tmp_path / "n.onnx", nodes, shape, out, constants)
    for shift, expected in ((-1e-3, Verdict.SAT), (1e-3, Verdict.UNSAT)):
        spec = parse(query(int(np.prod(shape)), outputs, f"(assert (>= Y_0 {bound + shift:.6f}))"))
        assert verify(spec, read_models(spec, {"N": path}), seconds=30).verdict is expected


def test_one_output_and_maps_with_a_batch_axis(tmp_path: Path) -> None:
    """Read by the usual rules, max pooling included."""
    for size, out in ((2, [1, 1, 1, 1]), (4, [1, 1, 2, 2])):
        path = save(
            tmp_path / "n.onnx",
            [node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2])],
            [1, 1, size, size],
            out,
        )
        for bound, expected in ((0.99, Verdict.SAT), (1.01, Verdict.UNSAT)):
            spec = parse(query(size * size, size * size // 4, f"(assert (>= Y_0 {bound}))"))
            models = read_models(spec, {"N": path})
            assert models["N"].contract.batch == 1
            assert verify(spec, models, seconds=30).verdict is expected


def test_a_free_batch_axis_has_one_entry(tmp_path: Path) -> None:
    path = save(tmp_path / "n.onnx", [node("ReduceSum", "x i", "y")], [1, 3], [1, 1], {"i": np.array([1])})
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(proto, path)
    for bound, expected in ((2.9, Verdict.SAT), (3.1, Verdict.UNSAT)):
        spec = parse(query(3, 1, f"(assert (>= Y_0 {bound}))"))
        assert verify(spec, read_models(spec, {"N": path}), seconds=30).verdict is expected


def test_the_first_reason_stays(tmp_path: Path) -> None:
    path = save(tmp_path / "n.onnx", [node("Softmax", "x", "y")], [1, 3], [1, 3])
    spec = parse(query(3, 3, "(assert (>= Y_0 2.0))"))
    with pytest.raises(UnsupportedNetworkError, match="citrus certifies logits"):
        read_models(spec, {"N": path})
