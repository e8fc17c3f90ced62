"""Forged proofs: changes of a genuine proof's types, structure and values, each with digests that fit again.

Every forgery names the words of the checker's refusal. `FORGERIES` has them all; one that finds nothing to change in a
proof says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.checker.corruption import Content, Group, products

Path_ = tuple[str | int, ...]
"""Where a value stands in JSON: keys and positions."""


@dataclass(frozen=True, kw_only=True)
class Forgery:
    """A change of a proof, made by `change`, which returns whether there was something to change.

    words: what the refusal says (a regular expression).
    """

    name: str
    change: Callable[[Content], bool]
    words: str


def first(content: Content, path: Path_) -> tuple[Any, str | int] | None:
    """The container of the first value at `path`, where "*" is any position, and its key there."""

    def places(value: Any, rest: Path_) -> Iterator[tuple[Any, str | int]]:
        key, *more = rest
        keys = range(len(value)) if key == "*" else [key] if isinstance(value, dict) and key in value else []
        for one in keys:
            if more:
                yield from places(value[one], tuple(more))
            else:
                yield value, one

    roots = [content.head] if path[0] == "page" else [group.facts for group in content.groups]
    return next((place for root in roots for place in places(root, path[1:])), None)


def replaced(path: Path_, value: Any) -> Callable[[Content], bool]:
    """Puts a value in place of the first one at `path`; in the run of the first page also in those of all groups."""

    def change(content: Content) -> bool:
        place = first(content, path)
        if place is None:
            return False
        place[0][place[1]] = value(place[0][place[1]]) if callable(value) else value
        if path[:2] == ("page", "run"):
            for group in content.groups:
                group.facts["run"] = content.head["run"]
        return True

    return change


def removed(path: Path_) -> Callable[[Content], bool]:
    """Takes away the first field at `path`."""

    def change(content: Content) -> bool:
        place = first(content, path)
        if place is not None:
            del place[0][place[1]]
        return place is not None

    return change


FIELDS: Mapping[Path_, str] = {
    ("page", "format"): "whole",
    ("page", "inputs"): "whole",
    ("page", "certified"): "whole",
    ("page", "data"): "text",
    ("page", "split"): "text",
    ("page", "version"): "text",
    ("page", "protocol"): "text",
    ("page", "scope"): "text",
    ("page", "groups"): "list",
    ("page", "groups", "*"): "record",
    ("page", "groups", "*", "file"): "text",
    ("page", "groups", "*", "sha256"): "text",
    ("page", "groups", "*", "inputs"): "whole",
    ("page", "groups", "*", "certified"): "whole",
    ("page", "run"): "record",
    ("page", "run", "model_sha256"): "text",
    ("page", "run", "eps"): "text",
    ("page", "run", "clip"): "flag",
    ("page", "run", "target"): "maybe whole",
    ("page", "run", "arithmetic"): "text",
    ("page", "run", "layout"): "text",
    ("page", "run", "shape"): "list",
    ("page", "run", "shape", "*"): "whole",
    ("page", "run", "mean"): "list",
    ("page", "run", "mean", "*"): "number",
    ("page", "run", "std"): "list",
    ("page", "run", "std", "*"): "number",
    ("facts", "index"): "whole",
    ("facts", "fooled"): "whole",
    ("facts", "certified"): "whole",
    **{("facts", name): "list" for name in ("indices", "labels", "rivals", "kinds", "excluded", "views")},
    **{("facts", name): "list" for name in ("listed", "fronts", "proofs")},
    ("facts", "indices", "*"): "whole",
    ("facts", "labels", "*"): "whole",
    ("facts", "rivals", "*"): "whole",
    ("facts", "kinds", "*"): "text",
    ("facts", "excluded", "*"): "list",
    ("facts", "excluded", "*", "*"): "whole",
    ("facts", "views", "*"): "list",
    ("facts", "views", "*", "*"): "whole",
    ("facts", "listed", "*"): "record",
    ("facts", "listed", "*", "final"): "list",
    ("facts", "listed", "*", "final", "*"): "whole",
    ("facts", "listed", "*", "steps"): "list",
    ("facts", "listed", "*", "steps", "*"): "whole",
    ("facts", "fronts", "*"): "record",
    ("facts", "fronts", "*", "atom"): "list",
    ("facts", "fronts", "*", "atom", "*"): "whole",
    ("facts", "fronts", "*", "view"): "whole",
    ("facts", "fronts", "*", "closed"): "whole",
    ("facts", "proofs", "*"): "record",
    ("facts", "proofs", "*", "atoms"): "list",
    ("facts", "proofs", "*", "atoms", "*"): "list",
    ("facts", "proofs", "*", "atoms", "*", "*"): "whole",
    ("facts", "proofs", "*", "views"): "list",
    ("facts", "proofs", "*", "views", "*"): "whole",
    ("facts", "proofs", "*", "fronts"): "list",
    ("facts", "proofs", "*", "fronts", "*"): "whole",
}
"""What stands where in a proof, in this module's own words."""
STRANGE: Mapping[str, Any] = {
    "true": True,
    "null": None,
    "a text": "0",
    "a number with a point": lambda old: float(old) if isinstance(old, int) else 0.5,
    "a whole number": 0,
    "a negative number": -1,
    "a huge number": 2**60,
    "a list": [],
    "an object": {},
}
FITS: Mapping[str, Sequence[str]] = {
    "whole": ("a whole number",),
    "maybe whole": ("a whole number", "null"),
    "number": ("a number with a point",),
    "text": ("a text",),
    "flag": ("true",),
    "list": ("a list",),
    "record": ("an object",),
}
"""The strange values that are of the kind; they are tried as wrong values elsewhere."""


