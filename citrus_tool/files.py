"""Files that appear whole or not at all, a check before long work that they can be written, and TOML read."""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from citrus_tool.errors import InputFileError
from citrus_tool.names import nearest


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of `text` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`write_bytes` of `content` as indented JSON; raises ValueError for a number that JSON has no form for."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` under a temporary name beside `path` and renames it; an old file stays until then.

    Raises InputFileError (folder missing, not writable, disk full), with nothing left behind.
    """
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise InputFileError(f"{path}: cannot be written ({reason}); make room or name another folder.") from None
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_writable_file(path: Path) -> None:
    """Raises InputFileError unless a file can be made at `path` (its folder must exist); leaves nothing behind."""
    if path.is_dir():
        raise InputFileError(f"{path}: is a folder; name a file to write.")
    if not path.parent.is_dir():
        raise InputFileError(f"{path}: the folder {path.parent} does not exist; make it first.")
    _probe(path.parent)


def require_writable_folder(path: Path) -> None:
    """Raises InputFileError unless `path` is a folder, or can be made one, that files can be written to."""
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise InputFileError(f"{path}: {nearest} is a file, not a folder; name another folder.")
    _probe(nearest)


def _probe(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputFileError(f"{folder}: cannot be written to ({error.strerror}); name another folder.") from None


def near(path: Path) -> str:
    """For messages about a file that is not there: "; did you mean X?", X beside it and alike in name, or nothing."""
    try:
        beside = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return ""
    found = nearest(path.name, beside, cutoff=0.7)
    return f"; did you mean {path.parent / found}?" if found else ""


def toml_value(value: Any) -> str:
    """A number, flag, text or list as TOML; anything else as the text that it prints as."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(entry) for entry in value)}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)


def read_toml(path: Path) -> dict[str, Any]:
    """The entries of a TOML file; raises InputFileError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputFileError(f"{path}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path}: is not TOML ({error}).") from None
