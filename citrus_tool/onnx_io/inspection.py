"""What `citrus inspect` tells about a file: every node and what supports it, weights, input contract, parity."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

from citrus_tool.errors import CitrusError, UnsupportedNetworkError
from citrus_tool.onnx_io.contract import InputContract
from citrus_tool.onnx_io.import_graph import NodeRecord
from citrus_tool.onnx_io.onnx_file import load, named
from citrus_tool.onnx_io.reader import interpret
from citrus_tool.onnx_io.runner import OnnxRunner, Parity, parity

STATUS = {
    "supported": "dropped, it changes nothing",
    "constant": "constant",
    "unused": "not used, it does not reach the output",
    "unchecked": "not checked, it follows an unsupported node",
    "unsupported": "unsupported",
}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A file as citrus sees it.

    Attributes:
        nodes: one record per ONNX node, in the file's order.
        operators: how often each operator occurs.
        trainable_parameters: entries that training may change, shared ones counted once.
        num_classes, parity: None where the file cannot be read.
        problems: why it cannot be read or trusted, one sentence each; empty when all is well.
    """

    path: Path
    sha256: str
    opset: int
    ir_version: int
    producer: str
    metadata: dict[str, str]
    input_name: str
    output_name: str
    contract: InputContract
    nodes: tuple[NodeRecord, ...]
    operators: dict[str, int]
    trainable_parameters: int
    num_classes: int | None
    parity: Parity | None
    problems: tuple[str, ...]

    @property
    def supported(self) -> bool:
        """Whether citrus can read the file."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers, ready for json.dumps."""
        return asdict(self) | {"path": str(self.path), "supported": self.supported, "parity": self._parity_to_json()}

    def _parity_to_json(self) -> dict[str, float | bool | None] | None:
        if self.parity is None:
            return None
        figures = {name: v if math.isfinite(v) else None for name, v in asdict(self.parity).items()}
        return figures | {"holds": self.parity.holds}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column titles and one row per node: name, operator, what supports it, parameters, output shape."""
        titles = ["node", "operator", "read as", "parameters", "output"]
        return titles, [
            [
                node.name,
                node.operator,
                "; ".join(t for t in (" + ".join(node.layers), node.reason) if t) or STATUS[node.status],
                str(node.parameters or ""),
                "x".join(map(str, node.shape)) if node.shape is not None else "",
            ]
            for node in self.nodes
        ]

    def summary(self) -> list[tuple[str, str]]:
        """(what, value) lines for readers: file, input, output, parameters, parity, problems."""
        contract, found = self.contract, self.parity
        normalised = any(contract.mean) or any(s != 1.0 for s in contract.std)
        agreement = "not compared"
        if found is not None:
            agreement = (
                f"{found.batch_1:.2g} at batch 1, {found.batch_64:.2g} at batch 64, allowed {found.tolerance:.2g}"
            )
        return [
            ("file", f"{self.path}, sha256 {self.sha256}"),
            ("format", f"opset {self.opset}, IR {self.ir_version}, by {self.producer or 'unknown'}"),
            (
                "input",
                f"{self.input_name!r} {contract.file_shape} {contract.layout}, pixels {contract.pixel_shape}"
                + (f", mean {contract.mean}, std {contract.std}" if normalised else "")
                + (", one at a time" if contract.batch == 1 else ", any batch"),
            ),
            ("output", f"{self.output_name!r}, {self.num_classes if self.num_classes is not None else '?'} classes"),
            ("operators", ", ".join(f"{name} {count}" for name, count in sorted(self.operators.items()))),
            ("trainable parameters", f"{self.trainable_parameters:,}"),
            ("difference from onnxruntime", agreement),
            *(("metadata", f"{key}: {value}") for key, value in self.metadata.items()),
            *(("problem", problem) for problem in self.problems),
        ]


def inspect(
    path: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: Sequence[int] | None = None,
    samples: Tensor | None = None,
) -> Inspection:
    """Looks at a file as `read` would (same options, samples (n, C, H, W)), but reports unsupported nodes and failed
    parity as `problems`.

    Raises InputFileError, UnsupportedNetworkError or UsageError only where there is no graph with one input and one
    output to list, or where the options do not fit it.
    """
    source = load(Path(path))
    problems: list[str] = []
    options: dict[str, Any] = {"mean": mean, "std": std, "input_shape": input_shape}
    try:
        reading = interpret(source, **options)
    except UnsupportedNetworkError as error:  # the upgrade of the opset failed: list the nodes as they are
        problems.append(str(error))
        reading = interpret(source, **options, upgrade=False)
    lowered, contract = reading.lowered, reading.contract
    if lowered.problem is not None:
        problems.append(str(lowered.problem))
    found: Parity | None = None
    try:
        runner = OnnxRunner(source, contract)
        if contract.batch is None and not runner.takes_batches():
            contract = replace(contract, batch=1)
            runner = OnnxRunner(source, contract)
        if lowered.network is not None:
            found = parity(lowered.network, runner, samples=samples)
            if not found.holds:
                problems.append(
                    f"{path}: torch and onnxruntime differ by {found.worst:.3g}, allowed {found.tolerance:.3g}."
                )
    except CitrusError as error:
        problems.append(str(error))
    records = {record.name: record for record in lowered.records}
    return Inspection(
        path=source.path,
        sha256=source.sha256,
        opset=source.opset,
        ir_version=source.proto.ir_version,
        producer=f"{source.proto.producer_name} {source.proto.producer_version}".strip(),
        metadata={p.key: p.value for p in source.proto.metadata_props},
        input_name=source.input_name,
        output_name=source.output_name,
        contract=contract,
        nodes=tuple(records.get(n.name, _gone(n)) for n in named(source.proto).graph.node),
        operators=dict(Counter(n.op_type for n in source.proto.graph.node)),
        trainable_parameters=sum(record.parameters for record in lowered.records),
        num_classes=lowered.network.num_classes if lowered.network is not None else None,
        parity=found,
        problems=tuple(problems),
    )


def _gone(node: onnx.NodeProto) -> NodeRecord:
    """A node that the upgrade to a newer opset replaced."""
    return NodeRecord(name=node.name, operator=node.op_type, status="supported", reason="replaced by the opset upgrade")