def field(path: Path_) -> str:
    """The end of a field's name in the checker's words."""
    last = [part for part in path[1:] if part != "*"]
    return str(last[-1]) if last else ""


def of_types() -> Iterator[Forgery]:
    """Every field with a value of every type that is not its own."""
    for path, kind in FIELDS.items():
        for what, value in STRANGE.items():
            if what in FITS[kind]:
                continue
            name = ".".join(map(str, path))
            yield Forgery(name=f"{name} is {what}", change=replaced(path, value), words=rf"{field(path)}\S*: is ")


def of_fields() -> Iterator[Forgery]:
    """Objects with a field too few or too many."""
    records = [path for path, kind in FIELDS.items() if kind == "record"]
    for path in FIELDS:
        if isinstance(path[-1], str) and path[-1] != "*":
            words = "no object with a format" if path[-1] == "format" else f"has no field {path[-1]}"
            yield Forgery(name=f"{'.'.join(map(str, path))} is gone", change=removed(path), words=words)
    for path in (("page",), ("facts",), *records):
        added = replaced((*path, "extra"), 1)

        def change(content: Content, path: Path_ = path, added: Callable[[Content], bool] = added) -> bool:
            if len(path) == 1:
                (content.head if path[0] == "page" else content.groups[0].facts)["extra"] = 1
                return True
            place = first(content, path)
            if place is not None:
                place[0][place[1]]["extra"] = 1
            return place is not None and (path[:2] != ("page", "run") or added(content))

        yield Forgery(name=f"{'.'.join(map(str, path))} has one more", change=change, words="'extra' that no proof has")


ARRAYS: Mapping[str, str] = {
    "images": "images",
    "final": "view0/final",
    "base": "/base",
    "slopes of bounds": "/alpha",
    "depth": "proof0/depth",
    "slopes": "proof0/alpha",
    "share": "proof0/share",
    "split": "/split",
    "side": "/side",
    "beta": "/beta",
    "front depth": "front0/depth",
    "front share": "front0/share",
    "part": "/part",
    "mix": "/mix",
}
"""Arrays by a part of their names."""


def other_type(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64 if array.dtype != np.float64 else np.float32)


