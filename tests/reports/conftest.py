"""Run folders and results to report on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from citrus_tool.reports import read, write_report
from tests.reports.page import Page, read_page

GOLD = Path(__file__).parent / "gold"
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def _at_the_top(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gold runs name their network relative to the repository."""
    monkeypatch.chdir(repository)


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    """A copy of the run folder of
    `citrus certify-uap models/digits_convtiny.onnx --eps 0.05 --limit 23 --group-size 4`.
    """
    return Path(shutil.copytree(GOLD / "certify", tmp_path / "certify"))


@pytest.fixture
def edited(gold: Path) -> Callable[[Edit], Path]:
    """Changes the gold certificate in place."""

    def change(edit: Edit) -> Path:
        path = gold / "certificate.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return path

    return change


@pytest.fixture
def reported(tmp_path: Path) -> Callable[..., tuple[Page, str]]:
    """Writes a report about paths and reads it back: the page and its HTML."""

    def make(*paths: Path, **options: Any) -> tuple[Page, str]:
        out = tmp_path / "report.html"
        write_report([read(path) for path in paths], out, **options)
        html = out.read_text(encoding="utf-8")
        return read_page(html), html

    return make


def history(epochs: int = 6) -> list[dict[str, Any]]:
    """What `harden` writes about its epochs, with made-up numbers."""
    return [
        {
            "epoch": n + 1,
            "phase": "warm-up" if n == 0 else "ramp" if n < 4 else "full",
            "eps": 0.01 * n,
            "tau": 0.005 * n,
            "lr": 0.001,
            "loss": 2.5 / (n + 1),
            "shi": 0.25 / (n + 1),
            "gradient_norm": 1.0,
            "validation_standard_accuracy": 90 + n / 3,
            "validation_certified_accuracy": None if n < 4 else 80 + n / 7,
            "seconds": 1.25,
        }
        for n in range(epochs)
    ]


def harden_report() -> dict[str, Any]:
    """`report.json` of a hardening run whose network after is the gold one."""
    names = ("standard_accuracy", "ibp_certified_accuracy", "certified_uap_accuracy", "attacked_uap_accuracy")
    certificate = json.loads((GOLD / "certify" / "certificate.json").read_text())
    after = [97.2, *(100 * certificate[name] / 23 for name in ("ibp_certified", "certified", "attacked"))]
    return {
        "model": "models/digits_convtiny.onnx",
        "out": "models/digits_convtiny.onnx",
        "method": "citrus",
        "eps": 0.05,
        "epochs": 6,
        "seconds": 7.5,
        "best_epoch": 5,
        "data": "digits",
        "group_size": 4,
        "inputs": 23,
        "before": dict(zip(names, (96.1, 0.0, 1.5, 30.25), strict=True)),
        "after": dict(zip(names, after, strict=True)),
        "recipe": {"method": "citrus", "eps": 0.05, "milestones": [4, 5], "flip": False, "uat": {"step": 0.25}},
        "spec": [{"file": "p.vnnlib", "images": 2, "eps": 0.05, "before": "sat", "after": "unsat"}],
        "history": history(),
        "version": "0.1.0",
    }


@pytest.fixture
def hardened(tmp_path: Path) -> Path:
    """A run folder of `harden`, whose `after.jsonl` is the gold journal; there is no `before.jsonl`."""
    folder = tmp_path / "harden"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(harden_report()))
    shutil.copy(GOLD / "certify" / "journal.jsonl", folder / "after.jsonl")
    return folder


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A run folder of `vnncomp`."""
    folder = tmp_path / "vnncomp"
    folder.mkdir()
    rows = [("sat", 1.25, True, ""), ("unsat", 0.5, None, ""), ("timeout", 30.0, None, ""), ("error", 0.1, None, "no")]
    lines = [
        {
            "onnx": "M.onnx",
            "vnnlib": f"{verdict}.vnnlib",
            "timeout": 30.0,
            "verdict": verdict,
            "seconds": seconds,
            "witness": witness,
            "note": note,
        }
        for verdict, seconds, witness, note in rows
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


EVALUATION = {
    "model": "M.onnx",
    "data": "digits",
    "split": "test",
    "eps": 2 / 255,
    "group_size": 5,
    "inputs": 100,
    "pgd_accuracy": 71.0,
    "standard_accuracy": 97.5,
    "ibp_certified_accuracy": 1.0,
    "certified_uap_accuracy": 50.0,
    "attacked_uap_accuracy": 80.0,
    "version": "0.1.0",
}
ATTACK = {
    "model": "M.onnx",
    "data": "digits",
    "split": "test",
    "eps": 0.1,
    "threat": {"eps": 0.1, "clip": True, "target": 3},
    "group_size": 5,
    "inputs": 90,
    "groups": 18,
    "clean_correct": 88,
    "attacked": 41,
    "attacked_uap_accuracy": 100 * 41 / 90,
    "version": "0.1.0",
}
