"""`citrus init`: the file it writes is right, works with the commands, and never replaces another one unasked."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from citrus_tool.data import load
from citrus_tool.errors import UsageError
from citrus_tool.sources import ModelChoice
from citrus_tool.workflow.first_settings import BY_SHAPE, guess
from tests.cli.toys import Run, classifier
from tests.workflow.test_normalisation import behind


def comments(path: str) -> str:
    """The comments of a TOML file, unwrapped."""
    return " ".join(line.removeprefix("# ") for line in Path(path).read_text().splitlines() if line.startswith("# "))


@pytest.fixture
def digits(repository: Path, tmp_path: Path) -> Path:
    """A trained network, in the working directory."""
    return Path(shutil.copy(repository / "models" / "digits_convtiny.onnx", tmp_path / "D.onnx"))


def test_init_writes_a_file_that_the_commands_read(run: Run, digits: Path) -> None:
    outcome = run("init", "D.onnx")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("  citrus certify-uap --config D.toml\n  citrus harden --config D.toml\n")
    text = Path("D.toml").read_text()
    assert max(map(len, text.splitlines())) <= 120
    found = tomllib.loads(text)
    top = {"model": "D.onnx", "data": "digits", "eps": "0.11", "group-size": 5, "limit": 359, "seed": 0}
    assert {key: entry for key, entry in found.items() if not isinstance(entry, dict)} == top
    assert found["harden"] == {"method": "citrus", "recipe": "digits"}
    small = ("--limit", 5, "--quiet", "--json", "-")
    certificate = json.loads(run("certify-uap", "--config", "D.toml", "--bounds", "ibp", *small).out)
    assert (certificate["eps"], certificate["model"], certificate["standard_accuracy"]) == (0.11, "D.onnx", 100)
    training = ("--epochs", 2, "--groups-per-batch", 40, "--out", "H.onnx")
    hardened = run("harden", "--config", "D.toml", "--bounds", "ibp", *small, *training)
    assert json.loads(hardened.out)["recipe"]["method"] == "citrus"
    # what is commented out works too
    Path("D.toml").write_text(text.replace("# eps = [", "eps = ["))
    swept = run("certify-uap", "--config", "D.toml", "--bounds", "ibp", *small)
    assert [one["eps"] for one in json.loads(swept.out)["sweep"]] == [0.02, 0.05, 0.11]


def test_the_normalisation_is_found(run: Run, digits: Path) -> None:
    behind(digits, Path("N.onnx"), scale=1 / 255, shift=0)
    outcome = run("init", "N.onnx", "--json", "i.json")
    assert outcome.code == 0
    found = tomllib.loads(Path("N.toml").read_text())
    assert (found["mean"], found["std"]) == ([0.0], [1 / 255])
    facts = json.loads(Path("i.json").read_text())
    assert facts["accuracy so"] == "346 of 360 (validation)"
    assert facts["normalisation in front"] == "--mean 0 --std 0.00392157"
    assert "by pixels from 0 to 255: 346 of 360 inputs" in comments("N.toml")
    certified = run("certify-uap", "--config", "N.toml", "--limit", 10, "--bounds", "ibp", "--json", "-")
    assert json.loads(certified.out)["standard_accuracy"] == 100
    assert "warning" not in certified.err
    warned = run("init", "N.onnx", "--mean", 0, "--std", 1, "--out", "W.toml")
    assert "WARNING: N.onnx classifies only" in comments("W.toml")
    assert warned.err.startswith("citrus: warning: N.onnx classifies only")


def test_a_normalisation_in_the_graph(run: Run, digits: Path) -> None:
    behind(digits, Path("G.onnx"), scale=1 / 0.5, shift=0.0)
    assert run("init", "G.onnx").code == 0
    assert "mean" not in tomllib.loads(Path("G.toml").read_text())
    assert "The graph normalises by itself (mean 0, std 0.5):" in comments("G.toml")


def test_own_data(run: Run, digits: Path) -> None:
    part = load("digits", split="train")
    np.savez("mine.npz", x=part.images.numpy(), y=part.labels.numpy())
    assert run("init", "D.onnx", "--data", "mine.npz", "--out", "own.toml").code == 0
    found = tomllib.loads(Path("own.toml").read_text())
    assert (found["data"], found["eps"], found["harden"]["recipe"]) == ("mine.npz", "0.1", "mnist-cpu")
    assert "A guess for mine.npz" in comments("own.toml")


def test_nothing_is_overwritten_without_force(run: Run, digits: Path) -> None:
    Path("D.toml").write_text("mine")
    outcome = run("init", "D.onnx")
    assert outcome.code == 2
    assert "D.toml exists and is left as it is; name another one with --out, or add --force." in outcome.err
    assert Path("D.toml").read_text() == "mine"
    assert run("init", "D.onnx", "--force").code == 0
    assert tomllib.loads(Path("D.toml").read_text())["model"] == "D.onnx"


def test_init_errors(run: Run, tmp_path: Path) -> None:
    classifier(tmp_path / "odd.onnx", shape=(1, 9, 9))
    outcome = run("init", "odd.onnx")
    assert outcome.code == 2
    assert "odd.onnx takes inputs of shape (1, 9, 9) and has 10 classes, for which no data set is known" in outcome.err
    classifier(tmp_path / "erf.onnx", operator="Erf")
    assert run("init", "erf.onnx", "--data", "digits").code == 3
    assert run("init", "none.onnx").code == 3
    assert run("init", "odd.onnx", "--out", "none/c.toml").code == 3
    assert not list(tmp_path.glob("*.toml"))


@pytest.mark.parametrize(("shape", "name"), [((1, 8, 8), "digits"), ((1, 28, 28), "mnist"), ((32, 32, 3), "cifar10")])
def test_data_is_guessed_from_the_input(tmp_path: Path, shape: tuple[int, ...], name: str) -> None:
    assert guess(ModelChoice(path=classifier(tmp_path / "m.onnx", shape=shape))) == name
    assert name in BY_SHAPE.values()


def test_no_data_is_guessed_for_other_classes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data set is known by name"):
        guess(ModelChoice(path=classifier(tmp_path / "m.onnx", classes=7)))


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("eps = 0.1\nrecipe = 'digits'", 0, ""),  # harden's option, passed over
        ("[harden]\nepochs = 3\n[certify-uap]\neps = 0.1", 0, ""),
        ("eps = 0.1\nrecpe = 'digits'", 2, "'recpe' is not an option of citrus certify-uap"),
        ("[certify-uap]\neps = 0.1\nrecipe = 'digits'", 2, "'recipe' is not an option of citrus certify-uap"),
        ("eps = 0.1\n[hardn]", 2, "[hardn] is no command; did you mean [harden]?"),
        ("eps = 0.1\n[zzz]", 2, "[zzz] is no command; tables are named after commands."),
        ("eps = 0.1\n[certify-uap]\neps = 7", 2, "eps '7' lies outside [0, 1]"),
    ],
)
def test_tables_of_a_config_file(run: Run, network: Path, text: str, code: int, words: str) -> None:
    Path("c.toml").write_text(f"model = {json.dumps(str(network))}\nlimit = 3\nbounds = 'ibp'\n{text}\n")
    outcome = run("certify-uap", "--config", "c.toml", "--quiet")
    assert outcome.code == code
    assert words in outcome.err


def test_the_network_on_the_command_line_wins(run: Run, network: Path) -> None:
    Path("c.toml").write_text("model = 'none.onnx'\neps = 0.1\nlimit = 3\nbounds = 'ibp'\n")
    assert run("certify-uap", "--config", "c.toml", "--quiet").code == 3
    assert run("certify-uap", network, "--config", "c.toml", "--quiet").code == 0
    assert "Missing argument 'MODEL'" in run("certify-uap", "--eps", 0.1).err
