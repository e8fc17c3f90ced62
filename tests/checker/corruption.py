"""Single values, types and shapes of a proof changed at random: `citrus check` has to reject all that matter.

    python -m tests.checker.corruption PROOF MODEL [--data mnist] [--data-root D] [--count 100] [--seed 0]

Each time one group is drawn and stands alone (its proof holds by itself, which is checked first), so that a proof of
many groups takes no longer than one group's check, `count` times.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from numpy.typing import NDArray

from citrus_tool.certification.proof import packed
from citrus_tool.checker.check import check
from citrus_tool.checker.counting import choosable
from citrus_tool.checker.group import Images
from citrus_tool.data import Dataset
from citrus_tool.errors import CheckFailedError
from citrus_tool.sources import DataChoice


@dataclass(kw_only=True)
class Group:
    facts: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


@dataclass(kw_only=True)
class Content:
    """A proof taken apart; `write` puts it together again with digests and sums that fit, where they were not changed.

    head: the first page, without its digest.  original: as it was read.
    """

    head: dict[str, Any]
    groups: list[Group]
    original: dict[str, Any]

    @staticmethod
    def of(path: Path) -> Content:
        with zipfile.ZipFile(path) as archive:
            head = json.loads(archive.read("certificate.json"))
            del head["digest"]
            groups = []
            for entry in head["groups"]:
                with np.load(io.BytesIO(archive.read(entry["file"]))) as file:
                    arrays = {name: file[name].copy() for name in file.files}
                facts = json.loads(arrays.pop("facts").tobytes())
                groups.append(Group(facts=facts, arrays=arrays))
        return Content(head=head, groups=groups, original=deepcopy(head))

    def members(self) -> dict[str, bytes]:
        """The members of the file."""
        parts = {f"groups/group{number:06d}.npz": packed(g.facts, g.arrays) for number, g in enumerate(self.groups)}
        fresh = [{"file": name, "sha256": hashlib.sha256(part).hexdigest()} for name, part in parts.items()]
        known = self.original["groups"]
        for entry, group, old in zip_longest(fresh, self.groups, known[: len(fresh)], fillvalue={}):
            indices, certified = group.facts.get("indices"), group.facts.get("certified")
            entry["inputs"] = len(indices) if type(indices) is list else old["inputs"]
            entry["certified"] = certified if type(certified) is int else old["certified"]
        page = deepcopy(self.head)
        if json.dumps(page.get("groups")) == json.dumps(known):
            page["groups"] = fresh
        elif type(page.get("groups")) is list:
            for entry, old, new in zip(page["groups"], known, fresh, strict=False):
                if isinstance(entry, dict) and entry.get("sha256") == old["sha256"]:
                    entry["sha256"] = new["sha256"]
        for name in ("inputs", "certified"):
            if type(page.get(name)) is int and page[name] == self.original[name]:
                page[name] = sum(entry[name] for entry in fresh)
        digest = hashlib.sha256(json.dumps(page, sort_keys=True).encode()).hexdigest()
        return {**parts, "certificate.json": json.dumps({**page, "digest": digest}).encode()}

    def write(self, path: Path) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in self.members().items():
                archive.writestr(name, content)
        return path


def products(group: Group) -> list[str]:
    """The arrays of closed products that are not empty."""
    return sorted(name for name, array in group.arrays.items() if "/mix" in name and array.size)


def matters(group: Group, number: int, classes: int) -> bool:
    """Whether the count needs combination `number`."""
    facts = group.facts
    options: list[list[tuple[int, int]]] = []
    for position, kind in enumerate(facts["kinds"]):
        wrong = set(range(classes)) - {facts["rivals"][position]} - set(facts["excluded"][position])
        options.append([] if kind == "lost" else [(position, label) for label in sorted(wrong)])
    rest = [p for n, p in enumerate(facts["proofs"]) if n != number]
    refuted = [frozenset((a, b) for a, b in proof["atoms"]) for proof in rest]
    return choosable(options, refuted, facts["fooled"] + 1)


STRANGE: Final = (True, False, None, "0", "lost", 0.5, 1.0, -0.0, 0, 1, -1, 2**40, [], [0], {}, {"a": 0})
"""JSON values of every type."""
DTYPES: Final = ("<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "|u1", "<u4", "|b1", "<c8", ">f4", ">i4")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """The container and key of everything inside a JSON value."""
    for key in range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ():
        yield value, key
        yield from places(value[key])


def retype(content: Content, rng: np.random.Generator) -> str:
    """Gives one JSON field a value of another type, takes it away, or puts another one beside it."""
    group = content.groups[int(rng.integers(len(content.groups)))]
    some = list(places(group.facts if rng.random() < 0.7 else content.head))
    where, key = some[int(rng.integers(len(some)))]
    how = rng.random()
    if how < 0.1 and isinstance(where, dict):
        del where[key]
        return "a field less"
    if how < 0.2 and isinstance(where, dict):
        where[f"{key}2"] = where[key]
        return "a field more"
    other = [value for value in STRANGE if type(value) is not type(where[key])]
    where[key] = deepcopy(other[int(rng.integers(len(other)))])
    return "type"


def recast(content: Content, rng: np.random.Generator) -> str:
    """Gives one array another dtype or shape, takes it away, or puts another one beside it."""
    group = content.groups[int(rng.integers(len(content.groups)))]
    name = str(rng.choice(sorted(group.arrays)))
    array = group.arrays[name]
    what = str(rng.choice(["dtype", "axis", "row", "gone", "more"]))
    if what == "dtype":
        other = [dtype for dtype in DTYPES if np.dtype(dtype) != array.dtype]
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            group.arrays[name] = array.astype(str(rng.choice(other)))
    elif what == "axis":
        group.arrays[name] = array[..., None] if rng.random() < 0.5 else array[None]
    elif what == "row":
        group.arrays[name] = np.concatenate([array, np.ones((1, *array.shape[1:]), array.dtype)])
    elif what == "gone":
        del group.arrays[name]
    else:
        group.arrays[f"{name}7"] = array
    return f"array: {what}"


def corrupt(content: Content, rng: np.random.Generator, classes: int) -> str:
    """Changes one value, type or shape that matters in a proof about `classes` classes; says which.

    Slopes are left alone: whatever they are, they are valid, and a bound that stays above 0 with other ones is a proof.
    So is a combination that the count does not need.
    """
    if (kind := rng.random()) < 0.3:
        return retype(content, rng) if kind < 0.15 else recast(content, rng)
    while True:
        place = int(rng.integers(len(content.groups)))
        group = content.groups[place]
        facts = group.facts
        kind = str(rng.choice(["proof", "product", "front", "facts", "image"], p=[0.35, 0.15, 0.1, 0.35, 0.05]))
        if kind == "image":
            group.arrays["images"].flat[rng.integers(group.arrays["images"].size)] += rng.choice([-0.1, 0.1])
            return "image"
        if kind == "product":
            if not (names := products(group)):
                continue
            name = str(rng.choice(names))
            if not matters(group, int(name.split("/")[0].removeprefix("proof")), classes):
                continue
            what = str(rng.choice(["mix", "part"]))
            if what == "mix":
                group.arrays[name].flat[rng.integers(group.arrays[name].size)] = rng.choice([-0.1, np.nan, np.inf])
            else:
                values = group.arrays[name.replace("mix", "part")]
                values.flat[rng.integers(values.size)] += rng.choice([-1, 1])
            return what
        if kind == "front":
            if not facts["fronts"]:
                continue
            name = f"front{rng.integers(len(facts['fronts']))}/{rng.choice(['depth', 'split', 'side'])}"
            values = group.arrays[name]
            if not values.size:
                continue
            spot = int(rng.integers(values.size))
            values.flat[spot] = -values.flat[spot] if name.endswith("side") else values.flat[spot] + 1
            return "front"
        if kind == "facts":
            what = str(
                rng.choice(
                    ["fooled", "certified", "labels", "rivals", "indices", "index", "excluded", "excluded", "kinds"]
                )
            )
            if what == "index":
                facts["index"] += int(rng.choice([-1, 1]))
            elif what in ("fooled", "certified"):
                facts[what] += int(rng.choice([-1, 1]))
            else:
                position = int(rng.integers(len(facts["kinds"])))
                if what in ("labels", "rivals"):
                    facts[what][position] = (facts[what][position] + int(rng.integers(1, classes))) % classes
                    if what == "rivals" and facts["kinds"][position] == "lost":
                        continue  # nothing is claimed of this input
                elif what == "indices":
                    facts[what][position] += int(rng.integers(1, 3))
                elif what == "excluded":
                    wrong = set(range(classes)) - {facts["rivals"][position]} - set(facts["excluded"][position])
                    if facts["kinds"][position] != "bounds" or not wrong:
                        continue
                    facts[what][position].append(int(rng.choice(sorted(wrong))))
                else:
                    facts[what][position] = "bounds" if facts[what][position] == "lost" else "lost"
            return what
        if not facts["proofs"]:
            continue
        number = int(rng.integers(len(facts["proofs"])))
        proof = facts["proofs"][number]
        arrays = {name: group.arrays[f"proof{number}/{name}"] for name in ("share", "depth", "split", "side", "beta")}
        what = str(rng.choice(["share", "depth", "split", "side", "beta", "beta", "atom"]))
        if what == "atom":
            if not matters(group, number, classes):
                continue
            atom = proof["atoms"][rng.integers(len(proof["atoms"]))]
            atom[1] = (atom[1] + int(rng.integers(1, classes))) % classes
            return what
        values = arrays[what]
        if not values.size:
            continue
        spot = int(rng.integers(values.size))
        if what == "share":
            values.flat[spot] = rng.choice([-1.0, np.nan, 0.0 if values.shape[1] == 1 else -0.1])
        elif what == "beta":
            values.flat[spot] = rng.choice([-0.01, np.inf, 1e5])
        elif what == "side":
            values.flat[spot] *= -1
        elif what == "depth":
            values.flat[spot] += rng.choice([-1, 1])
        else:
            values.flat[spot] += rng.choice([-1, 1])
        return what


def alone(content: Content, place: int) -> Content:
    """A proof of one group of the content, by itself."""
    group, head, original = deepcopy((content.groups[place], content.head, content.original))
    group.facts["index"] = 0
    entry = {**original["groups"][place], "file": "groups/group000000.npz"}
    for page in (head, original):
        page |= {"groups": [dict(entry)], "inputs": entry["inputs"], "certified": entry["certified"]}
    return Content(head=head, groups=[group], original=original)


def corruptions(
    proof: Path, model: Path, images: Images, folder: Path, *, count: int, classes: int, seed: int
) -> Iterator[tuple[int, str, str | None]]:
    """`count` proofs with one change, one after the other: group, what was changed, why it is rejected (None: it
    is accepted). Groups without combinations are left out.
    """
    content, rng = Content.of(proof), np.random.default_rng(seed)
    places = [place for place, group in enumerate(content.groups) if group.facts["proofs"]]
    holds: set[int] = set()
    for _ in range(count):
        place = int(rng.choice(places))
        part = alone(content, place)
        if place not in holds:
            check(part.write(folder / "proof"), model, images=images)
            holds.add(place)
        what = corrupt(part, rng, classes)
        try:
            check(part.write(folder / "proof"), model, images=images)
        except CheckFailedError as error:
            yield place, what, str(error)
        else:
            yield place, what, None


def main() -> int:
    """Parses the command line; 1 where a changed proof was accepted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proof", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = DataChoice(name=options.data, root=options.data_root).load("test")
    kinds: Counter[str] = Counter()
    accepted = 0
    with tempfile.TemporaryDirectory() as folder:
        found = corruptions(
            options.proof,
            options.model,
            pictures(data),
            Path(folder),
            count=options.count,
            classes=data.num_classes,
            seed=options.seed,
        )
        for number, (place, what, why) in enumerate(found):
            kinds[what] += 1
            accepted += why is None
            click.echo(f"{number}: group {place}, {what}: {'ACCEPTED' if why is None else why}")
    click.echo(f"{options.count - accepted} of {options.count} rejected; changed: {dict(sorted(kinds.items()))}")
    return 1 if accepted else 0


def pictures(data: Dataset) -> Images:
    """What the checker compares a proof's inputs with."""

    def images(indices: Sequence[int]) -> tuple[NDArray[np.float32], Sequence[int]]:
        if max(indices) >= len(data):
            raise CheckFailedError(f"the data has no input {max(indices)}.")
        index = torch.tensor(list(indices))
        return data.pixels(index).numpy(), data.labels[index].tolist()

    return images


if __name__ == "__main__":
    sys.exit(main())
