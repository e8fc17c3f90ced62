"""From pixel space to the file's input: layout, shape and normalisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from citrus_tool import onnx_io
from citrus_tool.errors import InputFileError
from onnx_io.build import answer, classifier, layer_names, node, random_inputs, save

# file shape, data shape or None: layout, pixel shape, layers in front
LAYOUTS: list[tuple[tuple[int, ...], tuple[int, int, int] | None, str, tuple[int, ...], list[str]]] = [
    ((1, 28, 28), (1, 28, 28), "nchw", (1, 28, 28), []),
    ((28, 28, 1), (1, 28, 28), "nhwc", (1, 28, 28), ["Transpose"]),
    ((6, 5, 3), (3, 6, 5), "nhwc", (3, 6, 5), ["Transpose"]),
    ((784,), (1, 28, 28), "flat", (1, 28, 28), ["Reshape"]),
    ((784, 1), (1, 28, 28), "flat", (1, 28, 28), ["Reshape"]),
    ((1, 784), (1, 28, 28), "flat", (1, 28, 28), ["Reshape"]),
    ((28, 28), (1, 28, 28), "flat", (1, 28, 28), ["Reshape"]),
    ((90,), (3, 6, 5), "flat", (3, 6, 5), ["Reshape"]),
    ((3, 6, 5), None, "nchw", (3, 6, 5), []),
    ((6, 5, 3), None, "nhwc", (3, 6, 5), ["Transpose"]),
    ((1, 5, 3), None, "nchw", (1, 5, 3), []),
    ((7, 5, 6), None, "nchw", (7, 5, 6), []),
    ((784, 1), None, "flat", (784, 1), []),
    ((784,), None, "flat", (784,), []),
]


@pytest.mark.parametrize(("file_shape", "input_shape", "layout", "pixel_shape", "front"), LAYOUTS)
def test_layout_is_found(
    file_shape: tuple[int, ...],
    input_shape: tuple[int, int, int] | None,
    layout: str,
    pixel_shape: tuple[int, ...],
    front: list[str],
    tmp_path: Path,
) -> None:
    file = classifier([node("Relu", "x", "h")], features=int(np.prod(file_shape)), shape=file_shape)
    model = onnx_io.read(save(file, tmp_path), input_shape=input_shape)
    assert model.contract.layout == layout
    assert (model.contract.pixel_shape, model.contract.file_shape) == (pixel_shape, file_shape)
    assert layer_names(model)[: len(front) + 1] == [*front, "ReLU"]
    x = random_inputs(4, pixel_shape)
    by_hand = x.permute(0, 2, 3, 1) if layout == "nhwc" else x.reshape(4, *file_shape)
    assert np.array_equal(model.contract.to_file(x), by_hand.numpy())
    assert torch.allclose(model.contract.to_pixels(torch.from_numpy(model.contract.to_file(x))), x.double())
    with torch.no_grad():
        np.testing.assert_allclose(model.network(x).numpy(), answer(file, by_hand.contiguous()), atol=1e-5)


@pytest.mark.parametrize(
    ("file_shape", "input_shape"), [((3, 25), (3, 5, 5)), ((5, 3, 6), (3, 6, 5)), ((80,), (3, 5, 5))]
)
def test_layouts_that_are_no_guesswork_are_refused(
    file_shape: tuple[int, ...], input_shape: tuple[int, int, int], tmp_path: Path
) -> None:
    file = classifier([node("Relu", "x", "h")], features=int(np.prod(file_shape)), shape=file_shape)
    with pytest.raises(InputFileError, match="takes inputs of shape"):
        onnx_io.read(save(file, tmp_path), input_shape=input_shape)


@pytest.mark.parametrize("file_shape", [(3, 6, 5), (6, 5, 3), (90,)])
def test_normalisation_is_per_channel_in_pixel_space(file_shape: tuple[int, ...], tmp_path: Path) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    file = classifier([node("Relu", "x", "h")], features=90, shape=file_shape)
    model = onnx_io.read(save(file, tmp_path), mean=mean, std=std, input_shape=(3, 6, 5))
    assert layer_names(model)[0] == "Affine"
    x = random_inputs(4, (3, 6, 5))
    normal = (x - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
    by_hand = normal.permute(0, 2, 3, 1) if file_shape == (6, 5, 3) else normal.reshape(4, *file_shape)
    np.testing.assert_allclose(model.contract.to_file(x), by_hand.numpy(), atol=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(model.network(x).numpy(), answer(file, by_hand.contiguous()), atol=1e-5)


def test_one_value_stands_for_all_channels(tmp_path: Path) -> None:
    path = save(classifier([node("Relu", "x", "h")], features=72), tmp_path)
    model = onnx_io.read(path, mean=(0.5,), std=(0.25,))
    assert (model.contract.mean, model.contract.std) == ((0.5, 0.5), (0.25, 0.25))


def test_runner_takes_a_path_with_a_contract(tmp_path: Path) -> None:
    path = save(classifier([node("Relu", "x", "h")], features=72), tmp_path)
    model = onnx_io.read(path, mean=(0.5,))
    x = random_inputs(3)
    assert np.array_equal(onnx_io.OnnxRunner(path, model.contract).logits(x), onnx_io.OnnxRunner(model).logits(x))


def test_samples_take_part_in_the_parity_check(tmp_path: Path) -> None:
    """Inputs far outside [0, 1] give a larger difference than the random ones do."""
    path = save(classifier([node("Sigmoid", "x", "h")], features=72), tmp_path)
    small = onnx_io.read(path)
    large = onnx_io.read(
        save(classifier([node("Relu", "x", "h")], features=72), tmp_path), samples=1e4 * random_inputs(9)
    )
    assert large.parity > small.parity