def with_value(value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def change(array: NDArray[Any]) -> NDArray[Any]:
        array = array.copy()
        array.flat[-1] = value
        return array

    return change


CHANGES: Mapping[str, tuple[Callable[[NDArray[Any]], NDArray[Any]], str]] = {
    "another float": (other_type, "has the type '<f"),
    "truth values": (lambda array: array.astype(np.bool_), r"has the type|no array as numpy"),
    "wide integers": (lambda array: array.astype(np.int64), "has the type '<i8'"),
    "complex numbers": (lambda array: array.astype(np.complex128), "no array as numpy"),
    "texts": (lambda array: array.astype("S4"), "has the type|no array as numpy"),
    "other bytes' order": (lambda array: array.astype(array.dtype.newbyteorder(">")), "no array as numpy|has the type"),
    "one more axis": (lambda array: array[None], "has the shape"),
    "one row less": (lambda array: array[1:], "has the shape|do not cover|no number from|is not above 0"),
    "one row more": (lambda array: np.concatenate([array, array[-1:]]), "has the shape|rising|no number|do not cover"),
    "no axis": (lambda array: np.array(array.flat[0]), "has the shape"),
    "columns first": (lambda array: np.asfortranarray(np.stack([array, array])), "has the shape|no array as numpy"),
}


def of_arrays() -> Iterator[Forgery]:
    """Every array with another type, rank or shape."""
    for what, part in ARRAYS.items():
        for how, (make, words) in CHANGES.items():
            if (what, how) == ("part", "one row less"):
                continue  # other products may close the same
            if how == "other bytes' order" and what in ("slopes", "slopes of bounds", "side"):
                continue  # one byte has no order
            yield Forgery(name=f"{what}: {how}", change=array_changed(part, make), words=words)
    for what in ("images", "share", "beta", "mix", "front share"):
        for value in (np.nan, np.inf, -np.inf):
            words = "no number from"
            yield Forgery(name=f"{what}: {value}", change=array_changed(ARRAYS[what], with_value(value)), words=words)
    for what, value in {"final": -1, "base": -1, "depth": -1, "split": -1, "part": -1, "side": 0}.items():
        change = array_changed(ARRAYS[what], with_value(value))
        yield Forgery(name=f"{what}: {value}", change=change, words="no number from|is 0 somewhere|rising")
    for what in ("final", "base", "depth", "split", "part"):
        change = array_changed(ARRAYS[what], with_value(2**31 - 1))
        yield Forgery(name=f"{what}: too large", change=change, words="no number from|has the shape|does not have open")
    for what in ("share", "beta", "mix"):
        change = array_changed(ARRAYS[what], with_value(-0.5))
        yield Forgery(name=f"{what}: negative", change=change, words="no number from 0")


def array_changed(part: str, make: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Content], bool]:
    """Changes the first array that is not empty and has `part` in its name."""

    def change(content: Content) -> bool:
        for group in content.groups:
            for name in sorted(group.arrays):
                alike = part in name and (part != "/alpha" or name.startswith("view"))
                if alike and len(group.arrays[name]) > (1 if part not in ("images", "proof0/share") else 0):
                    group.arrays[name] = make(group.arrays[name])
                    return True
        return False

    return change


def of_names() -> Iterator[Forgery]:
    """Arrays that are gone, or there for nothing."""
    for what, part in ARRAYS.items():

        def change(content: Content, part: str = part) -> bool:
            for group in content.groups:
                for name in sorted(group.arrays):
                    if part in name:
                        del group.arrays[name]
                        return True
            return False

        yield Forgery(name=f"{what}: gone", change=change, words="has no member")
    for name in ("view99/final0", "proof99/share", "images2", "view0/hull1", "proof0/part1"):

        def add(content: Content, name: str = name) -> bool:
            content.groups[0].arrays[name] = np.zeros(1, dtype=np.int32)
            return True

        yield Forgery(name=f"{name} is added", change=add, words="that no proof has there")


def holder(content: Content, wanted: Callable[[Group], Any]) -> Group | None:
    return next((group for group in content.groups if wanted(group)), None)


