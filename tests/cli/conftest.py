"""Running the command line in this process, in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from citrus_tool.cli import main
from tests.cli.toys import Outcome, Run, classifier


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `citrus ...` in an empty folder that is the working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)

    return call


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained classifier for digits."""
    return classifier(tmp_path_factory.mktemp("models") / "toy.onnx")
