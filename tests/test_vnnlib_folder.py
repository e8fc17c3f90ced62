"""The shipped queries: made by their script, about the shipped networks, readable and true to the data."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from citrus_tool.data import load

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "vnnlib"
INSTANCES = [line.split(",") for line in (FOLDER / "instances.csv").read_text().splitlines()]
QUERIES = sorted({row[1] for row in INSTANCES})


def test_instances_name_files_that_exist() -> None:
    assert len(INSTANCES) == 24
    assert sorted(path.name for path in FOLDER.glob("*.vnnlib")) == QUERIES
    for onnx, query, timeout in INSTANCES:
        assert (FOLDER / onnx).is_file()
        assert (FOLDER / query).is_file()
        assert int(timeout) > 0
    assert {Path(row[0]).name for row in INSTANCES} == {path.name for path in (ROOT / "models").glob("*.onnx")}


def test_the_script_makes_these_files_again(tmp_path: Path) -> None:
    script = [sys.executable, str(FOLDER / "generate_properties.py")]
    subprocess.run([*script, "1", str(tmp_path)], check=True, cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL)
    assert sorted(path.name for path in tmp_path.glob("*.vnnlib")) == QUERIES
    for name in QUERIES:
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text()
    assert subprocess.run([*script, "one"], check=False, stderr=subprocess.DEVNULL).returncode == 1


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_is_the_box_around_its_image(name: str) -> None:
    found = re.fullmatch(r"digits_test_(\d+)_eps_(0\.\d+)\.vnnlib", name)
    assert found is not None
    index, eps = int(found[1]), float(found[2])
    test = load("digits", split="test")
    text = (FOLDER / name).read_text()
    low = [float(value) for value in re.findall(r"\(>= X_\d+ (-?[\d.]+)\)", text)]
    high = [float(value) for value in re.findall(r"\(<= X_\d+ (-?[\d.]+)\)", text)]
    x = test.images[index].flatten().double().numpy()
    assert np.allclose(np.array(low), x - eps, rtol=0, atol=1e-12)
    assert np.allclose(np.array(high), x + eps, rtol=0, atol=1e-12)
    label = int(test.labels[index])
    assert re.findall(r"\(>= Y_(\d) Y_(\d)\)", text) == [(str(j), str(label)) for j in range(10) if j != label]
