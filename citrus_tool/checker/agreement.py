"""Holds the checker's reading of a file against onnxruntime, which runs it, on images of the proof."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from citrus_tool.checker.graph import Floats, Graph
from citrus_tool.checker.intervals import Intervals
from citrus_tool.checker.operators import first_line
from citrus_tool.errors import CheckFailedError

COMPARED: Final = 16
"""Images of a proof that are compared: a file that is read otherwise than it runs differs on nearly all."""


def require_agreement(path: Path, graph: Graph, x: Floats, run: Mapping[str, Any]) -> bool:
    """Runs the file at two levels of graph optimisation on the first COMPARED of pixels x (n, d).

    Args:
        run: the proof's `shape`, `mean`, `std`, `layout` and `clip`.

    Returns: whether onnxruntime is installed; without it nothing is compared.

    Raises CheckFailedError where logits lie outside what float32 rounding explains around the checker's own values.
    """
    try:
        import onnxruntime
    except ImportError:
        return False
    some = x[:COMPARED]
    pixels = some.astype(np.float32).reshape(-1, *run["shape"])
    place = (-1, *[1] * (pixels.ndim - 2))
    mean, std = (np.asarray(run[name], dtype=np.float32).reshape(place) for name in ("mean", "std"))
    given = (np.clip(pixels, 0, 1) if run["clip"] else pixels) - mean
    given = (given / std).astype(np.float32)
    given = given.transpose(0, 2, 3, 1) if run["layout"] == "nhwc" else given
    around = Intervals(graph, some.T, 0.0, "float32")
    lower, upper = around.lower[-1].T, around.upper[-1].T
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            found = np.stack([_logits(session, one) for one in given])
        except Exception as error:  # onnxruntime has a class of its own for each failure
            raise CheckFailedError(
                f"{path}: onnxruntime does not run it on the proof's images ({first_line(error)})."
            ) from None
        if found.shape != lower.shape or not bool(((lower <= found) & (found <= upper)).all()):
            raise CheckFailedError(
                f"{path}: onnxruntime ({level}) does not compute what the checker reads, beyond rounding; the proof is"
                " not about what this file does."
            )
    return True


def _logits(session: Any, one: NDArray[np.float32]) -> Floats:
    wanted = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in wanted.shape]
    found = session.run(None, {wanted.name: one.reshape(shape)})[0]
    return np.asarray(found, dtype=np.float64).ravel()
