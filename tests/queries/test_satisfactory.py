"""The conformance suite vnnlib-satisfactory (PyPI) against citrus verify: no wrong verdict; the rest is unknown.

Its cases are run in this process, as `vnnlib-satisfactory run --solver citrus` would run them one by one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from citrus_tool.cli import main
from citrus_tool.errors import CitrusError
from citrus_tool.queries import parse

registry = pytest.importorskip("vnntest.generators.handwritten", reason="needs vnnlib-satisfactory from PyPI")

RIGHT = 140
"""Verdicts that are known to be found; more are welcome."""


def answer(case: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """sat, unsat, unknown, or refused: an error on stderr, nothing on stdout."""
    text = case.build_vnnlib_spec()
    text = text if isinstance(text, str) else "\n".join(text)
    query, network = folder / f"{case.id}.vnnlib", folder / f"{case.id}.onnx"
    query.write_text(text)
    onnx.save(case.build_onnx_model(), network)
    try:
        names = [declared.name for declared in parse(text).networks if declared.equal_to is None]
    except CitrusError:
        names = ["N"]
    files = [part for name in names for part in ("--network", f"{name}={network}")]
    code = main(["verify", str(query), *files, "--threads", "1", "--quiet"])
    lines = capsys.readouterr().out.splitlines()
    assert (code == 0) == bool(lines)
    return lines[0] if lines else "refused"


@pytest.mark.slow
def test_no_case_gets_a_wrong_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes: Counter[str] = Counter()
    wrong = []
    for case in registry.HandwrittenGenerator().generate():
        found, expected = answer(case, tmp_path, capsys), str(case.expected_output()).lower()
        outcomes["right" if found == expected else found] += 1
        if found in ("sat", "unsat") and found != expected:
            wrong.append((case.id, found, expected))
    print(dict(outcomes))  # noqa: T201 -- shown with -s: the figures of docs/vnncomp.md
    assert not wrong
    assert outcomes["right"] >= RIGHT