def edited(wanted: Callable[[Group], Any], edit: Callable[[Group], None]) -> Callable[[Content], bool]:
    """Edits the first group that has what is wanted."""

    def change(content: Content) -> bool:
        group = holder(content, wanted)
        if group is not None:
            edit(group)
        return group is not None

    return change


def has(*kinds: str) -> Callable[[Group], bool]:
    return lambda group: any(kind in kinds for kind in group.facts["kinds"])


def position(group: Group, *kinds: str) -> int:
    return next(place for place, kind in enumerate(group.facts["kinds"]) if kind in kinds)


def _claim_all(group: Group) -> None:
    group.facts["certified"] += group.facts["fooled"]
    group.facts["fooled"] = 0


def _claim_lost(group: Group) -> None:
    group.facts["kinds"][position(group, "lost")] = "interval"
    group.facts["certified"] += 1


def _exclude_open(group: Group) -> None:
    (place, label), *_ = group.facts["proofs"][0]["atoms"]
    group.facts["excluded"][place].append(label)


def _swap_labels(group: Group) -> None:
    place = position(group, "interval", "bounds")
    for name in ("labels", "rivals"):
        group.facts[name][place] = (group.facts[name][place] + 1) % 3


def _other_rival(group: Group) -> None:
    place = position(group, "interval", "bounds")
    group.facts["rivals"][place] = (group.facts["rivals"][place] + 1) % 3


def _exclude_own(group: Group) -> None:
    place = position(group, "interval", "bounds")
    group.facts["excluded"][place].append(group.facts["labels"][place])


def _twice(name: str) -> Callable[[Group], None]:
    def edit(group: Group) -> None:
        place = next(place for place, some in enumerate(group.facts[name]) if some)
        group.facts[name][place].append(group.facts[name][place][0])

    return edit


def _append(path: Sequence[str | int], value: Any) -> Callable[[Group], None]:
    def edit(group: Group) -> None:
        target: Any = group.facts
        for key in path:
            target = target[key]
        target.append(json.loads(json.dumps(target[0])) if value is None else value)

    return edit


