"""The examples in the help texts: every command has one, and it runs (on digits, with less work)."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from citrus_tool.cli import citrus, main

SHORTER = {
    "harden": "--epochs 1 --limit 10",
    "train": "--epochs 1",
    "tune": "--trials 1 --epochs 1 --limit 10",
    "evaluate": "--limit 5",
    "check": "",
    "inspect": "",
    "init": "",
    "report": "",
    "verify": "",
    "supports": "",
    "vnncomp": "",
    "export-query": "",
}
"""Options that are added to a command's example; where there are none, `--limit 10`."""
ELSEWHERE = {"demo", "bench", "data"}
"""Commands whose examples are run by tests of their own: they train for minutes, or unpack data."""


def leaves(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            yield from leaves(inner, f"{name} {word}".strip())
    else:
        yield name, command


def examples(command: click.Command) -> list[str]:
    lines = [line.strip() for line in (command.help or "").splitlines()]
    return [line.removeprefix("citrus ") for line in lines if line.startswith("citrus ")]


@pytest.mark.parametrize(("name", "command"), list(leaves(citrus)))
def test_every_command_has_an_example_of_itself(name: str, command: click.Command) -> None:
    assert any(example.startswith(name) for example in examples(command)), name


@pytest.mark.parametrize(("name", "command"), list(leaves(citrus)))
def test_examples_have_options_that_exist(name: str, command: click.Command) -> None:
    commands = dict(leaves(citrus))
    for example in examples(command):
        if "--config" in example:  # is read while options are
            continue
        own = max((one for one in commands if example.startswith(one)), key=len)
        rest = shlex.split(example.removeprefix(own))
        commands[own].make_context(own, rest, parent=click.Context(citrus), resilient_parsing=False)


@pytest.mark.slow
def test_examples_run(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source, name in (("digits_convtiny", "M"), ("digits_convtiny_citrus", "H")):
        shutil.copy(repository / "models" / f"{source}.onnx", f"{name}.onnx")
    query = next(line.split(",") for line in (repository / "vnnlib" / "instances.csv").read_text().splitlines())
    shutil.copy(repository / "vnnlib" / query[1], "Q.vnnlib")
    shutil.copy("Q.vnnlib", "prop.vnnlib")
    Path("vnnlib").mkdir()
    Path("vnnlib/instances.csv").write_text("../M.onnx,../Q.vnnlib,20\n")
    rng = np.random.default_rng(0)
    np.savez("mine.npz", x=rng.random((60, 1, 8, 8), dtype=np.float32), y=np.arange(60) % 10)
    for name, command in leaves(citrus):
        if name.split()[0] in ELSEWHERE:
            continue
        for example in examples(command):
            words = example.replace("mnist", "digits").replace("--limit 1000", "").replace("--limit 200", "")
            words = words.replace("--trials 30", "").replace("--timeout 300", "--timeout 20")
            own = words.split()[0]
            arguments = shlex.split(f"{words} {SHORTER.get(own, '--limit 10')}")
            if own == "harden":  # the examples are of one network: each its own run
                shutil.rmtree("runs/M_citrus", ignore_errors=True)
            if own == "verify":  # ends its process
                command_line = [sys.executable, "-c", "from citrus_tool.cli import main; main()", *arguments]
                assert subprocess.run(command_line, check=False, timeout=60).returncode == 0, arguments
            else:
                assert main(arguments) == 0, arguments
