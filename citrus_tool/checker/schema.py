"""The declared schema of a proof: the type and range of every JSON field and of every array (docs/proof-format.md).

A value is of the type that is declared, exactly: true is no number, 1 no 1.0, "false" no boolean, and an array has its
dtype. Objects have the keys that are declared and no others. What the schema has let through can index and compute.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from citrus_tool.checker.archive import ARRAY_BYTES, Archive, parse_array
from citrus_tool.checker.graph import Graph, Relu
from citrus_tool.checker.proof_format import FORMATS, digest_of, require, shown

Kind = Callable[[Any, str], None]
"""Raises CheckFailedError, with the place that is given, for a JSON value that is not of the kind."""

MOST: Final = 2**31 - 1
"""The largest whole number: of an index, a count, a class."""
TEXT: Final = 4096
"""Characters of a text: as long as a path may be."""
ENTRIES: Final = 2**24
"""Pixels of an input: more than any image classifier takes."""
SCALE: Final = 2.0**20
"""The largest mean and deviation of a normalisation, and the inverse of the least deviation: pixels lie in [0, 1]."""


# --- JSON


def word(*words: str) -> Kind:
    """One of these texts."""

    def kind(value: Any, where: str) -> None:
        require(type(value) is str and value in words, where, f"is {shown(value)}, none of {', '.join(words)}")

    return kind


def flag(value: Any, where: str) -> None:
    """True or false."""
    require(type(value) is bool, where, f"is {shown(value)}, neither true nor false")


def whole(low: int, high: int) -> Kind:
    """A whole number, written without a point."""

    def kind(value: Any, where: str) -> None:
        right = type(value) is int and low <= value <= high
        require(right, where, f"is {shown(value)}, no whole number from {low} to {high}")

    return kind


def number(low: float, high: float) -> Kind:
    """A number that is written with a point or an exponent."""

    def kind(value: Any, where: str) -> None:
        right = type(value) is float and low <= value <= high
        require(right, where, f"is {shown(value)}, no number from {low:g} to {high:g} with a point")

    return kind


def text(pattern: str = ".*", what: str = "a text") -> Kind:
    """A text of the pattern, of at most TEXT characters."""

    def kind(value: Any, where: str) -> None:
        right = type(value) is str and len(value) <= TEXT and re.fullmatch(pattern, value, re.DOTALL) is not None
        require(right, where, f"is {shown(value)}, not {what}")

    return kind


def radius(value: Any, where: str) -> None:
    """A float64 from 0 to 1 as hexadecimal text, as Python writes it."""
    text(r"0x[01]\.[0-9a-f]{1,13}p[+-]\d{1,4}", "a hexadecimal number")(value, where)
    found = float.fromhex(value)
    require(0 <= found <= 1 and found.hex() == value, where, f"is {shown(value)}, no radius from 0 to 1")


def maybe(kind: Kind) -> Kind:
    """A value of the kind, or null."""
    return lambda value, where: None if value is None else kind(value, where)


def listing(kind: Kind, least: int = 0, most: int = MOST) -> Kind:
    """A list of values of the kind."""

    def listed(value: Any, where: str) -> None:
        right = type(value) is list and least <= len(value) <= most
        require(right, where, f"is {shown(value)}, no list of {least} to {most} values")
        for place, one in enumerate(value):
            kind(one, f"{where}[{place}]")

    return listed


def record(fields: Mapping[str, Kind]) -> Kind:
    """An object with exactly these fields."""

    def recorded(value: Any, where: str) -> None:
        require(type(value) is dict, where, f"is {shown(value)}, no object")
        missing, others = sorted(fields.keys() - value.keys()), sorted(value.keys() - fields.keys())
        require(not missing, where, f"has no field {missing[0] if missing else ''}")
        require(not others, where, f"has a field {shown(others[0]) if others else ''} that no proof has there")
        for name, kind in fields.items():
            kind(value[name], f"{where}.{name}")

    return recorded


HASH: Final = text("[0-9a-f]{64}", "a sha256 of 64 hexadecimal digits")
COUNT: Final = whole(0, MOST)
RUN: Final[Mapping[str, Kind]] = {
    "model_sha256": HASH,
    "eps": radius,
    "clip": flag,
    "target": maybe(COUNT),
    "shape": listing(whole(1, ENTRIES), 1, 8),
    "mean": listing(number(-SCALE, SCALE), 1, ENTRIES),
    "std": listing(number(1 / SCALE, SCALE), 1, ENTRIES),
    "layout": word("nchw", "nhwc", "flat"),
}
GROUP: Final[Mapping[str, Kind]] = {
    "file": text(r"groups/group\d{6,7}\.npz", "the name of a group's member"),
    "sha256": HASH,
    "inputs": whole(1, MOST),
    "certified": COUNT,
}
PAGE: Final[Mapping[str, Kind]] = {
    "groups": listing(record(GROUP), 1),
    "inputs": COUNT,
    "certified": COUNT,
    "data": text(),
    "split": text(),
    "version": text(),
    "digest": HASH,
}
NEWER: Final[Mapping[str, Kind]] = {"protocol": text(), "scope": text()}
"""Fields of the first page that format 1 does not have."""


def check_run(run: Any, where: str, version: int) -> None:
    """Raises CheckFailedError unless this is what a proof of this version of the format is about."""
    record(RUN if version == 1 else {**RUN, "arithmetic": word("float32", "real")})(run, where)
    shape = run["shape"]
    require(math.prod(shape) <= ENTRIES, f"{where}.shape", f"is {shown(shape)}, more than {ENTRIES} entries")
    require(run["layout"] != "nhwc" or len(shape) == 3, f"{where}.layout", "is nhwc, for three axes only")
    channels = shape[0] if len(shape) == 3 else 1
    for name in ("mean", "std"):
        require(len(run[name]) == channels, f"{where}.{name}", f"has {len(run[name])} numbers for {channels} channels")


def check_page(page: Any, where: str) -> None:
    """Raises CheckFailedError unless this is the first page of a proof (certificate.json)."""
    require(type(page) is dict and "format" in page, where, "is no object with a format")
    version = page["format"]
    right = type(version) is int and version in FORMATS
    require(right, f"{where}: format", f"is {shown(version)}; this checker reads {' and '.join(map(str, FORMATS))}")
    about = PAGE if version == 1 else {**PAGE, **NEWER}
    record({**about, "format": COUNT, "run": lambda run, at: check_run(run, at, version)})(page, where)
    for number, entry in enumerate(page["groups"]):
        named = entry["file"] == f"groups/group{number:06d}.npz"
        require(named, f"{where}.groups[{number}].file", f"is {shown(entry['file'])}, another group's")


def check_facts(facts: Any, where: str, run: Mapping[str, Any], graph: Graph) -> None:
    """Raises CheckFailedError unless these are the facts of a group of the run."""
    label, relus = whole(0, graph.sizes[-1] - 1), sum(isinstance(layer, Relu) for layer in graph.layers)
    stages, atom = listing(whole(0, relus - 1), 0, relus), listing(COUNT, 2, 2)
    fields = {
        "run": lambda value, at: require(digest_of(value) == digest_of(run), at, "is not that of the first page"),
        "index": COUNT,
        "indices": listing(COUNT, 1),
        "labels": listing(label),
        "rivals": listing(label),
        "kinds": listing(word("lost", "interval", "bounds")),
        "excluded": listing(listing(label)),
        "views": listing(listing(COUNT)),
        "listed": listing(record({"final": stages, "steps": stages})),
        "fronts": listing(record({"atom": atom, "view": COUNT, "closed": COUNT})),
        "proofs": listing(record({"atoms": listing(atom, 1), "views": listing(COUNT, 1), "fronts": listing(COUNT)})),
        "fooled": COUNT,
        "certified": COUNT,
    }
    record(fields)(facts, where)
    count = len(facts["indices"])
    for name in ("labels", "rivals", "kinds", "excluded", "views"):
        require(len(facts[name]) == count, f"{where}.{name}", f"has {len(facts[name])} values for {count} inputs")
    distinct = {"indices": [facts["indices"]], "excluded": facts["excluded"]}
    distinct |= {f"listed.{name}": [view[name] for view in facts["listed"]] for name in ("final", "steps")}
    distinct["proofs.atoms"] = [[position for position, _ in proof["atoms"]] for proof in facts["proofs"]]
    for name, lists in distinct.items():
        require(all(len(set(some)) == len(some) for some in lists), f"{where}.{name}", "has a value twice")
    held = sum(kind != "lost" for kind in facts["kinds"])
    sums = facts["fooled"] + facts["certified"] == held
    require(sums, f"{where}.certified", f"is not the {held} inputs that are not lost, less `fooled`")
    _check_references(facts, where, label)


def _check_references(facts: Mapping[str, Any], where: str, label: Kind) -> None:
    """Raises CheckFailedError unless what numbers views, inputs and fronts names one that fits."""
    numbers = sorted(view for views in facts["views"] for view in views)
    require(numbers == list(range(len(facts["listed"]))), f"{where}.views", "do not number each view of `listed` once")
    views = [set(some) for some in facts["views"]]
    for position, kind in enumerate(facts["kinds"]):
        at = f"{where}.views[{position}]"
        require(kind == "bounds" or not views[position], at, f"are of an input that is {kind}")

    def check_atom(atom: Sequence[int], view: int, at: str) -> None:
        require(atom[0] < len(views) and view in views[atom[0]], at, f"has no view {view} of input {atom[0]}")
        label(atom[1], f"{at}, label")

    for number, front in enumerate(facts["fronts"]):
        check_atom(front["atom"], front["view"], f"{where}.fronts[{number}]")
    for number, proof in enumerate(facts["proofs"]):
        at, width = f"{where}.proofs[{number}]", len(proof["atoms"])
        require(len(proof["views"]) == width, f"{at}.views", f"has {len(proof['views'])} values for {width} atoms")
        fits = len(proof["fronts"]) in (0, width) and all(front < len(facts["fronts"]) for front in proof["fronts"])
        require(fits, f"{at}.fronts", f"are not {width} fronts, nor none")
        for atom, view in zip(proof["atoms"], proof["views"], strict=True):
            check_atom(atom, view, at)
        fronts = [facts["fronts"][front] for front in proof["fronts"]]
        same = ([front["atom"] for front in fronts], [front["view"] for front in fronts])
        require(not fronts or same == (proof["atoms"], proof["views"]), at, "has fronts of other atoms or views")


# --- arrays


@dataclass(frozen=True, kw_only=True)
class ArrayKind:
    """What an array holds: the type as numpy spells it, its axes by name, and the least and largest value.

    An axis that has no size yet gets that of the array.  below: the axis whose size no value reaches.
    """

    dtype: str
    axes: str
    low: float = 0
    high: float = MOST
    below: str = ""
    rising: bool = False


_FINITE: Final = float(np.finfo(np.float32).max)
IMAGES: Final = ArrayKind(dtype="<f4", axes="inputs *shape", low=-_FINITE, high=_FINITE)
VIEW: Final[Mapping[str, ArrayKind]] = {
    "final": ArrayKind(dtype="<i4", axes="final", below="entries", rising=True),
    "base": ArrayKind(dtype="<i4", axes="base", below="entries", rising=True),
    "alpha": ArrayKind(dtype="|u1", axes="twice listed"),
    "hull": ArrayKind(dtype="|u1", axes="first pixels"),
}
"""By the name before the number of the ReLU."""
TREE: Final[Mapping[str, ArrayKind]] = {
    "depth": ArrayKind(dtype="<i4", axes="leaves"),
    "alpha": ArrayKind(dtype="|u1", axes="leaves neurons"),
    "share": ArrayKind(dtype="<f4", axes="leaves atoms", high=_FINITE),
    "split": ArrayKind(dtype="<i4", axes="splits", below="neurons"),
    "side": ArrayKind(dtype="|i1", axes="splits", low=-1, high=1),
    "beta": ArrayKind(dtype="<f4", axes="splits", high=_FINITE),
}
PRODUCTS: Final[Mapping[str, ArrayKind]] = {
    "part": ArrayKind(dtype="<i4", axes="products fronts"),
    "mix": ArrayKind(dtype="<f8", axes="products fronts", high=_FINITE),
}


class GroupArrays:
    """The arrays of a group whose facts have been checked; `found` by name, all checked too."""

    def __init__(self, archive: Archive, facts: Mapping[str, Any], run: Mapping[str, Any], graph: Graph) -> None:
        self._archive, self._relus = archive, [layer for layer in graph.layers if isinstance(layer, Relu)]
        self.found: dict[str, NDArray[Any]] = {}
        archive.require_names(["facts.npy", *(f"{name}.npy" for name in _names(facts, archive.names))])
        shape = {f"shape{place}": axis for place, axis in enumerate(run["shape"])}
        axes = f"inputs {' '.join(shape)}"
        self._take("images", ArrayKind(**{**vars(IMAGES), "axes": axes}), {"inputs": len(facts["indices"]), **shape})
        neurons = [self._view(number, view, graph) for number, view in enumerate(facts["listed"])]
        for number, front in enumerate(facts["fronts"]):
            name = f"front{number}"
            self._tree(name, 1, neurons[front["view"]])
            closed, parts = front["closed"], len(self.found[f"{name}/depth"])
            require(closed <= parts, f"{archive.where}, facts.fronts[{number}].closed", f"is {closed} of {parts} parts")
        for number, proof in enumerate(facts["proofs"]):
            name, fronts = f"proof{number}", proof["fronts"]
            self._tree(name, len(proof["atoms"]), sum(neurons[view] for view in proof["views"]))
            open_ = [len(self.found[f"front{front}/depth"]) - facts["fronts"][front]["closed"] for front in fronts]
            for width in range(2, len(fronts) + 1):
                sizes = {"fronts": width}
                for part, kind in PRODUCTS.items():
                    self._take(f"{name}/{part}{width}", kind, sizes)
                fits = bool((self.found[f"{name}/part{width}"] < open_[:width]).all())
                require(fits, self._named(f"{name}/part{width}"), "numbers a part that its front does not have open")

    def _named(self, name: str) -> str:
        return f"{self._archive.where}, {name}"

    def _view(self, number: int, view: Mapping[str, Sequence[int]], graph: Graph) -> int:
        """Takes the arrays of a view; the number of neurons that it lists."""
        listed = 0
        for relu in range(len(self._relus)):
            sizes = {"entries": graph.sizes[self._relus[relu].source], "listed": listed}
            if relu in view["steps"]:
                base = self._take(f"view{number}/base{relu}", VIEW["base"], sizes)
                sizes["twice"] = 2 * len(base)
                self._take(f"view{number}/alpha{relu}", VIEW["alpha"], sizes)
            if relu in view["final"]:
                listed += len(self._take(f"view{number}/final{relu}", VIEW["final"], sizes))
        if f"view{number}/hull.npy" in self._archive.names:
            require(0 in view["final"], self._named(f"view{number}/hull"), "is of a view without neurons there")
            sizes = {"first": len(self.found[f"view{number}/final0"]), "pixels": graph.sizes[0]}
            require(sizes["first"] > 0, self._named(f"view{number}/hull"), "is of a view without neurons there")
            self._take(f"view{number}/hull", VIEW["hull"], sizes)
        return listed

    def _tree(self, name: str, atoms: int, neurons: int) -> None:
        """Takes the arrays of the leaves of a combination or front."""
        sizes = {"atoms": atoms, "neurons": neurons}
        for part, kind in TREE.items():
            array = self._take(f"{name}/{part}", kind, sizes)
            if part == "depth":
                sizes["splits"] = int(array.sum(dtype=np.int64))
        require(bool((self.found[f"{name}/side"] != 0).all()), self._named(f"{name}/side"), "is 0 somewhere")

    def _take(self, name: str, kind: ArrayKind, sizes: dict[str, int]) -> NDArray[Any]:
        """Reads and checks an array; sets the sizes of its new axes."""
        where = self._named(name)
        array = parse_array(self._archive.read(f"{name}.npy", ARRAY_BYTES), kind.dtype, where)
        axes = kind.axes.split()
        for axis, size in zip(axes, array.shape, strict=False):
            sizes.setdefault(axis, size)
        wanted = tuple(sizes[axis] for axis in axes if axis in sizes)
        require(array.shape == wanted, where, f"has the shape {shown(array.shape)}, not {shown(wanted)}")
        high = sizes[kind.below] - 1 if kind.below else kind.high
        right = bool((np.isfinite(array) & (array >= kind.low) & (array <= high)).all())
        require(right, where, f"has a value that is no number from {kind.low:g} to {high:g}")
        require(not kind.rising or bool((np.diff(array) > 0).all()), where, "is not in rising order")
        self.found[name] = array
        return array


def _names(facts: Mapping[str, Any], there: Collection[str]) -> list[str]:
    """The arrays that a group with these facts has; of the planes above (`hull`) those that are there."""
    names = ["images"]
    for number, view in enumerate(facts["listed"]):
        names += [f"view{number}/final{relu}" for relu in view["final"]]
        names += [f"view{number}/{part}{relu}" for relu in view["steps"] for part in ("base", "alpha")]
        names += [f"view{number}/hull"] * (f"view{number}/hull.npy" in there)
    names += [f"front{number}/{part}" for number in range(len(facts["fronts"])) for part in TREE]
    for number, proof in enumerate(facts["proofs"]):
        widths = range(2, len(proof["fronts"]) + 1)
        names += [f"proof{number}/{part}" for part in TREE]
        names += [f"proof{number}/{part}{width}" for width in widths for part in PRODUCTS]
    return names