def of_references() -> Iterator[Forgery]:
    """Numbers that name other things than there are, and claims that do not follow."""

    def forged(name: str, wanted: Callable[[Group], Any], edit: Callable[[Group], None], words: str) -> Forgery:
        return Forgery(name=name, change=edited(wanted, edit), words=words)

    def any_group(group: Group) -> bool:
        return bool(group.facts["indices"])

    def some(name: str) -> Callable[[Group], Any]:
        return lambda group: group.facts[name]

    yield forged("all that are held are certified", some("fooled"), _claim_all, "allow that more than the claimed")
    yield forged("a lost input is certified", has("lost"), _claim_lost, "allow that more than")
    yield forged("an open label is excluded", some("proofs"), _exclude_open, "do not exclude label")
    yield forged("other labels", has("interval", "bounds"), _swap_labels, "do not exclude|allow that more|not above 0")
    yield forged("another rival", has("interval", "bounds"), _other_rival, "has another rival than it can have")
    yield forged("its own label is excluded", has("interval", "bounds"), _exclude_own, "do not exclude label")
    yield forged(
        "a label is excluded twice", has("interval", "bounds"), _twice("excluded"), "excluded: has a value twice"
    )
    yield forged("an input twice", any_group, _append(("indices",), None), "values for|has a value twice")
    yield forged("a view twice", some("listed"), _twice("views"), "do not number each view")
    yield forged("a view too many", some("listed"), _append(("listed",), None), "do not number each view")
    yield forged("a label too many", any_group, _append(("labels",), None), "labels: has . values for")
    yield forged("an atom twice", some("proofs"), _append(("proofs", 0, "atoms"), None), "has a value twice")
    yield forged("a view for no atom", some("proofs"), _append(("proofs", 0, "views"), None), "views: has")
    yield forged("fronts for no atom", some("fronts"), _append(("proofs", 0, "fronts"), 0), "are not|other atoms")
    yield forged("a ReLU twice", some("listed"), _append(("listed", 0, "final"), None), "has a value twice|no list of")
    for path, words in {
        ("proofs", "*", "views", "*"): "has no view",
        ("proofs", "*", "fronts", "*"): "fronts: are not",
        ("fronts", "*", "view"): "has no view",
        ("fronts", "*", "closed"): "closed: is 9999 of",
        ("fronts", "*", "atom", "*"): "has no view",
        ("proofs", "*", "atoms", "*", "*"): "has no view",
        ("listed", "*", "final", "*"): "no whole number from 0 to",
        ("listed", "*", "steps", "*"): "no whole number from 0 to",
        ("views", "*", "*"): "do not number each view",
        ("labels", "*"): "no whole number from 0 to",
        ("excluded", "*", "*"): "no whole number from 0 to",
        ("fooled",): "is not the . inputs that are not lost",
        ("certified",): "is not the . inputs that are not lost",
        ("index",): "belongs to another place",
    }.items():
        name = f"{'.'.join(path)} is 9999"
        yield Forgery(name=name, change=replaced(("facts", *path), 9999), words=words)
    for path, value, words in (
        (("eps",), "0x1.0p-3", "no radius"),
        (("eps",), (0.7).hex(), "not exclude|above 0|allow that more"),
        (("eps",), "-0x0.0p+0", "not a hexadecimal number"),
        (("eps",), "nan", "not a hexadecimal number"),
        (("eps",), "0.1", "not a hexadecimal number"),
        (("eps",), (1.5).hex(), "no radius"),
        (("model_sha256",), "0" * 64, "the model: is another one"),
        (("model_sha256",), "0" * 63, "not a sha256"),
        (("target",), 2, "has another rival|not exclude"),
        (("target",), 999, "target: is 999, no class"),
        (("clip",), "false", "neither true nor false"),
        (("layout",), "nwhc", "none of nchw, nhwc, flat"),
        (("arithmetic",), "float16", "none of float32, real"),
        (("shape",), [2**24, 2**24, 1], "more than 16777216 entries"),
        (("shape",), [1] * 9, "no list of 1 to 8 values"),
        (("mean",), [0.0] * 5, "numbers for"),
        (("std",), [1.0] * 5, "numbers for"),
        (("std",), [0.0], "no number from"),
        (("std",), [-1.0], "no number from"),
        (("std",), [1e30], "no number from"),
        (("mean",), [-5e29], "no number from"),
    ):
        yield Forgery(
            name=f"run.{path[0]} is {str(value)[-20:]} ({len(str(value))})",
            change=replaced(("page", "run", *path), value),
            words=words,
        )
    for name, value, words in (
        ("inputs", 10_000, "the totals"),
        ("certified", 10_000, "the totals"),
        ("format", 3, "this checker reads 1 and 2"),
        ("format", 1, "that no proof has there"),
        ("data", "x" * 5000, "not a text"),
        ("groups", [], "no list of 1 to"),
    ):
        yield Forgery(name=f"page.{name} is {str(value)[:9]}", change=replaced(("page", name), value), words=words)
    yield Forgery(
        name="groups twice",
        change=replaced(("page", "groups"), lambda old: [*old, *old]),
        words="another group's",
    )
    yield Forgery(
        name="a group's count",
        change=replaced(("page", "groups", "*", "certified"), lambda old: old + 1),
        words="is summed up wrongly",
    )
    yield Forgery(
        name="a member elsewhere",
        change=replaced(("page", "groups", "*", "file"), "../../etc/passwd"),
        words="not the name of a group's member",
    )
    yield Forgery(
        name="closed products",
        change=edited(products, lambda group: group.arrays[products(group)[0]].fill(0.0)),
        words="closed product that is not above 0",
    )


FORGERIES: Sequence[Forgery] = (*of_types(), *of_fields(), *of_arrays(), *of_names(), *of_references())
