"""The shipped queries: made by their script, about the shipped networks, readable and true to the data."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from citrus_tool.data import load
from citrus_tool.queries import read, uap_structure
from citrus_tool.queries.benchmark import read_answers, read_instances

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "vnnlib"
INSTANCES = read_instances(FOLDER / "instances.csv")
QUERIES = sorted({instance.vnnlib for instance in INSTANCES})
LOCAL = [name for name in QUERIES if name.startswith("digits_test_")]


def test_instances_name_files_that_exist() -> None:
    assert len(INSTANCES) == 48
    assert sorted(path.name for path in FOLDER.glob("*.vnnlib")) == QUERIES
    for instance in INSTANCES:
        assert all(path.is_file() for path in instance.networks.values())
        assert instance.query.is_file()
    named = {path.resolve() for instance in INSTANCES for path in instance.networks.values()}
    assert named == {path for folder in (ROOT / "models", FOLDER) for path in folder.glob("*.onnx")}


def test_uap_queries_are_what_they_say() -> None:
    for instance in INSTANCES:
        if "_uap_" not in instance.vnnlib:
            continue
        k, eps = re.search(r"_uap_(\d)_(?:product_)?eps_(\d\.\d+)", instance.vnnlib).groups()  # type: ignore[union-attr]
        spec = read(instance.query)
        if "product" in instance.vnnlib:
            assert spec.outputs["Y"].size == int(k)
            assert spec.case_count == math.comb(int(k), (int(k) + 1) // 2)
            assert float(spec.common_case.boxes["X"].upper.max()) == float(eps)
        else:
            structure = uap_structure(spec)
            assert len(structure.networks) == int(k)
            assert np.allclose(structure.radius, float(eps))


def test_answers_cover_known_instances() -> None:
    """Every listed answer is sat or unsat and belongs to an instance."""
    answers = read_answers(FOLDER / "answers.csv")
    assert set(answers) <= {instance.key for instance in INSTANCES}
    assert set(answers.values()) == {"sat", "unsat"}


def test_the_script_makes_these_files_again(tmp_path: Path) -> None:
    script = [sys.executable, str(FOLDER / "generate_properties.py")]
    subprocess.run([*script, "1", str(tmp_path)], check=True, cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL)
    assert sorted(path.name for path in tmp_path.glob("*.vnnlib")) == QUERIES
    for name in [*QUERIES, *(path.name for path in FOLDER.glob("*.onnx"))]:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
    assert subprocess.run([*script, "one"], check=False, stderr=subprocess.DEVNULL).returncode == 1


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("name", LOCAL)
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
