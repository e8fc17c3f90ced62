"""Looks for a witness on files that citrus cannot read as a Network: onnxruntime runs them on points of the box.

Any operator, several inputs and outputs, no batch axis. Nothing can be proven here.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from citrus_tool.queries.exact_boxes import InputBox
from citrus_tool.queries.spec import Spec
from citrus_tool.queries.witness import check

POINTS = 300
"""Random points tried in each box: a first look, before anything is read as a Network."""
BOXES = 20
"""Most boxes tried, of a query with many."""
EXACT = 2.0**24
"""Integer outputs below this are float32 numbers."""


def sample(
    spec: Spec, paths: Mapping[str, Path], *, deadline: float, seed: int
) -> Mapping[str, NDArray[np.float32]] | None:
    """Values of all tensors in the unsafe set of `spec`, each (*shape,) as declared, as a replay gives them; None: none
    was found.

    Tries the middle, the corners and random points of the first boxes that the query speaks of. Also None where
    onnxruntime does not load a file, or where inputs are not float32 tensors of the declared sizes.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    rounded = spec.rounded()
    generator = np.random.default_rng(seed)
    try:
        sessions = {
            name: ort.InferenceSession(_bytes(path), sess_options=options, providers=["CPUExecutionProvider"])
            for name, path in paths.items()
        }
        for _, case in zip(range(BOXES), spec.cases(limit=10**9) if spec.clauses else [spec.common_case], strict=False):
            for number in range(POINTS):
                if time.monotonic() >= deadline:
                    return None
                point = {name: _point(box, number, generator) for name, box in case.boxes.items()}
                values = _run(spec, sessions, point)
                if values is not None and check(rounded, values).holds:
                    return values
            if spec.is_box():
                return None
    except Exception:  # onnxruntime's own exceptions share no public base; a file that it cannot run has no witness
        return None
    return None


def _bytes(path: Path) -> bytes | str:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else str(path)


def _point(box: InputBox, number: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """The middle, then corners and uniform points in turn."""
    least, greatest = (side.astype(np.float64) for side in box.float32())
    share = np.full(least.shape, 0.5) if number == 0 else generator.random(least.shape)
    if number % 2:
        share = share.round()
    inside: NDArray[np.float32] = (least + (greatest - least) * share).astype(np.float32)
    return np.clip(inside, least.astype(np.float32), greatest.astype(np.float32))


def _run(
    spec: Spec, sessions: Mapping[str, object], point: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]] | None:
    import onnxruntime as ort

    values = dict(point)
    for network in spec.networks:
        session = sessions[network.equal_to or network.name]
        assert isinstance(session, ort.InferenceSession)
        feeds = {}
        for tensor, there in zip(network.inputs, session.get_inputs(), strict=True):
            shape = [size if isinstance(size, int) else 1 for size in there.shape]
            feeds[there.name] = point[tensor.name].reshape(shape)
        for tensor, value in zip(network.outputs, session.run(None, feeds), strict=True):
            found = np.asarray(value)
            if found.size != tensor.size or (found.dtype.kind in "iub" and np.abs(found.astype(float)).max() >= EXACT):
                return None
            values[tensor.name] = found.astype(np.float32).reshape(tensor.shape)
    return values
