"""Feeds the checker mutated proofs: it may accept or refuse them, and raise nothing but its own errors.

    python -m tests.checker.fuzz [--seconds 600] [--seed 0] [PROOF MODEL]...

Bytes of the file, of its members and of its texts are changed, and JSON values and arrays, alone and together, with
digests that fit. Without a PROOF, proofs of small networks are made first. Every accepted mutant is counted: it claims
no more than the genuine proof, or the run fails.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from citrus_tool.certification.uap import certify_uap
from citrus_tool.checker.check import check
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.errors import CitrusError
from citrus_tool.network import Network
from citrus_tool.threat import Threat
from tests.certification.toys import as_onnx, data_for, tiny_chain, tiny_residual
from tests.checker.corruption import Content, packed, places, recast, retype

SETTINGS = CertifySettings(
    group_size=3, bounds="full", branch_nodes=60, time_limit=5.0, attack_steps=5, attack_restarts=1
)
PAGE = "certificate.json"
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**63, -(2**31), 0.0, 1.0, -1.0, 1e-300, 1e300, 0.5)
HEXES = ((0.0).hex(), (1.0).hex(), (2.0**-1074).hex(), "0x0p0", "nan", "inf")
TEXTS = (*HEXES, "", "0" * 64, "lost", "bounds", "interval")


@dataclass(frozen=True, kw_only=True)
class Seed:
    """A genuine proof: where it lies, of which network, taken apart, and how many inputs it certifies."""

    path: Path
    model: Path
    content: Content
    certified: int

    @staticmethod
    def of(path: Path, model: Path) -> Seed:
        return Seed(path=path, model=model, content=Content.of(path), certified=check(path, model).certified)


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, cut out, doubled or put in."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        place, kind = int(rng.integers(len(changed) + 1)), int(rng.integers(5))
        length = int(rng.integers(1, 9))
        if kind < 2 and place < len(changed):
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:
            changed[place:place] = changed[place : place + length]
        else:
            changed[place:place] = rng.bytes(length)
    return bytes(changed)


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def any_bytes(content: Content, rng: np.random.Generator) -> bytes:
    """Bytes of the file."""
    return flipped(zipped(content.members()), rng)


def text(content: Content, rng: np.random.Generator) -> bytes:
    """Bytes of the first page."""
    members = content.members()
    members[PAGE] = flipped(members[PAGE], rng)
    return zipped(members)


def part(content: Content, rng: np.random.Generator) -> bytes:
    """Bytes of a group's part, or of one of its members, with a digest that fits."""
    number = int(rng.integers(len(content.groups)))
    group, name = content.groups[number], f"groups/group{number:06d}.npz"
    inner = packed(group.facts, group.arrays)
    if rng.random() < 0.5:
        inner = flipped(inner, rng)
    else:
        with zipfile.ZipFile(io.BytesIO(inner)) as archive:
            members = {one: archive.read(one) for one in archive.namelist()}
        one = str(rng.choice(sorted(members)))
        members[one] = flipped(members[one], rng)
        inner = zipped(members, zipfile.ZIP_DEFLATED if rng.random() < 0.5 else zipfile.ZIP_STORED)
    content.head["groups"][number]["sha256"] = hashlib.sha256(inner).hexdigest()
    return zipped({**content.members(), name: inner})


def values(content: Content, rng: np.random.Generator) -> bytes:
    """JSON values, of their own types or others."""
    for _ in range(int(rng.integers(1, 4))):
        root = content.head if rng.random() < 0.3 else content.groups[int(rng.integers(len(content.groups)))].facts
        some = list(places(root))
        if not some:
            continue
        where, key = some[int(rng.integers(len(some)))]
        other, other_key = some[int(rng.integers(len(some)))]
        choice = rng.random()
        if choice < 0.2:
            retype(content, rng)
        elif choice < 0.4:
            where[key] = deepcopy(other[other_key])
        elif isinstance(where[key], str):
            where[key] = str(rng.choice(TEXTS))
        elif isinstance(where[key], list) and choice < 0.7:
            where[key] = where[key][:-1] if rng.random() < 0.5 else where[key] * 2
        else:
            where[key] = NUMBERS[int(rng.integers(len(NUMBERS)))]
    if rng.random() < 0.5:
        for group in content.groups:
            group.facts["run"] = content.head.get("run")
    return zipped(content.members())


