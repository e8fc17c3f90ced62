"""ONNX file -> OnnxModel: load, upgrade, lower, compare with onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from citrus_tool.onnx_io.contract import InputContract, detect
from citrus_tool.onnx_io.import_graph import Lowered, lower
from citrus_tool.onnx_io.model import OnnxModel
from citrus_tool.onnx_io.onnx_file import OnnxFile, constants, load, named, upgraded
from citrus_tool.onnx_io.runner import OnnxRunner, require_parity


def read(
    path: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: Sequence[int] | None = None,
    samples: Tensor | None = None,
) -> OnnxModel:
    """Reads an ONNX classifier (.onnx or .onnx.gz) as a Network from pixel space [0, 1] to logits.

    Args:
        mean, std: normalisation in front of the file's input, one value or one per channel; default none.
        input_shape: (C, H, W) of the data when known; settles channels-last and flat inputs.
        samples: real inputs (n, C, H, W) in pixel space that the parity check uses besides random ones.

    Raises:
        InputFileError: missing, unreadable or no ONNX file; NaN weights; input shape that does not fit the data.
        UnsupportedNetworkError: names file, node, operator, opset, and what to do.
        UsageError: mean or std of the wrong length, std not above 0.
        CheckFailedError: the Network differs from onnxruntime by more than 1e-4 of max(1, largest |logit|).
    """
    return assemble(load(Path(path)), mean=mean, std=std, input_shape=input_shape, samples=samples)


def assemble(
    source: OnnxFile,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: Sequence[int] | None = None,
    samples: Tensor | None = None,
    classifier: bool = True,
) -> OnnxModel:
    """`read` for a file that is loaded already; no `classifier`: its output may have any shape, and is flattened."""
    reading = interpret(source, mean=mean, std=std, input_shape=input_shape, classifier=classifier)
    network = reading.lowered.network
    if network is None:
        assert reading.lowered.problem is not None
        raise reading.lowered.problem
    runner = OnnxRunner(source, reading.contract)
    if reading.contract.batch is None and not runner.takes_batches():
        runner = OnnxRunner(source, replace(reading.contract, batch=1))
    found = require_parity(network, runner, source.path, samples=samples)
    return OnnxModel(
        path=source.path,
        sha256=source.sha256,
        proto=source.proto,
        network=network,
        contract=runner.contract,
        bindings=reading.lowered.bindings,
        opset=source.opset,
        parity=found.worst,
    )


@dataclass(frozen=True, kw_only=True)
class Interpreted:
    """A file's input contract and what lowering made of its graph."""

    contract: InputContract
    lowered: Lowered


def interpret(
    source: OnnxFile,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    input_shape: Sequence[int] | None,
    upgrade: bool = True,
    classifier: bool = True,
) -> Interpreted:
    """Settles the contract and lowers the graph, upgraded where needed; nothing is compared with onnxruntime yet.

    Without `upgrade` the nodes are read as they stand (for `inspect`, when the upgrade fails). `classifier` as in
    `assemble`.
    """
    where = str(source.path)
    contract = detect(source.input_shape, batch=source.batch, input_shape=input_shape, mean=mean, std=std, where=where)
    proto = named(source.proto)
    graph = (upgraded(proto, source.opset, where) if upgrade else proto).graph
    lowered = lower(
        graph,
        contract,
        input_name=source.input_name,
        where=where,
        opset=source.opset,
        tensors=[name for name, _ in constants(source.proto)],
        classifier=classifier,
    )
    return Interpreted(contract=contract, lowered=lowered)
