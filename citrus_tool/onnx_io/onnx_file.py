"""An ONNX file as it lies on disk: read, checked for what no operator rule can see, and made ready to be lowered."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, helper, inliner, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

from citrus_tool.errors import InputFileError, UnsupportedNetworkError
from citrus_tool.files import near

OLDEST_OPSET = 13
"""Rules are written for this opset and later; older files are upgraded to it by onnx.version_converter."""
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A checked ONNX file with one float32 input and one float32 output.

    Attributes:
        sha256: of the file's bytes as they lie on disk, followed by those of external data files if it has any.
        proto: as in the file; external data is embedded.
        input_shape: per sample; `batch` is 1 (fixed), None (free), or 0 (no batch axis, for `whole`).
    """

    path: Path
    sha256: str
    proto: onnx.ModelProto
    opset: int
    input_name: str
    input_shape: tuple[int, ...]
    batch: int | None
    output_name: str


def load(path: Path, *, whole: bool = False) -> OnnxFile:
    """Reads and checks `path` (.onnx, or gzipped). Raises InputFileError or UnsupportedNetworkError.

    `whole` takes the input tensor as one sample, whatever its first axis.
    """
    return parse(path, content(path), whole=whole)


def content(path: Path) -> bytes:
    """The file's bytes; raises InputFileError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        hint = near(path) or "; give the path of an ONNX network."
        raise InputFileError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise InputFileError(f"{path}: cannot be read ({error.strerror or error}).") from None


def parse(path: Path, data: bytes, *, whole: bool = False) -> OnnxFile:
    """Checks the bytes of an ONNX file; `path` is for messages and for finding external data; `whole` as in `load`.

    Raises InputFileError for what is no sound ONNX file, UnsupportedNetworkError for sparse weights and for a graph
    without one float32 input and one float32 output.
    """
    proto = _decode(path, data)
    digest = hashlib.sha256(data)
    _embed_external_data(path, proto, digest.update)
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset == 0:
        raise InputFileError(f"{path}: declares no opset of the standard ONNX operators; re-export it.")
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise UnsupportedNetworkError(f"{path}: weights {name!r} are sparse; re-export the network with dense weights.")
    for name, tensor in constants(proto):
        if tensor.data_type in FLOATS and not np.isfinite(numpy_helper.to_array(tensor).astype(np.float64)).all():
            raise InputFileError(
                f"{path}: weights {name!r} hold NaN or infinity; the file is damaged or its training diverged."
            )
    initializers = {t.name for t in proto.graph.initializer}
    inputs = [v for v in proto.graph.input if v.name not in initializers]
    for kind, values in (("input", inputs), ("output", list(proto.graph.output))):
        if len(values) != 1:
            names = ", ".join(repr(v.name) for v in values) or "none"
            raise UnsupportedNetworkError(
                f"{path}: the network has {len(values)} {kind}s ({names}); a classifier has one. Cut it out with "
                "onnx.utils.extract_model."
            )
        if values[0].type.tensor_type.elem_type != TensorProto.FLOAT:
            element = TensorProto.DataType.Name(values[0].type.tensor_type.elem_type)
            raise UnsupportedNetworkError(
                f"{path}: {kind} {values[0].name!r} has element type {element}; citrus reads float32 (FLOAT) networks."
            )
    input_shape, batch = _input_shape(path, inputs[0], whole=whole)
    return OnnxFile(
        path=path,
        sha256=digest.hexdigest(),
        proto=proto,
        opset=opset,
        input_name=inputs[0].name,
        input_shape=input_shape,
        batch=batch,
        output_name=proto.graph.output[0].name,
    )


def constants(proto: onnx.ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """(name, tensor) of every initializer and of every Constant node that holds a tensor."""
    for tensor in proto.graph.initializer:
        yield tensor.name, tensor
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], attribute.t


def named(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name (operator and position where it had none) and functions are inlined."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    for position, node in enumerate(copy.graph.node):
        node.name = node.name or f"{node.op_type}_{position}"
    return copy


def upgraded(proto: onnx.ModelProto, opset: int, where: str) -> onnx.ModelProto:
    """`proto`, whose nodes are named, at OLDEST_OPSET or later; a node that replaces another one takes its name.

    Raises UnsupportedNetworkError where ONNX does not know an operator or its converter fails.
    """
    for node in proto.graph.node:
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, ""):
            raise UnsupportedNetworkError(
                f"{where}: node {node.name!r} has operator {node.op_type}, which ONNX (opset {opset}) does not know; "
                "re-export the network with standard operators."
            )
    if opset >= OLDEST_OPSET:
        return proto
    try:
        newer = version_converter.convert_version(proto, OLDEST_OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own ConvertError for any inner assertion
        raise UnsupportedNetworkError(
            f"{where}: onnx.version_converter cannot bring it from opset {opset} to {OLDEST_OPSET} "
            f"({str(error).splitlines()[0]}); re-export it with opset {OLDEST_OPSET} or later."
        ) from None
    _name_replacements([node.name for node in proto.graph.node], newer.graph)
    return newer


def evaluated(node: onnx.NodeProto, feeds: Mapping[str, NDArray[Any]], opset: int) -> list[NDArray[Any]]:
    """The outputs (any shape) of one node by ONNX's reference implementation; raises whatever that raises."""
    graph = helper.make_graph(
        [node],
        "node",
        [onnx.ValueInfoProto(name=name) for name in feeds],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return [np.asarray(y) for y in ReferenceEvaluator(model).run(None, dict(feeds))]


def _name_replacements(names: list[str], newer: onnx.GraphProto) -> None:
    """Names the nodes that an upgrade put in: after the original node that is missing in their place, if one is."""
    present = {node.name for node in newer.node}
    following = 0  # position in `names` behind the last original node that was met
    for node in newer.node:
        if node.name:
            following = names.index(node.name) + 1
        elif following < len(names) and names[following] not in present:
            node.name = names[following]
        else:
            node.name = f"{node.op_type}_{node.output[0]}"


def _decode(path: Path, data: bytes) -> onnx.ModelProto:
    if not data:
        raise InputFileError(f"{path}: the file is empty; an ONNX network is expected.")
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputFileError(f"{path}: is not a whole gzip file ({error}); copy it again.") from None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:  # protobuf's DecodeError, from a package without type information
        proto.Clear()
    if not proto.ir_version or not proto.graph.node:
        raise InputFileError(f"{path}: is not an ONNX file (or holds no network); export the network to ONNX first.")
    return proto


def _embed_external_data(path: Path, proto: onnx.ModelProto, update: Callable[[bytes], None]) -> None:
    external = [t for _, t in constants(proto) if external_data_helper.uses_external_data(t)]
    for tensor in external:
        location = external_data_helper.ExternalDataInfo(tensor).location
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError):
            raise InputFileError(
                f"{path}: weights {tensor.name!r} lie in the external file {location!r}, which is missing or damaged; "
                "put it next to the network."
            ) from None
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
        update(tensor.raw_data)


def _input_shape(path: Path, value: onnx.ValueInfoProto, *, whole: bool) -> tuple[tuple[int, ...], int | None]:
    dims = [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
    shown = [d if d and d > 0 else "?" for d in dims]
    if whole and dims and all(dims[1:]):
        return (dims[0] or 1, *(d for d in dims[1:] if d)), 0
    sizes = [d for d in dims[1:] if d is not None and d > 0]
    if len(dims) < 2 or len(sizes) != len(dims) - 1:
        raise UnsupportedNetworkError(
            f"{path}: input {value.name!r} has shape {shown}; citrus needs a batch axis followed by fixed sizes. "
            "Re-export with a fixed input shape."
        )
    batch = dims[0] if dims[0] is not None and dims[0] > 0 else None
    if batch not in (1, None):
        raise UnsupportedNetworkError(
            f"{path}: input {value.name!r} has shape {shown}, a batch fixed to {batch}; re-export with batch 1 or free."
        )
    return tuple(sizes), batch
