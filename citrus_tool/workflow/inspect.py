"""What is in a file."""

from __future__ import annotations

from citrus_tool import onnx_io
from citrus_tool.onnx_io import Inspection
from citrus_tool.sources import PARITY_SAMPLES, DataChoice, ModelChoice


def inspect_file(model: ModelChoice, choice: DataChoice | None = None) -> Inspection:
    """What is in an ONNX file, what supports each operator, and how well citrus agrees with onnxruntime on it."""
    if choice is None:
        return onnx_io.inspect(model.path, mean=model.mean, std=model.std)
    dataset = choice.load("test")
    return onnx_io.inspect(
        model.path,
        mean=model.mean,
        std=model.std,
        input_shape=dataset.shape,
        samples=dataset.take(PARITY_SAMPLES).pixels(),
    )
