"""Properties as a training target: what is read from them, what is refused, and a network that fails is repaired."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from citrus_tool import onnx_io
from citrus_tool.cli import main
from citrus_tool.data import Dataset, load
from citrus_tool.errors import CitrusError, InputFileError
from citrus_tool.network import Reshape, chain
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.queries import parse, text1, uap_query, write2
from citrus_tool.queries.target import SHARE, Target, read_property, read_target

FOLDER = Path(__file__).resolve().parents[2] / "vnnlib"
DIGITS = FOLDER.parent / "models" / "digits_convtiny.onnx"
SHAPE, CLASSES = (3, 2, 2), 3


@pytest.fixture(scope="module")
def digits() -> OnnxModel:
    return onnx_io.read(DIGITS, input_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("target") / "toy.onnx"
    onnx_io.export(chain([Reshape((12,)), torch.nn.Linear(12, CLASSES)], SHAPE), path, metadata={})
    return path


def text(lower: np.ndarray, upper: np.ndarray, unsafe: str, classes: int = CLASSES) -> str:
    lines = [f"(declare-const X_{i} Real)" for i in range(lower.size)]
    lines += [f"(declare-const Y_{j} Real)" for j in range(classes)]
    for i, (low, high) in enumerate(zip(lower.ravel(), upper.ravel(), strict=True)):
        lines += [f"(assert (>= X_{i} {low:.12f}))", f"(assert (<= X_{i} {high:.12f}))"]
    return "\n".join([*lines, unsafe, ""])


def fooled(label: int, classes: int = CLASSES) -> str:
    return f"(assert (or {' '.join(f'(and (>= Y_{j} Y_{label}))' for j in range(classes) if j != label)}))"


def write(folder: Path, content: str, name: str = "p.vnnlib") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def test_the_shipped_properties_give_their_images(digits: OnnxModel) -> None:
    test = load("digits", split="test")
    for index in (170, 271):
        found = read_property(FOLDER / f"digits_test_{index}_eps_0.05.vnnlib", digits)
        assert torch.allclose(found.images[0].float(), test.images[index], atol=1e-7)
        assert found.labels == (int(test.labels[index]),)
        assert found.eps == pytest.approx(0.05)


def test_a_uap_query_gives_all_its_images(digits: OnnxModel) -> None:
    found = read_property(FOLDER / "digits_convtiny_uap_4_eps_0.1.vnnlib", digits)
    singles = [read_property(FOLDER / f"digits_test_{i}_eps_0.1.vnnlib", digits) for i in (170, 185, 271, 341)]
    assert torch.allclose(found.images, torch.cat([one.images for one in singles]))
    assert found.labels == tuple(one.labels[0] for one in singles)
    assert found.eps == pytest.approx(0.1)


@pytest.mark.parametrize("normalised", [False, True])
def test_boxes_that_the_pixel_range_cuts_off_give_the_uncut_centre(toy: Path, tmp_path: Path, normalised: bool) -> None:
    mean, std = ([0.5, 0.4, 0.3], [0.25, 0.2, 0.1]) if normalised else ([0.0] * 3, [1.0] * 3)
    model = onnx_io.read(toy, input_shape=SHAPE, mean=mean, std=std)
    image, eps = np.random.default_rng(1).random(SHAPE), 0.06
    image[0, 0], image[1, 1, 0], image[2, 1, 1] = [0.0, 1.0], 0.02, 0.97
    lower, upper = ((np.clip(image + sign * eps, 0, 1) - _axes(mean)) / _axes(std) for sign in (-1, 1))
    found = read_property(write(tmp_path, text(lower, upper, fooled(1))), model)
    assert np.allclose(found.images[0].numpy(), image, atol=1e-9)
    assert found.eps == pytest.approx(eps)
    assert found.labels == (1,)


def _axes(values: list[float]) -> np.ndarray:
    return np.array(values).reshape(3, 1, 1)


def test_one_class_is_enough(toy: Path, tmp_path: Path) -> None:
    model = onnx_io.read(toy, input_shape=SHAPE)
    box = np.full(12, 0.3), np.full(12, 0.5)
    assert read_property(write(tmp_path, text(*box, "(assert (<= Y_2 Y_0))")), model).labels == (2,)


BOX = np.full(12, 0.3), np.full(12, 0.5)
UNEVEN = np.concatenate([np.full(1, 0.35), np.full(11, 0.3)])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (text(*BOX, "(assert (<= Y_0 0.5))"), r"the assertion \(assert \(<= Y_0 0\.5\)\) does not put one label"),
        (text(*BOX, "(assert (or (<= Y_0 Y_1) (<= Y_2 Y_1)))"), r"\(or \(<= Y_0 Y_1\) \(<= Y_2 Y_1\)\)\) does not put"),
        (text(*BOX, "(assert (<= Y_0 Y_1))(assert (<= Y_0 Y_2))"), r"\(<= Y_0 Y_2\)\) is a second condition"),
        (text(*BOX, "(assert (or (and (<= Y_0 Y_1) (<= Y_0 Y_2))))"), "second condition"),
        (text(*BOX, "(assert (<= (+ Y_0 0.1) Y_1))"), "does not put one label"),
        (text(*BOX, "(assert (<= (- X_0 X_1) 0.1))"), r"\(<= \(- X_0 X_1\) 0\.1\)\) neither bounds an input"),
        (text(*BOX, "(assert (or (<= X_0 0.4) (<= Y_0 Y_1)))"), "is no condition on the outputs alone"),
        (text(*BOX, "(assert (<= X_0 0.4))"), "no assertion speaks of the output Y"),
        (text(UNEVEN, BOX[1], fooled(0)), r"pixel \(0, 0, 0\) of X with bounds 0\.35 and 0\.5, .* has another radius"),
        (text(BOX[0] + 1, BOX[1] + 1, fooled(0)), r"lies outside \[0, 1\] in pixel space; --mean and --std"),
        (text(BOX[1], BOX[0], fooled(0)), "its input box is empty"),
        (text(BOX[0], BOX[1], fooled(0, 4), 4), "speaks of 12 inputs and 4 outputs, .*toy.onnx has 12 and 3"),
    ],
)
def test_other_properties_are_refused(toy: Path, tmp_path: Path, content: str, says: str) -> None:
    model = onnx_io.read(toy, input_shape=SHAPE)
    path = write(tmp_path, content)
    with pytest.raises(InputFileError, match=says) as caught:
        read_property(path, model)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count("\n") == 0


def test_copies_that_are_not_linked_are_refused(toy: Path, tmp_path: Path) -> None:
    spec = uap_query(np.full((2, *SHAPE), 0.5, dtype=np.float32), [0, 1], 0.1, CLASSES)
    content = tmp_path / "q.vnnlib"
    write2(spec, content)
    lines = content.read_text().splitlines()
    kept = [line for line in lines if not ("X1[0,0,0]" in line and "X2[0,0,0]" in line)]
    assert len(kept) == len(lines) - 1
    content.write_text("\n".join(kept))
    with pytest.raises(CitrusError, match=r"q\.vnnlib"):
        read_property(content, onnx_io.read(toy, input_shape=SHAPE))


def test_folders_and_lists(digits: OnnxModel, tmp_path: Path) -> None:
    names = ["digits_test_170_eps_0.02.vnnlib", "digits_test_185_eps_0.1.vnnlib"]
    for name in names:
        shutil.copy(FOLDER / name, tmp_path)
    folder = read_target([tmp_path, tmp_path / names[0]], digits, seconds=1.0)
    assert [found.path.name for found in folder.properties] == names
    assert folder.eps == pytest.approx(0.1)
    listed = read_target([FOLDER / "instances.csv"], digits, seconds=1.0)
    assert len(listed.properties) == 18  # 12 images and radii, 6 UAP queries; product networks are other networks
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputFileError, match=r"holds no \.vnnlib file"):
        read_target([tmp_path / "empty"], digits, seconds=1.0)
    other = tmp_path / "instances.csv"
    other.write_text("nothing.onnx,digits_test_170_eps_0.02.vnnlib,5\n")
    with pytest.raises(InputFileError, match="no line names the network"):
        read_target([other], digits, seconds=1.0)


@pytest.mark.parametrize(("level", "dtype"), [(51.0, torch.uint8), (51.3, torch.float32)])
def test_the_images_join_the_training_data(toy: Path, tmp_path: Path, level: float, dtype: torch.dtype) -> None:
    model = onnx_io.read(toy, input_shape=SHAPE)
    centre, eps = np.full(12, level / 255), 0.01
    paths = [
        write(tmp_path, text(centre - radius, centre + radius, fooled(label)), f"{i}.vnnlib")
        for i, (radius, label) in enumerate([(eps, 0), (2 * eps, 0), (eps, 2)])
    ]
    base = torch.randint(0, 256, (80, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    train = Dataset(name="toy", split="train", images=base, labels=torch.zeros(80, dtype=torch.int64), num_classes=3)
    joined = read_target(paths, model, seconds=1.0).joined(train)
    assert joined.images.dtype == dtype
    assert torch.equal(joined.pixels()[:80], train.pixels())
    added = joined.labels[80:]
    assert len(added) / len(joined) == pytest.approx(SHARE)
    assert (added == 0).sum() == (added == 2).sum()  # two radii of one image are one image
    assert torch.allclose(joined.pixels()[80:].double(), torch.tensor(level / 255).double(), atol=1e-6)


def test_verdicts_are_those_of_verify(digits: OnnxModel) -> None:
    paths = [FOLDER / f"digits_test_{name}.vnnlib" for name in ("170_eps_0.05", "271_eps_0.02")]
    seen: list[str] = []
    target = read_target(paths, digits, seconds=30.0)
    assert [found.verdict for found in target.verdicts(DIGITS, lambda found: seen.append(found.verdict))] == seen
    assert seen == ["sat", "unsat"]  # vnnlib/answers.csv


Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["harden", str(DIGITS), "--limit", "5", "--quiet", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_network_that_fails_is_repaired(run: Callable[..., tuple[int, str, str]]) -> None:
    """PGD from the file's weights is enough here; the certified methods take longer (docs/vnncomp.md)."""
    files = [FOLDER / f"digits_test_170_eps_{eps}.vnnlib" for eps in ("0.02", "0.05")]
    specs = [part for file in files for part in ("--spec", file)]
    code, out, err = run(*specs, "--method", "pgd", "--epochs", 6, "--out", "h.onnx", "--json", "h.json")
    assert code == 0, err
    report = json.loads(Path("h.json").read_text())
    assert report["eps"] == pytest.approx(0.05)
    assert report["spec"] == [
        {"file": str(file), "images": 1, "eps": pytest.approx(eps), "before": "sat", "after": "unsat"}
        for file, eps in zip(files, (0.02, 0.05), strict=True)
    ]
    assert report["after"]["standard_accuracy"] > 90
    assert "0 of 2 properties hold (unsat) before, 2 after; they were trained for." in out
    again = read_target(files, onnx_io.read("h.onnx", input_shape=(1, 8, 8)), seconds=30.0)
    assert {found.verdict for found in again.verdicts(Path("h.onnx"))} == {"unsat"}


def test_harden_needs_a_radius_or_a_property(run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run()
    assert (code, err.count("\n")) == (2, 1)
    assert "add --eps, e.g. --eps 0.1, or --spec F.vnnlib" in err
    code, _, err = run("--spec", FOLDER / "digits_convtiny_uap_2_product_eps_0.1_1.vnnlib")
    assert code == 3
    assert "citrus: error: " in err


def test_a_written_property_is_read_back(toy: Path, tmp_path: Path) -> None:
    spec = parse(text(*BOX, fooled(2)))
    path = write(tmp_path, text1(spec))
    target = Target(properties=(read_property(path, onnx_io.read(toy, input_shape=SHAPE)),), seconds=1.0)
    assert target.properties[0].labels == (2,)
    assert target.eps == pytest.approx(0.1)
