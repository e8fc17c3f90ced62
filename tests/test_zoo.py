"""The zoo of ordinary classifiers (benchmarks/zoo.py): its page, and some of its quick files from end to end."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="benchmarks/ is only in the repository")


@pytest.fixture(scope="module")
def zoo() -> Iterator[ModuleType]:
    """The command as a module: its folder is on the path, as for a script."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import zoo

    yield zoo
    sys.path.remove(str(ROOT / "benchmarks"))


def test_the_page_is_about_the_files_of_the_command(zoo: ModuleType) -> None:
    text = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    rows = [row for row in text.partition("## Operators")[0].splitlines() if row.startswith("| ")]
    named = [row.split(" | ")[:2] for row in rows[1:]]
    assert named == [[f"| {name}", entry.source] for name, entry in zoo.ENTRIES.items()]
    assert len(named) == 30


def test_files_are_read_bounded_and_written(
    zoo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "zoo.md"
    assert zoo.main([str(tmp_path), "--only", "ir3,opset8", "--page", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 of 2 read, bounded, contained and written back"
    for name, line in zip(("ir3", "opset8"), lines, strict=False):
        assert re.match(rf"{name} +read \(.*proven [1-4] [1-4]  written", line)
    assert "2 are read, 2 bounded, 2 written back" in " ".join(page.read_text(encoding="utf-8").split())


def test_bounds_that_are_too_narrow_are_found(
    zoo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CROWN's box over the logits is halved; points at its ends were found by its planes."""
    refine = zoo.refine

    def wrong(*arguments: Any) -> Any:
        found = refine(*arguments)
        return replace(found, radius=found.radius / 2.5)

    monkeypatch.setattr(zoo, "refine", wrong)
    assert zoo.main([str(tmp_path), "--only", "ir3"]) == 1
    assert "BROKEN containment: CROWN's boxes do not hold" in capsys.readouterr().out
