"""citrus verify, supports, export-query and vnncomp, and VNN-COMP's scripts, as a user calls them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from citrus_tool.choices.operators import AFFINE
from citrus_tool.cli.verify import CAPABILITIES
from citrus_tool.onnx_io.operators import RULES
from citrus_tool.queries import read
from citrus_tool.queries.witness import parse_witness
from tests.cli.toys import Run, classifier

ROOT = Path(__file__).resolve().parents[2]


def query(path: Path, *, eps: float, label: int = 0, size: int = 64, classes: int = 10) -> Path:
    """Local robustness around 0.5 everywhere."""
    lines = [f"(declare-const X_{i} Real)" for i in range(size)] + [
        f"(declare-const Y_{j} Real)" for j in range(classes)
    ]
    lines += [f"(assert (>= X_{i} {0.5 - eps}))(assert (<= X_{i} {0.5 + eps}))" for i in range(size)]
    others = " ".join(f"(and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label)
    path.write_text("\n".join([*lines, f"(assert (or {others}))"]) + "\n")
    return path


def label_of(path: Path) -> int:
    """The class that onnxruntime gives the grey image."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path))
    return int(session.run(None, {"x": np.full((1, 1, 8, 8), 0.5, np.float32)})[0].argmax())


@pytest.fixture(scope="module")
def label(network: Path) -> int:
    return label_of(network)


def test_unsat_and_sat_with_a_witness(run: Run, network: Path, label: int, tmp_path: Path) -> None:
    safe = query(tmp_path / "safe.vnnlib", eps=1e-4, label=label)
    assert run("verify", safe, "--network", f"N={network}").out == "unsat\n"
    unsafe = query(tmp_path / "unsafe.vnnlib", eps=0.5, label=label)
    found = run("verify", unsafe, "--network", network, "--quiet")
    assert found.code == 0
    assert found.err == ""
    first, rest = found.out.split("\n", 1)
    assert first == "sat"
    witness = parse_witness(read(unsafe), rest)
    assert len(witness["X"]) == 64
    assert len(witness["Y"]) == 10


