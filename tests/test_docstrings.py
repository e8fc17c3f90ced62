"""What the docstring of a public name must say; the rules stand in docs/contributing.md (Docstrings)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import citrus_tool
from citrus_tool.training.methods import METHODS

PACKAGE = Path(citrus_tool.__file__).parent
PACKAGES = ("api", "attacks", "bench", "bounds", "certification", "checker", "data", "onnx_io", "queries", "training")
HOMES = {home.partition(":")[0].removeprefix("citrus_tool.").replace(".", "/") for home in citrus_tool._HOME.values()}
FILES = sorted(
    {path for part in PACKAGES for path in (PACKAGE / part).rglob("*.py")}
    | {path for home in HOMES for path in (PACKAGE / f"{home}.py", PACKAGE / home / "__init__.py") if path.exists()}
)
ERRORS = {n.name for n in ast.parse((PACKAGE / "errors.py").read_text()).body if isinstance(n, ast.ClassDef)}
METHOD_FILES = {method.__module__.removeprefix("citrus_tool.").replace(".", "/") + ".py" for method in METHODS.values()}

Definition = ast.FunctionDef | ast.ClassDef

ARRAY = re.compile(r"\b(Tensor|NDArray|ndarray|Array)\b")
TYPED = re.compile(r"\b(Float|Int|Bool|Num|Shaped|UInt8)\[[^\]]*\]")
"""A jaxtyping annotation, which holds the shape itself."""
SHAPE = re.compile(
    r"\((\*?[\w.]+( ?[*+/-] ?\w+)?, ?)+(\*?[\w.]+( ?[*+/-] ?\w+)?)?\)|\bscalar\b|\bany shape\b|\bshaped? (like|as)\b"
)
"""(n, C, H, W), (k,), (n, ...), or one of the words."""
UNITS = {
    r"(.*_)?(eps|radius)": r"pixel|in the units of",
    r"time_limit|timeout|(.*_)?time": r"\bseconds?\b",
    r"(.*_)?accuracy": r"percent|%",
}
"""Names of quantities, and how their unit reads; a name that ends in `seconds` says it itself."""
SOURCE = re.compile(r"(19|20)\d\d\b|\bet al\b|[Tt]heorem|[Ee]quation|[Aa]lgorithm \d|[Ss]ection \d")
"""A year, authors, or a numbered statement of a paper."""
TRAINING_METHODS = {method.__name__ for method in METHODS.values()}
"""These have one signature, which `training.method.Method` describes: eps and tau are in pixel space."""
NO_SOURCE = {"attacks/__init__.py", "attacks/effort.py", "bounds/__init__.py", "training/standard.py"}
"""Nothing of a paper: empty, how much work an attack may do, and plain cross entropy."""


@dataclass(frozen=True, kw_only=True)
class Public:
    """A public definition, and the documented things around it."""

    file: str
    name: str
    node: Definition
    owner: ast.ClassDef | None
    module: str

    @property
    def own(self) -> str:
        return ast.get_docstring(self.node) or ""

    @property
    def with_class(self) -> str:
        return f"{self.own}\n{ast.get_docstring(self.owner) or '' if self.owner else ''}"

    @property
    def annotations(self) -> dict[str, str]:
        """Parameters, fields and the result ("return") with their types; a class has its fields."""
        if isinstance(self.node, ast.ClassDef):
            fields = [item for item in self.node.body if isinstance(item, ast.AnnAssign)]
            return {
                ast.unparse(f.target): ast.unparse(f.annotation)
                for f in fields
                if not ast.unparse(f.target).startswith("_")
            }
        arguments = self.node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        result = {"return": ast.unparse(self.node.returns)} if self.node.returns else {}
        return {a.arg: ast.unparse(a.annotation) for a in named if a.annotation} | result


TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
CLASSES: dict[str, list[ast.ClassDef]] = {}
for tree in TREES.values():
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            CLASSES.setdefault(node.name, []).append(node)


def inherited(method: ast.FunctionDef, owner: ast.ClassDef) -> bool:
    """Whether a base class of this package documents the method: its text holds for all that implement it."""
    for base in owner.bases:
        name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
        if name == "Module" and method.name == "forward":
            return True  # torch.nn.Module's; the class says what it computes
        for parent in CLASSES.get(name, []):
            own = [item for item in parent.body if isinstance(item, ast.FunctionDef) and item.name == method.name]
            if any(ast.get_docstring(item) for item in own) or inherited(method, parent):
                return True
    return False


def public(path: Path) -> Iterator[Public]:
    """Functions, classes, and methods without a leading underscore; methods that a base documents are left out."""
    file, tree = path.relative_to(PACKAGE).as_posix(), TREES[path]
    module = ast.get_docstring(tree) or ""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield Public(file=file, name=node.name, node=node, owner=None, module=module)
            if isinstance(node, ast.ClassDef):
                for item in node.body:
                    if (
                        isinstance(item, ast.FunctionDef)
                        and not item.name.startswith("_")
                        and not inherited(item, node)
                    ):
                        yield Public(file=file, name=f"{node.name}.{item.name}", node=item, owner=node, module=module)


PUBLIC = [found for path in FILES for found in public(path)]


def raised(node: ast.AST) -> Iterator[str]:
    """The errors of citrus that a body raises itself, nested functions left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            name = ast.unparse(child.exc.func)
            if name in ERRORS:
                yield name
        yield from raised(child)


