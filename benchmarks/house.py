"""Counts what makes the code hard to live in: `python benchmarks/house.py [CHECKOUT ...]`, one column a checkout.

- functions with more than 10 parameters: all that a signature lists, click commands included.
- class names with several meanings: one name, a leading underscore aside, that two modules of the package define.
- readers of JSON lines: functions that call `json.loads` on the lines of a file, that is in a loop, a comprehension or
  with an argument called `line`.
- function-level imports in cli/, suppressed formatting, modules above 500 lines, and the lines of the package.
- lines of code: those that are neither blank nor part of a docstring or an import; and statements, docstrings and
  imports apart, which do not depend on how the code is laid out in lines.
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MOST_PARAMETERS = 10
LONGEST = 500
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(kw_only=True)
class House:
    """What was counted in one checkout; each entry names its place."""

    long_signatures: list[str] = field(default_factory=list)
    shared_names: list[str] = field(default_factory=list)
    line_readers: list[str] = field(default_factory=list)
    inner_imports: int = 0
    unformatted: int = 0
    long_files: list[str] = field(default_factory=list)
    lines: int = 0
    code_lines: int = 0
    statements: int = 0

    def rows(self) -> dict[str, tuple[int, list[str]]]:
        """Heading -> count and places."""
        return {
            f"functions with more than {MOST_PARAMETERS} parameters": (len(self.long_signatures), self.long_signatures),
            "class names with several meanings": (len(self.shared_names), self.shared_names),
            "readers of JSON lines": (len(self.line_readers), self.line_readers),
            "function-level imports in cli/": (self.inner_imports, []),
            "lines that the formatter must not touch": (self.unformatted, []),
            f"modules above {LONGEST} lines": (len(self.long_files), self.long_files),
            "lines of citrus_tool": (self.lines, []),
            "lines of code": (self.code_lines, []),
            "statements": (self.statements, []),
        }


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def parameters(function: Function) -> int:
    """How many the signature lists."""
    return len([*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs])


def reads_lines(function: Function) -> bool:
    """Whether it parses JSON line by line."""
    loops = [n for n in ast.walk(function) if isinstance(n, ast.For | ast.ListComp | ast.GeneratorExp)]
    looped = {id(inner) for loop in loops for inner in ast.walk(loop)}
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "json.loads" and node.args:
            text = ast.unparse(node.args[0])
            if "json.dumps" not in text and (text in ("line", "text_line") or (id(node) in looped and "line" in text)):
                return True
    return False


def code(text: str, tree: ast.Module) -> tuple[int, int]:
    """Lines and statements of a module without blank lines, docstrings and imports."""
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    apart = [
        node
        for node in statements
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str))
    ]
    left_out = {line for node in apart for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line.strip() and number not in left_out]
    return len(lines), len(statements) - len(apart)


def count(checkout: Path) -> House:
    """The counts of one checkout."""
    package, house = checkout / "citrus_tool", House()
    classes: dict[str, list[str]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(package).as_posix()
        tree, length = ast.parse(text), text.count("\n")
        house.lines += length
        code_lines, statements = code(text, tree)
        house.code_lines += code_lines
        house.statements += statements
        house.unformatted += text.count("# fmt: skip") + text.count("# fmt: off")
        if length > LONGEST:
            house.long_files.append(f"{name} ({length})")
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name.lstrip("_")].append(name)
        for function in functions(tree):
            if parameters(function) > MOST_PARAMETERS:
                house.long_signatures.append(f"{name}:{function.name} ({parameters(function)})")
            if reads_lines(function):
                house.line_readers.append(f"{name}:{function.name}")
            if name.startswith("cli/"):
                house.inner_imports += sum(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(function))
    house.shared_names = [f"{name} ({', '.join(homes)})" for name, homes in sorted(classes.items()) if len(homes) > 1]
    return house


def main(checkouts: list[Path]) -> None:
    """Prints the table, and the places of the last checkout."""
    houses = [count(checkout).rows() for checkout in checkouts]
    for heading in houses[0]:
        print(f"{heading:<45}", *(f"{house[heading][0]:>8}" for house in houses))
    for heading, (_, places) in houses[-1].items():
        if places:
            print(f"\n{heading}:", *places, sep="\n  ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT", help="this one where none is named")
    main(parser.parse_args().checkouts or [Path(__file__).resolve().parent.parent])
