"""The checker's reader: what it reads agrees with onnxruntime, and it refuses whatever it does not know exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from citrus_tool.checker.agreement import require_agreement
from citrus_tool.checker.graph import AffineMap, read_graph
from citrus_tool.checker.intervals import Intervals, require_moderate
from citrus_tool.errors import CheckFailedError, UnsupportedNetworkError
from tests.checker.test_check import forward

Change = Callable[[ModelProto], Any]
node = helper.make_node
RUN = {"shape": [1, 2, 2], "mean": [0.0], "std": [1.0], "layout": "nchw", "clip": False}


def graph_file(nodes: list[onnx.NodeProto], constants: dict[str, Any], folder: Path, shape: list[int]) -> Path:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *shape])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return path


def every_operator(rng: np.random.Generator) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    node = helper.make_node

    def some(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    constants = {
        "w1": some(4, 1, 3, 2),
        "b1": some(4),
        "w2": some(2, 4, 2, 2),
        "scale": some(1, 4, 1, 1) ** 2 + 1,
        "g": some(4),
        "bb": some(4),
        "m": some(4),
        "v": some(4) ** 2,
        "three": np.float32(3),
        "shift": some(1, 2, 1, 1),
        "axes": np.array([0, 2, 3, 1]),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2]),
        "minus": np.array([1, -1]),
        "start": np.array([0]),
        "stop": np.array([20]),
        "axis": np.array([1]),
        "w3": some(20, 6),
        "w4": some(5, 6),
        "b4": some(5),
        "zero": np.array(0),
        "one": np.array([-1]),
    }
    nodes = [
        node("Pad", ["x", "pads"], ["p"]),
        node("Conv", ["p", "w1", "b1"], ["c"], strides=[2, 1], pads=[1, 0, 0, 1], dilations=[1, 2]),
        node("BatchNormalization", ["c", "g", "bb", "m", "v"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("Div", ["r", "scale"], ["d"]),
        node("Sub", ["three", "d"], ["s"]),
        node("Add", ["s", "r"], ["sum"]),
        node("AveragePool", ["sum"], ["pool"], kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[2, 2]),
        node("Conv", ["pool", "w2"], ["c2"], group=1, pads=[1, 1, 1, 1]),
        node("Mul", ["c2", "shift"], ["mul"]),
        node("LeakyRelu", ["mul"], ["leak"], alpha=0.25),
        node("Transpose", ["leak"], ["t"], perm=[0, 2, 3, 1]),
        node("Relu", ["t"], ["t2"]),
        node("Neg", ["t2"], ["neg"]),
        node("Concat", ["neg", "t"], ["cat"], axis=2),
        node("Shape", ["cat"], ["size"]),
        node("Gather", ["size", "zero"], ["batch"]),
        node("Unsqueeze", ["batch", "start"], ["first"]),
        node("Concat", ["first", "one"], ["target"], axis=0),
        node("Reshape", ["cat", "target"], ["flat"]),
        node("Slice", ["flat", "start", "stop", "axis"], ["cut"]),
        node("MatMul", ["cut", "w3"], ["mm"]),
        node("Relu", ["mm"], ["mr"]),
        node("Gemm", ["mr", "w4", "b4"], ["y"], transB=1, alpha=0.5, beta=2.0),
    ]
    return nodes, constants


def test_the_reader_agrees_with_onnxruntime_on_every_operator(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = graph_file(*every_operator(rng), tmp_path, [1, 7, 8])
    graph = read_graph(path, (1, 7, 8), mean=(0.3,), std=(0.5,), layout="nchw", clip=True)
    session = onnxruntime.InferenceSession(str(path))
    for _ in range(10):
        x = rng.uniform(-0.5, 1.5, (1, 1, 7, 8)).astype(np.float32)
        seen = session.run(None, {"x": (np.clip(x, 0, 1) - np.float32(0.3)) / np.float32(0.5)})[0]
        assert np.allclose(forward(graph, x.astype(np.float64).ravel())[-1], seen.ravel(), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet_2b.onnx", "marabou_cifar10_small.onnx", "mnist-net_256x2.onnx"])
def test_the_reader_agrees_with_onnxruntime_on_published_networks(name: str, shared_models: Path) -> None:
    shape = (1, 28, 28) if name.startswith("mnist") else (3, 32, 32)
    layout = "nhwc" if name.startswith("marabou") else "nchw"
    mean, std = ((0.0,) * 3, (1.0,) * 3) if len(shape) == 3 else ((0.0,), (1.0,))
    graph = read_graph(shared_models / name, shape, mean=mean, std=std, layout=layout, clip=False)
    session = onnxruntime.InferenceSession(str(shared_models / name))
    given = session.get_inputs()[0]
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    wanted = x.transpose(1, 2, 0) if layout == "nhwc" else x
    seen = session.run(None, {given.name: wanted.reshape(1, *[int(axis) for axis in given.shape[1:]])})[0]
    assert np.allclose(forward(graph, x.astype(np.float64).ravel())[-1], seen.ravel(), atol=1e-4)


def test_a_convolution_is_the_same_twice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = graph_file(*every_operator(rng), tmp_path, [1, 7, 8])
    graph = read_graph(path, (1, 7, 8), mean=(0.0,), std=(1.0,), layout="nchw", clip=False)
    seen = 0
    for layer in graph.layers:
        if isinstance(layer, AffineMap) and layer.windows is not None:
            z = rng.standard_normal((graph.sizes[layer.sources[0]], 3))
            assert np.allclose(layer.matrices[0] @ z, layer.windows @ z, rtol=1e-13, atol=1e-13)
            assert np.allclose(layer.sizes[0] @ z, layer.windows.sizes() @ z, rtol=1e-13, atol=1e-13)
            seen += 1
    assert seen == 2


def refused(nodes: list[NodeProto], words: str, folder: Path, change: Change | None = None) -> None:
    constants = {
        "c": np.ones((1, 1, 2, 2), dtype=np.float32),
        "crop": np.array([0, 0, 0, 0, 0, 0, 0, -1]),
        "vast": np.array([0, 0, 0, 0, 0, 0, 2**30, 2**30]),
        "t": np.array(True),
        "pads": np.array([0, 1, 2, 3, 0, 1, 2, 3]),
        "axes": np.array([0, 1, 2, 3]),
        "r": np.array(0.5, dtype=np.float32),
        "v": np.ones(1, dtype=np.float32),
        "minus": -np.ones(1, dtype=np.float32),
        "tiny": np.full(1, 1e-30, dtype=np.float32),
        "double": np.ones(1),
        "i": np.array([1]),
        "seven": np.array([7]),
        "back": np.array([-2]),
        "huge": np.array([2**62]),
        "three": np.array([3]),
        "row": np.ones((1, 2), dtype=np.float32),
    }
    used = {name for one in nodes for name in one.input}
    path = graph_file(nodes, {name: c for name, c in constants.items() if name in used}, folder, [1, 2, 2])
    if change is not None:
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)
    with pytest.raises(UnsupportedNetworkError, match=words):
        read_graph(path, (1, 2, 2), mean=(0.0,), std=(1.0,), layout="nchw", clip=False)


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (node("Sigmoid", ["x"], ["y"]), "Sigmoid"),
        (node("Softmax", ["x"], ["y"]), "Softmax"),
        (node("Clip", ["x"], ["y"]), "Clip"),
        (node("LeakyRelu", ["x"], ["y"], alpha=1.5), "slope 1.5"),
        (node("Mul", ["x", "x"], ["y"]), "Mul of two values"),
        (node("Div", ["c", "x"], ["y"]), "quotient by a computed value"),
        (node("Concat", ["x", "c"], ["y"], axis=1), "with constants"),
        (node("MatMul", ["c", "x"], ["y"]), "computed weights"),
        (node("Conv", ["x", "c"], ["y"], auto_pad="SAME_UPPER"), "automatic padding"),
        (node("Conv", ["x", "c"], ["y"], auto_pad="VALID", pads=[1, 1, 1, 1]), "automatic padding"),
        (node("Conv", ["x", "c"], ["y"], kernel_shape=[2, 1]), "odd size"),
        (node("Conv", ["x", "c"], ["y"], pads=[-1, 0, 0, 0]), "odd size|no valid"),
        (node("Conv", ["x", "c"], ["y"], pads=[2, 0, 0, 0]), "in the padding alone"),
        (node("Conv", ["x", "x"], ["y"]), "computed weights"),
        (node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], auto_pad="VALID", pads=[1, 1, 1, 1]), "automatic"),
        (node("AveragePool", ["x"], ["y"], kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1), "rounded up"),
        (node("Pad", ["x", "crop"], ["y"]), "crops"),
        (node("Pad", ["x", "vast"], ["y"]), "more than the checker reads"),
        (node("ConstantOfShape", ["huge"], ["y"]), "more than the checker reads"),
        (node("LeakyRelu", ["x"], ["y"], alpha=np.nan), "is not finite"),
        (node("Pad", ["x", "pads"], ["y"], mode="reflect"), "in this form"),
        (node("Pad", ["x", "pads", "", "axes"], ["y"]), "no valid ONNX|has 4 inputs"),
        (node("Dropout", ["x", "r", "t"], ["y"]), "training mode"),
        (node("BatchNormalization", ["x", "v", "v", "v", "minus"], ["y"]), "root of a negative"),
        (node("BatchNormalization", ["x", "v", "v", "v", "tiny"], ["y"], epsilon=0.0), "close to 0"),
        (node("BatchNormalization", ["x", "v", "v", "v", "v"], ["y", "m", "w"], training_mode=1), "more outputs"),
        (node("BatchNormalization", ["x", "v", "v", "v", "v"], ["y"], training_mode=1), "no valid|in this form"),
        (node("BatchNormalization", ["x", "v", "v", "v", "v"], ["y"], spatial=0), "'?spatial"),
        (node("Reshape", ["x", "axes"], ["y"], allowzero=1), "allowzero|no valid"),
        (node("Slice", ["x", "three", "i", "i", "back"], ["y"]), "backwards"),
        (node("RandomNormal", [], ["y"], shape=[1, 2]), "in a way that the checker does not know"),
        (node("RandomUniformLike", ["x"], ["y"]), "RandomUniformLike"),
        (node("Relu", ["x"], ["y"], alpha=1.0), "'?alpha"),
        (node("Relu", ["x"], ["y"], domain="mine"), "no valid ONNX .*mine"),
        (node("Relu", ["nothing"], ["y"]), "no valid ONNX"),
        (node("Add", ["x", "double"], ["y"]), "no valid ONNX|float64"),
        (node("Add", ["x", "i"], ["y"]), "no valid ONNX|not float32"),
        (node("Transpose", ["x"], ["y"], perm=[2, 0, 1, 3]), "batch axis"),
    ],
)
def test_operators_that_are_not_read(operator: NodeProto, words: str, tmp_path: Path) -> None:
    refused([operator], words, tmp_path)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node("ReduceMean", ["x"], ["a"], axes=[2, 3], keepdims=1), node("Add", ["a", "x"], ["y"])], "ReduceMean"),
        (
            [
                node("Slice", ["x", "i", "three", "three"], ["a"]),
                node("Slice", ["x", "i", "three", "three"], ["b"]),
                node("Sum", ["a", "x"], ["y"]),
            ],
            "several shapes",
        ),
        ([node("Slice", ["x", "i", "three", "three"], ["a"]), node("Add", ["a", "x"], ["y"])], "two values of shapes"),
        ([node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "c"], ["y"], transA=1)], "no valid|transposed"),
        ([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])], "no valid ONNX|given twice"),
        ([node("Relu", ["x"], ["c"]), node("Relu", ["c"], ["y"])], "no valid ONNX|given twice"),
        ([node("Neg", ["v"], ["a"]), node("Add", ["a", "v"], ["b"]), node("Add", ["x", "b"], ["y"])], "are rounded"),
        ([node("Div", ["v", "tiny"], ["a"]), node("Mul", ["x", "a"], ["y"])], "are rounded"),
        ([node("Sqrt", ["tiny"], ["a"]), node("Add", ["x", "a"], ["y"])], "are rounded"),
        ([node("Cast", ["r"], ["a"], to=TensorProto.INT64), node("Gather", ["x", "a"], ["y"])], "not agree"),
        (
            [node("Equal", ["v", "r"], ["a"]), node("Where", ["a", "v", "r"], ["b"]), node("Add", ["x", "b"], ["y"])],
            "ag",
        ),
        ([node("Div", ["seven", "three"], ["a"]), node("Gather", ["x", "a"], ["y"])], "not agree"),
        ([node("Add", ["huge", "huge"], ["a"]), node("Gather", ["x", "a"], ["y"])], "not agree"),
        ([node("Cast", ["v"], ["a"], to=TensorProto.DOUBLE), node("Relu", ["x"], ["y"])], "float64"),
        ([node("Range", ["i", "i", "i"], ["a"]), node("Relu", ["x"], ["y"])], "no valid|does not know"),
    ],
)
def test_graphs_that_are_not_read(nodes: list[NodeProto], words: str, tmp_path: Path) -> None:
    refused(nodes, words, tmp_path)


def _function(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("mine", 1))
    body = [node("Neg", ["a"], ["b"])]
    model.functions.append(helper.make_function("mine", "Relu", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    model.graph.node[0].domain = "mine"


def _foreign(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[0].domain = "mine"
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2]))


def _external(model: ModelProto) -> None:
    """A constant in the very file, from its first byte on."""
    tensor = TensorProto(name="e", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="graph.onnx")
    model.graph.node.insert(0, node("Constant", [], ["e"], value=tensor))


def _sparse(model: ModelProto) -> None:
    values, places = (numpy_helper.from_array(np.ones(1, dtype=kind), "s") for kind in (np.float32, np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_function, "holds functions"),
        (_foreign, "operator set 'mine'"),
        (_external, "'value' is of a kind|no valid ONNX"),
        (_sparse, "sparse constants"),
        (lambda model: model.training_info.add(), "training graphs"),
        (
            lambda model: model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])),
            "one float32 in",
        ),
        (lambda model: model.graph.output.append(model.graph.output[0]), "one such output"),
        (
            lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE),
            "one float32 in",
        ),
        (
            lambda model: model.graph.initializer.extend([numpy_helper.from_array(np.ones(1), "e")] * 2),
            "two constants have one name",
        ),
        (lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 3), "takes 3 inputs"),
        (lambda model: setattr(model.opset_import[0], "version", 6), "operator set"),
        (lambda model: setattr(model.opset_import[0], "version", 99), "operator set"),
        (lambda model: model.opset_import.append(helper.make_opsetid("ai.onnx", 9)), "operator set"),
        (lambda model: model.graph.node[0].input.append("x"), "no valid ONNX|inputs"),
        (lambda model: model.graph.node[0].attribute.extend([helper.make_attribute("a", 1)] * 2), "no valid|twice"),
    ],
)
def test_files_that_are_not_read(change: Change, words: str, tmp_path: Path) -> None:
    refused([node("Relu", ["x"], ["y"])], words, tmp_path, change)


@pytest.mark.parametrize("factors", [[2.0**61], [2.0**30, 2.0**31], [2.0**-100, 2.0**61]])
def test_constants_that_may_overflow_together(factors: list[float], tmp_path: Path) -> None:
    names = ["x", *(f"v{place}" for place in range(len(factors) - 1)), "y"]
    nodes = [node("Mul", [a, f"c{place}"], [b]) for place, (a, b) in enumerate(pairwise(names))]
    constants = {f"c{place}": np.full(1, factor, dtype=np.float32) for place, factor in enumerate(factors)}
    path = graph_file(nodes, constants, tmp_path, [1, 1, 4])
    graph = read_graph(path, (1, 1, 4), mean=(0.0,), std=(1.0,), layout="nchw", clip=False)
    with pytest.raises(UnsupportedNetworkError, match="may overflow"):
        require_moderate(graph)


# --- against onnxruntime


def small(folder: Path) -> Path:
    nodes = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w", "b"], ["y"])]
    rng = np.random.default_rng(0)
    constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("w", (4, 3)), ("b", 3))}
    return graph_file(nodes, constants, folder, [1, 2, 2])


def test_a_graph_that_is_not_what_the_file_does(tmp_path: Path) -> None:
    path = small(tmp_path)
    graph = read_graph(path, (1, 2, 2), mean=(0.0,), std=(1.0,), layout="nchw", clip=False)
    x = np.random.default_rng(1).random((5, 4)).astype(np.float32).astype(np.float64)
    assert require_agreement(path, graph, x, RUN)
    reach = np.max([one.upper[-1] - one.lower[-1] for one in [Intervals(graph, x.T, 0.0, "float32")]])
    for off in (2 * reach, 1.0, np.nan):
        first, *rest = graph.layers
        assert isinstance(first, AffineMap)
        other = replace(graph, layers=(replace(first, bias=first.bias + off), *rest))
        with pytest.raises(CheckFailedError, match="does not compute what the checker reads"):
            require_agreement(path, other, x, RUN)


def test_a_file_that_onnxruntime_does_not_run(tmp_path: Path) -> None:
    path = small(tmp_path)
    graph = read_graph(path, (1, 2, 2), mean=(0.0,), std=(1.0,), layout="nchw", clip=False)
    path.write_bytes(b"")
    with pytest.raises(CheckFailedError, match="does not run it"):
        require_agreement(path, graph, np.zeros((1, 4)), RUN)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_agreement_in_both_layouts(layout: str, clip: bool, tmp_path: Path) -> None:
    """Of maps with unlike sides, normalised channel by channel; pixels outside [0, 1] are clipped where the run is."""
    rng, shape = np.random.default_rng(2), (2, 1, 3)
    nodes = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w", "b"], ["y"])]
    constants = {name: rng.standard_normal(size).astype(np.float32) for name, size in (("w", (6, 3)), ("b", 3))}
    path = graph_file(nodes, constants, tmp_path, [2, 1, 3] if layout == "nchw" else [1, 3, 2])
    about: dict[str, Any] = {"mean": (0.25, -0.5), "std": (0.5, 2.0), "layout": layout, "clip": clip}
    x = (3 * rng.random((5, 6)) - 1).astype(np.float32).astype(np.float64)
    assert require_agreement(path, read_graph(path, shape, **about), x, {**about, "shape": shape})
    for name, value in (("mean", (-0.5, 0.25)), ("std", (2.0, 0.5)), ("clip", not clip)):
        other = read_graph(path, shape, **{**about, name: value})
        with pytest.raises(CheckFailedError, match="does not compute what the checker reads"):
            require_agreement(path, other, x, {**about, "shape": shape})
