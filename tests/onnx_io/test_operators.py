"""Each supported operator in a small file: right layers, same numbers as onnxruntime, at several opsets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from citrus_tool import onnx_io
from onnx_io.build import Array, classifier, ints, layer_names, node, proto, require_agreement, save, weights

Case = tuple[list[onnx.NodeProto], dict[str, Array], int, list[str]]
C = np.float32


def conv(**attributes: object) -> Case:
    size = attributes.pop("size")
    layers = attributes.pop("layers", ["Conv2d"])
    kernel = attributes.pop("kernel", (3, 3))
    group = int(attributes.get("group", 1))  # type: ignore[call-overload]
    constants = {"w": weights(4, 2 // group, *kernel), "b": weights(4, seed=1)}  # type: ignore[misc]
    return [node("Conv", "x w b", "h", **attributes)], constants, 4 * int(size), layers  # type: ignore[call-overload,return-value]


CASES: dict[str, Case] = {
    "relu": ([node("Relu", "x", "h")], {}, 72, ["ReLU"]),
    "leaky_relu": ([node("LeakyRelu", "x", "h", alpha=0.3)], {}, 72, ["LeakyReLU"]),
    "leaky_relu_default": ([node("Neg", "x", "a"), node("LeakyRelu", "a", "h")], {}, 72, ["Affine", "LeakyReLU"]),
    "sigmoid": ([node("Sigmoid", "x", "h")], {}, 72, ["Sigmoid"]),
    "tanh": ([node("Tanh", "x", "h")], {}, 72, ["Tanh"]),
    "conv": conv(size=16),
    "conv_padded": conv(size=36, pads=[1, 1, 1, 1]),
    "conv_strided": conv(size=9, pads=[1, 1, 1, 1], strides=[2, 2]),
    "conv_dilated": conv(size=4, dilations=[2, 2]),
    "conv_grouped": conv(size=16, group=2),
    "conv_asymmetric": conv(size=6, pads=[0, 1, 1, 0], strides=[2, 3], layers=["Pad", "Conv2d"], kernel=(2, 2)),
    "conv_same_upper": conv(size=9, auto_pad="SAME_UPPER", strides=[2, 2], layers=["Pad", "Conv2d"]),
    "conv_same_lower": conv(size=36, auto_pad="SAME_LOWER", layers=["Pad", "Conv2d"], kernel=(2, 4)),
    "conv_same_symmetric": conv(size=36, auto_pad="SAME_UPPER"),
    "conv_valid": conv(size=16, auto_pad="VALID"),
    "conv_no_bias": ([node("Conv", "x w", "h")], {"w": weights(4, 2, 3, 3)}, 64, ["Conv2d"]),
    "conv_then_bias": (
        [node("Conv", "x w", "a"), node("Add", "a b", "h")],
        {"w": weights(4, 2, 3, 3), "b": weights(1, 4, 1, 1)},
        64,
        ["Conv2d"],
    ),
    "batch_norm": (
        [node("BatchNormalization", "x s o m v", "h", epsilon=0.01)],
        {"s": weights(2), "o": weights(2, seed=1), "m": weights(2, seed=2), "v": np.array([0.5, 2.0], C)},
        72,
        ["BatchNorm2d"],
    ),
    "batch_norm_vector": (
        [node("Flatten", "x", "a"), node("BatchNormalization", "a s o m v", "h")],
        {"s": weights(72), "o": weights(72, seed=1), "m": weights(72, seed=2), "v": np.full(72, 2.0, C)},
        72,
        ["Reshape", "BatchNorm1d"],
    ),
    "normalise": (
        [node("Sub", "x mean", "a"), node("Div", "a std", "h")],
        {"mean": np.array([[[0.1]], [[0.2]]], C), "std": np.array([0.3], C)},
        72,
        ["Affine", "Affine"],
    ),
    "constant_minus": ([node("Sub", "c x", "h")], {"c": weights(1, 2, 1, 1)}, 72, ["Affine"]),
    "multiply": ([node("Mul", "c x", "h")], {"c": weights(6)}, 72, ["Affine"]),
    "add_constant": ([node("Add", "c x", "h")], {"c": weights(6, 6)}, 72, ["Affine"]),
    "residual": ([node("Relu", "x", "a"), node("Add", "a x", "h")], {}, 72, ["ReLU", "Add"]),
    "double": ([node("Add", "x x", "h")], {}, 72, ["Add"]),
    "difference": ([node("Relu", "x", "a"), node("Sub", "x a", "h")], {}, 72, ["ReLU", "Affine", "Add"]),
    "sum": ([node("Relu", "x", "a"), node("Sum", "a x x", "h")], {}, 72, ["ReLU", "Add", "Add"]),
    "flatten_late": (
        [node("Reshape", "x one", "a"), node("Flatten", "a", "h", axis=2)],
        {"one": ints(0, 1, -1)},
        72,
        ["Reshape", "Reshape"],
    ),
    "flatten_negative": ([node("Flatten", "x", "h", axis=-3)], {}, 72, ["Reshape"]),
    "reshape_zero": ([node("Reshape", "x s", "h")], {"s": ints(0, 4, -1, 6)}, 72, ["Reshape"]),
    "reshape_minus_one": ([node("Reshape", "x s", "h")], {"s": ints(-1, 72)}, 72, ["Reshape"]),
    "reshape_one": ([node("Reshape", "x s", "h")], {"s": ints(1, 72)}, 72, ["Reshape"]),
    "reshape_same": ([node("Reshape", "x s", "h")], {"s": ints(0, 0, 0, 0)}, 72, []),
    "unsqueeze_squeeze": (
        [node("Unsqueeze", "x u", "a"), node("Relu", "a", "b"), node("Squeeze", "b u", "h")],
        {"u": ints(-1, 1)},
        72,
        ["Reshape", "ReLU", "Reshape"],
    ),
    "squeeze_all_ones": (
        [node("GlobalAveragePool", "x", "a"), node("Squeeze", "a s", "h")],
        {"s": ints(2, 3)},
        2,
        ["AvgPool2d", "Reshape"],
    ),
    "transpose": ([node("Transpose", "x", "h", perm=[0, 2, 3, 1])], {}, 72, ["Transpose"]),
    "average_pool": ([node("AveragePool", "x", "h", kernel_shape=[2, 3], strides=[2, 3])], {}, 12, ["AvgPool2d"]),
    "average_pool_overlapping": ([node("AveragePool", "x", "h", kernel_shape=[3, 3])], {}, 32, ["AvgPool2d"]),
    "average_pool_counting_pads": (
        [node("AveragePool", "x", "h", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)],
        {},
        72,
        ["AvgPool2d"],
    ),
    "average_pool_not_counting_pads": (
        [node("AveragePool", "x", "h", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        {},
        72,
        ["AvgPool2d", "Affine"],
    ),
    "average_pool_same": (
        [node("AveragePool", "x", "h", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")],
        {},
        18,
        ["Pad", "AvgPool2d", "Affine"],
    ),
    "average_pool_exact_ceil": (
        [node("AveragePool", "x", "h", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)],
        {},
        18,
        ["AvgPool2d"],
    ),
    "max_pool": ([node("MaxPool", "x", "h", kernel_shape=[2, 2], strides=[2, 2])], {}, 18, ["MaxPool2d"]),
    "max_pool_padded": (
        [node("MaxPool", "x", "h", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])],
        {},
        72,
        ["MaxPool2d"],
    ),
    "max_pool_same": (
        [node("MaxPool", "x", "h", kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER")],
        {},
        18,
        ["MaxPool2d"],
    ),
    "global_average_pool": ([node("GlobalAveragePool", "x", "h")], {}, 2, ["AvgPool2d"]),
    "global_max_pool": ([node("GlobalMaxPool", "x", "h")], {}, 2, ["MaxPool2d"]),
    "reduce_mean": ([node("ReduceMean", "x", "h", axes=[2, 3])], {}, 2, ["AvgPool2d"]),
    "reduce_mean_flat": ([node("ReduceMean", "x", "h", axes=[-1, -2], keepdims=0)], {}, 2, ["AvgPool2d", "Reshape"]),
    "reduce_mean_channels_last": (
        [node("Transpose", "x", "a", perm=[0, 2, 3, 1]), node("ReduceMean", "a", "h", axes=[1, 2])],
        {},
        2,
        ["Transpose", "Transpose", "AvgPool2d", "Reshape"],
    ),
    "pad": (
        [node("Pad", "x p v", "h")],
        {"p": ints(0, 1, 2, 0, 0, 0, 1, 3), "v": np.array(0.5, C)},
        3 * 9 * 9,
        ["Pad"],
    ),
    "pad_zero": ([node("Pad", "x p", "h")], {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)}, 128, ["Pad"]),
    "pad_nothing": ([node("Pad", "x p", "h")], {"p": ints(*[0] * 8)}, 72, []),
    "concat": ([node("Relu", "x", "a"), node("Concat", "a x", "h", axis=1)], {}, 144, ["ReLU", "Concat"]),
    "concat_last": ([node("Relu", "x", "a"), node("Concat", "x a x", "h", axis=-1)], {}, 216, ["ReLU", "Concat"]),
    "slice": (
        [node("Slice", "x s e a t", "h")],
        {"s": ints(1, -5), "e": ints(2, 2**40), "a": ints(1, -1), "t": ints(1, 2)},
        18,
        ["Slice", "Slice"],
    ),
    "slice_whole_batch": (
        [node("Slice", "x s e", "h")],
        {"s": ints(0, 0), "e": ints(2**40, 1)},
        36,
        ["Slice"],
    ),
    "split": (
        [node("Split", "x s", "a b", axis=2), node("Concat", "b a", "h", axis=2)],
        {"s": ints(2, 4)},
        72,
        ["Slice", "Slice", "Concat"],
    ),
    "split_equal": (
        [node("Split", "x", "a b", axis=1), node("Add", "a b", "h")],
        {},
        36,
        ["Slice", "Slice", "Add"],
    ),
    "split_one_part_unused": ([node("Split", "x", "a h", axis=1)], {}, 36, ["Slice"]),
    "dropped": (
        [node("Identity", "x", "a"), node("Dropout", "a", "b"), node("Cast", "b", "h", to=1)],
        {},
        72,
        [],
    ),
    "size_from_shape": (
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape zero", "batch"),
            node("Unsqueeze", "batch zero_axis", "batch_axis"),
            node("Concat", "batch_axis rest", "target", axis=0),
            node("Reshape", "x target", "h"),
        ],
        {"zero": np.array(0, np.int64), "zero_axis": ints(0), "rest": ints(-1)},
        72,
        ["Reshape"],
    ),
    "unused_nodes": ([node("Relu", "x", "h"), node("Det", "x", "nobody")], {}, 72, ["ReLU"]),
}


@pytest.mark.parametrize("batch", ["n", 1])
@pytest.mark.parametrize("case", CASES)
def test_operator_is_read_as_canonical_layers(case: str, batch: int | str, tmp_path: Path) -> None:
    nodes, constants, features, layers = CASES[case]
    model = onnx_io.read(save(classifier(nodes, constants, features=features, batch=batch), tmp_path))
    assert layer_names(model) in ([*layers, "Linear"], [*layers, "Reshape", "Linear"])
    require_agreement(model)


GEMM: dict[str, tuple[dict[str, object], tuple[int, ...], tuple[int, ...] | None, list[str]]] = {
    "plain": ({}, (72, 3), (3,), ["Linear"]),
    "transposed": ({"transB": 1}, (3, 72), (3,), ["Linear"]),
    "scaled": ({"alpha": 0.5, "beta": 2.0}, (72, 3), (3,), ["Linear"]),
    "row_bias": ({"transB": 1}, (3, 72), (1, 3), ["Linear"]),
    "scalar_bias": ({"beta": 3.0}, (72, 3), (1,), ["Linear", "Affine"]),
    "bias_switched_off": ({"beta": 0.0}, (72, 3), (3,), ["Linear"]),
    "no_bias": ({}, (72, 3), None, ["Linear"]),
}


@pytest.mark.parametrize("case", GEMM)
def test_gemm(case: str, tmp_path: Path) -> None:
    attributes, shape, bias, layers = GEMM[case]
    constants = {"w": weights(*shape)} | ({} if bias is None else {"b": weights(*bias, seed=1)})
    nodes = [node("Flatten", "x", "a"), node("Gemm", "a w" + ("" if bias is None else " b"), "y", **attributes)]
    model = onnx_io.read(save(proto(nodes, constants), tmp_path))
    assert layer_names(model) == ["Reshape", *layers]
    require_agreement(model)


@pytest.mark.parametrize(("order", "shape"), [("m b", (3,)), ("b m", (3,)), ("m b", (1, 3))])
def test_matmul_and_the_bias_behind_it_are_one_trainable_linear(
    order: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    nodes = [node("Flatten", "x", "a"), node("MatMul", "a w", "m"), node("Add", order, "y")]
    model = onnx_io.read(save(proto(nodes, {"w": weights(72, 3), "b": weights(*shape)}), tmp_path))
    assert layer_names(model) == ["Reshape", "Linear"]
    assert sum(p.numel() for p in model.network.parameters() if p.requires_grad) == 72 * 3 + 3
    require_agreement(model)


def test_matmul_along_leading_axes_of_one(tmp_path: Path) -> None:
    nodes = [node("Reshape", "x s", "a"), node("MatMul", "a w", "m"), node("Add", "m b", "y")]
    constants = {"s": ints(-1, 1, 1, 72), "w": weights(72, 3), "b": weights(3)}
    model = onnx_io.read(save(proto(nodes, constants), tmp_path))
    assert layer_names(model) == ["Reshape", "Reshape", "Linear", "Reshape", "Reshape"]
    require_agreement(model)


def test_an_added_constant_is_no_bias_when_the_product_has_another_user(tmp_path: Path) -> None:
    nodes = [
        node("Flatten", "x", "a"),
        node("MatMul", "a w", "m"),
        node("Add", "m b", "s"),
        node("Add", "s m", "y"),
    ]
    model = onnx_io.read(save(proto(nodes, {"w": weights(72, 3), "b": weights(3)}), tmp_path))
    assert layer_names(model) == ["Reshape", "Linear", "Affine", "Add"]
    require_agreement(model)


def test_weights_in_constant_nodes_and_behind_identity_and_transpose_are_trainable(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weights(3, 72)))
    nodes = [
        constant,
        node("Identity", "w", "same"),
        node("Transpose", "same", "turned"),
        node("Flatten", "x", "a"),
        node("MatMul", "a turned", "y"),
    ]
    model = onnx_io.read(save(proto(nodes), tmp_path))
    (binding,) = model.bindings
    assert (binding.view.tensor, binding.view.transposed) == ("w", False)
    assert torch.equal(next(model.network.parameters()), torch.from_numpy(weights(3, 72)))
    require_agreement(model)


def test_computed_weights_are_kept_but_frozen(tmp_path: Path) -> None:
    nodes = [node("Mul", "w two", "v"), node("Flatten", "x", "a"), node("MatMul", "a v", "y")]
    model = onnx_io.read(save(proto(nodes, {"w": weights(72, 3), "two": np.array(2, C)}), tmp_path))
    assert model.bindings == ()
    assert not any(p.requires_grad for p in model.network.parameters())
    assert "weights frozen" in onnx_io.inspect(model.path).nodes[-1].reason
    require_agreement(model)


def test_a_weight_that_is_also_a_constant_is_frozen(tmp_path: Path) -> None:
    nodes = [
        node("Flatten", "x", "a"),
        node("Gemm", "a w b", "g"),
        node("Relu", "g", "r"),
        node("Add", "r b", "y"),
    ]
    model = onnx_io.read(save(proto(nodes, {"w": weights(72, 3), "b": weights(3)}), tmp_path))
    assert [b.view.tensor for b in model.bindings] == ["w"]
    assert {n.split(".")[-1]: p.requires_grad for n, p in model.network.named_parameters()} == {
        "weight": True,
        "bias": False,
    }


def test_shared_initializers_are_one_parameter(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w b", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r"),
        node("Conv", "r w b", "h", pads=[1, 1, 1, 1]),
    ]
    file = classifier(nodes, {"w": weights(2, 2, 3, 3), "b": weights(2)}, features=72)
    model = onnx_io.read(save(file, tmp_path))
    first, second = (n.layer for n in model.network.nodes if type(n.layer) is torch.nn.Conv2d)
    assert first.weight is second.weight
    assert first.bias is second.bias
    assert sum(p.numel() for p in model.network.parameters()) == 36 + 2 + 3 * 72 + 3
    require_agreement(model)


def test_initializers_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=72, ir_version=3, opset=8)
    for tensor in file.graph.initializer:
        file.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    model = onnx_io.read(save(file, tmp_path))
    require_agreement(model)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 17, 18, 20, 21])
def test_old_and_new_opsets(opset: int, tmp_path: Path) -> None:
    axes = {"axes": [2, 3]} if opset < 18 else {}
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c s o m v", "n"),
        node("Relu", "n", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("ReduceMean", "p" if opset < 18 else "p axes", "q", keepdims=1, **axes),
        node("Dropout", "q", "h"),
    ]
    constants = {
        "w": weights(4, 2, 3, 3),
        "s": weights(4, seed=1),
        "o": weights(4, seed=2),
        "m": weights(4, seed=3),
        "v": np.full(4, 1.5, C),
        "axes": ints(2, 3),
    }
    model = onnx_io.read(save(classifier(nodes, constants, features=4, opset=opset), tmp_path))
    assert model.opset == opset
    assert layer_names(model) == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "AvgPool2d", "Reshape", "Linear"]
    require_agreement(model)


def test_old_attributes_of_reshaping_operators_are_upgraded(tmp_path: Path) -> None:
    nodes = [
        node("Unsqueeze", "x", "a", axes=[1]),
        node("Squeeze", "a", "b", axes=[1]),
        node("Slice", "b", "c", axes=[3], starts=[1], ends=[5]),
        node("Pad", "c", "d", pads=[0, 0, 1, 0, 0, 0, 0, 1]),
        node("Split", "d", "e f", axis=1, split=[1, 1]),
        node("Sum", "e f", "h"),
    ]
    model = onnx_io.read(save(classifier(nodes, features=35, opset=9), tmp_path))
    assert layer_names(model) == ["Reshape", "Reshape", "Slice", "Pad", "Slice", "Slice", "Add", "Reshape", "Linear"]
    require_agreement(model)


def test_new_forms_of_pad_and_split(tmp_path: Path) -> None:
    nodes = [node("Pad", "x p - a", "c"), node("Split", "c", "e f", axis=1, num_outputs=2), node("Add", "e f", "h")]
    constants = {"p": ints(1, 2), "a": ints(-1)}
    model = onnx_io.read(save(classifier(nodes, constants, features=54, opset=18), tmp_path))
    require_agreement(model)


def test_fixed_shape_inside_a_free_batch_is_run_one_by_one(tmp_path: Path) -> None:
    file = classifier([node("Reshape", "x s", "h")], {"s": ints(1, 72)}, features=72, batch="n")
    model = onnx_io.read(save(file, tmp_path))
    assert model.contract.batch == 1
    x = torch.rand(4, 2, 6, 6)
    np.testing.assert_allclose(onnx_io.OnnxRunner(model).logits(x), model.network(x).detach().numpy(), atol=1e-5)


def test_output_with_axes_of_one_becomes_a_vector(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "y")]
    model = onnx_io.read(save(proto(nodes, {"w": weights(3, 2, 3, 3)}), tmp_path))
    assert model.network.num_classes == 3
    require_agreement(model)


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    function = helper.make_function(
        "local", "Double", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 13)]
    )
    call = helper.make_node("Double", ["x"], ["h"], domain="local")
    file = classifier([call], features=72)
    file.functions.append(function)
    file.opset_import.append(helper.make_opsetid("local", 1))
    model = onnx_io.read(save(file, tmp_path))
    assert layer_names(model) == ["Add", "Reshape", "Linear"]
    require_agreement(model)
