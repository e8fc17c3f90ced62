"""The pages: links lead somewhere, commands and names in them exist, and every page is in the navigation."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import io
import re
import shlex
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml

import citrus_tool
from citrus_tool.cli import citrus

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
OTHERS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md", "models/MODELS.md")
SOURCES = [*(ROOT / name for name in OTHERS), *PAGES]
SHELL = {"sh", ""}


def listed(entry: object) -> Iterator[str]:
    """The pages of a navigation entry."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for value in entry.values():
            yield from listed(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from listed(value)


def test_every_page_is_in_the_navigation_once() -> None:
    pages = list(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(pages) == [path.name for path in PAGES]


@pytest.mark.parametrize("page", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path = target.partition("#")[0]
        if path and not re.match(r"[a-z]+:", path):
            assert (page.parent / path).exists(), target
            if page.parent == DOCS:
                assert not path.startswith(".."), f"{target}: the site holds only docs/"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of every fenced block."""
    yield from re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def lines(page: Path) -> Iterator[list[str]]:
    """The words of every line that runs citrus."""
    for language, text in blocks(page):
        if language in SHELL:
            for line in text.replace("\\\n", " ").splitlines():
                found = re.match(r"\s*(?:\$ |exec )?(citrus .*)", line)
                if found:
                    yield shlex.split(found.group(1), comments=True)


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = citrus
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"there is no {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize("page", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_and_options_exist(page: Path) -> None:
    for words in lines(page):
        command, rest = command_of(words)
        known = {flag for p in command.params if isinstance(p, click.Option) for flag in (*p.opts, *p.secondary_opts)}
        known |= {"--help", "--version"}
        for word in rest:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, f"{' '.join(words)}: no option {word}"


@pytest.mark.parametrize("page", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_in_pages_is_python_and_its_names_exist(page: Path) -> None:
    for language, text in blocks(page):
        if language == "python":
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "citrus":
                    assert node.attr in citrus_tool.__all__, f"citrus.{node.attr}"
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "model":
                    assert getattr(citrus_tool.Model, node.attr) is not None


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_hook", DOCS / ".hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_commands_page_has_every_command_s_help() -> None:
    page = hook("commands").on_page_markdown((DOCS / "commands.md").read_text())
    for name in citrus.commands:
        assert f"## citrus {name}\n" in page
        assert f"Usage: citrus {name} " in page


def test_every_public_name_is_in_the_reference() -> None:
    reference = (DOCS / "api.md").read_text()
    shown = {line.split(".")[-1] for line in re.findall(r"^::: (\S+)", reference, re.MULTILINE)}
    methods = {"harden", "certify", "attack", "evaluate"}
    for name in citrus_tool.__all__:
        home = citrus_tool._HOME.get(name, "")
        there = home.partition(":")[2] or name
        assert there in shown or name in methods or name in {"__version__", "CitrusError"}, name


def test_the_architecture_page_has_every_module_and_no_other() -> None:
    package = ROOT / "citrus_tool"
    page = hook("architecture").on_page_markdown((DOCS / "architecture.md").read_text())
    rows = re.findall(r"^- `(\S+\.py)`: (.*)$", page, re.MULTILINE)
    rooms = re.findall(r"^### (\w+)/ \{ #(\w+) \}\n\n(.*)$", page, re.MULTILINE)
    listed = [name for name, _ in rows] + [f"{name}/__init__.py" for name, _, _ in rooms]
    assert sorted(listed) == sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    assert all(text.strip() for *_, text in (*rows, *rooms))
    for anchor in re.findall(r'<a href="#([\w-]+)">', page):
        assert f"{{ #{anchor} }}" in page


def prose(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of a page, or of every docstring and comment of a module."""
    name, text = path.relative_to(ROOT).as_posix(), path.read_text()
    if path.suffix != ".py":
        yield name, text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield f"{name}:{node.lineno}", node.value.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield f"{name}:{token.start[0]}", token.string


CODE = [path for folder in ("citrus_tool", "benchmarks", "examples", "docs") for path in (ROOT / folder).rglob("*.py")]
PROSE = [*SOURCES, *(path for path in (ROOT / "CHANGELOG.md", ROOT / "PERFORMANCE.md") if path.exists()), *CODE]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FOREIGN = {"src/ibp.py"}
"""Files of other projects, which docstrings cite."""
ROOMS = {path.parent.name for path in (ROOT / "citrus_tool").glob("*/__init__.py")}
FILES = {"csv", "html", "json", "jsonl", "md", "npz", "onnx", "png", "py", "svg", "tex", "toml", "vnnlib"}
"""What follows a dot in the name of a file."""


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = dotted.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        return all((found := getattr(found, name, None)) is not None for name in parts[split:])
    return False


def test_files_that_prose_mentions_exist() -> None:
    known = "\n".join(f"/{path.relative_to(ROOT).as_posix()}\n" for path in (*CODE, *TESTS, *ROOT.glob("vnn*/*.py")))
    wrong = [
        f"{place}: {name}"
        for path in PROSE
        for place, text in prose(path)
        for name in re.findall(r"[\w./]*\w\.py\b", text)
        if f"/{name.removeprefix('./')}\n" not in known and name not in FOREIGN
    ]
    assert not wrong


def test_modules_and_names_that_prose_mentions_exist() -> None:
    stems: dict[str, list[str]] = {}
    for path in CODE:
        if path.is_relative_to(ROOT / "citrus_tool"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            stems.setdefault(name.rpartition(".")[2], []).append(name)
    wrong = []
    for path in PROSE:
        for place, text in prose(path):
            for name in re.findall(r"(?<![\w./-])([a-z_]+(?:\.[A-Za-z_]\w*)+)\b(?!/)", text):
                first, second, *_ = name.split(".")
                if first in {"citrus", "citrus_tool"}:
                    there = name == "citrus.py" or exists(name.replace("citrus.", "citrus_tool.", 1))
                elif (first in ROOMS and second not in FILES) or (first in stems and second[0].isupper()):
                    there = any(exists(f"{module.rpartition('.')[0]}.{name}") for module in stems[first])
                else:
                    continue
                if not there:
                    wrong.append(f"{place}: {name}")
    assert not wrong
