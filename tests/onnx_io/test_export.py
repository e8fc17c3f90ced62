"""Networks written anew, BatchNorm folded, and what `inspect` tells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from citrus_tool import onnx_io
from citrus_tool.elementwise import FUNCTIONS
from citrus_tool.errors import InputFileError, UnsupportedNetworkError, UsageError
from citrus_tool.network import (
    Add,
    Affine,
    Concat,
    GraphBuilder,
    Network,
    Pad,
    Pointwise,
    Reshape,
    Select,
    Slice,
    Transpose,
    chain,
)
from citrus_tool.onnx_io import export_graph
from onnx_io.build import answer, classifier, node, random_inputs, save, weights

SHAPE = (2, 6, 6)


def after(*layers: nn.Module, features: int = 72) -> list[nn.Module]:
    """The layers under test, then a linear head."""
    return [*layers, Reshape((features,)), nn.Linear(features, 3)]


def trained_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    """A BatchNorm whose numbers are all its own."""
    generator = torch.Generator().manual_seed(5)
    tensors = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    with torch.no_grad():
        for tensor in tensors:
            assert tensor is not None
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return norm


def layers_under_test() -> dict[str, list[nn.Module]]:
    torch.manual_seed(1)
    return {
        "conv": after(nn.Conv2d(2, 4, 3, stride=2, padding=1), features=36),
        "conv_same": after(nn.Conv2d(2, 2, (1, 3), padding="same")),
        "conv_valid_no_bias": after(nn.Conv2d(2, 2, 3, padding="valid", bias=False), features=32),
        "conv_grouped_dilated": after(nn.Conv2d(2, 4, 2, groups=2, dilation=2), features=64),
        "linear_no_bias": [Reshape((72,)), nn.Linear(72, 3, bias=False)],
        "batch_norm_2d": after(trained_norm(nn.BatchNorm2d(2, eps=0.1, momentum=0.3))),
        "batch_norm_1d": [Reshape((72,)), trained_norm(nn.BatchNorm1d(72)), nn.Linear(72, 3)],
        "batch_norm_plain": after(nn.BatchNorm2d(2, affine=False)),
        "affine": after(Affine(torch.rand(2, 1, 1), torch.rand(2, 1, 1))),
        "scale": after(Affine(torch.rand(2, 1, 1), torch.zeros(1, 1, 1))),
        "shift": after(Affine(torch.ones(1, 1, 1), torch.rand(2, 6, 6))),
        "identity": after(Affine(torch.ones(1, 1, 1), torch.zeros(1, 1, 1))),
        "relu": after(nn.ReLU()),
        "leaky_relu": after(nn.LeakyReLU(0.2)),
        "sigmoid": after(nn.Sigmoid()),
        "tanh": after(nn.Tanh()),
        "reshape": after(Reshape((4, 3, 6))),
        "transpose": after(Transpose((2, 0, 1))),
        "average_pool": after(nn.AvgPool2d(3, 1, 1)),
        "average_pool_pads_not_counted": after(nn.AvgPool2d((3, 2), 1, (1, 0), count_include_pad=False), features=60),
        "max_pool": after(nn.MaxPool2d(3, 2, 1), features=18),
        "pad": after(Pad((1, 2, 0, 1), 0.5), features=126),
        "pad_channels": after(Pad((0, 0, 1, 0, 2, 1), 0.0), features=210),
        "slice": after(Slice(2, 1, 6, 2), features=36),
        "output_is_affine": [Reshape((72,)), nn.Linear(72, 3), Affine(torch.rand(3), torch.rand(3))],
        "output_is_relu": [Reshape((72,)), nn.Linear(72, 3), nn.ReLU()],
    }


def same(first: Network, second: Network, count: int = 6) -> None:
    x = random_inputs(count, first.input_shape)
    with torch.no_grad():
        np.testing.assert_allclose(first.eval()(x).numpy(), second.eval()(x).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", sorted(layers_under_test()))
def test_each_layer_is_exported(case: str, tmp_path: Path) -> None:
    network = chain(layers_under_test()[case], SHAPE).eval()
    onnx_io.export(network, tmp_path / "late.onnx", metadata={}, opset=17)
    model = onnx_io.export(network, tmp_path / "e.onnx", metadata={})
    same(network, model.network)
    x = random_inputs(4)
    with torch.no_grad():
        np.testing.assert_allclose(answer(onnx.load(tmp_path / "e.onnx"), x), network(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("index", [[70, 3, 3, 0, 71, 5], [70, -1, 3, 3, -1, 5]])
def test_picked_entries_are_exported(index: list[int]) -> None:
    network = chain(after(Select(torch.tensor(index).reshape(2, 3)), features=6), SHAPE).eval()
    model = export_graph.to_proto(network, input_name="x", output_name="y", opset=17, ir_version=8)
    onnx.checker.check_model(model)
    x = random_inputs(4)
    with torch.no_grad():
        np.testing.assert_allclose(answer(model, x), network(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", sorted(FUNCTIONS))
def test_functions_of_one_number_are_exported(kind: str) -> None:
    network = chain(after(Affine(torch.ones(1), torch.full((1,), 0.1)), Pointwise(kind)), SHAPE).eval()
    for opset in (13, 17):
        model = export_graph.to_proto(network, input_name="x", output_name="y", opset=opset, ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        x = random_inputs(4).abs()
        with torch.no_grad():
            np.testing.assert_allclose(answer(model, x), network(x).numpy(), rtol=1e-5, atol=1e-5)


def branches() -> Network:
    torch.manual_seed(2)
    builder = GraphBuilder(SHAPE)
    conv = nn.Conv2d(2, 2, 3, padding=1)
    first = builder.add(conv)
    relu = builder.add(nn.ReLU(), first)
    second = builder.add(conv, relu)  # one layer, two nodes
    total = builder.add(Add(), second, first)
    joined = builder.add(Concat(0), total, relu)
    flat = builder.add(Reshape((144,)), joined)
    return builder.build(builder.add(nn.Linear(144, 3), flat)).eval()


def test_branches_and_shared_layers(tmp_path: Path) -> None:
    network = branches()
    model = onnx_io.export(network, tmp_path / "e.onnx", metadata={})
    same(network, model.network)
    assert sum(p.numel() for p in model.network.parameters()) == sum(p.numel() for p in network.parameters())


def test_exported_file_is_plain_and_reproducible(tmp_path: Path) -> None:
    network = branches()
    for name in ("a.onnx", "b.onnx"):
        onnx_io.export(network, tmp_path / name, metadata={"seed": "1"}, input_name="pixels", output_name="logits")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    file = onnx.load(tmp_path / "a.onnx")
    assert (file.ir_version, file.opset_import[0].version, file.producer_name) == (8, 13, "citrus")
    assert (file.graph.input[0].name, file.graph.output[0].name) == ("pixels", "logits")
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [n.op_type for n in file.graph.node] == ["Conv", "Relu", "Conv", "Add", "Concat", "Flatten", "Gemm"]
    assert {p.key: p.value for p in file.metadata_props} == {"seed": "1"}


def test_networks_in_float64_on_flat_inputs_are_exported(tmp_path: Path) -> None:
    network = chain([nn.Linear(72, 3)], (72,)).double()
    model = onnx_io.export(network, tmp_path / "e.onnx.gz", metadata={})
    assert model.contract.layout == "flat"
    same(network.float(), model.network)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "padding mode 'circular'"),
        (nn.BatchNorm2d(2, track_running_stats=False), "it has no running statistics"),
        (nn.AvgPool2d(1, divisor_override=2), "divisor_override"),
        (nn.Linear(6, 6), r"it is applied along the last axis of shape \(2, 6, 6\)"),
    ],
)
def test_layers_without_an_exact_form_are_refused(layer: nn.Module, text: str, tmp_path: Path) -> None:
    network = chain(after(layer), SHAPE)
    with pytest.raises(
        UnsupportedNetworkError, match=rf"node '.*' \({type(layer).__name__}\) cannot be exported: {text}"
    ):
        onnx_io.export(network, tmp_path / "e.onnx", metadata={})


@pytest.mark.parametrize("opset", [12, 18])
def test_opsets_that_are_not_written(opset: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"opset {opset} cannot be written; choose 13 to 17"):
        onnx_io.export(branches(), tmp_path / "e.onnx", metadata={}, opset=opset)


def test_names_that_clash(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the name 'same' is taken twice"):
        onnx_io.export(branches(), tmp_path / "e.onnx", metadata={}, input_name="same", output_name="same")


def test_export_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="does not exist"):
        onnx_io.export(branches(), tmp_path / "absent" / "e.onnx", metadata={})


# ------------------------------------------------------------------------------------------------------------- folding


def test_folded_batch_norm_is_the_same_function() -> None:
    torch.manual_seed(3)
    builder = GraphBuilder(SHAPE)
    conv = builder.add(nn.Conv2d(2, 4, 3, padding=1, bias=False), name="conv")
    norm = builder.add(trained_norm(nn.BatchNorm2d(4)), conv)
    relu = builder.add(nn.ReLU(), norm)
    late = builder.add(trained_norm(nn.BatchNorm2d(4)), relu)  # follows no affine layer: stays
    total = builder.add(Add(), late, norm)
    flat = builder.add(Reshape((144,)), total)
    linear = builder.add(nn.Linear(144, 5), flat)
    norm_1d = builder.add(trained_norm(nn.BatchNorm1d(5)), linear)
    network = builder.build(builder.add(nn.Linear(5, 3), norm_1d)).eval()
    before = [p.clone() for p in network.parameters()]
    folded = onnx_io.fold_batch_norm(network)
    same(network, folded)
    assert sum(isinstance(n.layer, nn.BatchNorm1d | nn.BatchNorm2d) for n in folded.nodes) == 1
    assert len(folded.nodes) == len(network.nodes) - 2
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_batch_norm_is_not_folded_into_a_layer_that_others_read() -> None:
    builder = GraphBuilder(SHAPE)
    conv = builder.add(nn.Conv2d(2, 2, 3, padding=1))
    norm = builder.add(trained_norm(nn.BatchNorm2d(2)), conv)
    flat = builder.add(Reshape((72,)), builder.add(Add(), norm, conv))
    network = builder.build(builder.add(nn.Linear(72, 3), flat)).eval()
    folded = onnx_io.fold_batch_norm(network)
    same(network, folded)
    assert len(folded.nodes) == len(network.nodes)


def test_a_shared_conv_is_untied_where_a_batch_norm_follows() -> None:
    builder = GraphBuilder(SHAPE)
    conv = nn.Conv2d(2, 2, 3, padding=1)
    norm = builder.add(trained_norm(nn.BatchNorm2d(2)), builder.add(conv))
    again = builder.add(conv, norm)
    network = builder.build(builder.add(nn.Linear(72, 3), builder.add(Reshape((72,)), again))).eval()
    same(network, onnx_io.fold_batch_norm(network))


# ----------------------------------------------------------------------------------------------------------- inspection


def test_inspection_lists_nodes_weights_and_parity(tmp_path: Path) -> None:
    constants = {"w": weights(4, 2, 3, 3), "bias": weights(4, 1, 1)}
    nodes = [
        node("Conv", "x w", "c", name="conv"),
        node("Add", "c bias", "h", name="bias_add"),
        node("Relu", "h", "unused"),
    ]
    constants["bias"] = weights(4, 1, 1)
    file = classifier(nodes, constants, features=64)
    helper.set_model_props(file, {"author": "someone"})
    seen = onnx_io.inspect(save(file, tmp_path), mean=(0.5,))
    assert seen.supported
    assert seen.problems == ()
    rows = {r.name: (r.status, r.layers, r.parameters, r.shape) for r in seen.nodes}
    assert rows == {
        "conv": ("supported", ("Conv2d",), 72, (4, 4, 4)),
        "bias_add": ("supported", ("bias of Conv2d",), 4, (4, 4, 4)),
        "Relu_2": ("unused", (), 0, None),
        "Flatten_3": ("supported", ("Reshape(64,)",), 0, (64,)),
        "Gemm_4": ("supported", ("Linear",), 195, (3,)),
    }
    assert seen.trainable_parameters == 72 + 4 + 195
    assert seen.operators == {"Conv": 1, "Add": 1, "Relu": 1, "Flatten": 1, "Gemm": 1}
    assert (seen.opset, seen.ir_version, seen.num_classes) == (13, 8, 3)
    assert seen.metadata == {"author": "someone"}
    assert seen.parity is not None
    assert seen.parity.holds
    content = json.loads(json.dumps(seen.to_json(), allow_nan=False))
    assert content["contract"]["mean"] == [0.5, 0.5]
    assert content["nodes"][0]["layers"] == ["Conv2d"]
    assert content["parity"]["holds"] is True
    titles, lines = seen.table()
    assert len(lines) == 5
    assert all(len(line) == len(titles) for line in lines)
    assert dict(seen.summary())["trainable parameters"] == "271"


def test_inspection_goes_on_behind_an_unsupported_node(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "a"), node("Elu", "a", "b", name="bad"), node("Tanh", "b", "h")]
    seen = onnx_io.inspect(save(classifier(nodes, features=72), tmp_path))
    assert not seen.supported
    assert seen.parity is None
    assert seen.num_classes is None
    (problem,) = seen.problems
    assert "node 'bad' (operator Elu, opset 13) is not supported" in problem
    states = [r.status for r in seen.nodes]
    assert states == ["supported", "unsupported", "unchecked", "unchecked", "unchecked"]
    assert "problem" in dict(seen.summary())
    json.dumps(seen.to_json(), allow_nan=False)


def test_inspection_names_every_unsupported_node(tmp_path: Path) -> None:
    nodes = [node("Elu", "x", "a", name="one"), node("Selu", "x", "b", name="two"), node("Add", "a b", "h")]
    seen = onnx_io.inspect(save(classifier(nodes, features=72), tmp_path))
    assert [r.name for r in seen.nodes if r.status == "unsupported"] == ["one", "two"]


def test_inspection_of_an_opset_that_cannot_be_upgraded(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "h", consumed_inputs=[0])]
    seen = onnx_io.inspect(save(classifier(nodes, features=72, opset=1), tmp_path))
    assert "cannot bring it from opset 1" in seen.problems[0]
    assert [r.operator for r in seen.nodes] == ["Relu", "Flatten", "Gemm"]


def test_inspection_lists_the_nodes_of_the_file_and_not_those_of_its_upgrade(tmp_path: Path) -> None:
    nodes = [node("Unsqueeze", "x", "a", axes=[1]), node("Squeeze", "a", "h", axes=[1])]
    seen = onnx_io.inspect(save(classifier(nodes, features=72, opset=9), tmp_path))
    assert [(r.operator, r.status) for r in seen.nodes] == [
        ("Unsqueeze", "supported"),
        ("Squeeze", "supported"),
        ("Flatten", "supported"),
        ("Gemm", "supported"),
    ]
    assert seen.supported


def test_inspection_of_a_file_that_onnxruntime_does_not_load(tmp_path: Path) -> None:
    seen = onnx_io.inspect(save(classifier([node("Relu", "x", "h")], features=72, ir_version=99), tmp_path))
    assert "does not load it" in seen.problems[0]
    assert len(seen.nodes) == 3
