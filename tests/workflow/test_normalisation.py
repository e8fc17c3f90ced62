"""The doubt about a network that does badly: what is near chance, and for each cause the sentence with the fix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from citrus_tool import onnx_io
from citrus_tool.data import Dataset, load
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.workflow.normalisation import (
    NORMALISATIONS,
    OF_DATA,
    PRESENTATIONS,
    Attempt,
    alike,
    choose,
    doubt,
    in_graph,
    near_chance,
    normalisations,
    sample,
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", split="validation")


@pytest.fixture(scope="module")
def trained(repository: Path) -> Path:
    """97 % on digits in [0, 1]."""
    return repository / "models" / "digits_convtiny.onnx"


def behind(source: Path, target: Path, *, scale: float, shift: float) -> OnnxModel:
    """The network behind z -> scale z + shift: a file that expects normalised pixels."""
    proto = onnx.load(source)
    name = proto.graph.input[0].name
    for node in proto.graph.node:
        node.input[:] = ["undone" if entry == name else entry for entry in node.input]
    for key, value in (("scale", scale), ("shift", shift)):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), key))
    proto.graph.node.insert(0, helper.make_node("Mul", [name, "scale"], ["scaled"], name="undo_scale"))
    proto.graph.node.insert(1, helper.make_node("Add", ["scaled", "shift"], ["undone"], name="undo_shift"))
    onnx.save(proto, target)
    return onnx_io.read(target)


def reordered(source: Path, target: Path, order: list[int]) -> OnnxModel:
    """The network with its outputs in another order."""
    proto = onnx.load(source)
    last = proto.graph.node[-1]
    for tensor in proto.graph.initializer:
        if tensor.name in last.input:
            array = numpy_helper.to_array(tensor)
            axis = array.shape.index(10)
            tensor.CopyFrom(numpy_helper.from_array(array.take(order, axis=axis), tensor.name))
    onnx.save(proto, target)
    return onnx_io.read(target)


def attempt(right: list[bool], name: str = "") -> Attempt:
    flags = np.array(right, dtype=np.int64)
    return Attempt(name=name, mean=(0.0,), std=(1.0,), predictions=flags, labels=np.ones(len(right), dtype=np.int64))


# --- near chance ------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 200), st.integers(0, 2**32 - 1))
def test_guessing_is_near_chance(classes: int, seed: int) -> None:
    """At most one in a hundred guessers escapes, and here none that is below twice chance."""
    rng = np.random.default_rng(seed)
    predictions, labels = rng.integers(0, classes, (2, 20_000))
    assert near_chance(predictions, labels, classes) or (predictions == labels).mean() > 1 / classes + 0.01


@pytest.mark.parametrize(
    ("right", "n", "classes", "expected"),
    [
        (40, 256, 10, True),  # below 1/10 + 9/100
        (49, 256, 10, False),
        (147, 256, 2, True),  # 99 of 100 coins reach no more
        (148, 256, 2, False),
        (2, 256, 200, True),  # below twice chance
        (6, 256, 200, False),
        (0, 100, 5, True),
    ],
)
def test_near_chance(right: int, n: int, classes: int, expected: bool) -> None:
    labels = np.arange(n) % classes
    predictions = np.where(np.arange(n) < right, labels, (labels + 1) % classes)
    assert near_chance(predictions, labels, classes) is expected


def test_one_class_for_all_is_near_chance() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    assert near_chance(np.zeros(100, dtype=np.int64), labels, 2)
    assert not near_chance(np.zeros(90, dtype=np.int64), labels[:90], 2)


def test_choose_needs_more_than_noise() -> None:
    given_ = attempt([False] * 40 + [True] * 60)
    little, much = attempt([True] * 8 + [False] * 32 + [True] * 60), attempt([True] * 90 + [False] * 10)
    assert choose([given_, little]) is given_
    assert choose([given_, little, much]) is much
    nearly = attempt([True] * 89 + [False] * 11)
    assert choose([given_, nearly, much]) is nearly  # the first one within noise of the best
    assert alike([given_, nearly, much], nearly) == [much]


def test_sample_is_spread(digits: Dataset) -> None:
    few = sample(digits, 5)
    assert torch.equal(few.images, digits.images[[0, 89, 179, 268, 358]] if len(digits) == 359 else few.images)
    assert len(few) == 5
    assert len(sample(digits, 10_000)) == len(digits)


# --- each cause -------------------------------------------------------------------------------------------------------


def test_a_network_that_does_well_is_not_doubted(trained: Path, digits: Dataset) -> None:
    model = onnx_io.read(trained)
    assert doubt(model, digits) is None
    assert doubt(model, digits.take(29)) is None
    attempts = normalisations(model, sample(digits))
    assert choose(attempts) is attempts[0]
    assert attempts[0].flags == ""


@pytest.mark.parametrize(
    ("mean", "std", "flags"),
    [
        (0.0, 1 / 255, "with --mean 0 --std 0.00392157 (pixels from 0 to 255)"),
        (0.0, 1 / 16, "with --mean 0 --std 0.0625 (pixels from 0 to 16, as scikit-learn's digits)"),
    ],
)
def test_normalisation(trained: Path, digits: Dataset, tmp_path: Path, mean: float, std: float, flags: str) -> None:
    model = behind(trained, tmp_path / "m.onnx", scale=std, shift=mean)
    sentence = doubt(model, digits)
    assert sentence is not None
    assert sentence.startswith(f"{tmp_path / 'm.onnx'} classifies only ")
    assert flags in sentence
    assert sentence.endswith("(validation): give these options.")
    given_right = onnx_io.read(model.path, mean=[mean], std=[std])
    assert doubt(given_right, digits) is None


def test_half_right_is_a_guess_not_a_doubt(trained: Path, digits: Dataset, tmp_path: Path) -> None:
    """Half of the inputs right is no alarm; the guess finds the normalisation all the same."""
    model = behind(trained, tmp_path / "m.onnx", scale=0.5, shift=0.5)
    assert doubt(model, digits) is None
    attempts = normalisations(model, sample(digits))
    by_name = {attempt.name: attempt for attempt in attempts}
    assert by_name["pixels from -1 to 1"].correct > attempts[0].correct + 50
    assert choose(attempts) in (by_name["pixels from -1 to 1"], *alike(attempts, by_name["pixels from -1 to 1"]))


def test_needless_normalisation(trained: Path, digits: Dataset) -> None:
    sentence = doubt(onnx_io.read(trained, mean=[2.0]), digits)
    assert sentence is not None
    assert "without --mean and --std (no normalisation) it is" in sentence


@pytest.mark.parametrize("name", ["with rows and columns exchanged", "with black and white exchanged (1 - x)"])
def test_rearranged_images(trained: Path, digits: Dataset, name: str) -> None:
    changed = dataclasses.replace(digits, images=PRESENTATIONS[name](digits.images).contiguous())
    sentence = doubt(onnx_io.read(trained), changed)
    assert sentence is not None
    assert f"; {name} it is " in sentence
    assert sentence.endswith("rearrange the images that way.")


def test_order_of_classes(trained: Path, digits: Dataset, tmp_path: Path) -> None:
    order = [9, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    sentence = doubt(reordered(trained, tmp_path / "m.onnx", order), digits)
    assert sentence is not None
    assert "near chance for 10 classes; its classes are in another order" in sentence
    assert "(the network's class 0 is 9, 1 is 0, 2 is 1, 3 is 2, 4 is 3, ...)" in sentence


def test_nothing_helps(digits: Dataset, trained: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = dataclasses.replace(digits, images=torch.rand(digits.images.shape, generator=generator))
    sentence = doubt(onnx_io.read(trained), noise)
    assert sentence is not None
    assert "none of the usual normalisations is clearly better. Look for wrong --mean/--std" in sentence


def test_alternatives_are_tried_on_the_other_split(trained: Path, digits: Dataset, tmp_path: Path) -> None:
    model = behind(trained, tmp_path / "m.onnx", scale=1 / 255, shift=0)
    sentence = doubt(model, load("digits", split="test"), lambda: digits)
    assert sentence is not None
    assert "of digits (test)" in sentence
    assert "(validation): give these options." in sentence


def test_tables_fit_each_other() -> None:
    assert next(iter(NORMALISATIONS)) == "no normalisation"
    assert all(name in NORMALISATIONS for names in OF_DATA.values() for name in names)
    assert all(len(mean) == len(std) in (1, 3) for mean, std in NORMALISATIONS.values())


# --- in the graph, published networks ---------------------------------------------------------------------------------


def test_in_graph(trained: Path, tmp_path: Path) -> None:
    assert in_graph(onnx_io.read(trained).network) is None
    assert in_graph(behind(trained, tmp_path / "m.onnx", scale=4.0, shift=-1.0).network) == ((0.25,), (0.25,))
    assert in_graph(behind(trained, tmp_path / "n.onnx", scale=-1.0, shift=1.0).network) is None


@pytest.mark.parametrize(
    ("file", "inside", "better"),
    [
        ("citrus_convsmall_1.onnx", ((0.1307,), (0.3081,)), None),
        ("mnist-net_256x2.onnx", None, None),
        ("citrus_convsmall_2.onnx", ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)), None),
        ("marabou_cifar10_small.onnx", None, None),
        ("cifar_base_kw.onnx", None, "--mean 0.4914,0.4822,0.4465 --std 0.2471,0.2435,0.2616"),
        ("resnet_2b.onnx", None, "--mean 0.4914,0.4822,0.4465 --std 0.2471,0.2435,0.2616"),
    ],
)
def test_published(
    shared_models: Path, data_root: Callable[[str], Path], file: str, inside: object, better: str | None
) -> None:
    name = "mnist" if "mnist" in file or file.endswith("_1.onnx") else "cifar10"
    data = load(name, split="validation", root=data_root(name))
    model = onnx_io.read(shared_models / file, input_shape=data.shape)
    assert in_graph(model.network) == inside
    sentence = doubt(model, data)
    assert (sentence is None) == (better is None)
    assert better is None or better in str(sentence)
