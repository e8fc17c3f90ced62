"""Data sets: splits, formats, and one test for every way in which data can be out of contract."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import citrus_tool
from citrus_tool import data
from citrus_tool.choices import SPLITS, Split
from citrus_tool.data import Dataset, load, named
from citrus_tool.data.lookup import locate
from citrus_tool.errors import DataError, UsageError


def make(**changes: Any) -> Dataset:
    fields: dict[str, Any] = {
        "name": "toy",
        "split": "test",
        "images": torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
        "labels": torch.tensor([0, 1, 2, 1]),
        "num_classes": 3,
    }
    return Dataset(**{**fields, **changes})


def write_npz(path: Path, n: int = 40, **entries: Any) -> Path:
    rng = np.random.default_rng(0)
    fields: dict[str, Any] = {"x": rng.random((n, 1, 4, 4)), "y": np.arange(n) % 4}
    np.savez(path, **{**fields, **entries})
    return path


def parts(name: str, **options: Any) -> list[Dataset]:
    return [load(name, split=split, **options) for split in SPLITS]


def test_digits_are_all_there_once_and_stratified() -> None:
    train, validation, test = parts("digits")
    assert (len(train), len(validation), len(test)) == (1078, 360, 359)
    assert train.shape == (1, 8, 8)
    assert train.images.dtype == torch.float32
    assert 0 == train.images.min() < train.images.max() == 1
    together = torch.cat([part.images.flatten(1) for part in (train, validation, test)])
    assert len(together) == 1797
    pixels = (together * 16).to(torch.uint8)
    assert torch.equal(pixels / 16, together)  # sixteenths
    assert pixels.sum() == 561_718
    for part in (train, validation, test):
        assert (torch.bincount(part.labels, minlength=10) / len(part)).sub(0.1).abs().max() < 0.01


@pytest.mark.parametrize(
    ("seed", "split", "digest"),
    [
        (0, "train", "8f51e5ae7cb03a55577200206108f4c1279b87a161f8defec4e1dfc89220d1c0"),
        (0, "validation", "be78ef5fe8061b0fa9e4fb63675f441f3efb6f31d42020287f3ebd29b85f9e4d"),
        (0, "test", "d844d3b8a29b7e3ef63aa7bf0af90df1638bba541257e4b1f11f285ddc70e799"),
        (1, "test", "fbe3d46c98f2b088bacb4233622578a8d88905372797c94dfd730e3a56d59571"),
    ],
)
def test_digits_are_what_scikit_learn_s_load_digits_gives(seed: int, split: Split, digest: str) -> None:
    """Digests of pixels and labels as they were when scikit-learn 1.9.1 gave them: journals and proofs hold these."""
    assert load("digits", split=split, seed=seed).sha256() == digest


def test_the_file_of_digits_is_the_one_described() -> None:
    path = Path(citrus_tool.__file__).parent / "assets" / "digits.npz"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"`{digest}`" in (path.parent / "README.md").read_text()


def test_splits_depend_on_the_seed_only() -> None:
    assert load("digits", split="test").sha256() == load("digits", split="test").sha256()
    assert load("digits", split="test").sha256() != load("digits", split="test", seed=1).sha256()


def test_uint8_pixels_are_divided_by_255() -> None:
    images = torch.tensor([0, 51, 255, 1], dtype=torch.uint8).reshape(1, 1, 2, 2)
    toy = make(images=images, labels=torch.tensor([0]))
    expected = torch.tensor([0, 51 / 255, 1, 1 / 255], dtype=torch.float64).reshape(1, 1, 2, 2)
    assert torch.equal(toy.pixels(dtype=torch.float64), expected)
    assert torch.equal(toy.pixels(slice(0, 1)), expected.float())


def test_take_select_and_sha256() -> None:
    toy = make()
    assert len(toy.take(2)) == 2
    assert len(toy.take(9)) == 4
    chosen = toy.select(torch.tensor([3, 0]))
    assert chosen.labels.tolist() == [1, 0]
    assert torch.equal(chosen.images[1], toy.images[0])
    assert chosen.sha256() != toy.sha256() == make(name="other").sha256()
    assert make(labels=torch.tensor([0, 1, 2, 0])).sha256() != toy.sha256()


def test_joined() -> None:
    toy, other = make(split="train"), make(images=torch.rand(4, 1, 2, 2), labels=torch.tensor([2, 2, 0, 1]))
    both = toy.joined(other)
    assert both.split == "train"
    assert torch.equal(both.images, torch.cat([toy.images, other.images]))
    assert both.labels.tolist() == [0, 1, 2, 1, 2, 2, 0, 1]
    coarse = make(images=torch.full((4, 1, 2, 2), 51, dtype=torch.uint8))
    assert coarse.joined(coarse).images.dtype == torch.uint8
    mixed = coarse.joined(toy).images
    assert torch.equal(mixed, torch.cat([torch.full((4, 1, 2, 2), 51) / 255, toy.images]))
    for strange in (make(images=torch.rand(4, 1, 3, 2)), make(num_classes=4)):
        with pytest.raises(DataError, match=r"data toy \(test\) has images .*; give splits of one data set"):
            toy.joined(strange)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.rand(4, 2, 2)}, r"images have shape \(4, 2, 2\); 4 axes"),
        ({"images": torch.rand(3, 1, 2, 2)}, r"3 images but labels of shape \(4,\)"),
        ({"images": torch.rand(0, 1, 2, 2), "labels": torch.tensor([], dtype=torch.int64)}, "there are no images"),
        ({"images": torch.zeros(4, 1, 2, 2, dtype=torch.int32)}, "pixels are torch.int32"),
        ({"images": torch.full((4, 1, 2, 2), 1.5)}, r"pixel \(0, 0, 0, 0\) .* is 1.5, outside \[0, 1\]"),
        ({"images": torch.full((4, 1, 2, 2), -0.1)}, r"is -0.1, outside"),
        ({"images": torch.tensor([0.0, 0, 0, torch.nan]).reshape(4, 1, 1, 1)}, r"pixel \(3, 0, 0, 0\) .* is nan"),
        ({"labels": torch.tensor([0, 1, 3, 1])}, "label 3 at index 2 is out of range; labels are 0 to 2"),
        ({"labels": torch.tensor([0, -1, 2, 1])}, "label -1 at index 1 is out of range"),
        ({"labels": torch.tensor([0.0, 1, 2, 1])}, "labels are torch.float32; int64"),
    ],
)
def test_a_dataset_cannot_be_out_of_contract(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_a_network_must_fit_the_data() -> None:
    toy = make()
    toy.require_classifier((1, 2, 2), 3, "M.onnx")
    make(classes_known=False).require_classifier((1, 2, 2), 10, "M.onnx")
    with pytest.raises(DataError, match=r"M.onnx takes inputs of shape \(3, 2, 2\), but data toy has \(1, 2, 2\)"):
        toy.require_classifier((3, 2, 2), 3, "M.onnx")
    for outputs, known in ((2, True), (2, False), (10, True)):
        with pytest.raises(DataError, match=f"M.onnx has {outputs} outputs, but data toy has 3 classes"):
            make(classes_known=known).require_classifier((1, 2, 2), outputs, "M.onnx")


def test_unknown_names_are_usage_errors() -> None:
    with pytest.raises(UsageError, match=r"'mnits' is neither .*; did you mean mnist\?"):
        load("mnits", split="test")
    with pytest.raises(UsageError, match="split 'tset' is unknown"):
        load("digits", split="tset")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="limit is 0"):
        load("digits", split="test", limit=0)


def test_missing_data_says_where_it_was_looked_for_and_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"mnist was not found .*MNIST/raw.* on a machine with internet .*--data-root"):
        load("mnist", split="test", root=tmp_path)
    monkeypatch.setenv("CITRUS_DATA", str(tmp_path / "here"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert locate("cifar10").searched == (tmp_path / "here", Path("data"), tmp_path / "cache" / "citrus")
    with pytest.raises(DataError, match=r"torchvision.datasets.CIFAR10\('ROOT', download=True\)"):
        load("cifar10", split="test")


# --- npz --------------------------------------------------------------------------------------------------------------


def test_npz_is_split_without_overlap(tmp_path: Path) -> None:
    x = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1).repeat(4, 2).repeat(4, 3)
    path = str(write_npz(tmp_path / "toy.npz", x=x))
    found = parts(path)
    assert [len(part) for part in found] == [28, 4, 8]  # of each class of 10: 7, round(8.5) - 7, the rest
    assert sorted(torch.cat([part.images[:, 0, 0, 0] for part in found]).tolist()) == list(range(40))
    assert all((part.images[:, 0, 0, 0] % 4 == part.labels).all() for part in found)
    assert not found[0].classes_known
    assert load(path, split="train", limit=3).labels.tolist() == found[0].labels[:3].tolist()


def test_npz_layouts(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((40, 5, 4, 3)).astype(np.float32)
    last = load(str(write_npz(tmp_path / "last.npz", x=x)), split="train")
    first = load(str(write_npz(tmp_path / "first.npz", x=x.transpose(0, 3, 1, 2))), split="train")
    assert last.shape == first.shape == (3, 5, 4)
    assert torch.equal(last.images, first.images)
    tiny = np.zeros((40, 3, 2, 3), dtype=np.uint8)
    with pytest.raises(DataError, match=r"reads as NCHW and as NHWC; add layout='NCHW'"):
        load(str(write_npz(tmp_path / "tiny.npz", x=tiny)), split="train")
    named = write_npz(tmp_path / "named.npz", x=tiny, layout="NHWC", num_classes=7)
    assert load(str(named), split="train").shape == (3, 3, 2)
    assert load(str(named), split="train").num_classes == 7
    assert load(str(named), split="train").classes_known


def test_class_names_come_along(tmp_path: Path) -> None:
    names = ("cat", "dog", "eel", "fox", "gnu")
    found = load(str(write_npz(tmp_path / "named.npz", class_names=names)), split="train")
    assert (found.class_names, found.num_classes, found.classes_known) == (names, 5, True)
    assert found.take(2).class_names == names
    assert "5: cat, dog, eel, fox, gnu" in repr(found)
    assert data.Dataset.from_arrays(found.images, found.labels, class_names=names).class_names == names
    assert load("digits", split="test").class_names == tuple("0123456789")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"x": np.zeros((40, 16))}, r"x has shape \(40, 16\); 4 axes"),
        ({"x": np.zeros((39, 1, 4, 4))}, "39 images but labels of shape"),
        ({"x": np.zeros((0, 1, 4, 4)), "y": np.zeros(0, dtype=int)}, "there are no images"),
        ({"x": np.zeros((40, 1, 4, 4), dtype=np.int64)}, "x is int64; give uint8, or floats"),
        ({"x": np.full((40, 1, 4, 4), 255.0)}, r"pixel \(0, 0, 0, 0\) .* is 255, outside \[0, 1\]"),
        ({"x": np.full((40, 1, 4, 4), np.nan)}, "is nan, outside"),
        ({"y": np.arange(40) / 2}, "label .*0.5.* at index 1 is not an integer"),
        ({"y": np.array(["cat"] * 40)}, "label .*cat.* at index 0 is not an integer"),
        ({"y": np.arange(40) - 1}, "label -1 at index 0 is out of range"),
        ({"num_classes": 3}, "label 3 at index 3 is out of range; labels are 0 to 2"),
        ({"num_classes": [3, 4]}, "num_classes must be one integer"),
        ({"class_names": [1, 2, 3, 4]}, "class_names must be a list of texts, one for each class"),
        ({"class_names": "cat"}, "class_names must be a list of texts, one for each class"),
        ({"class_names": ["cat", "dog"], "num_classes": 4}, "2 class names for 4 classes; give one for each class"),
        ({"class_names": ["cat", "dog"]}, "label 2 at index 2 is out of range; labels are 0 to 1"),
        ({"layout": "CHWN"}, "layout is 'CHWN'; it is NCHW or NHWC"),
        ({"x": np.array([None] * 40)}, "cannot be read as .npz"),
    ],
)
def test_npz_out_of_contract(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(str(write_npz(tmp_path / "toy.npz", **entries)), split="train")


def test_npz_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.npz: does not exist; write it with numpy.savez"):
        load(str(tmp_path / "none.npz"), split="test")
    (tmp_path / "text.npz").write_text("not a zip")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "empty.npz").write_text("")
    for name in ("text", "array", "empty"):
        with pytest.raises(
            DataError, match=rf"{name}.npz: cannot be read as .npz \(it is no zip archive\); write it with"
        ):
            load(str(tmp_path / f"{name}.npz"), split="test")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(DataError, match=r"has no array 'x', only \['images'\]"):
        load(str(tmp_path / "other.npz"), split="test")


def test_a_split_without_images_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"\(test\): there are no images: 1 in all are split 70/15/15 % class by class;"
    ):
        load(str(write_npz(tmp_path / "one.npz", n=1)), split="test")


# --- folders ----------------------------------------------------------------------------------------------------------


def write_folder(root: Path, mode: str = "RGB", count: int = 8) -> Path:
    for label, name in enumerate(("bee", "ant")):
        (root / name).mkdir(parents=True)
        for i in range(count):
            size, bands = (5, 4), len(mode.replace("LA", "12").replace("P", "1")) if mode != "L" else 1
            pixels = np.full((*size[::-1], bands), 10 * i + label, dtype=np.uint8).squeeze()
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    (root / "notes.txt").write_text("not an image")
    return root


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_folder_classes_are_sorted(tmp_path: Path, mode: str, channels: int) -> None:
    found = parts(str(write_folder(tmp_path / "images", mode)))
    assert {part.shape for part in found} == {(channels, 4, 5)}
    assert sum(len(part) for part in found) == 16
    for part in found:  # bee was written with odd values and label 0, but ant sorts first
        assert part.num_classes == 2
        assert part.class_names == ("ant", "bee")
        assert torch.equal((part.images[:, 0, 0, 0] % 10 == 0).long(), part.labels)


def test_folder_errors(tmp_path: Path) -> None:
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(DataError, match="there are no images; put them into one sub-folder a class"):
        load(str(tmp_path / "empty"), split="test")
    images = write_folder(tmp_path / "images")
    Image.fromarray(np.zeros((7, 7, 3), dtype=np.uint8)).save(images / "bee" / "odd.png")
    with pytest.raises(DataError, match=r"odd.png: \(7, 7\) pixels where the first image has \(5, 4\)"):
        load(str(images), split="test")
    Image.fromarray(np.zeros((4, 5, 4), dtype=np.uint8)).save(images / "bee" / "odd.png")
    with pytest.raises(DataError, match=r"odd.png: image mode RGBA is not supported"):
        load(str(images), split="test")
    (images / "bee" / "odd.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"odd.png: not a readable image"):
        load(str(images), split="test")


# --- public sets, made small ------------------------------------------------------------------------------------------


def write_mnist(folder: Path, train: int = 12, test: int = 6, packed: bool = False) -> None:
    folder.mkdir(parents=True)
    for stem, n in (("train", train), ("t10k", test)):
        images = np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            raw = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(raw) if packed else raw)


@pytest.mark.parametrize("layout", ["MNIST/raw", "mnist", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_layouts(tmp_path: Path, layout: str, packed: bool) -> None:
    write_mnist(tmp_path / "root" / layout, train=5010, packed=packed)
    train, validation, test = parts("mnist", root=tmp_path / "root")
    assert (len(train), len(validation), len(test)) == (10, 5000, 6)
    assert test.images[:, 0].tolist() == np.arange(24).reshape(6, 2, 2).tolist()
    assert test.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_mnist_files_that_are_none(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03 too short")
    with pytest.raises(DataError, match="not an idx-ubyte file with 3 axes; fetch the MNIST files again"):
        load("mnist", split="test", root=tmp_path)
    write_mnist(tmp_path / "packed" / "mnist", packed=True)
    (tmp_path / "packed" / "mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz: cannot be read"):
        load("mnist", split="test", root=tmp_path / "packed")


def write_cifar(folder: Path, n: int = 1002) -> None:
    folder.mkdir(parents=True)
    for index, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        batch = {b"data": np.full((n, 3072), index, dtype=np.uint8), b"labels": [i % 10 for i in range(n)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=4))


def test_cifar10_is_read(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py")
    train, validation, test = parts("cifar10", root=tmp_path)
    assert (len(train), len(validation), len(test)) == (10, 5000, 1002)
    assert test.images.unique().tolist() == [5]
    assert test.shape == (3, 32, 32)
    assert (test.class_names[0], test.class_names[9]) == ("airplane", "truck")


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_cifar10_pickles_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({b"data": _Harmful()}))
    with pytest.raises(DataError, match=r"test_batch: not a CIFAR-10 batch \(.* is not allowed\)"):
        load("cifar10", split="test", root=tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_tinyimagenet_is_read_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("n02\nn01\n")
    for value, name in ((40, "n02"), (200, "n01")):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        for i in range(20):
            Image.fromarray(np.full((64, 64, 3), value, dtype=np.uint8)).save(folder / f"{name}_{i}.JPEG")
    Image.fromarray(np.full((64, 64), 40, dtype=np.uint8)).save(root / "val" / "images" / "val_0.JPEG")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t62\t62\n")
    train, validation, test = parts("tinyimagenet", root=tmp_path)
    assert (len(train), len(validation), len(test)) == (38, 2, 1)
    assert test.labels.tolist() == [1]  # classes are sorted
    assert test.class_names == ()  # there is no words.txt
    assert torch.equal((train.images[:, 0, 0, 0] < 100).long(), train.labels)
    assert len(list((tmp_path / "cache" / "citrus").glob("tinyimagenet-*.npy"))) == 2

    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(named, "decode", fail)
    assert load("tinyimagenet", split="train", root=tmp_path).sha256() == train.sha256()


@pytest.mark.parametrize(("name", "sizes"), [("mnist", (55_000, 5_000, 10_000)), ("cifar10", (45_000, 5_000, 10_000))])
def test_the_real_sets(name: str, sizes: tuple[int, ...], data_root: Any) -> None:
    found = parts(name, root=data_root(name))
    assert tuple(len(part) for part in found) == sizes
    assert torch.bincount(found[2].labels, minlength=10).min() >= 892
    if name == "mnist":
        assert found[2].labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
