"""The file itself, run by onnxruntime on the CPU, and how far the torch Network is from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool.bounds.crown import refine, relax
from citrus_tool.errors import CheckFailedError, UnsupportedNetworkError, UsageError
from citrus_tool.network import Evaluation, Network
from citrus_tool.onnx_io.contract import InputContract
from citrus_tool.onnx_io.model import OnnxModel
from citrus_tool.onnx_io.onnx_file import OnnxFile, load
from citrus_tool.threat import Box

PARITY_TOLERANCE = 1e-4
"""Allowed |torch - onnxruntime|, relative to max(1, largest |logit|): float32 rounding of deep networks stays below."""
PARITY_BATCH = 64
"""Random inputs of the parity check: more than one, to see a batch axis that was read wrongly."""


@final
class OnnxRunner:
    """Logits of an ONNX file by onnxruntime on the CPU.

    Args:
        source: a model that was read, a file that was loaded, or the path of a file.
        contract: how pixel space becomes the file's input; taken from the model where `source` is one.

    Raises UnsupportedNetworkError where onnxruntime does not load the file, UsageError for a path without a contract.
    """

    def __init__(self, source: OnnxModel | OnnxFile | Path, contract: InputContract | None = None) -> None:
        import onnxruntime as ort

        if isinstance(source, OnnxModel):
            contract = contract or source.contract
        if contract is None:
            raise UsageError("OnnxRunner needs the input contract of a file that was not read by onnx_io.read.")
        loaded = load(source) if isinstance(source, Path) else source
        self.contract = contract
        self._where = loaded.path
        options = ort.SessionOptions()
        options.log_severity_level = 4
        # one input at a time is too little work to share; threads that spin while they wait starve everything else
        options.intra_op_num_threads = 1 if contract.batch is not None else torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(
                loaded.proto.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own exception classes share no public base
            raise UnsupportedNetworkError(
                f"{self._where}: onnxruntime {ort.__version__} does not load it ({str(error).splitlines()[0]}); "
                "re-export it with IR 8 and opset 13 to 18."
            ) from None
        initializers = {t.name for t in loaded.proto.graph.initializer}
        self._input = next(v.name for v in loaded.proto.graph.input if v.name not in initializers)

    def logits(self, x: Tensor) -> NDArray[np.float32]:
        """Logits (n, c) of inputs `x` (n, *pixel_shape) in pixel space, one by one where the file's batch is fixed.

        Raises DataError when the shape of `x` is another one, UnsupportedNetworkError when onnxruntime fails.
        """
        y = self.contract.to_file(x)
        size = max(len(y), 1) if self.contract.batch is None else 1
        try:
            parts = [self._run(y[i : i + size]) for i in range(0, len(y), size)]
        except Exception as error:  # as above
            raise UnsupportedNetworkError(
                f"{self._where}: onnxruntime cannot run it ({str(error).splitlines()[0]}); correct the network."
            ) from None
        if not parts:
            return np.zeros((0, 0), dtype=np.float32)
        out: NDArray[np.float32] = np.concatenate([p.reshape(len(p), -1) for p in parts])
        return out

    def _run(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """One run on a batch, or on the one input of a file without a batch axis."""
        if self.contract.batch == 0:
            alone: NDArray[np.float32] = self._session.run(None, {self._input: y[0]})[0]
            return alone[None]
        found: NDArray[np.float32] = self._session.run(None, {self._input: y})[0]
        return found

    def takes_batches(self) -> bool:
        """Whether the file really runs two inputs at once (a fixed shape inside may forbid what its input allows)."""
        y = np.zeros((2, *self.contract.file_shape), dtype=np.float32)
        try:
            return len(self._session.run(None, {self._input: y})[0]) == 2
        except Exception:  # any failure of onnxruntime here means one thing: not with two
            return False


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Largest |torch - onnxruntime| over all logits, on one input and on 64 at once, and what was allowed.

    `rounding`: more than that was found, but no more than the file's own float32 rounding explains (bounds/float32.py).
    """

    batch_1: float
    batch_64: float
    tolerance: float
    rounding: bool = False

    @property
    def worst(self) -> float:
        """The larger of the two differences."""
        return max(self.batch_1, self.batch_64)

    @property
    def holds(self) -> bool:
        """Whether both are within the tolerance or what rounding explains; not where one is NaN."""
        return self.rounding or (self.batch_1 <= self.tolerance and self.batch_64 <= self.tolerance)  # False for NaN


def parity(network: Network, runner: OnnxRunner, *, samples: Tensor | None = None) -> Parity:
    """Compares `network` with the file in float32 on seeded random inputs in [0, 1] and on `samples` (n, C, H, W).

    Torch runs 1 and 64 inputs at a time; onnxruntime 64 at a time where the file takes batches.
    """
    twin = network.frozen(dtype=torch.float32)
    shape = runner.contract.pixel_shape
    x = torch.rand(PARITY_BATCH, *shape, generator=torch.Generator().manual_seed(0))
    batches = [x] if samples is None else [x, samples[:PARITY_BATCH].float().cpu()]
    one, many, largest = 0.0, 0.0, 0.0
    seen: list[tuple[Tensor, NDArray[np.float32]]] = []
    with torch.no_grad():
        for batch in batches:
            expected = runner.logits(batch)
            single, whole = twin(batch[:1]).numpy(), twin(batch).numpy()
            alone = runner.logits(batch[:1])
            one = _worst([one, _distance(single, alone)])
            many = _worst([many, _distance(whole, expected)])
            largest = max(largest, float(np.abs(expected).max(initial=0.0)))
            seen += [(batch, expected), (batch[:1], alone)]
    found = Parity(batch_1=one, batch_64=many, tolerance=PARITY_TOLERANCE * max(1.0, largest))
    if found.holds or not math.isfinite(found.worst):
        return found
    return replace(found, rounding=all(_within_rounding(network, x, logits) for x, logits in seen))


def _within_rounding(network: Network, x: Tensor, logits: NDArray[np.float32]) -> bool:
    """Whether `logits` (n, c) of pixels x (n, C, H, W) are some float32 run's, as far as CROWN tells."""
    exact = network.frozen(dtype=torch.float64, evaluation=Evaluation(arithmetic="float32"))
    with torch.no_grad():
        relaxed = relax(exact, Box(centre=x.double(), radius=torch.zeros_like(x, dtype=torch.float64)))
        box = refine(relaxed, exact.output_name, torch.ones_like(relaxed.boxes[exact.output_name].centre).bool())
    given = torch.from_numpy(logits).double()
    return bool(((box.lower <= given) & (given <= box.upper)).all())


def require_parity(network: Network, runner: OnnxRunner, where: Path, *, samples: Tensor | None = None) -> Parity:
    """`parity`, also on `samples` (n, C, H, W), which must hold; raises CheckFailedError with the value otherwise."""
    found = parity(network, runner, samples=samples)
    if not found.holds:
        raise CheckFailedError(
            f"{where}: the torch network and onnxruntime differ by {found.worst:.3g} (batch 1: {found.batch_1:.3g}, "
            f"batch {PARITY_BATCH}: {found.batch_64:.3g}, allowed {found.tolerance:.3g}), so nothing is computed with "
            "it; please report the file."
        )
    return found


def _distance(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    if ours.shape != theirs.shape:
        return math.inf
    return float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))


def _worst(values: Sequence[float]) -> float:
    return math.nan if any(math.isnan(v) for v in values) else max(values)
