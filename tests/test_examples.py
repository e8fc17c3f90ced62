"""The examples run, on digits, and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import citrus_tool as citrus

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SECONDS = 300
"""Far above the ten to twenty that an example takes: test machines may be busy."""


def run(name: str, *arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_listed_and_tested() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".ipynb"}}
    listed = (EXAMPLES / "README.md").read_text()
    own = Path(__file__).read_text()
    assert files
    for name in files:
        assert f"[{name}]({name})" in listed
        assert f'"{name}"' in own


@pytest.mark.slow
def test_quickstart(tmp_path: Path) -> None:
    out = run("quickstart.py", "h.onnx", folder=tmp_path)
    assert "epoch 15: loss" in out
    proven = float(out.partition("proven, in percent: ")[2].split()[0])
    assert proven > 40  # after 15 epochs
    assert citrus.load(tmp_path / "h.onnx").num_classes == 10


@pytest.mark.slow
def test_torch_module(tmp_path: Path) -> None:
    out = run("torch_module.py", folder=tmp_path)
    assert float(out.partition("on the test images: ")[2].split()[0]) > 70


@pytest.mark.slow
def test_own_data(tmp_path: Path) -> None:
    out = run("own_data.py", folder=tmp_path)
    assert "largest entry 0.050" in out


@pytest.mark.slow
def test_shapes(tmp_path: Path) -> None:
    out = run("shapes.py", folder=tmp_path)
    assert float(out.partition("shapes.onnx: ")[2].split()[0]) > 95
    assert len(citrus.load_data(str(tmp_path / "shapes.npz"), split="test")) > 590
    assert citrus.load(tmp_path / "shapes.onnx").num_classes == 4


def test_uap_query(tmp_path: Path) -> None:
    out = run("uap_query.py", "q", folder=tmp_path)
    answers = [line for line in out.splitlines() if line.startswith("query: ")]
    assert answers == ["query: unsat", "query: sat"]
    assert {"pair_0.05.vnnlib", "pair_0.3.vnnlib"} <= {path.name for path in (tmp_path / "q").iterdir()}


@pytest.mark.slow
def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    (tmp_path / "examples").mkdir()
    (tmp_path / "models").symlink_to(ROOT / "models")
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path / "examples")}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("<table>" in output.get("data", {}).get("text/html", "") for output in shown)
    assert (tmp_path / "examples" / "digits_hardened.onnx").exists()
