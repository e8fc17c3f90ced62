"""`citrus certify-uap` at several eps and `citrus compare`: tables, files, resuming, what is refused."""

from __future__ import annotations

import csv
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_commands import CERTIFICATE
from tests.cli.toys import Run, classifier

SMALL = ("--limit", 12, "--group-size", 3, "--attack-steps", 3, "--quiet")


def sweep(run: Run, network: Path, *arguments: object) -> list[dict[str, Any]]:
    outcome = run("certify-uap", network, "--eps", "0.1,1/255,0.03", *SMALL, "--json", "-", *arguments)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document.keys() == {"sweep"}
    found: list[dict[str, Any]] = document["sweep"]
    return found


def timeless(certificates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**c, "seconds": 0, "stages": {}, "groups": [{**g, "seconds": 0} for g in c["groups"]]} for c in certificates
    ]


def test_sweep(run: Run, repository: Path) -> None:
    network = repository / "models" / "digits_convtiny.onnx"
    found = sweep(run, network, "--csv", "s.csv", "--latex", "s.tex")
    assert [one["eps"] for one in found] == [1 / 255, 0.03, 0.1]
    for name in ("certified", "attacked", "individually_certified"):
        assert [one[name] for one in found] == sorted((one[name] for one in found), reverse=True)
    assert all(one.keys() >= CERTIFICATE for one in found)
    assert found[0]["certified"] > found[-1]["attacked"]  # eps matters
    rows = list(csv.DictReader(Path("s.csv").read_text().splitlines()))
    assert [int(row["certified"]) for row in rows] == [one["certified"] for one in found]
    assert Path("s.tex").read_text().count(r" \\") == 4
    folder = Path("runs/digits_convtiny_sweep")
    assert json.loads((folder / "sweep.json").read_text())["sweep"] == found
    for name, eps in (("eps_1_255", 1 / 255), ("eps_0.03", 0.03), ("eps_0.1", 0.1)):
        assert json.loads((folder / name / "certificate.json").read_text())["eps"] == eps
    again = sweep(run, network, "--resume")
    assert timeless(again) == timeless(found)
    assert [one["groups"] for one in again] == [one["groups"] for one in found]  # seconds too: nothing is done again
    one = tomllib.loads((folder / "eps_0.03/settings.toml").read_text())
    assert (one["eps"], one["run-dir"]) == (0.03, str(folder / "eps_0.03"))


def test_sweep_table_and_single_eps(run: Run, network: Path) -> None:
    lines = run("certify-uap", network, "--eps", "0.1,1/255", *SMALL).out.splitlines()
    assert lines[0].split()[:2] == ["eps", "clean"]
    assert [line.split()[0] for line in lines[1:3]] == ["1/255", "0.1"]
    assert lines[4] == "percent of 12 inputs (digits, test) in groups of 3, float32 arithmetic"
    single = json.loads(run("certify-uap", network, "--eps", "0.1", *SMALL, "--csv", "s.csv", "--json", "-").out)
    assert single["eps"] == 0.1
    assert len(Path("s.csv").read_text().splitlines()) == 2


def test_sweep_of_the_whole_data_set(run: Run, network: Path) -> None:
    outcome = run("certify-uap", network, "--eps", "0.1,0.01", *SMALL, "--scope", "dataset", "--report", "r.html")
    assert outcome.code == 0
    words = "percent of 12 inputs (digits, test) under one perturbation for all, float32 arithmetic\n"
    assert outcome.out.endswith(words)
    assert Path("r.html").read_text().startswith("<!")


def test_an_interrupted_sweep_goes_on(run: Run, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from citrus_tool.certification import uap

    whole = sweep(run, network, "--run-dir", "whole")
    original = uap.finished

    def stop(setup: Any, prepared: Any) -> Any:
        if setup.threat.eps == 0.03 and prepared.group.index == 2:
            raise KeyboardInterrupt
        return original(setup, prepared)

    with monkeypatch.context() as patched:
        patched.setattr(uap, "finished", stop)
        outcome = run("certify-uap", network, "--eps", "0.1,1/255,0.03", *SMALL, "--run-dir", "cut")
    assert outcome.code == 5
    assert "stopped after 2 of 4 groups; continue with --resume (cut/eps_0.03/journal.jsonl)" in outcome.err
    again = run("certify-uap", network, "--eps", "0.1,1/255,0.03", *SMALL, "--run-dir", "cut")
    assert again.code == 2
    assert "cut/eps_0.03/journal.jsonl holds an unfinished run of 2 groups; continue it with --resume" in again.err
    assert timeless(sweep(run, network, "--run-dir", "cut", "--resume")) == timeless(whole)


def test_config_holds_several_eps(run: Run, network: Path) -> None:
    Path("c.toml").write_text('eps = ["1/255", 0.1]\nlimit = 6\n')
    outcome = run("certify-uap", network, "--config", "c.toml", "--bounds", "ibp", "--quiet", "--json", "-")
    assert [one["eps"] for one in json.loads(outcome.out)["sweep"]] == [1 / 255, 0.1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--eps", "0.1,0.1"), "eps 0.1 is given twice"),
        (("--eps", ""), "eps '' is not a number"),
        (("--eps", "0.1,much"), "eps 'much' is not a number"),
        (("--eps", "0.1,0.2", "--certificate", "C"), "--certificate holds the proof of one eps"),
    ],
)
def test_sweep_errors(run: Run, network: Path, arguments: tuple[str, ...], words: str) -> None:
    outcome = run("certify-uap", network, *arguments, *SMALL)
    assert outcome.code == 2
    assert words in outcome.err


