"""A torch.nn.Module -> the bytes of an ONNX file, so that modules and files are read by one reader.

By torch's tracing exporter, which torch calls deprecated: its warnings are for its users, not for ours, and dropped.
The newer one (`dynamo=True`) needs onnxscript and onnx-ir at run time, takes 4 to 21 s where tracing takes under one
(torch 2.13, five small networks), may answer opset 17 with a file of opset 18, and warns too. Both give graphs that
citrus reads to the same parity with onnxruntime.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from citrus_tool.errors import UnsupportedNetworkError, UsageError

OPSET = 17
"""Opset of the file: the tracing exporter writes it and onnx2torch reads it, so nothing is converted."""


def to_onnx(module: nn.Module, input_shape: Sequence[int]) -> bytes:
    """`module` in evaluation mode, float32, as an ONNX file with a free batch axis; the module stays as it is.

    Args:
        input_shape: per sample, without the batch axis: (C, H, W), or (d,) for flat inputs.

    Raises:
        UsageError: the shape has no positive sizes.
        UnsupportedNetworkError: the module does not run on such an input, or torch cannot trace it.
    """
    if not input_shape or any(s < 1 for s in input_shape):
        raise UsageError(f"input_shape is {tuple(input_shape)}; give the sizes of one input, such as (3, 32, 32).")
    name = type(module).__name__
    twin = copy.deepcopy(module).cpu().float().eval()
    x = torch.zeros(2, *input_shape)  # two inputs: a batch of one would let a size of 1 pass for a constant
    try:
        with torch.no_grad(), warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="citrus-") as folder:
            warnings.simplefilter("ignore")
            y = twin(x)
            torch.onnx.export(
                twin,
                (x,),
                Path(folder) / "module.onnx",
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
                opset_version=OPSET,
                dynamo=False,
            )
            data = (Path(folder) / "module.onnx").read_bytes()
    except Exception as error:  # whatever a user's forward raises, and torch's own exporter errors
        raise UnsupportedNetworkError(
            f"module {name}: cannot be exported to ONNX for inputs of shape {tuple(input_shape)}"
            f" ({str(error).splitlines()[0] if str(error) else type(error).__name__}); check input_shape, or export it"
            " yourself and load the file."
        ) from None
    if not isinstance(y, torch.Tensor) or y.dim() != 2 or len(y) != 2:
        shape = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
        raise UnsupportedNetworkError(
            f"module {name}: gives {shape} for 2 inputs; a classifier returns one tensor of logits, (n, classes)."
        )
    return data
