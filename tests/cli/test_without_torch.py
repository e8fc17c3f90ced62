"""Help and wrong options are answered without the libraries that take seconds to load."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from citrus_tool.cli import citrus

HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "scipy", "pulp", "matplotlib")
RUN = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError("loaded " + name)

sys.meta_path.insert(0, Refuse())
from citrus_tool.cli import main
for line in sys.stdin.read().splitlines():
    print(main(line.split("|")), flush=True)
"""


def names(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from names(command, (*prefix, name))


def answers(lines: list[tuple[str, ...]]) -> tuple[list[str], str]:
    """The exit codes of these command lines in one fresh process, and what it wrote to stderr."""
    words = "\n".join("|".join(line) for line in lines)
    done = subprocess.run([sys.executable, "-c", RUN], input=words, capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if line.isdecimal()], done.stderr


def test_help_of_every_command() -> None:
    lines = [("--help",), *((*name, "--help") for name in names(citrus))]
    codes, errors = answers(lines)
    assert not errors
    assert codes == ["0"] * len(lines)


WRONG = {
    "certify-uap|M.onnx|--eps|x": "eps 'x' is not a number",
    "certify-uap|M.onnx|--eps|2": "outside [0, 1]",
    "certify-uap|M.onnx|--eps|0.1|--bounds|fulll": "Did you mean 'full'?",
    "certify-uap|M.onnx|--eps|0.1|--group-size|0": "is not in the range x>=1",
    "certify-uap|M.onnx|--eps|0.1,0.2|--certificate|C": "holds the proof of one eps",
    "certify-uap|M.onnx|--eps|0.1|--json|no/such/folder/x.json": "no/such/folder",
    "compare|M.onnx|--eps|0.1": "at least two networks",
    "attack-uap|M.onnx|--eps|0.1|--scope|all": "'groups', 'dataset'",
    "evaluate|M.onnx|--eps|0.1|--split|tests": "Did you mean 'test'?",
    "harden|M.onnx": "needs a radius to train for",
    "harden|M.onnx|--eps|0.1|--method|citrsu": "Did you mean 'citrus'?",
    "harden|M.onnx|--eps|0.1|--recipe|mnist": "there is no recipe 'mnist'",
    "harden|M.onnx|--eps|0.1|--lr|-1": "lr is -1.0",
    "train|mlp|--method|ibp": "needs a radius to train for",
    "tune|--eps|0.1": "takes one network",
    "tune|M.onnx|--eps|0.1|--search|lr": "says no values",
    "bench|table1|--eps|x": "eps 'x' is not a number",
    "export-query|M.onnx|--eps|0.1|--group|-1": "is not in the range x>=0",
    "supports": "give one capability",
    "certify-uap|M.onnx|--device|gpu|--eps|0.1": "is not one of 'auto', 'cpu', 'cuda'",
}


@pytest.fixture(scope="module")
def refused() -> list[str]:
    codes, errors = answers([tuple(line.split("|")) for line in WRONG])
    assert sorted(codes) == [*["2"] * (len(WRONG) - 1), "3"], errors  # 3: a file that cannot be written
    return errors.splitlines()


@pytest.mark.parametrize("number", range(len(WRONG)), ids=list(WRONG))
def test_wrong_options(refused: list[str], number: int) -> None:
    assert list(WRONG.values())[number] in refused[number]