def test_csv_must_be_writable(run: Run, network: Path) -> None:
    for option in ("--csv", "--latex"):
        outcome = run("certify-uap", network, "--eps", "0.1", option, "none/s")
        assert outcome.code == 3
        assert "none/s: the folder none does not exist" in outcome.err


def test_compare(run: Run, network: Path, tmp_path: Path, repository: Path) -> None:
    trained = repository / "models" / "digits_convtiny_citrus.onnx"
    broken = classifier(tmp_path / "erf.onnx", operator="Erf")
    arguments = ("compare", network, trained, broken, "none.onnx", "--eps", "1/255,0.03", *SMALL)
    outcome = run(*arguments, "--json", "c.json", "--csv", "c.csv", "--latex", "c.tex")
    assert outcome.code == 3
    assert "2 of 4 networks could not be judged" in outcome.err
    assert "Erf" in outcome.err
    assert "none.onnx" in outcome.err
    found = json.loads(Path("c.json").read_text())
    assert [entry["name"] for entry in found["networks"]] == ["toy", "digits_convtiny_citrus", "erf", "none"]
    assert [entry["error"] is None for entry in found["networks"]] == [True, True, False, False]
    toy, good = (entry["sweep"] for entry in found["networks"][:2])
    alone = json.loads(run("certify-uap", trained, "--eps", "1/255,0.03", *SMALL, "--json", "-").out)["sweep"]
    assert timeless(alone) == timeless(good)
    for pair, one, other in zip(found["pairs"], toy, good, strict=True):
        assert pair["inputs_a"] - pair["inputs_b"] == one["certified"] - other["certified"]
        assert pair["groups"] == 4
    assert outcome.out.count("failed") == 2
    assert "percent of 12 inputs (digits, test) in groups of 3" in outcome.out
    rows = list(csv.DictReader(Path("c.csv").read_text().splitlines()))
    assert [row["error"] != "" for row in rows] == [False] * 4 + [True] * 2
    assert {row["standard_accuracy"] for row in rows[2:4]} == {str(found["networks"][1]["standard_accuracy"])}
    assert Path("c.tex").read_text().count(r"\midrule") == 4
    again = run(*arguments, "--resume", "--json", "-")
    for entry, before in zip(json.loads(again.out)["networks"][:2], found["networks"], strict=False):
        assert [one["groups"] for one in entry["sweep"]] == [one["groups"] for one in before["sweep"]]


def test_compare_errors(run: Run, network: Path) -> None:
    outcome = run("compare", network, "--eps", "0.1")
    assert outcome.code == 2
    assert "give at least two networks" in outcome.err
    assert run("compare", "--eps", "0.1").code == 2
    assert run("compare", network, network, "--eps", "0.1", "--data", "cifr10").code == 2
    assert run("compare", network, network, "--eps", "0.1", "--data", "none.npz").code == 3


def test_a_contradiction_stops_the_comparison(run: Run, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from citrus_tool.errors import CheckFailedError, SoundnessError

    def fail(error: Exception) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("citrus_tool.workflow.compare.sweep_file", refuse)

    fail(SoundnessError("void."))
    outcome = run("compare", network, network, "--eps", "0.1", "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (4, "", "citrus: error: void.\n")
    fail(CheckFailedError("differs."))
    outcome = run("compare", network, network, "--eps", "0.1", "--quiet")
    assert (outcome.code, outcome.out.count("failed")) == (4, 2)
    assert not Path("runs/compare/toy").exists()


def test_low_accuracy_is_one_warning(run: Run, network: Path) -> None:
    arguments = ("certify-uap", network, "--eps", "0.01,0.02", "--limit", 3, "--bounds", "ibp")
    outcome = run(*arguments)
    assert outcome.code == 0
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"citrus: warning: {network} classifies only ")
    assert run(*arguments, "--quiet").err == ""
