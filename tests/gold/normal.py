"""Results as JSON values without times, versions and places, and how two of them are compared."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

import citrus_tool
from tests.gold.cases import Case, Kind
from tests.gold.fixtures import OLD_VERSION, ROOT

TIMES = re.compile(r"seconds$")
_VERSIONS = re.compile(
    r"(?<![\d.])(" + "|".join(re.escape(v) for v in {OLD_VERSION, citrus_tool.__version__}) + r")(?![\d.])"
)


def text(content: str, folder: Path) -> str:
    """Text without places, versions and times."""
    content = content.replace(str(folder), "HERE").replace(str(ROOT), "ROOT")
    content = _VERSIONS.sub("VERSION", content)
    content = re.sub(r"( on Python |onnxruntime )\d+(\.\d+)+", r"\1VERSION", content)
    return re.sub(r"( epochs in )\d+:\d\d", r"\1TIME", content)


@cache
def _shipped() -> frozenset[str]:
    return frozenset(_digest(path.read_bytes()) for path in (ROOT / "models").glob("*.onnx"))


def _is_shipped(digest: object) -> bool:
    return digest in _shipped()


def value(content: Any, folder: Path, key: str = "") -> Any:
    """A JSON value without times, versions and places; keys stay.

    The digest of a proof's page covers the version, and so does that of a network that was just written.
    """
    if key == "digest" or (key in ("sha256", "model sha256") and not _is_shipped(content)):
        return "DIGEST"
    if TIMES.search(key) and isinstance(content, int | float):
        return "TIME"
    if key == "stages" and isinstance(content, dict):
        return dict.fromkeys(content, "TIME")
    if isinstance(content, dict):
        return {name: value(one, folder, name) for name, one in content.items()}
    if isinstance(content, list):
        return [value(one, folder, key) for one in content]
    return text(content, folder) if isinstance(content, str) else content


def collected(path: Path, folder: Path) -> Any:
    """What a file holds: JSON, lines, text, or digests of its parts."""
    raw = path.read_bytes()
    match path.suffix:
        case ".json":
            return value(json.loads(raw), folder)
        case ".jsonl":
            return [value(json.loads(line), folder) for line in raw.decode().splitlines()]
        case ".proof":
            return _proof(raw, folder)
        case ".onnx":
            return _network(raw)
        case ".npy":
            return _array(np.load(path))
        case ".safetensors":
            return _tensors(path)
        case ".html":
            return {"text": _html(text(raw.decode(), folder))}
        case _:
            return _seconds_columns(text(raw.decode(), folder), path.suffix)


def _seconds_columns(content: str, suffix: str) -> str:
    """Tables without their columns of seconds."""
    content = re.sub(r"(?m)^(,.*,(?:sat|unsat|unknown|timeout|error),)[\d.]+$", r"\1TIME", content)  # of vnncomp
    separator = {".csv": ",", ".tex": "&"}.get(suffix)
    return without_seconds(content, separator) if separator else content


def without_seconds(content: str, separator: str | None = None) -> str:
    """A table whose columns `seconds` or `time` reads TIME; other text as it is."""
    lines = content.splitlines()
    split = [
        [cell.strip() for cell in (line.split(separator) if separator else re.split(r" {2,}", line))] for line in lines
    ]
    places = {
        number: place
        for number, cells in enumerate(split)
        for place, cell in enumerate(cells)
        if cell.removesuffix("\\\\").strip() in ("seconds", "time")
    }
    for first, place in places.items():
        for number in range(first, len(lines)):
            if len(split[number]) > place:
                if number > first:
                    split[number][place] = "TIME"
                lines[number] = " | ".join(split[number])
    return "\n".join(lines) + "\n" * content.endswith("\n")


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _array(array: Any) -> dict[str, Any]:
    array = np.ascontiguousarray(array)
    return {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": _digest(array.tobytes())}


def _proof(raw: bytes, folder: Path) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        found: dict[str, Any] = {}
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".json"):
                found[name] = value(json.loads(content), folder)
                continue
            with zipfile.ZipFile(io.BytesIO(content)) as inner:
                arrays = {part: _digest(inner.read(part)) for part in inner.namelist()}
            facts = json.loads(np.load(io.BytesIO(content))["facts"].tobytes())
            found[name] = {"arrays": arrays, "facts": facts}
        return found


def _network(raw: bytes) -> dict[str, Any]:
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(raw)
    weights = {one.name: _array(numpy_helper.to_array(one)) for one in model.graph.initializer}
    del model.graph.initializer[:]
    model.producer_version = ""
    for entry in model.metadata_props:
        if "version" in entry.key:
            entry.value = "VERSION"
    return {
        "weights": weights,
        "operators": [node.op_type for node in model.graph.node],
        "sha256": _digest(model.SerializeToString(deterministic=True)),
    }


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(str(path), framework="np") as file:
        found = {name: _array(file.get_tensor(name)) for name in sorted(file.keys())}
        return {"tensors": found, "metadata": sorted(file.metadata() or {})}


class _Words(HTMLParser):
    """The words of a page, outside styles, scripts and drawings."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.skipped = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.skipped += tag in ("style", "script", "svg")

    def handle_endtag(self, tag: str) -> None:
        self.skipped -= tag in ("style", "script", "svg")

    def handle_data(self, data: str) -> None:
        if not self.skipped and data.strip():
            self.words.append(" ".join(data.split()))


