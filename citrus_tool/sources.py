"""Where a network and its data come from. Torch is loaded when they are read, not before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from citrus_tool.choices import Split

if TYPE_CHECKING:
    from citrus_tool.data import Dataset
    from citrus_tool.onnx_io import OnnxModel

PARITY_SAMPLES = 16
"""Real inputs on which an imported file is compared with onnxruntime; a wrong axis or sign shows on the first."""


class DataSource(Protocol):
    """Where images come from: a DataChoice, or data in memory (data.Splits)."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def load(self, split: Split, limit: int | None = None) -> Dataset:
        """One split of it, or its first `limit` images."""


class ModelSource(Protocol):
    """Where a network comes from: a ModelChoice, or one in memory (api.Model)."""

    @property
    def path(self) -> Path:
        """What reports and errors call it; a file need not be there."""

    def read(self, dataset: Dataset) -> OnnxModel:
        """The network, checked to be a classifier for `dataset`."""


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Which data: a name, .npz file or folder, where named sets lie, and the seed that draws the splits."""

    name: str = "digits"
    root: Path | None = None
    seed: int = 0

    def load(self, split: Split, limit: int | None = None) -> Dataset:
        """One split of it; raises as `data.load`."""
        from citrus_tool import data

        return data.load(self.name, split=split, root=self.root, seed=self.seed, limit=limit)


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which network: an ONNX file and the normalisation in front of its input (None: it takes pixels)."""

    path: Path
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def read(self, dataset: Dataset) -> OnnxModel:
        """The network, compared with onnxruntime on real inputs, and checked to be a classifier for `dataset`."""
        from citrus_tool import onnx_io

        samples = dataset.take(PARITY_SAMPLES).pixels()
        model = onnx_io.read(self.path, mean=self.mean, std=self.std, input_shape=dataset.shape, samples=samples)
        dataset.require_classifier(model.network.input_shape, model.network.num_classes, str(self.path))
        return model
