"""OnnxModel: an ONNX file together with its reading as a Network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from citrus_tool.network import Network
from citrus_tool.onnx_io.contract import InputContract
from citrus_tool.onnx_io.lowering import Binding


@dataclass(frozen=True, kw_only=True)
class OnnxModel:
    """A file that was read and compared with onnxruntime.

    Attributes:
        sha256: of the file's bytes (and of its external data, if any).
        proto: the file's content, external data embedded.
        network: pixel space -> logits, float32, evaluation mode; starts with the contract's normalisation and layout.
        contract: the file's input.
        bindings: which entries of the network's state dict show which tensors of the file.
        opset: as in the file.
        parity: largest |torch - onnxruntime| seen.
    """

    path: Path
    sha256: str
    proto: onnx.ModelProto
    network: Network
    contract: InputContract
    bindings: tuple[Binding, ...]
    opset: int
    parity: float