def arrays(content: Content, rng: np.random.Generator) -> bytes:
    """Entries, types and shapes of arrays."""
    for _ in range(int(rng.integers(1, 4))):
        group = content.groups[int(rng.integers(len(content.groups)))]
        if rng.random() < 0.2 and group.arrays:
            recast(content, rng)
            continue
        name = str(rng.choice(sorted(group.arrays)))
        array = group.arrays[name] = group.arrays[name].copy()
        if not array.size:
            continue
        with np.errstate(all="ignore"):
            if array.dtype.kind == "f":
                number = rng.choice([0, -0.0, 1e-30, 1e30, np.nan, np.inf, -1.0, 1.0, 3e38])
            else:
                number = int(rng.integers(-2, 12)) if rng.random() < 0.9 else int(np.iinfo(np.int8).max)
            array.flat[int(rng.integers(array.size))] = np.asarray(number).astype(array.dtype)
    return zipped(content.members())


def everything(content: Content, rng: np.random.Generator) -> bytes:
    """Values and arrays together."""
    values(content, rng)
    return arrays(content, rng)


MUTATIONS: Sequence[Callable[[Content, np.random.Generator], bytes]] = (
    any_bytes,
    text,
    part,
    values,
    arrays,
    everything,
)


def small_proofs(folder: Path) -> list[Seed]:
    """Proofs of a chain and of a residual network."""
    made: list[tuple[Network, Threat]] = [
        (tiny_chain(0, hidden=12), Threat(eps=0.1)),
        (tiny_residual(1, channels=3), Threat(eps=0.1, clip=True)),
        (tiny_chain(1, hidden=12), Threat(eps=0.15, target=1)),
    ]
    found = []
    for number, (network, threat) in enumerate(made):
        model = as_onnx(network, folder, f"{number}.onnx")
        path = folder / f"proof{number}"
        certify_uap(model, data_for(network, 6, number), threat, SETTINGS, proof=path)
        found.append(Seed.of(path, model.path))
    return found


def fuzz(seeds: Sequence[Seed], folder: Path, seconds: float, seed: int) -> tuple[Counter[str], list[str]]:
    """Mutates until the time is over; what became of the mutants, and the failures.

    A mutant of a smaller eps, or of other settings of its run, is a proof of something else and may claim more.
    """
    rng, counts, failures = np.random.default_rng(seed), Counter[str](), list[str]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        one = seeds[int(rng.integers(len(seeds)))]
        make = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        content = deepcopy(one.content)
        try:
            data = make(content, rng)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError):  # cannot be written
            counts["not written"] += 1
            continue
        path = folder / "mutant"
        path.write_bytes(data)
        try:
            with warnings.catch_warnings(action="error"):
                found = check(path, one.model)
        except CitrusError as error:
            counts[f"{make.__name__}: refused ({type(error).__name__})"] += 1
            if not str(error).isprintable():
                failures.append(f"{make.__name__}: an unprintable sentence {error!r}")
        except Exception:
            counts["FAILED"] += 1
            failures.append(f"{make.__name__}: {traceback.format_exc()}")
            (folder / f"failure{len(failures)}").write_bytes(data)
        else:
            counts[f"{make.__name__}: accepted"] += 1
            same = json.dumps(content.head.get("run")) == json.dumps(one.content.head["run"])
            if found.certified > one.certified and same:
                failures.append(f"{make.__name__}: certifies {found.certified}, not {one.certified}")
                (folder / f"failure{len(failures)}").write_bytes(data)
    return counts, failures


def main() -> int:
    """Parses the command line; 1 where something else than the checker's own errors was raised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="PROOF MODEL")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    pairs = zip(options.files[::2], options.files[1::2], strict=True)
    seeds = [Seed.of(path, model) for path, model in pairs] or small_proofs(folder)
    counts, failures = fuzz(seeds, folder, options.seconds, options.seed)
    for failure in failures[:20]:
        click.echo(failure)
    for what, count in sorted(counts.items()):
        click.echo(f"{count:8d}  {what}")
    click.echo(f"{sum(counts.values())} mutants, {len(failures)} failures" + (f"; see {folder}" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
