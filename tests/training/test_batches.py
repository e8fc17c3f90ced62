"""Batches: groups, order, augmentation."""

from __future__ import annotations

import dataclasses

import torch

from citrus_tool.choices.recipe import Recipe
from citrus_tool.data import Dataset
from citrus_tool.training.batches import TrainingSet, augment, generator_for, to_pixels

RECIPE = Recipe(eps=0.1, tau_ratio=0.4, epochs=30, group_size=5, groups_per_batch=4)
CPU = torch.device("cpu")


def _training_set(n: int, recipe: Recipe = RECIPE) -> TrainingSet:
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 2).contiguous()
    data = Dataset(name="n", split="train", images=images, labels=torch.arange(n) % 3, num_classes=3)
    return TrainingSet.of(data, recipe, CPU)


def test_an_epoch_is_a_permutation_without_the_inputs_that_fill_no_group() -> None:
    training_set = _training_set(63)
    order = training_set.order(0)
    assert len(order) == 60
    assert len(set(order.tolist())) == 60
    assert training_set.batches == 3
    training_set = _training_set(53)
    sizes = [len(training_set.batch(training_set.order(1), 1, number).labels) for number in range(training_set.batches)]
    assert sizes == [20, 20, 10]


def test_order_changes_with_epoch_and_seed_only() -> None:
    training_set, other = _training_set(63), _training_set(63, dataclasses.replace(RECIPE, seed=1))
    assert torch.equal(training_set.order(2), training_set.order(2))
    assert not torch.equal(training_set.order(2), training_set.order(3))
    assert not torch.equal(training_set.order(2), other.order(2))


def test_batches_are_pixels_with_their_labels() -> None:
    training_set = _training_set(63)
    batch = training_set.batch(training_set.order(0), 0, 1)
    values = (batch.x[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(values % 3, batch.labels)
    assert batch.x.dtype == torch.float32
    assert batch.x.max() <= 1
    assert torch.equal(to_pixels(torch.tensor([0.25])), torch.tensor([0.25]))


def test_crops_are_shifts_of_the_edge_padded_image() -> None:
    images = torch.randint(0, 256, (40, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    recipe = dataclasses.replace(RECIPE, crop_padding=2, flip=True)
    out = augment(images, recipe, generator_for(CPU, 1))
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="replicate")
    seen = set()
    for image, source in zip(out, padded, strict=True):
        found = [
            (dy, dx, flip)
            for dy in range(5)
            for dx in range(5)
            for flip in (False, True)
            if torch.equal(image.float(), _crop(source, dy, dx, flip))
        ]
        assert found
        seen.add(found[0])
    assert len({s[:2] for s in seen}) > 8
    assert {s[2] for s in seen} == {False, True}
    assert torch.equal(out, augment(images, recipe, generator_for(CPU, 1)))
    assert out.dtype == torch.uint8


def _crop(padded: torch.Tensor, dy: int, dx: int, flip: bool) -> torch.Tensor:
    crop = padded[:, dy : dy + 5, dx : dx + 6]
    return crop.flip(2) if flip else crop