def report(broken: list[str]) -> None:
    assert not broken, f"{len(broken)}:\n" + "\n".join(broken)


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 100
    assert len(PUBLIC) > 600
    assert {"api/model.py", "bench/run.py", "bounds/crown.py", "onnx_io/writer.py"} <= {p.file for p in PUBLIC}


def test_every_public_name_has_a_docstring() -> None:
    report([f"{p.file}: {p.name}" for p in PUBLIC if not p.own])


def test_arrays_have_their_shape_named() -> None:
    """In the annotation (jaxtyping), or in the docstring of the function or its class."""
    broken = []
    for p in PUBLIC:
        bare = [name for name, kind in p.annotations.items() if ARRAY.search(TYPED.sub("", kind))]
        if bare and not SHAPE.search(p.with_class):
            broken.append(f"{p.file}: {p.name}: {', '.join(bare)}")
    report(broken)


def test_quantities_have_their_unit() -> None:
    """In the docstring of the function, its class or its module."""
    broken = []
    for p in PUBLIC:
        if p.file in METHOD_FILES and p.name in TRAINING_METHODS:
            continue
        for name, kind in p.annotations.items():
            if name == "return":
                name = p.node.name
            for pattern, unit in UNITS.items():
                if (
                    "float" in kind
                    and re.fullmatch(pattern, name)
                    and not re.search(unit, f"{p.with_class}\n{p.module}", re.IGNORECASE)
                ):
                    broken.append(f"{p.file}: {p.name}: {name}")
    report(broken)


def test_errors_that_a_body_raises_are_named() -> None:
    """By its docstring, or its class's."""
    broken = []
    for p in PUBLIC:
        if isinstance(p.node, ast.FunctionDef):
            missing = sorted({e for e in raised(p.node) if not re.search(rf"\b{e}\b", p.with_class)})
        else:
            checks = [
                n for n in p.node.body if isinstance(n, ast.FunctionDef) and n.name in ("__init__", "__post_init__")
            ]
            missing = sorted({e for n in checks for e in raised(n) if not re.search(rf"\b{e}\b", p.own)})
        broken += [f"{p.file}: {p.name}: {error}" for error in missing]
    report(broken)


def test_methods_bounds_and_attacks_name_their_source() -> None:
    """In the docstring of the module."""
    files = [p.relative_to(PACKAGE).as_posix() for p in FILES]
    scientific = {f for f in files if f.startswith(("bounds/", "attacks/"))} | METHOD_FILES
    assert scientific.issubset(files)
    report(
        [f for f in sorted(scientific - NO_SOURCE) if not SOURCE.search(ast.get_docstring(TREES[PACKAGE / f]) or "")]
    )
