"""Batches of a training set that stays on the device, as uint8 when it is, with augmentation there.

Order and augmentation are functions of (seed, epoch, batch) alone, so a run continues anywhere without saved state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from citrus_tool.choices.recipe import Recipe
from citrus_tool.data import Dataset
from citrus_tool.training.method import Batch


def generator_for(device: torch.device, *key: int | str) -> torch.Generator:
    """A generator on `device` seeded by `key`; different keys give independent streams."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def training_images(train: Dataset, validation: Dataset, recipe: Recipe) -> Dataset:
    """What the recipe trains on: `train`, or both splits (`train_on`)."""
    return train if recipe.train_on == "train" else train.joined(validation)


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """The training set on its device. images: (N, C, H, W), uint8 or float; labels: (N,)."""

    images: Tensor
    labels: Tensor
    recipe: Recipe

    @staticmethod
    def of(data: Dataset, recipe: Recipe, device: torch.device) -> TrainingSet:
        """A split, moved to `device`."""
        return TrainingSet(images=data.images.to(device), labels=data.labels.to(device), recipe=recipe)

    @property
    def batches(self) -> int:
        """Batches in an epoch; the last one may hold fewer groups, and inputs that fill no group are left out."""
        usable = len(self.labels) - len(self.labels) % self.recipe.group_size
        return -(-usable // self.recipe.batch_size)

    def order(self, epoch: int) -> Tensor:
        """The indices of an epoch in their order, without the inputs that fill no group, on the device."""
        device = torch.device("cpu")  # one order for all devices
        order = torch.randperm(len(self.labels), generator=generator_for(device, self.recipe.seed, "order", epoch))
        usable = len(order) - len(order) % self.recipe.group_size
        return order[:usable].to(self.images.device)

    def batch(self, order: Tensor, epoch: int, number: int) -> Batch:
        """Batch `number` of the epoch, augmented."""
        index = order[number * self.recipe.batch_size : (number + 1) * self.recipe.batch_size]
        images = self.images[index]
        if self.recipe.flip or self.recipe.crop_padding:
            key = (self.recipe.seed, "augment", epoch, number)
            images = augment(images, self.recipe, generator_for(images.device, *key))
        return Batch(x=to_pixels(images), labels=self.labels[index])

    def plain(self, batch_size: int = 500) -> Iterator[Tensor]:
        """Every image in order, not augmented."""
        for start in range(0, len(self.images), batch_size):
            yield to_pixels(self.images[start : start + batch_size])


def to_pixels(images: Tensor) -> Tensor:
    """Images (n, C, H, W) as float32 in [0, 1]."""
    return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.to(torch.float32)


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Images (n, C, H, W) mirrored at random (`flip`) and cropped at random from edge-padded ones (`crop_padding`), one
    gather for all.
    """
    n, channels, height, width = images.shape
    device, pad = images.device, recipe.crop_padding
    shift = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator, device=device)
    rows = (torch.arange(height, device=device) + shift[0]).clamp(0, height - 1)
    columns = torch.arange(width, device=device).expand(n, width)
    if recipe.flip:
        mirrored = torch.rand((n, 1), generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    columns = (columns + shift[1]).clamp(0, width - 1)
    sample = torch.arange(n, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return images[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
