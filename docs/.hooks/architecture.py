"""Puts the layers of the import contract in place of `<!-- layers -->` in a page, and all modules, room by room, each
with the first paragraph of its docstring, in place of `<!-- modules -->`. A room is a folder of citrus_tool.

Both are read when the pages are built, from pyproject.toml and from the modules.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "citrus_tool"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """MkDocs calls this for every page."""
    for mark, made in (("<!-- layers -->", layers), ("<!-- modules -->", modules)):
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(made()))
    return markdown


def contract() -> list[list[str]]:
    """The rooms and modules of each layer, highest layer first; raises ValueError without such a contract."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for one in project["tool"]["importlinter"]["contracts"]:
        if one["type"] == "layers" and one["containers"] == [PACKAGE.name]:
            return [re.findall(r"\w+", layer) for layer in one["layers"]]
    raise ValueError("pyproject.toml has no contract about the layers of the package")


def layers() -> Iterator[str]:
    """A row of boxes for each layer, as HTML; each links to its part of the page."""
    yield '<div class="layers" markdown="0">'
    for layer in contract():
        boxes = (f'<a href="#{name if (PACKAGE / name).is_dir() else "single-modules"}">{name}</a>' for name in layer)
        yield f"<div>{''.join(boxes)}</div>"
    yield "</div>"


def modules() -> Iterator[str]:
    """A heading for each room, in the order of the layers, with its purpose and its modules, then the other modules."""
    for name in (name for layer in contract() for name in layer):
        if (PACKAGE / name).is_dir():
            about = PACKAGE / name / "__init__.py"
            yield f"### {name}/ {{ #{name} }}\n\n{purpose(about)}\n"
            yield from entries({*(PACKAGE / name).rglob("*.py")} - {about})
    yield "### Single modules { #single-modules }\n"
    yield from entries({*PACKAGE.glob("*.py")})


def entries(paths: Set[Path]) -> Iterator[str]:
    """One entry of a list for each module."""
    yield from (f"- `{path.relative_to(PACKAGE).as_posix()}`: {purpose(path)}" for path in sorted(paths))
    yield ""


def purpose(path: Path) -> str:
    """The first paragraph of the module's docstring, as one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("<", "&lt;")
