"""JSON lines: one rule for a torn last line, whoever reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from citrus_tool.errors import InputFileError
from citrus_tool.results import lines

ONE, OTHER = {"a": 1}, {"b": [2.5, None]}


def read(path: Path) -> list[dict[str, object]]:
    return lines.read(path, damaged="is damaged ({reason}).")


def test_lines_come_back_and_are_continued(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert read(path) == []
    with lines.Writer(path, keep=True) as file:
        file.write(ONE)
    with lines.Writer(path, keep=True, durable=True) as file:
        file.write(OTHER)
    assert read(path) == [ONE, OTHER]
    assert path.read_text() == f"{json.dumps(ONE)}\n{json.dumps(OTHER)}\n"
    with lines.Writer(path, keep=False) as file:
        file.write(OTHER)
    assert read(path) == [OTHER]


@pytest.mark.parametrize("torn", ['{"b": [2.', '{"b": "\\u00e', "", "7", '{"b": NaN}'])
def test_a_torn_last_line_is_not_read_and_then_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(ONE) + "\n" + torn)
    assert read(path) == [ONE]
    with lines.Writer(path, keep=True) as file:
        file.write(OTHER)
    assert read(path) == [ONE, OTHER]


def test_a_last_line_that_lacks_its_end_only_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(ONE))
    assert read(path) == [ONE]
    with lines.Writer(path, keep=True) as file:
        file.write(OTHER)
    assert read(path) == [ONE, OTHER]


@pytest.mark.parametrize(
    ("line", "reason"),
    [('{"b": [2.', "Expecting"), ("7", "int, not an object"), ('{"b": NaN}', "NaN is not a number"), ("", "Expecting")],
)
@pytest.mark.parametrize("rest", [json.dumps(ONE) + "\n", ""])
def test_a_line_elsewhere_is_named(tmp_path: Path, line: str, reason: str, rest: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"{json.dumps(ONE)}\n{line}\n{rest}")
    with pytest.raises(InputFileError, match=rf"x\.jsonl, line 2: is damaged \({reason}"):
        read(path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(InputFileError, match=r"x\.jsonl: cannot be read \("):
        read(tmp_path / "x.jsonl")
    with pytest.raises(InputFileError, match="cannot be read"):
        read(tmp_path)
