"""`citrus report`, and --report of other commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.toys import Run
from tests.report.page import check_numbers, read_page


@pytest.fixture
def gold(tmp_path: Path, repository: Path) -> Path:
    """A finished run folder of certify-uap, see tests/report/conftest.py."""
    return Path(shutil.copytree(repository / "tests" / "report" / "gold" / "certify", tmp_path / "certify"))


def test_report_command(run: Run, gold: Path, repository: Path) -> None:
    outcome = run("report", gold, "--quiet")
    assert outcome.code == 0
    assert outcome.out == "written to report.html\n"
    assert "left out: models/digits_convtiny.onnx: the network with sha256" in outcome.err  # run() is elsewhere
    assert read_page(Path("report.html").read_text()).tiles
    model = repository / "models" / "digits_convtiny.onnx"
    outcome = run("report", gold, gold, "--model", model, "--out", "two.html", "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    assert run("report").code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none",), "none: cannot be read"),
        ((".",), "holds no finished run"),
        (("RUN", "--out", "no/r.html"), "no/r.html"),
    ],
)
def test_report_command_refuses(run: Run, gold: Path, arguments: tuple[str, ...], words: str) -> None:
    outcome = run("report", *(gold if word == "RUN" else word for word in arguments), "--quiet")
    assert outcome.code == 3
    assert len(outcome.err.splitlines()) == 1
    assert words in outcome.err
    assert not Path("report.html").exists()


def test_report_option(run: Run, network: Path) -> None:
    outcome = run("certify-uap", network, "--eps", "1/255", "--limit", 12, "--quiet", "--report", "c.html")
    assert (outcome.code, outcome.err) == (0, "")
    page = read_page(Path("c.html").read_text())
    assert check_numbers(page) > 20
    assert page.images
    assert "report" not in Path("runs/toy_certify/settings.toml").read_text()
    outcome = run("evaluate", network, "--eps", 0.02, "--limit", 5, "--quiet", "--report", "e.html", "--json", "e.json")
    assert outcome.code == 0
    page = read_page(Path("e.html").read_text())
    found = json.loads(Path("e.json").read_text())
    assert {float(v.value) for v in page.values if v.field == "pgd_accuracy"} == {found["pgd_accuracy"]}
    assert run("evaluate", network, "--eps", 0.02, "--report", "no/e.html").code == 3
