"""`citrus bench`: what it lists, refuses and writes; the runs themselves are tested in tests/bench."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.toys import Run


@pytest.mark.parametrize(
    ("table", "contests"), [("table1", 4), ("table2", 1), ("table3", 1), ("published", 2), ("fig5", 1)]
)
def test_list_runs_nothing(run: Run, table: str, contests: int) -> None:
    outcome = run("bench", table, "--list")
    assert outcome.code == 0
    assert outcome.out.count("convsmall") == contests
    assert "not run" in outcome.out
    assert not any(Path().iterdir())


def test_filters(run: Run) -> None:
    out = run("bench", "table1", "--list", "--data", "cifar10", "--eps", "8/255").out
    assert out.startswith("cifar10, eps 8/255, convsmall")
    assert out.count("convsmall") == 1
    assert run("bench", "table1", "--list", "--scale", "gpu").out.count("cnn7") == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "digits"), "no contest is on digits at any eps; contests are mnist at 0.1, mnist at 0.3"),
        (("--eps", "0.7"), "no contest is on any data at 0.7; contests are"),
        (("--methods", "citros"), "'citros' is no method of this table; its methods are ibp, sabr"),
    ],
)
def test_errors(run: Run, arguments: tuple[str, ...], message: str) -> None:
    outcome = run("bench", "table1", "--list", *arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_results_page(run: Run) -> None:
    Path("journal.jsonl").write_text("")
    assert run("bench", "results", "--journal", "journal.jsonl", "--out", "r.md").code == 0
    assert Path("r.md").read_text().startswith("# Results")
    Path("journal.jsonl").write_text("{}\n")
    outcome = run("bench", "results", "--journal", "journal.jsonl", "--out", "r.md")
    assert outcome.code == 3
    assert "journal.jsonl, line 1: is no run" in outcome.err
