"""Published networks: they import, agree with onnxruntime, and take their weights back (../shared/models)."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from citrus_tool import onnx_io
from onnx_io.build import answer, random_inputs

# name: (trainable entries, pixel shape, layout)
NETWORKS: dict[str, tuple[int, tuple[int, ...], str]] = {
    "cifar10convSmallRELUDiffAI.onnx": (125_318, (3, 32, 32), "nchw"),
    "cifar_base_kw.onnx": (105_966, (3, 32, 32), "nchw"),
    "cifar_deep_kw.onnx": (54_902, (3, 32, 32), "nchw"),
    "citrus_convsmall_1.onnx": (89_606, (1, 28, 28), "nchw"),
    "citrus_convsmall_2.onnx": (125_318, (3, 32, 32), "nchw"),
    "marabou_cifar10_small.onnx": (85_218, (3, 32, 32), "nhwc"),
    "mnist-net_256x2.onnx": (269_322, (1, 28, 28), "flat"),
    "mnist-net_256x4.onnx": (400_906, (1, 28, 28), "flat"),
    "mnist_convSmallRELU__Point.onnx": (89_606, (1, 28, 28), "nchw"),
    "mnist_ffnnSIGMOID__Point_6x200.onnx": (360_010, (1, 28, 28), "nchw"),
    "mnist_relu_3_50.onnx": (42_310, (1, 28, 28), "nchw"),
    "mnistconvSmallRELUDiffAI.onnx": (89_606, (1, 28, 28), "nchw"),
    "resnet_2b.onnx": (112_006, (3, 32, 32), "nchw"),
    "sabr_convsmall_1.onnx": (89_606, (1, 28, 28), "nchw"),
    "sabr_convsmall_2.onnx": (125_318, (3, 32, 32), "nchw"),
    "sri_resnet_a.onnx.gz": (354_486, (3, 32, 32), "nchw"),
}


@pytest.fixture(params=sorted(NETWORKS))
def file(request: pytest.FixtureRequest, shared_models: Path) -> Path:
    path: Path = shared_models / request.param
    if not path.is_file():
        pytest.skip(f"{path.name} is not in ../shared/models")
    return path


def content(path: Path) -> onnx.ModelProto:
    data = path.read_bytes()
    return onnx.ModelProto.FromString(gzip.decompress(data) if path.suffix == ".gz" else data)


def test_every_network_in_the_folder_is_listed_here(shared_models: Path) -> None:
    assert {p.name for p in shared_models.glob("*.onnx*")} == set(NETWORKS)


def test_import_agrees_with_onnxruntime_and_trains_all_weights(file: Path) -> None:
    count, shape, layout = NETWORKS[file.name]
    model = onnx_io.read(file, input_shape=shape)  # type: ignore[arg-type]
    assert model.parity <= 1e-4
    assert model.contract.layout == layout
    assert model.contract.pixel_shape == model.network.input_shape == shape
    assert sum(p.numel() for p in model.network.parameters() if p.requires_grad) == count
    # what is left of the file's float numbers is normalisation: at most mean and std
    floats = {n: numpy_helper.to_array(t) for n, t in _constants(content(file))}
    assert count <= sum(v.size for v in floats.values() if v.dtype == np.float32) <= count + 6
    x = random_inputs(64, shape)
    expected = answer(content(file), torch.from_numpy(model.contract.to_file(x)))
    with torch.no_grad():
        for batch in (1, 64):
            ours = torch.cat([model.network(part) for part in x.split(batch)])
            assert np.abs(ours.numpy() - expected).max() <= 1e-4
    np.testing.assert_allclose(onnx_io.OnnxRunner(model).logits(x), expected, atol=1e-4)


def test_weights_go_back_into_the_file(file: Path, tmp_path: Path) -> None:
    model = onnx_io.read(file)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    written = onnx_io.write(model, tmp_path / file.name, metadata={"method": "test"})
    assert written.path == tmp_path / file.name
    again = onnx_io.read(tmp_path / file.name)
    for ours, theirs in zip(model.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    before, after = content(file), content(tmp_path / file.name)
    assert before.opset_import == after.opset_import
    assert before.ir_version == after.ir_version
    assert (before.graph.input, before.graph.output) == (after.graph.input, after.graph.output)
    assert [_outline(n) for n in before.graph.node] == [_outline(n) for n in after.graph.node]
    assert [(t.name, t.dims, t.data_type) for _, t in _constants(before)] == [
        (t.name, t.dims, t.data_type) for _, t in _constants(after)
    ]
    assert {p.key: p.value for p in after.metadata_props}["method"] == "test"
    x = random_inputs(8, model.contract.pixel_shape)
    with torch.no_grad():
        expected = answer(after, torch.from_numpy(model.contract.to_file(x)))
        np.testing.assert_allclose(model.network(x).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_export_gives_the_same_function(file: Path, tmp_path: Path) -> None:
    model = onnx_io.read(file)
    exported = onnx_io.export(model.network, tmp_path / "e.onnx", metadata={})
    assert exported.contract.batch is None
    x = random_inputs(8, model.contract.pixel_shape)
    with torch.no_grad():
        np.testing.assert_allclose(exported.network(x).numpy(), model.network(x).numpy(), rtol=1e-4, atol=1e-4)


def _outline(node: onnx.NodeProto) -> object:
    """A node without the numbers of a Constant."""
    attributes = [a for a in node.attribute if a.name != "value"]
    return node.op_type, node.name, list(node.input), list(node.output), attributes


def _constants(model: onnx.ModelProto) -> list[tuple[str, onnx.TensorProto]]:
    found = [(t.name, t) for t in model.graph.initializer]
    return found + [(n.output[0], n.attribute[0].t) for n in model.graph.node if n.op_type == "Constant"]
