"""`citrus report`, and --report of other commands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from citrus_tool.data import load
from citrus_tool.results.evidence import pack, unpack
from tests.cli.toys import Run
from tests.reports.page import check_numbers, read_page


@pytest.fixture
def gold(tmp_path: Path, repository: Path) -> Path:
    """A finished run folder of certify-uap, see tests/reports/conftest.py."""
    return Path(shutil.copytree(repository / "tests" / "reports" / "gold" / "certify", tmp_path / "certify"))


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


NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """Digits with names for their classes; one label in ten is wrong."""
    digits = load("digits", split="test")
    labels = digits.labels.numpy().copy()
    labels[::10] = (labels[::10] + 1) % 10
    np.savez(tmp_path / "named.npz", x=digits.images.numpy(), y=labels, class_names=NAMES)
    return tmp_path / "named.npz"


def test_an_evaluation_shows_classes_and_what_is_wrong(run: Run, repository: Path, named: Path) -> None:
    model = repository / "models" / "digits_convtiny.onnx"
    line = ("evaluate", model, "--data", named, "--eps", 0.05, "--limit", 20, "--pgd-steps", 2, "--quiet")
    outcome = run(*line, "--json", "e.json", "--report", "e.html")
    assert (outcome.code, outcome.err) == (0, "")
    assert run("report", "e.json", "--quiet").code == 0
    for path in ("e.html", "report.html"):
        html = Path(path).read_text()
        for part in ("classes", "wrong", "safe", "groups"):
            assert f'data-part="{part}"' in html, (path, part)
        assert '>8</data> <span class="name">eight</span></th>' in html
        assert re.search(r'alt="Input \d+, class \d zero"', html)
        assert re.search(r'class="wrong"><data value="\d" data-rule="replay">\d</data> <span class="name">\w+<', html)
    found = json.loads(Path("e.json").read_text())
    lost = sum(group["verdicts"].count("lost") for group in found["certificate"]["groups"])
    assert lost == 20 - found["certificate"]["clean_correct"] > 0
    assert check_numbers(read_page(Path("report.html").read_text())) > 80
    assert 'data-part="worst"' in Path("e.html").read_text()  # --report has the perturbations at hand,
    assert "The perturbations are not in this file" in Path("report.html").read_text()  # the file has not
    found["certified_uap_accuracy"] += 5
    Path("e.json").write_text(json.dumps(found))
    assert "make the result again" in run("report", "e.json").err


def test_an_evaluation_of_normalised_inputs_is_replayed(run: Run, network: Path) -> None:
    line = ("evaluate", network, "--eps", 0.02, "--limit", 5, "--mean", "0.3", "--std", "0.5", "--pgd-steps", 1)
    outcome = run(*line, "--quiet", "--report", "e.html")
    assert outcome.code == 0
    assert read_page(Path("e.html").read_text()).images


def test_one_perturbation_of_a_whole_data_set_is_shown(run: Run, repository: Path) -> None:
    model = repository / "models" / "digits_convtiny.onnx"
    line = ("certify-uap", model, "--eps", 0.1, "--limit", 12, "--scope", "dataset", "--attack-steps", 5, "--quiet")
    assert run(*line, "--json", "c.json", "--run-dir", "R").code == 0
    content = json.loads(Path("c.json").read_text())
    assert content["clean_correct"] > content["attacked"]
    for source in ("R", "c.json"):
        assert run("report", source, "--quiet").code == 0
        html = Path("report.html").read_text()
        assert "Perturbation of all inputs" in html
        check_numbers(read_page(html))
        fooled = content["clean_correct"] - content["attacked"]
        assert f'<data value="{fooled}" data-rule="clean_correct-attacked">' in html
    worst = unpack(content["perturbation"])
    content["perturbation"] = pack(0 * worst)
    Path("c.json").write_text(json.dumps(content))
    outcome = run("report", "c.json", "--quiet")
    assert outcome.code == 4
    assert "inputs correct on onnxruntime, not" in outcome.err
    for factor in (2, np.nan):
        content["perturbation"] = pack(np.float32(factor) * worst)
        Path("c.json").write_text(json.dumps(content))
        assert "the perturbation of all inputs is not within eps" in run("report", "c.json", "--quiet").err
    content["perturbation"] = "AAAA"
    Path("c.json").write_text(json.dumps(content))
    assert "make the result again" in run("report", "c.json", "--quiet").err