def _html(page: str) -> list[str]:
    reader = _Words()
    reader.feed(page)
    return reader.words


def result(case: Case, folder: Path) -> dict[str, Any]:
    """What a case's command gave."""
    out = folder / "out"
    shown = text((out / f"{case.name}.out").read_text(encoding="utf-8"), folder)
    try:
        printed: Any = value(json.loads(shown), folder)
    except json.JSONDecodeError:
        printed = without_seconds(shown)
    files = {
        path.relative_to(folder).as_posix(): collected(path, folder)
        for pattern in case.files
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }
    return {
        "command": case.command,
        "code": int((out / f"{case.name}.code").read_text()),
        "stdout": printed,
        "stderr": text((out / f"{case.name}.err").read_text(encoding="utf-8"), folder),
        **({"files": files} if files else {}),
    }


def keys(content: Any, path: str = "") -> set[str]:
    """The key paths of a JSON value with the types of what they hold; [] stands for every element of a list."""
    if isinstance(content, dict):
        return {f"{path}: object"}.union(*(keys(one, f"{path}.{name}") for name, one in content.items()))
    if isinstance(content, list):
        return {f"{path}: list"}.union(*(keys(one, f"{path}[]") for one in content))
    name = {bool: "bool", int: "int", float: "float", str: "text", type(None): "null"}[type(content)]
    return {f"{path}: {'seconds' if content == 'TIME' else name}"}


COUNTED = {
    "ibp_certified",
    "individually_certified",
    "certified",
    "attacked",
    "clean_correct",
    "status",
    "statuses",
    "detail",
    "verdicts",
    "perturbation",
    "stages",
    "together",
    "note",
    "arrays",
    "facts",
    "combinations",
    "leaves",
    "worst",
    "fooled",
    "best_epoch",
    "history",
    "groups_of",
    "words",
    "text",
    "weights",
    "tensors",
    "sha256",
    "examined_correct",
}
"""Values that the last bits of floats may change."""

STEADY = {"recipe", "settings", "epochs", "eps", "group_size", "inputs", "seed", "limit", "method", "data", "split"}
"""Values of a training run that no computation changes."""


def loose(content: Any, kind: Kind, key: str = "") -> Any:
    """A value without what may differ between machines."""
    if kind == "exact" or key in STEADY:
        return content
    if key in COUNTED or re.search(r"accuracy$|difference|parity|error|sha256$", key):
        return type(content).__name__ if not isinstance(content, int | float) else "number"
    if isinstance(content, dict):
        return {name: loose(one, kind, name) for name, one in content.items()}
    if isinstance(content, list):
        return [loose(one, kind, key) for one in content]
    if isinstance(content, str):
        return " ".join(re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "#", content).split())
    return "number" if kind == "train" and isinstance(content, int | float) else content


def differences(old: Any, new: Any, path: str = "", *, tolerance: float = 0.0) -> list[str]:
    """Where two values differ, by path; floats may differ by the relative `tolerance`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [f"{path}.{name}: is new" for name in new.keys() - old.keys()]
        found += [f"{path}.{name}: is gone" for name in old.keys() - new.keys()]
        if not found and list(old) != list(new):
            found = [f"{path}: keys in another order"]
        return found + [
            line
            for name in old
            if name in new
            for line in differences(old[name], new[name], f"{path}.{name}", tolerance=tolerance)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for place, (a, b) in pairs for line in differences(a, b, f"{path}[{place}]", tolerance=tolerance)]
    if type(old) is type(new) is float and tolerance and math.isclose(old, new, rel_tol=tolerance, abs_tol=1e-6):
        return []
    if type(old) is type(new) and old == new:
        return []
    return [f"{path}: was {_short(old)}, is {_short(new)}"]


def _short(content: Any) -> str:
    shown = json.dumps(content)
    return shown if len(shown) < 300 else f"{shown[:300]}..."
