"""Weights back into the file: every place a weight can stand, metadata, and nothing half written."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from citrus_tool import onnx_io
from citrus_tool.errors import CheckFailedError, InputFileError, UnsupportedNetworkError, UsageError
from citrus_tool.network import Affine
from citrus_tool.onnx_io import OnnxModel
from onnx_io.build import Array, answer, classifier, ints, node, proto, random_inputs, save, weights

F = np.float32


def perturb(model: OnnxModel, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def write(model: OnnxModel, path: Path) -> OnnxModel:
    """Writes, and checks the file on onnxruntime against the network that was written."""
    written = onnx_io.write(model, path, metadata={})
    x = random_inputs(4, model.contract.pixel_shape)
    expected = answer(onnx.load(path), torch.from_numpy(model.contract.to_file(x)))
    with torch.no_grad():
        np.testing.assert_allclose(model.network(x).numpy(), expected, atol=1e-4)
    return written


@pytest.fixture
def model(tmp_path: Path) -> OnnxModel:
    return onnx_io.read(save(classifier([node("Relu", "x", "h")], features=72), tmp_path, "original.onnx"))


def _constant(name: str, value: Array, *, raw: bool = True) -> onnx.NodeProto:
    tensor = numpy_helper.from_array(value) if raw else helper.make_tensor("", 1, value.shape, value.reshape(-1))
    return helper.make_node("Constant", [], [name], value=tensor)


PLACES: dict[str, tuple[list[onnx.NodeProto], dict[str, Array]]] = {
    "gemm": ([node("Gemm", "a w b", "y")], {"w": weights(72, 3), "b": weights(3)}),
    "gemm_transposed": ([node("Gemm", "a w b", "y", transB=1)], {"w": weights(3, 72), "b": weights(1, 3)}),
    "gemm_scaled": ([node("Gemm", "a w b", "y", alpha=0.3, beta=3.0)], {"w": weights(72, 3), "b": weights(3)}),
    "matmul": ([node("MatMul", "a w", "m"), node("Add", "m b", "y")], {"w": weights(72, 3), "b": weights(1, 3)}),
    "constant_node": ([_constant("w", weights(72, 3)), node("MatMul", "a w", "y")], {}),
    "constant_node_floats": ([_constant("w", weights(72, 3), raw=False), node("MatMul", "a w", "y")], {}),
    "transposed_twice": (
        [node("Transpose", "w", "t"), node("Gemm", "a t b", "y", transB=1)],
        {"w": weights(72, 3), "b": weights(3)},
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_weights_return_to_where_they_came_from(place: str, tmp_path: Path) -> None:
    nodes, constants = PLACES[place]
    file = proto([node("Flatten", "x", "a"), *nodes], constants)
    model = onnx_io.read(save(file, tmp_path))
    assert model.bindings
    perturb(model)
    again = write(model, tmp_path / "out.onnx")
    for ours, theirs in zip(model.network.parameters(), again.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    written = onnx.load(tmp_path / "out.onnx")
    assert [n.op_type for n in written.graph.node] == [n.op_type for n in file.graph.node]
    assert [t.dims for t in written.graph.initializer] == [t.dims for t in file.graph.initializer]


def test_numbers_stay_in_their_field(tmp_path: Path) -> None:
    file = proto(
        [node("Flatten", "x", "a"), node("MatMul", "a w", "m"), node("Add", "m b", "y")], {"w": weights(72, 3)}
    )
    file.graph.initializer.append(helper.make_tensor("b", 1, [3], [0.1, 0.2, 0.3]))
    model = onnx_io.read(save(file, tmp_path))
    perturb(model)
    write(model, tmp_path / "out.onnx")
    raw, floats = onnx.load(tmp_path / "out.onnx").graph.initializer
    assert raw.HasField("raw_data")
    assert not floats.HasField("raw_data")
    assert len(floats.float_data) == 3


def test_running_statistics_are_written(tmp_path: Path) -> None:
    constants = {"s": np.ones(2, F), "o": weights(2, seed=1), "m": weights(2, seed=2), "v": np.full(2, 2.0, F)}
    model = onnx_io.read(
        save(classifier([node("BatchNormalization", "x s o m v", "h")], constants, features=72), tmp_path)
    )
    perturb(model)
    norm = next(n.layer for n in model.network.nodes if isinstance(n.layer, torch.nn.BatchNorm2d))
    model.network.train()
    for _ in range(3):
        model.network(random_inputs(16))
    model.network.eval()
    assert norm.running_var is not None
    assert not torch.equal(norm.running_var, torch.full((2,), 2.0))
    write(model, tmp_path / "out.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert np.array_equal(stored["v"], norm.running_var.numpy())


def test_training_momentum_is_that_of_the_file(tmp_path: Path) -> None:
    constants = {"s": np.ones(2, F), "o": weights(2, seed=1), "m": weights(2, seed=2), "v": np.full(2, 2.0, F)}
    norm = node("BatchNormalization", "x s o m v", "h", momentum=0.75, epsilon=0.5)
    model = onnx_io.read(save(classifier([norm], constants, features=72), tmp_path))
    layer = next(n.layer for n in model.network.nodes if isinstance(n.layer, torch.nn.BatchNorm2d))
    assert (layer.momentum, layer.eps) == (0.25, 0.5)


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c", pads=[1, 1, 1, 1]), node("Conv", "c w", "h", pads=[1, 1, 1, 1])]
    model = onnx_io.read(save(classifier(nodes, {"w": weights(2, 2, 3, 3)}, features=72), tmp_path))
    perturb(model)
    again = write(model, tmp_path / "out.onnx")
    assert sum(p.numel() for p in again.network.parameters()) == 36 + 3 * 72 + 3


def test_shared_weights_that_were_torn_apart_are_refused(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c", pads=[1, 1, 1, 1]), node("Conv", "c w", "h", pads=[1, 1, 1, 1])]
    model = onnx_io.read(save(classifier(nodes, {"w": weights(2, 2, 3, 3)}, features=72), tmp_path))
    first = next(n.layer for n in model.network.nodes if isinstance(n.layer, torch.nn.Conv2d))
    first.weight = torch.nn.Parameter(first.weight.detach() + 1)
    with pytest.raises(UnsupportedNetworkError, match="'w' is shared by several layers, and they no longer agree"):
        onnx_io.write(model, tmp_path / "out.onnx", metadata={})


def test_metadata_is_added_to_what_is_there(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=72)
    helper.set_model_props(file, {"author": "someone", "eps": "old"})
    model = onnx_io.read(save(file, tmp_path))
    onnx_io.write(model, tmp_path / "out.onnx", metadata={"eps": "0.1", "method": "citrus"})
    assert onnx_io.inspect(tmp_path / "out.onnx").metadata == {"author": "someone", "eps": "0.1", "method": "citrus"}


def test_nothing_but_weights_and_metadata_changes(model: OnnxModel, tmp_path: Path) -> None:
    """Written unchanged, the file is the original with metadata."""
    onnx_io.write(model, tmp_path / "out.onnx", metadata={})
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(model.path)


def test_digest_is_that_of_the_file(model: OnnxModel, tmp_path: Path) -> None:
    assert model.sha256 == hashlib.sha256(model.path.read_bytes()).hexdigest()
    for name in ("out.onnx", "out.onnx.gz"):
        written = onnx_io.write(model, tmp_path / name, metadata={})
        assert written.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_gzipped_output_is_the_plain_file_and_reproducible(model: OnnxModel, tmp_path: Path) -> None:
    for name in ("out.onnx", "a.onnx.gz", "b.onnx.gz"):
        onnx_io.write(model, tmp_path / name, metadata={"k": "v"})
    assert gzip.decompress((tmp_path / "a.onnx.gz").read_bytes()) == (tmp_path / "out.onnx").read_bytes()
    assert (tmp_path / "a.onnx.gz").read_bytes() == (tmp_path / "b.onnx.gz").read_bytes()
    assert onnx_io.read(tmp_path / "a.onnx.gz").parity < 1e-4


def test_contract_is_kept(tmp_path: Path) -> None:
    file = classifier([node("Relu", "x", "h")], features=90, shape=(6, 5, 3))
    model = onnx_io.read(save(file, tmp_path), mean=(0.1, 0.2, 0.3), std=(0.5,), input_shape=(3, 6, 5))
    perturb(model)
    written = write(model, tmp_path / "out.onnx")
    assert written.contract == model.contract


def test_an_existing_file_is_replaced(model: OnnxModel, tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_text("old")
    onnx_io.write(model, tmp_path / "out.onnx", metadata={})
    assert onnx_io.read(tmp_path / "out.onnx").network.num_classes == 3


@pytest.mark.parametrize("name", ["original.onnx", "link.onnx"])
def test_the_original_is_never_overwritten(name: str, model: OnnxModel, tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to(model.path)
    before = model.path.read_bytes()
    with pytest.raises(UsageError, match="is the network that was read; give the result another name"):
        onnx_io.write(model, tmp_path / name, metadata={})
    assert model.path.read_bytes() == before


def test_missing_folder(model: OnnxModel, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"out.onnx: the folder .*absent does not exist"):
        onnx_io.write(model, tmp_path / "absent" / "out.onnx", metadata={})


def test_folder_as_name(model: OnnxModel, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="is a folder; name a file"):
        onnx_io.write(model, tmp_path, metadata={})


def test_folder_that_is_not_writable(model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)  # root may write everywhere, whatever the folder's mode
    with pytest.raises(InputFileError, match=r"cannot be written to \(Permission denied\); name another folder"):
        onnx_io.write(model, tmp_path / "out.onnx", metadata={})


def test_full_disk_leaves_nothing_behind(model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.onnx").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputFileError, match=r"out.onnx: cannot be written \(No space left on device\)"):
        onnx_io.write(model, tmp_path / "out.onnx", metadata={})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["original.onnx", "out.onnx"]
    assert (tmp_path / "out.onnx").read_text() == "old"


def test_diverged_weights_are_not_written(model: OnnxModel, tmp_path: Path) -> None:
    with torch.no_grad():
        next(model.network.parameters())[0] = float("nan")
    with pytest.raises(CheckFailedError, match="became NaN or infinite; training diverged, nothing was written"):
        onnx_io.write(model, tmp_path / "out.onnx", metadata={})
    assert not (tmp_path / "out.onnx").exists()


def test_a_change_that_the_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    """A constant (normalisation) was changed: the written file would compute something else."""
    model = onnx_io.read(save(classifier([node("Mul", "x c", "h")], {"c": np.ones(1, F)}, features=72), tmp_path))
    affine = next(n.layer for n in model.network.nodes if isinstance(n.layer, Affine))
    affine.scale.mul_(2)
    with pytest.raises(CheckFailedError, match="the torch network and onnxruntime differ by"):
        onnx_io.write(model, tmp_path / "out.onnx", metadata={})
    assert not (tmp_path / "out.onnx").exists()


def test_another_network_is_refused(model: OnnxModel, tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "h")]
    other = onnx_io.read(save(classifier(nodes, {"w": weights(4, 2, 3, 3)}, features=64), tmp_path))
    with pytest.raises(UnsupportedNetworkError, match=r"the network no longer has .* a changed graph is written with"):
        onnx_io.write(dataclasses.replace(model, network=other.network), tmp_path / "out.onnx", metadata={})


def test_a_network_in_float64_and_training_mode_is_written_as_float32(model: OnnxModel, tmp_path: Path) -> None:
    model.network.double().train()
    perturb(model)
    written = onnx_io.write(model, tmp_path / "out.onnx", metadata={})
    assert all(p.dtype == torch.float32 for p in written.network.parameters())


def test_integer_shapes_survive(tmp_path: Path) -> None:
    model = onnx_io.read(save(classifier([node("Reshape", "x s", "h")], {"s": ints(0, -1)}, features=72), tmp_path))
    perturb(model)
    write(model, tmp_path / "out.onnx")
