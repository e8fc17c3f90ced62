"""Reading a report back: every <data> element with the file and path it names, and the text around them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "link", "img", "br", "input"}
FREE = {"script", "style", "title", "svg", "code", "nav", "summary", "h1", "h2", "footer"}
"""Elements whose text is not figures: headings repeat eps, code holds digests."""
FREE_CLASSES = {"citations", "facts", "axis", "ends", "map", "detail", "chip", "note", "eyebrow", "name"}


@dataclass(frozen=True, kw_only=True)
class Value:
    """One <data> element: what it says, and which number of which file it claims to be."""

    value: str
    text: str
    field: str | None
    rule: str | None
    source: str
    prefix: str


@dataclass(kw_only=True)
class Page:
    """The parts of a report that a test looks at."""

    values: list[Value] = field(default_factory=list)
    free: list[str] = field(default_factory=list)  # text that should hold no figures
    text: list[str] = field(default_factory=list)  # all visible text
    tiles: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self.stack: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            if name in given:
                self.page.links.append(given[name])
        if tag == "img":
            self.page.images.append(given["src"])
        if tag == "a" and "tint-" in given.get("class", ""):
            self.page.tiles.append(given["aria-label"])
        if tag not in VOID:
            self.stack.append((tag, given))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, tag
        assert self.stack.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not data.strip() or not self.stack:
            return
        tags = {tag for tag, _ in self.stack}
        classes = {word for _, given in self.stack for word in given.get("class", "").split()}
        if tags & {"script", "style"}:
            return
        self.page.text.append(" ".join(data.split()))
        tag, given = self.stack[-1]
        if tag == "data":
            place = next((a for _, a in reversed(self.stack) if "data-source" in a), {})
            self.page.values.append(
                Value(
                    value=given["value"],
                    text=data,
                    field=given.get("data-field"),
                    rule=given.get("data-rule"),
                    source=place.get("data-source", ""),
                    prefix=place.get("data-prefix", ""),
                )
            )
        elif not tags & FREE and not classes & FREE_CLASSES:
            self.page.free.append(data)


def read_page(html: str) -> Page:
    """Parses a report; fails for tags that do not nest."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert not reader.stack
    return reader.page


def json_of(source: str) -> Any:
    """The JSON that `source` stands for: a file, a list of lines, or the certificate that a journal amounts to."""
    path = Path(source)
    if path.name == "results.jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        groups = sorted(lines[1:-1], key=lambda line: line["index"])
        stages = {name: sum(g["stages"].get(name, 0.0) for g in groups) for g in groups for name in g["stages"]}
        counts = ("clean_correct", "ibp_certified", "individually_certified", "certified", "attacked")
        run = lines[0]["run"]
        return {
            "groups": groups,
            "inputs": sum(len(g["indices"]) for g in groups),
            **{name: sum(g[name] for g in groups) for name in counts},
            "eps": run["eps"],
            "settings": run,
            "threat": run,
            "stages": stages,
            "seconds": sum(stages.values()),
        }
    found = json.loads(path.read_text())
    return found["sweep"] if isinstance(found, dict) and "sweep" in found else found


def at(content: Any, path: str) -> Any:
    """The value at a path such as `groups.3.certified`."""
    for part in path.split("."):
        content = content[int(part)] if isinstance(content, list) else content[part]
    return content


def expected(value: Value, content: Any) -> float:
    """What the JSON says about a <data> element, worked out here and not by the package."""
    if value.field is not None:
        return float(at(content, value.field))
    rule = value.rule or ""
    here = at(content, value.prefix.rstrip(".")) if value.prefix else content
    if match := re.fullmatch(r"100\*(\w+)/inputs", rule):
        return float(100 * here[match[1]] / here["inputs"])
    if match := re.fullmatch(r"after\.(\w+)-before\.(\w+)", rule):
        return float(here["after"][match[1]] - here["before"][match[2]])
    if match := re.fullmatch(r"statuses\.(\w+)", rule):
        return sum(group["status"] == match[1] for group in here["groups"])
    if rule == "groups":
        return len(here["groups"])
    if match := re.fullmatch(r"(?:\w+\.)?groups\.(\d+)\.indices\.length", rule):
        return len(here["groups"][int(match[1])]["indices"])
    if match := re.fullmatch(r"groups\.(\d+)\.fooled", rule):
        return here["groups"][int(match[1])]["verdicts"].count("fooled")
    if match := re.fullmatch(r"label (\d+) (.+)", rule):
        pairs = [pair for g in here["groups"] for pair in zip(g["labels"], g["verdicts"], strict=True)]
        return sum(
            label == int(match[1]) and (match[2] == "any" or verdict in match[2].split()) for label, verdict in pairs
        )
    if rule == "verdicts ibp proven":
        return sum(verdict in ("ibp", "proven") for g in here["groups"] for verdict in g["verdicts"])
    if rule == "verdicts lost":
        return sum(verdict == "lost" for g in here["groups"] for verdict in g["verdicts"])
    if rule == "clean_correct-attacked":
        return int(here["clean_correct"] - here["attacked"])
    if rule == "instances":
        return len(here)
    if match := re.fullmatch(r"verdict (\w+)", rule):
        return sum(entry["verdict"] == match[1] for entry in here)
    raise AssertionError(f"no rule {rule!r}")


REPLAYED = {"index", "label", "class", "replay", "u.mean", "u.saturated"}
"""Rules of numbers that come with pictures; tests hold them against onnxruntime and the journal apart."""


def check_numbers(page: Page) -> int:
    """Asserts that every figure is the one in the JSON, shown to its last digit; returns how many there are."""
    contents: dict[str, Any] = {}
    checked = 0
    for value in page.values:
        if value.rule in REPLAYED:
            assert float(value.text) == round(float(value.value), len(value.text.partition(".")[2])), value
            continue
        assert value.source, value
        if value.source not in contents:
            contents[value.source] = json_of(value.source)
        truth = expected(value, contents[value.source])
        assert float(value.value) == truth, value
        shown = value.text.replace("+", "").replace("−", "-")
        if "/" in shown:
            top, _, bottom = shown.partition("/")
            assert float(top) / float(bottom) == truth, value
        elif "e" in shown or "." in shown:
            assert float(shown) == float(f"{truth:.4g}") or abs(float(shown) - truth) <= 0.5001 * 10 ** -len(
                shown.partition(".")[2]
            ), value
        else:
            assert float(shown) == float(f"{truth:.4g}"), value
        checked += 1
    return checked
