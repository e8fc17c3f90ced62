"""Slow and literal twins of the VNN-LIB readers: a recursive evaluator of the text, a regex reader of boxes."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any


def forms(text: str) -> list[Any]:
    """The S-expressions of `text` as nested lists of words; X[0,1] is one word."""
    words = re.findall(r"[()]|[^\s()\[\]]+(?:\[[^\]]*\])?", re.sub(r";[^\n]*", "", text))

    def take(position: int) -> tuple[Any, int]:
        if words[position] != "(":
            return words[position], position + 1
        items, position = [], position + 1
        while words[position] != ")":
            item, position = take(position)
            items.append(item)
        return items, position + 1

    result, position = [], 0
    while position < len(words):
        form, position = take(position)
        result.append(form)
    return result


def value(form: Any, point: Mapping[str, Fraction]) -> Any:
    """A formula or expression at `point` (word -> number), by recursion on the text."""
    if isinstance(form, str):
        return point[form] if form in point else Fraction(form)
    head, *rest = form
    args = [value(part, point) for part in rest]
    if head in ("and", "or"):
        return all(args) if head == "and" else any(args)
    if head in ("<=", ">=", "<", ">", "=", "==", "!="):
        a, b = args
        return {"<=": a <= b, ">=": a >= b, "<": a < b, ">": a > b, "=": a == b, "==": a == b, "!=": a != b}[head]
    if head == "-" and len(args) == 1:
        return -args[0]
    total = args[0]
    for arg in args[1:]:
        total = {"+": total + arg, "-": total - arg, "*": total * arg, "/": total / (arg or 1)}[head]
    return total


def unsafe(text: str, point: Mapping[str, Fraction]) -> bool:
    """Whether every assertion of `text` holds at `point`."""
    return all(value(form[1], point) for form in forms(text) if form[0] == "assert")


def plain_text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def boxes(text: str) -> tuple[dict[int, Fraction], dict[int, Fraction]]:
    """Lower and upper bounds of X_i, from lines that bound one variable only."""
    found: tuple[dict[int, Fraction], dict[int, Fraction]] = ({}, {})
    for relation, index, number in re.findall(r"\(assert \(([<>]=) X_(\d+) ([^\s()]+)\)\)", text):
        found[relation == "<="][int(index)] = Fraction(number)
    return found
