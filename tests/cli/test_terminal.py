"""What a terminal, a pipe and a shell's completion see."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from citrus_tool.choices.settings import CertifySettings
from citrus_tool.cli import citrus, options, terminal
from citrus_tool.cli.gathered import gathered
from citrus_tool.sources import DataChoice
from citrus_tool.threat import Threat
from tests.cli.toys import Run

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    ["clean", "9", "90.00"],
    ["certified UAP", "5", "50.00"],
    ["attacked UAP", "7", "70.00"],
    ["[b]x[/b]", "1", "-"],
]


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """The table of ROWS as a terminal gets it."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", **environment}.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.table(["of 10", "count", "%"], ROWS)
    return stream.getvalue()


def test_tables_are_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(monkeypatch).splitlines()
    assert "\x1b[32mcertified UAP" in next(line for line in lines if "certified UAP" in line)
    assert "\x1b[33mattacked UAP" in next(line for line in lines if "attacked UAP" in line)
    assert any("[b]x[/b]" in line for line in lines)  # no markup in what users name


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(monkeypatch, NO_COLOR="1")
    assert "\x1b[3" not in text
    assert "certified UAP" in text


def test_pipes_get_plain_text(run: Run, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    outcome = run("certify-uap", network, "--eps", "0.01,0.02", "--limit", 6, "--bounds", "ibp")
    assert "\x1b" not in outcome.out + outcome.err
    assert "eps 0.01: groups: 2/2 groups in 0:0" in outcome.err
    assert "certified" in outcome.err


def test_bars_show_rate_time_left_and_bracket(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "140", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    bars = terminal.Bars()
    bars.advance()  # before any stage: nothing
    bars.start("groups", 40, "groups")
    clock = iter(range(1000))
    assert bars._bars is not None
    bars._bars.get_time = lambda: float(next(clock))
    for _ in range(4):
        bars.advance(5, "certified 50.0 %, attacked 60.0 %")
    bars._bars.refresh()
    bars.finish()
    text = stream.getvalue()
    for words in ("groups", "20/40", "/s", " left", "certified 50.0 %, attacked 60.0 %"):
        assert words in text
    assert "\x1b[3" not in text.replace("\x1b[38;5", "")


@pytest.mark.parametrize(
    ("environment", "kind"), [({"TERM": "xterm"}, terminal.Bars), ({"TERM": "dumb"}, terminal.PlainLines)]
)
def test_bars_need_a_terminal_that_can(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], kind: type[terminal.Progress]
) -> None:
    import click

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with click.Context(citrus):
        assert isinstance(terminal.progress(quiet=False), terminal.PlainLines)  # pytest's stderr is a file
        monkeypatch.setattr(sys, "stderr", Terminal())
        assert isinstance(terminal.progress(quiet=False), kind)
        assert isinstance(terminal.progress(quiet=True), terminal.Silent)


# --- completion -------------------------------------------------------------------------------------------------------


def completions(*words: str) -> list[str]:
    *before, incomplete = words
    shell = BashComplete(citrus, {}, "citrus", "_CITRUS_COMPLETE")
    return [item.value for item in shell.get_completions(list(before), incomplete) if item.type == "plain"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("certify",), ["certify-uap"]),
        (("comp",), ["compare"]),
        (("harden", "M.onnx", "--meth"), ["--method"]),
        (("harden", "M.onnx", "--method", "citrus"), ["citrus", "citrus-plus", "citrus-si"]),
        (("harden", "M.onnx", "--recipe", "mnist"), ["mnist-cpu", "mnist-0.1", "mnist-0.3"]),
        (("certify-uap", "M.onnx", "--data", "m"), ["mnist"]),
        (("init", "M.onnx", "--data", "dig"), ["digits"]),
    ],
)
def test_completion(words: tuple[str, ...], expected: list[str]) -> None:
    assert completions(*words) == expected


def test_completion_offers_files() -> None:
    shell = BashComplete(citrus, {}, "citrus", "_CITRUS_COMPLETE")
    for words in (["certify-uap"], ["certify-uap", "M.onnx", "--data"], ["harden", "M.onnx", "--recipe"]):
        assert "file" in {item.type for item in shell.get_completions(words, "x")}


def test_the_shell_s_script(tmp_path: Path) -> None:
    code = "from citrus_tool.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "_CITRUS_COMPLETE": "zsh_source", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("#compdef citrus")


# --- did you mean -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("certfy-uap",), "Did you mean 'certify-uap'?"),
        (("certify-uap", "toy.onnx", "--epz", "0.1"), "--eps"),
        (("certify-uap", "toi.onnx", "--eps", "0.1"), "toi.onnx: no such file; did you mean toy.onnx?"),
        (("certify-uap", "sub/toi.onnx", "--eps", "0.1"), "sub/toi.onnx: no such file; did you mean sub/toy.onnx?"),
        (("certify-uap", "zzz", "--eps", "0.1"), "zzz: no such file; give the path of an ONNX network."),
        (("certify-uap", "no/toy.onnx", "--eps", "0.1"), "no/toy.onnx: no such file; give the path"),
        (("harden", "toy.onnx", "--eps", "0.1", "--method", "citris"), "Did you mean 'citrus'?"),
        (("certify-uap", "toy.onnx", "--eps", "0.1", "--bounds", "crwn"), "Did you mean 'crown'?"),
        (("harden", "toy.onnx", "--eps", "0.1", "--recipe", "mnist-01"), "Did you mean 'mnist-0.1'?"),
        (("certify-uap", "toy.onnx", "--eps", "0.1", "--data", "mnst"), "did you mean mnist?"),
        (("certify-uap", "toy.onnx", "--eps", "0.1", "--data", "mime.npz"), "does not exist; did you mean mine.npz?"),
        (("certify-uap", "toy.onnx", "--eps", "0.1", "--solver", "gurobi"), "'highs', 'both'. (see"),
    ],
)
def test_mistyped(run: Run, network: Path, arguments: tuple[str, ...], words: str) -> None:
    Path("sub").mkdir()
    for folder in (Path(), Path("sub")):
        (folder / "toy.onnx").write_bytes(network.read_bytes())
    Path("mine.npz").write_bytes(b"")
    outcome = run(*arguments)
    assert outcome.code in (2, 3)
    assert words in outcome.err


def test_options_come_together_where_a_command_asks_for_them() -> None:
    seen: dict[str, Any] = {}

    @click.command()
    @options.data_options
    @options.settings(CertifySettings, "limit", limit=7)
    @options.eps_list_option
    @options.threat_options
    @options.settings(CertifySettings, "group_size")
    @options.run_options
    @gathered
    def toy(choice: DataChoice, threats: list[Threat], certify: CertifySettings, device: str) -> None:
        seen.update(choice=choice, threats=threats, certify=certify, device=device)

    words = ["--data", "mnist", "--eps", "0.1,2/255", "--clip", "--group-size", "3", "--seed", "4", "--device", "cpu"]
    assert CliRunner().invoke(toy, words).exit_code == 0
    assert seen["choice"] == DataChoice(name="mnist", root=None, seed=4)
    assert seen["threats"] == [Threat(eps=0.1, clip=True), Threat(eps=2 / 255, clip=True)]
    assert seen["certify"] == CertifySettings(group_size=3, seed=4, limit=7)
    assert seen["device"] == "cpu"
