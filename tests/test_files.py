"""Files appear whole or not at all, and outputs are refused before the work."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from citrus_tool import files
from citrus_tool.errors import InputFileError
from citrus_tool.files import require_writable_file, require_writable_folder, write_bytes, write_text


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EACCES, "Permission denied")


def test_a_written_file_is_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "first")
    write_text(path, "zweite Fassung: ü")
    assert path.read_text(encoding="utf-8") == "zweite Fassung: ü"
    write_bytes(path, b"\0\1")
    assert path.read_bytes() == b"\0\1"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputFileError, match=r"result.json: cannot be written \(No space left on device\)"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_can_be_written_passes_and_leaves_nothing(tmp_path: Path) -> None:
    require_writable_file(tmp_path / "result.json")
    require_writable_folder(tmp_path / "runs" / "one")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputFileError, match=r"is a folder; name a file"):
        require_writable_file(tmp_path)
    with pytest.raises(InputFileError, match=r"none/result.json: the folder .*none does not exist; make it first"):
        require_writable_file(tmp_path / "none" / "result.json")
    with pytest.raises(InputFileError, match=r"run: .*file is a file, not a folder"):
        require_writable_folder(tmp_path / "file" / "run")
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)  # as a folder without permission would
    for check in (require_writable_file, require_writable_folder):
        with pytest.raises(InputFileError, match=r"cannot be written to \(Permission denied\); name another folder"):
            check(tmp_path / "result")
