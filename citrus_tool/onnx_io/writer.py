"""Network -> ONNX file: `write` puts trained weights back into the original file, `export` writes a graph anew.

Both compare the bytes that they are about to write with the torch network on onnxruntime, write them under a
temporary name in the target's folder and rename: a file under its final name is whole and checked.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from citrus_tool.errors import CheckFailedError, UnsupportedNetworkError, UsageError
from citrus_tool.files import require_writable_file, write_bytes
from citrus_tool.network import Network
from citrus_tool.onnx_io.contract import InputContract
from citrus_tool.onnx_io.export_graph import to_proto
from citrus_tool.onnx_io.model import OnnxModel
from citrus_tool.onnx_io.onnx_file import constants, parse
from citrus_tool.onnx_io.reader import assemble
from citrus_tool.onnx_io.runner import OnnxRunner, require_parity


def write(model: OnnxModel, path: str | Path, *, metadata: Mapping[str, str]) -> OnnxModel:
    """Writes the current weights of `model.network` into a copy of the original file; all else stays as it was.

    I/O names, shapes, opset, IR version, operators and node names are those of the original; `metadata` is added to
    its metadata_props (same keys are replaced). A name that ends in .gz is written gzipped.

    The file that the model was read from is never overwritten (UsageError); any other existing file is.

    Raises:
        UnsupportedNetworkError: the network is not the one that was read (layers added or removed: use `export`).
        InputFileError: the folder is missing or not writable, or the disk is full.
        CheckFailedError: the file does not compute what the network computes, as when a constant was changed.
    """
    path = Path(path)
    if path.exists() and model.path.exists() and path.samefile(model.path):
        raise UsageError(f"{path} is the network that was read; give the result another name.")
    require_writable_file(path)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    _swap(proto, model)
    allowed = _complaint(model.proto)  # as of files without an output shape: the copy is no worse than the original
    return _finish(proto, path, metadata, network=model.network, contract=model.contract, allowed=allowed)


def export(
    network: Network,
    path: str | Path,
    *,
    input_name: str = "input",
    output_name: str = "output",
    metadata: Mapping[str, str],
    opset: int = 13,
    ir_version: int = 8,
) -> OnnxModel:
    """Writes a Network as a new file: one ONNX node per layer (two for an Affine that scales and shifts).

    For networks made here or whose graph was changed. The batch axis is free, the input is `network.input_shape` in
    pixel space (normalisation is part of the graph), BatchNorm stays (see `fold_batch_norm`), and the same network
    gives the same bytes. Opsets 13 to 17 can be written. Raises as `write` does.
    """
    path = Path(path)
    require_writable_file(path)
    proto = to_proto(network, input_name=input_name, output_name=output_name, opset=opset, ir_version=ir_version)
    rank3 = len(network.input_shape) == 3
    neutral = network.input_shape[0] if rank3 else 1
    contract = InputContract(
        mean=(0.0,) * neutral,
        std=(1.0,) * neutral,
        layout="nchw" if rank3 else "flat",
        file_shape=network.input_shape,
        pixel_shape=network.input_shape,
    )
    return _finish(proto, path, metadata, network=network, contract=contract)


def _finish(
    proto: onnx.ModelProto,
    path: Path,
    metadata: Mapping[str, str],
    *,
    network: Network,
    contract: InputContract,
    allowed: str = "",
) -> OnnxModel:
    properties = {p.key: p.value for p in proto.metadata_props} | dict(metadata)
    del proto.metadata_props[:]
    for key, value in properties.items():
        proto.metadata_props.add(key=key, value=value)
    complaint = _complaint(proto)
    if complaint not in ("", allowed):
        raise CheckFailedError(f"{path}: onnx.checker refuses the file ({complaint}); nothing was written.")
    data = proto.SerializeToString(deterministic=True)
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    source = parse(path, data)
    require_parity(network, OnnxRunner(source, contract), path)
    model = assemble(source, mean=contract.mean, std=contract.std, input_shape=contract.pixel_shape)
    write_bytes(path, data)
    return model


def _complaint(proto: onnx.ModelProto) -> str:
    """What onnx.checker has against a model, in one line; empty when it is well formed."""
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        return str(error).splitlines()[0]
    return ""


def _swap(proto: onnx.ModelProto, model: OnnxModel) -> None:
    """Puts every bound entry of the network's state dict into its tensor."""
    state = model.network.state_dict()
    tensors = dict(constants(proto))
    written: dict[str, NDArray[np.float32]] = {}
    for binding in model.bindings:
        view, tensor = binding.view, tensors[binding.view.tensor]
        entry = state.get(binding.parameter)
        if entry is None or tuple(entry.shape) != view.shape:
            raise UnsupportedNetworkError(
                f"{model.path}: the network no longer has {binding.parameter!r} of shape {view.shape} as it was read; "
                "a changed graph is written with onnx_io.export."
            )
        value = entry.detach().to(device="cpu", dtype=torch.float32).numpy() / np.float32(view.scale)
        dims = tuple(tensor.dims)
        value = value.T.reshape(dims) if view.transposed else value.reshape(dims)
        if not np.isfinite(value).all():
            raise CheckFailedError(
                f"{model.path}: weights {view.tensor!r} became NaN or infinite; training diverged, nothing was written."
            )
        if view.tensor in written and not np.array_equal(written[view.tensor], value):
            raise UnsupportedNetworkError(
                f"{model.path}: {view.tensor!r} is shared by several layers, and they no longer agree; "
                "a changed graph is written with onnx_io.export."
            )
        written[view.tensor] = value
        _store(tensor, value)


def _store(tensor: TensorProto, value: NDArray[np.float32]) -> None:
    """Replaces the numbers of a float32 tensor, in the field that held them."""
    if tensor.HasField("raw_data"):
        tensor.raw_data = np.ascontiguousarray(value).astype("<f4").tobytes()
    else:
        tensor.float_data[:] = value.reshape(-1).tolist()
