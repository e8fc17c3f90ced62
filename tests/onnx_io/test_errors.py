"""What a user reads when a file or an option is wrong: one test per message."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from citrus_tool import onnx_io
from citrus_tool.errors import (
    CheckFailedError,
    CitrusError,
    DataError,
    InputFileError,
    UnsupportedNetworkError,
    UsageError,
)
from citrus_tool.onnx_io import reader
from onnx_io.build import Array, classifier, ints, node, proto, save, weights


def refuses(kind: type[CitrusError], text: str, file: onnx.ModelProto | Path, folder: Path, **options: object) -> str:
    path = file if isinstance(file, Path) else save(file, folder)
    with pytest.raises(kind) as caught:
        onnx_io.read(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert text in message
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------------------- files


def test_missing_file(tmp_path: Path) -> None:
    refuses(InputFileError, "no such file", tmp_path / "absent.onnx", tmp_path)


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    refuses(InputFileError, "cannot be read", tmp_path, tmp_path)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    refuses(InputFileError, "empty.onnx: the file is empty", path, tmp_path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 not a network", b"\x00" * 64, bytes(range(256)), b"{}\n"])
def test_not_an_onnx_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refuses(InputFileError, "is not an ONNX file", path, tmp_path)


def test_truncated_onnx_file(tmp_path: Path) -> None:
    path = save(classifier([node("Relu", "x", "h")], features=72), tmp_path)
    path.write_bytes(path.read_bytes()[:300])
    refuses(InputFileError, "is not an ONNX file", path, tmp_path)


def test_truncated_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx.gz"
    path.write_bytes(gzip.compress(classifier([node("Relu", "x", "h")], features=72).SerializeToString())[:-20])
    refuses(InputFileError, "is not a whole gzip file", path, tmp_path)


def test_no_standard_opset(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=72)
    file.opset_import[0].domain = "elsewhere"
    refuses(InputFileError, "declares no opset", file, tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(bad: float, tmp_path: Path) -> None:
    values = weights(3, 72)
    values[1, 5] = bad
    file = proto([node("Flatten", "x", "a"), node("Gemm", "a fc.weight", "y", transB=1)], {"fc.weight": values})
    refuses(InputFileError, "weights 'fc.weight' hold NaN or infinity", file, tmp_path)


def test_weights_in_a_constant_node_that_are_not_finite(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array([np.nan], np.float32)))
    file = classifier([constant, node("Add", "x c", "h")], features=72)
    refuses(InputFileError, "weights 'c' hold NaN or infinity", file, tmp_path)


def test_missing_external_data(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=72)
    external_data_helper.convert_model_to_external_data(file, location="weights.bin", size_threshold=0)
    onnx.save(file, tmp_path / "m.onnx")
    assert onnx_io.read(tmp_path / "m.onnx").network.num_classes == 3  # present: read
    (tmp_path / "weights.bin").unlink()
    refuses(InputFileError, "external file 'weights.bin'", tmp_path / "m.onnx", tmp_path)


def test_external_data_counts_for_the_digest(tmp_path: Path) -> None:
    digests = []
    for seed in (0, 1):
        file = proto([node("Flatten", "x", "a"), node("MatMul", "a w", "y")], {"w": weights(72, 3, seed=seed)})
        external_data_helper.convert_model_to_external_data(file, location="weights.bin", size_threshold=0)
        (tmp_path / "weights.bin").unlink(missing_ok=True)
        onnx.save(file, tmp_path / "m.onnx")
        digests.append(onnx_io.read(tmp_path / "m.onnx").sha256)
    assert digests[0] != digests[1]


def test_sparse_weights(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=72)
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    file.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [3])
    )
    refuses(UnsupportedNetworkError, "weights 'w' are sparse", file, tmp_path)


# -------------------------------------------------------------------------------------------------- inputs and outputs


def test_several_inputs(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=72)
    file.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 3]))
    refuses(UnsupportedNetworkError, "has 2 inputs ('x', 'z')", file, tmp_path)


def test_several_outputs(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=72)
    file.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, None))
    refuses(UnsupportedNetworkError, "has 2 outputs ('y', 'h')", file, tmp_path)


def test_input_that_is_not_float32(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=72, dtype=TensorProto.DOUBLE)
    refuses(UnsupportedNetworkError, "input 'x' has element type DOUBLE", file, tmp_path)


def test_weights_that_are_not_float32(tmp_path: Path) -> None:
    file = proto(
        [node("Flatten", "x", "a"), node("MatMul", "a w", "y", name="fc")],
        {"w": weights(72, 3).astype(np.float16)},
        batch=1,
    )
    message = refuses(UnsupportedNetworkError, "node 'fc' (operator MatMul, opset 13)", file, tmp_path)
    assert "its constant 'w' has type float16; citrus reads float32" in message


def test_fixed_batch_above_one(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=72, batch=8)
    refuses(UnsupportedNetworkError, "shape [8, 2, 6, 6], a batch fixed to 8", file, tmp_path)


def test_free_image_size(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=72, shape=(2, "height", 6))  # type: ignore[arg-type]
    refuses(UnsupportedNetworkError, "shape ['?', 2, '?', 6]; citrus needs a batch axis", file, tmp_path)


def test_data_of_another_shape(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=72)
    message = refuses(InputFileError, "takes inputs of shape (2, 6, 6)", file, tmp_path, input_shape=(1, 28, 28))
    assert "the data has (1, 28, 28)" in message


def test_batch_of_another_shape(tmp_path: Path) -> None:
    model = onnx_io.read(save(classifier([node("Relu", "x", "h")], features=72), tmp_path))
    with pytest.raises(DataError, match=r"inputs have shape \(1, 28, 28\), the network takes \(2, 6, 6\)"):
        onnx_io.OnnxRunner(model).logits(torch.zeros(3, 1, 28, 28))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mean": (0.1, 0.2, 0.3)}, "mean has 3 values, the input has 2 channel(s)"),
        ({"std": (0.1, 0.2, 0.3)}, "std has 3 values, the input has 2 channel(s)"),
        ({"std": (1.0, 0.0)}, "std is 1.0, 0.0; it must consist of finite numbers above 0"),
        ({"std": (-1.0,)}, "std is -1.0; it must consist of finite numbers above 0"),
        ({"mean": (float("nan"),)}, "mean is nan; it must consist of finite numbers"),
    ],
)
def test_senseless_normalisation(options: dict[str, object], text: str, tmp_path: Path) -> None:
    refuses(UsageError, text, classifier([node("Relu", "x", "h")], features=72), tmp_path, **options)


def test_a_single_logit(tmp_path: Path) -> None:
    file = proto([node("Flatten", "x", "a"), node("MatMul", "a w", "y")], {"w": weights(72, 1)})
    refuses(UnsupportedNetworkError, "the output has shape (1,) per input", file, tmp_path)


def test_an_image_as_output(tmp_path: Path) -> None:
    file = proto([node("Relu", "x", "y")])
    refuses(UnsupportedNetworkError, "the output has shape (2, 6, 6) per input", file, tmp_path)


def test_an_output_without_the_input(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(weights(1, 3)))
    refuses(UnsupportedNetworkError, "the output does not depend on the input", proto([constant]), tmp_path)


# -------------------------------------------------------------------------------------------------------------- nodes

REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], str]] = {
    "unknown layer": ([node("Elu", "x", "h", name="n")], {}, "reads it as ELU, for which citrus has no layer"),
    "not in onnx2torch": ([node("Det", "x", "h", name="n")], {}, "onnx2torch does not read it"),
    "several operands": (
        [node("PRelu", "x s", "h", name="n")],
        {"s": weights(1)},
        "citrus has no layer for it",
    ),
    "product of activations": ([node("Mul", "x x", "h", name="n")], {}, "product or quotient of two activations"),
    "divisor": ([node("Div", "c x", "h", name="n")], {"c": weights(1)}, "divides by an activation or by 0"),
    "zero divisor": ([node("Div", "x c", "h", name="n")], {"c": np.zeros(1, np.float32)}, "or by 0"),
    "broadcast sum": (
        [node("GlobalAveragePool", "x", "g"), node("Add", "x g", "h", name="n")],
        {},
        "shapes (2, 6, 6) and (2, 1, 1) differ",
    ),
    "batch moved inside": (
        [node("Flatten", "x", "a"), node("Transpose", "a", "t", perm=[1, 0], name="n"), node("MatMul", "w t", "h")],
        {"w": weights(3, 72)},
        "perm (1, 0) moves the batch axis",
    ),
    "constant per input": ([node("Add", "x c", "h", name="n")], {"c": weights(2, 2, 6, 6)}, "one by one"),
    "softmax": ([node("Softmax", "x", "h", name="n")], {}, "extract_model(FILE, NEW_FILE, [INPUT], ['x'])"),
    "conv of one axis": (
        [node("Flatten", "x", "a"), node("Unsqueeze", "a o", "b"), node("Conv", "b w", "h", name="n")],
        {"o": ints(1), "w": weights(3, 1, 4)},
        "1 spatial axes; citrus reads 2-D convolutions",
    ),
    "computed kernel": ([node("Conv", "x x", "h", name="n")], {}, "'x' is computed from the network's input"),
    "kernel that does not fit": (
        [node("Conv", "x w", "h", name="n")],
        {"w": weights(4, 3, 3, 3)},
        "does not fit its input of shape (2, 6, 6)",
    ),
    "negative padding": (
        [node("Conv", "x w", "h", name="n", pads=[-1, 0, 0, 0])],
        {"w": weights(4, 2, 3, 3)},
        "padding (-1, 0, 0, 0) is negative",
    ),
    "transposed input": (
        [node("Flatten", "x", "a"), node("Gemm", "a w", "h", name="n", transA=1)],
        {"w": weights(1, 3)},
        "transA mixes the batch axis",
    ),
    "matrix product of images": (
        [node("MatMul", "x w", "h", name="n")],
        {"w": weights(6, 3)},
        "citrus reads x @ W for vectors x and matrices W, here (2, 6, 6) @ (6, 3)",
    ),
    "constant times activation": (
        [node("Flatten", "x", "a"), node("MatMul", "w a", "h", name="n")],
        {"w": weights(3, 1)},
        "its first operand is a constant",
    ),
    "batch norm in training": (
        [node("BatchNormalization", "x s s s s", "h a b", name="n", training_mode=1)],
        {"s": np.ones(2, np.float32)},
        "it is in training mode",
    ),
    "uneven max pool": (
        [node("MaxPool", "x", "h", name="n", kernel_shape=[2, 2], pads=[1, 0, 0, 0])],
        {},
        "padding (1, 0, 0, 0) differs between the sides",
    ),
    "ceil mode": (
        [node("MaxPool", "x", "h", name="n", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)],
        {},
        "ceil_mode lets windows reach beyond the padding",
    ),
    "pool over one axis": (
        [node("ReduceMean", "x", "h", name="n", axes=[1])],
        {},
        "citrus reads means over both spatial axes",
    ),
    "reshape across the batch": (
        [node("Reshape", "x s", "h", name="n")],
        {"s": ints(-1, 36)},
        "turns one input of shape (2, 6, 6) into (1, 36), which mixes the batch axis",
    ),
    "flatten across the batch": ([node("Flatten", "x", "h", name="n", axis=2)], {}, "mixes the batch axis"),
    "transposed batch": ([node("Transpose", "x", "h", name="n")], {}, "perm (3, 2, 1, 0) moves the batch axis"),
    "concatenated batch": ([node("Concat", "x x", "h", name="n", axis=0)], {}, "axis 0 is the batch axis"),
    "concatenated constant": (
        [node("Concat", "x c", "h", name="n", axis=1)],
        {"c": weights(1, 1, 6, 6)},
        "joins activations with constants",
    ),
    "reflected padding": (
        [node("Pad", "x p", "h", name="n", mode="reflect")],
        {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)},
        "mode 'reflect'; citrus pads with a constant",
    ),
    "padded batch": ([node("Pad", "x p", "h", name="n")], {"p": ints(1, 0, 0, 0, 0, 0, 0, 0)}, "or pad the batch axis"),
    "backward slice": (
        [node("Slice", "x s e a t", "h", name="n")],
        {"s": ints(-1), "e": ints(0), "a": ints(2), "t": ints(-1)},
        "step -1 runs backwards",
    ),
    "empty slice": (
        [node("Slice", "x s e a", "h", name="n")],
        {"s": ints(4), "e": ints(2), "a": ints(2)},
        "nothing is left of axis 2",
    ),
    "sliced batch": (
        [node("Slice", "x s e a", "h", name="n")],
        {"s": ints(0), "e": ints(1), "a": ints(0)},
        "axis 0 is the batch axis",
    ),
    "integer activations": ([node("Cast", "x", "h", name="n", to=TensorProto.INT64)], {}, "into INT64; citrus reads"),
    "dropout in training": (
        [node("Dropout", "x r t", "h", name="n")],
        {"r": np.array(0.5, np.float32), "t": np.array(True)},
        "dropout is in training mode",
    ),
    "string constant": (
        [helper.make_node("Constant", [], ["c"], value_string="a", name="n"), node("Add", "x c", "h")],
        {},
        "it holds value_string",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_node(case: str, tmp_path: Path) -> None:
    nodes, constants, text = REFUSED[case]
    file = classifier(nodes, constants, features=72)
    message = refuses(UnsupportedNetworkError, text, file, tmp_path)
    operator = next(n.op_type for n in nodes if n.name == "n")
    assert f"m.onnx: node 'n' (operator {operator}, opset 13) is not supported: " in message
    assert message.endswith(".")


def test_node_of_another_operator_set(tmp_path: Path) -> None:
    file = classifier([helper.make_node("Gelu", ["x"], ["h"], domain="com.microsoft", name="n")], features=72)
    file.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    refuses(UnsupportedNetworkError, "it belongs to the operator set 'com.microsoft'", file, tmp_path)


def test_node_without_a_name_is_named_by_operator_and_position(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "a"), node("Elu", "a", "h")], features=72)
    refuses(UnsupportedNetworkError, "node 'Elu_1' (operator Elu, opset 13)", file, tmp_path)


def test_operator_that_onnx_does_not_know(tmp_path: Path) -> None:
    file = classifier([node("Frobnicate", "x", "h", name="n")], features=72)
    text = "node 'n' has operator Frobnicate, which ONNX (opset 13) does not know"
    refuses(UnsupportedNetworkError, text, file, tmp_path)


def test_opset_that_cannot_be_upgraded(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h", consumed_inputs=[0])], features=72, opset=1)
    text = "m.onnx: onnx.version_converter cannot bring it from opset 1 to 13"
    refuses(UnsupportedNetworkError, text, file, tmp_path)


def test_node_that_the_upgrade_replaced_keeps_its_name(tmp_path: Path) -> None:
    file = classifier([node("Upsample", "x", "h", name="up", scales=[1.0, 1.0, 2.0, 2.0])], features=288, opset=7)
    refuses(UnsupportedNetworkError, "node 'up' (operator Resize, opset 7) is not supported", file, tmp_path)


def test_ir_version_that_onnxruntime_does_not_load(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=72, ir_version=99)
    message = refuses(UnsupportedNetworkError, "does not load it", file, tmp_path)
    assert message.endswith("re-export it with IR 8 and opset 13 to 18.")


def test_file_that_onnxruntime_loads_but_cannot_run(tmp_path: Path) -> None:
    attributes = {"auto_pad": "SAME_UPPER", "dilations": [2, 2]}
    file = classifier([node("Conv", "x w", "h", **attributes)], {"w": weights(2, 2, 3, 3)}, features=72, batch=1)
    refuses(UnsupportedNetworkError, "onnxruntime cannot run it", file, tmp_path)


# ------------------------------------------------------------------------------------------------------------- parity


def test_a_wrong_reading_is_refused_with_its_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_lower = reader.lower

    def shifted(*arguments: object, **options: object) -> object:
        lowered = true_lower(*arguments, **options)  # type: ignore[arg-type]
        assert lowered.network is not None
        with torch.no_grad():
            next(p for n, p in lowered.network.named_parameters() if n.endswith("bias")).add_(0.01)
        return lowered

    monkeypatch.setattr(reader, "lower", shifted)
    file = classifier([node("Relu", "x", "h")], features=72)
    message = refuses(CheckFailedError, "the torch network and onnxruntime differ by 0.01", file, tmp_path)
    assert "allowed 0.000" in message


def test_nan_never_passes_for_parity() -> None:
    parity = onnx_io.Parity(batch_1=float("nan"), batch_64=0.0, tolerance=1e-4)
    assert not parity.holds


def test_runner_needs_a_contract(tmp_path: Path) -> None:
    path = save(classifier([node("Relu", "x", "h")], features=72), tmp_path)
    with pytest.raises(UsageError, match="needs the input contract"):
        onnx_io.OnnxRunner(path)
