"""Labelled images in pixel space [0, 1], with splits fixed by a seed.

    digits           60/20/20 of 1,797 images (assets/README.md), stratified, drawn by the seed
    mnist, cifar10   test is the official test set in its own order; validation is 5,000 images drawn by
                     the seed from the official training set, train is the rest
    tinyimagenet     test is the official validation folder (the official test labels are not public);
                     validation is 5 % of the training images, stratified, drawn by the seed
    FILE.npz, FOLDER 70/15/15, stratified, drawn by the seed, in shuffled order

The names are loaded on first use, so that `data.lookup` needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from citrus_tool.names import on_first_use

if TYPE_CHECKING:
    from citrus_tool.data.dataset import Dataset as Dataset
    from citrus_tool.data.loading import load as load
    from citrus_tool.data.splits import Splits as Splits

__getattr__ = on_first_use(
    __name__,
    {
        "Dataset": "citrus_tool.data.dataset",
        "Splits": "citrus_tool.data.splits",
        "load": "citrus_tool.data.loading",
    },
)
