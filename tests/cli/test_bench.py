"""`citrus bench`: what it lists, refuses and writes; the runs themselves are tested in tests/bench."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from citrus_tool.bench.contests import SCALES, Job
from citrus_tool.results.measurements import BoxLosses, append
from tests.cli.toys import Run


@pytest.mark.parametrize(
    ("table", "contests"), [("table1", 4), ("table2", 1), ("table3", 1), ("published", 2), ("fig4", 1), ("fig5", 1)]
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


def test_smoke_scale_trains_certifies_and_measures(run: Run) -> None:
    shared = (
        "--scale",
        "smoke",
        "--journal",
        "j.jsonl",
        "--runs",
        "runs",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--quiet",
    )
    outcome = run("bench", "table1", "--methods", "citrus", *shared)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("digits, eps 0.02, resnet")
    entry = json.loads(Path("j.jsonl").read_text())
    assert (entry["contest"], entry["method"], entry["inputs"]) == ("digits", "citrus", 50)
    outcome = run("bench", "fig4", *shared)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[2].split()[0] == "digits"
    assert "not run" not in outcome.out
    outcome = run("bench", "table4", "--methods", "citrus", *shared)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[2].split()[2:4] == ["not", "run"]  # no sabr
    assert len(Path("j.jsonl").read_text().splitlines()) == 2  # nothing was trained again
    text = run("bench", "results", "--journal", "j.jsonl", "--out", "r.md")
    assert text.code == 0
    assert "scale smoke" in Path("r.md").read_text()


def test_training_times(run: Run) -> None:
    out = run("bench", "table4", "--list").out
    assert out.startswith("minutes of training")
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [
        ["mnist-0.1", "527"],
        ["mnist-0.3", "492"],
        ["cifar10-2", "1004"],
        ["cifar10-8", "1185"],
    ]


def test_plots_of_a_table(run: Run) -> None:
    outcome = run("bench", "fig5", "--list", "--plot", "f.svg")
    assert outcome.code == 2
    assert "f.svg: nothing of fig5 is measured at scale cpu yet" in outcome.err
    outcome = run("bench", "fig4", "--list", "--plot", "f.pdf")
    assert outcome.code == 2
    assert "plots are written as .svg or .png" in outcome.err
    outcome = run("bench", "fig5", "--list", "--scale", "gpu")
    assert outcome.code == 2
    assert "fig5 has no contest at scale gpu; choose another --scale" in outcome.err


def test_results_draws_what_was_run(run: Run) -> None:
    contest = next(contest for contest in SCALES["cpu"].contests if contest.name == "cifar10-8")
    losses = BoxLosses(
        contest="cifar10-8",
        method="citrus",
        recipe=Job(contest=contest, method="citrus", seed=0).digest,
        seed=0,
        own=3.0,
        total=4.0,
        largest=1.5,
        inputs=100,
        command="",
        commit="",
        machine="",
        versions={},
    )
    append(Path("journal.jsonl"), losses)
    assert run("bench", "results", "--journal", "journal.jsonl", "--out", "r.md", "--no-plots").code == 0
    assert not Path("images").exists()
    assert run("bench", "results", "--journal", "journal.jsonl", "--out", "r.md").code == 0
    assert "(images/fig4.svg)" in Path("r.md").read_text()
    assert [path.name for path in Path("images").iterdir()] == ["fig4.svg"]
    assert "4.000" in run("bench", "fig4", "--list", "--journal", "journal.jsonl", "--plot", "own.png").out
    assert Path("own.png").is_file()


def test_results_page(run: Run) -> None:
    Path("journal.jsonl").write_text("")
    assert run("bench", "results", "--journal", "journal.jsonl", "--out", "r.md").code == 0
    assert Path("r.md").read_text().startswith("# Results")
    Path("journal.jsonl").write_text("{}\n")
    outcome = run("bench", "results", "--journal", "journal.jsonl", "--out", "r.md")
    assert outcome.code == 3
    assert "journal.jsonl, line 1: is no run" in outcome.err
