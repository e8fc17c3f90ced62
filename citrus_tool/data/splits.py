"""The three splits of a data set, drawn by a seed.

The test split is for the final figures only; choices (epoch, recipe, eps) are made on validation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from citrus_tool.choices import SPLITS, Split
from citrus_tool.data.dataset import Array, Dataset
from citrus_tool.errors import DataError
from citrus_tool.tables import Table, Tabular


@dataclass(frozen=True, kw_only=True, repr=False)
class Splits(Tabular):
    """The three splits of one data set: training sees `train`, choices are made on `validation`, figures on `test`.

    Raises:
        DataError: shapes or numbers of classes differ.
    """

    train: Dataset
    validation: Dataset
    test: Dataset

    def __post_init__(self) -> None:
        for part in (self.validation, self.test):
            if (part.shape, part.num_classes) != (self.train.shape, self.train.num_classes):
                raise DataError(
                    f"data {part.name} ({part.split}) has images of shape {part.shape} in {part.num_classes} classes,"
                    f" the training split {self.train.shape} in {self.train.num_classes}; give splits of one data set."
                )

    @property
    def name(self) -> str:
        """Of the training split."""
        return self.train.name

    def load(self, split: Split, limit: int | None = None) -> Dataset:
        """One of the three, or its first `limit` images."""
        part = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        return part if limit is None else part.take(limit)

    @staticmethod
    def of(whole: Dataset, *, seed: int = 0) -> Splits:
        """70 / 15 / 15 % of `whole`, stratified, drawn by the seed, in shuffled order."""
        train, validation, test = (split_of(whole, split, seed) for split in SPLITS)
        return Splits(train=train, validation=validation, test=test)

    def table(self) -> Table:
        """Sizes of the splits."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        rows = [[name, str(len(part)), " x ".join(map(str, part.shape))] for name, part in parts.items()]
        return Table(title=f"data {self.name}", columns=["split", "images", "shape"], rows=rows)


def split_of(whole: Dataset, split: Split, seed: int) -> Dataset:
    """One of the 70 / 15 / 15 % of `whole`, stratified, drawn by the seed, in shuffled order.

    Raises DataError where `whole` is too small for the split to get an image.
    """
    index = torch.from_numpy(stratified(whole.labels.numpy(), (0.70, 0.15), seed)[split])
    if len(index) == 0:
        raise DataError(
            f"data {whole.name} ({split}): there are no images: {len(whole)} in all are split 70/15/15 % class by"
            " class; give a larger data set or another --split."
        )
    return replace(whole, split=split, images=whole.images[index], labels=whole.labels[index])


def stratified(labels: Array, shares: tuple[float, float], seed: int) -> dict[str, Array]:
    """Shuffled indices (n,) of train and validation (`shares` of each class of labels (N,), rounded) and test."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = [order[labels[order] == c] for c in np.unique(labels)]
    cuts = [(round(len(i) * shares[0]), round(len(i) * (shares[0] + shares[1]))) for i in by_class]
    parts = {
        "train": [i[:a] for i, (a, _) in zip(by_class, cuts, strict=True)],
        "validation": [i[a:b] for i, (a, b) in zip(by_class, cuts, strict=True)],
        "test": [i[b:] for i, (_, b) in zip(by_class, cuts, strict=True)],
    }
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels))
    return {split: (joined := np.concatenate(part))[np.argsort(rank[joined])] for split, part in parts.items()}
