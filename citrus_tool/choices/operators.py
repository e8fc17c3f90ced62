"""The ONNX operators that citrus reads between activations; `citrus inspect` says more about a file."""

from __future__ import annotations

from typing import Final

AFFINE: Final = frozenset(
    {
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Concat",
        "Conv",
        "Div",
        "Expand",
        "Flatten",
        "Gather",
        "Gemm",
        "GlobalAveragePool",
        "Identity",
        "MatMul",
        "Mul",
        "Neg",
        "Pad",
        "ReduceMean",
        "ReduceSum",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Sub",
        "Sum",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Those that are affine in one operand, which networks without a batch axis are read by (onnx_io/unbatched.py)."""
OPERATORS: Final = sorted(
    {*AFFINE, "Constant", "Dropout", "GlobalMaxPool", "LeakyRelu", "MaxPool", "Relu", "Shape", "Sigmoid", "Tanh"}
)
"""All of them, as `citrus supports` lists them; constants are folded beyond these."""