def test_a_network_that_is_not_supported_is_unknown(run: Run, tmp_path: Path) -> None:
    network = classifier(tmp_path / "n.onnx", operator="Erf")
    found = run("verify", query(tmp_path / "q.vnnlib", eps=1e-6, label=label_of(network)), "--network", f"N={network}")
    assert (found.code, found.out) == (0, "unknown\n")
    assert "Erf" in found.err
    wide = query(tmp_path / "w.vnnlib", eps=0.5, label=(label_of(network) + 1) % 10)  # another label: always unsafe
    assert run("verify", wide, "--network", f"N={network}").out.startswith("sat\n((X_0 ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--network", "N=gone.onnx"), "gone.onnx: no such file"),
        ((), "network 'N' has no file"),
        (("--network", "N=a.onnx", "--network", "M=b.onnx"), "gives N twice"),
        (("--network", "[('N', 'a.onnx'), 3]"), "is not a list of pairs"),
    ],
)
def test_errors_leave_stdout_empty(run: Run, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    found = run("verify", query(tmp_path / "q.vnnlib", eps=0.1), *arguments)
    assert found.out == ""
    assert found.code in (2, 3)
    assert words in found.err


def test_supports_lists_the_operators_that_are_read(run: Run) -> None:
    refused = {"Softmax", "LogSoftmax"}
    listed = run("supports", "--onnx-operators").out.split()
    assert listed == sorted(listed)
    assert AFFINE | RULES.keys() - refused < set(listed)


def test_supports_answers_every_capability(run: Run) -> None:
    for name, lines in CAPABILITIES.items():
        assert run("supports", f"--{name}").out == "\n".join(lines) + "\n"
    assert run("supports", "--multiple-inputs-output-theories").out == "SIO\n"
    assert "give one capability" in run("supports").err
    assert run("--name").out == "citrus\n"


def test_export_query(run: Run, network: Path, tmp_path: Path) -> None:
    found = run("export-query", network, "--eps", "0.05", "--group-size", 2, "--at-least", 1, "--json", "-")
    result = json.loads(found.out)
    assert result["indices"] == [0, 1]
    assert read(tmp_path / result["query"]).networks[1].equal_to == "f1"
    assert read(tmp_path / result["property"]).case_count == 2
    many = run("export-query", network, "--eps", "0.05", "--group-size", 40, "--at-least", 20)
    assert many.code == 2
    assert "137846528820 cases" in many.err


def test_vnncomp_runs_resumes_and_scores(run: Run, network: Path, label: int, tmp_path: Path) -> None:
    query(tmp_path / "safe.vnnlib", eps=1e-4, label=label)
    query(tmp_path / "unsafe.vnnlib", eps=0.5, label=label)
    relative = os.path.relpath(network, tmp_path)
    table = tmp_path / "instances.csv"
    table.write_text(f"{relative},safe.vnnlib,120\n{relative},unsafe.vnnlib,120\n{relative},missing.vnnlib,120\n")
    answers = tmp_path / "answers.csv"
    answers.write_text(f"{relative},safe.vnnlib,unsat\n{relative},unsafe.vnnlib,sat\n")
    found = run("vnncomp", table, "--run-dir", "r", "--workers", 2, "--answers", answers, "--json", "-", "--quiet")
    result = json.loads(found.out)
    assert result["verdicts"] == {"unsat": 1, "sat": 1, "error": 1}
    assert result["score"] == 20
    records = [json.loads(line) for line in (tmp_path / "r/results.jsonl").read_text().splitlines()]
    assert {r["vnnlib"]: r["witness"] for r in records} == {
        "safe.vnnlib": None,
        "unsafe.vnnlib": True,
        "missing.vnnlib": None,
    }
    assert "add --resume" in run("vnncomp", table, "--run-dir", "r").err
    assert f"{tmp_path}: is a folder; give the list of its instances, {table}." in run("vnncomp", tmp_path).err
    start = time.monotonic()
    answers.write_text(f"{relative},safe.vnnlib,sat\n")
    again = run("vnncomp", table, "--run-dir", "r", "--resume", "--answers", answers, "--quiet", "--json", "-")
    assert time.monotonic() - start < 5  # nothing runs twice
    assert json.loads(again.out)["score"] == 10 - 150
    assert again.code == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "holds no instance"), ("a.onnx,b.vnnlib\n", "csv:1"), ("a.onnx,b.vnnlib,soon\n", "number of seconds")],
)
def test_malformed_instances(run: Run, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "instances.csv").write_text(text)
    found = run("vnncomp", "instances.csv")
    assert found.code == 3
    assert words in found.err


def script(tmp_path: Path, body: str) -> Path:
    """A stand-in for citrus."""
    path = tmp_path / "citrus"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("body", "timeout", "word"),
    [
        ("sleep 60", 3, "timeout"),
        ("echo timed-out", 3, "timeout"),
        ("echo sat; echo '((X_0 1.0))'", 3, "sat"),
        ("echo unsat", 3, "unsat"),
        ("echo unknown", 3, "unknown"),
        ("echo oops >&2; exit 3", 3, "error"),
        ("kill -SEGV $$", 3, "error"),
    ],
)
def test_run_instance_leaves_a_word_in_time(tmp_path: Path, body: str, timeout: int, word: str) -> None:
    results = tmp_path / "results.txt"
    start = time.monotonic()
    done = subprocess.run(
        [ROOT / "vnncomp_scripts/run_instance.sh", "v1", "c", "n.onnx", "q.vnnlib", results, str(timeout)],
        env={**os.environ, "CITRUS": str(script(tmp_path, body))},
        capture_output=True,
        check=False,
    )
    assert time.monotonic() - start < timeout
    assert done.returncode == 0
    assert results.read_text().splitlines()[0] == word
    assert len(list(tmp_path.glob("results*"))) == 1


def test_the_watchdog_answers_in_time(tmp_path: Path) -> None:
    """A verifier that is stuck in one step (here: reading a pipe that nobody writes) still answers."""
    os.mkfifo(tmp_path / "q.vnnlib")
    command = "import sys; from citrus_tool.cli import main; raise SystemExit(main(sys.argv[1:]))"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", command, "verify", tmp_path / "q.vnnlib", "--network", "N=n.onnx", "--timeout", "6"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "timed-out\n")
    assert time.monotonic() - start < 6
