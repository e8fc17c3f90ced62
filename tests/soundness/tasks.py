"""What the gate does, in pieces that take seconds: a crafted file, some random networks, a planted bug."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from citrus_tool import onnx_io
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import Dataset
from citrus_tool.threat import Threat
from tests.soundness.backdoors import EPS, build, inputs
from tests.soundness.bugs import PROVER, found_by, missed_by_the_checker
from tests.soundness.cases import Case, Family, violations
from tests.soundness.test_backdoors import COUNT, fooled_most

FAMILIES: tuple[Family, ...] = ("any", "any", "deep", "strided", "gated")
"""Families of random networks, in turn."""
SEEDS = 400
"""Cases that may be tried on one planted bug before it counts as not found: five times what the rarest took."""
CHUNK = 20
"""Random networks of one task: about 20 s, so that the last ones end soon after the time is over."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Lines to print; how many certificates were held against the rest, were violated, and bugs were not found."""

    lines: list[str]
    cases: int = 0
    violations: int = 0
    missed: int = 0


def backdoor(name: str, points: int) -> Outcome:
    """One crafted file."""
    data = Dataset(
        name="toy",
        split="test",
        images=torch.from_numpy(inputs(COUNT)),
        labels=torch.zeros(COUNT, dtype=torch.int64),
        num_classes=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = build(name, Path(folder) / f"{name}.onnx")
        kept, counts = COUNT - fooled_most(path, inputs(COUNT), points), []
        for bounds in ("ibp", "crown", "full"):
            effort = {"attack_steps": 5, "attack_restarts": 1, "branch_nodes": 20, "time_limit": 0.5}
            settings = CertifySettings(bounds=bounds, group_size=COUNT, branch_seconds=0.5, **effort)  # type: ignore[arg-type]
            counts.append(certify_uap(onnx_io.read(path), data, Threat(eps=EPS), settings).certified)
    wrong = sum(count > kept for count in counts)
    words = f"backdoor {name}: certified {counts} of {COUNT}, {kept} stay correct" + " VIOLATION" * (wrong > 0)
    return Outcome(lines=[words], cases=len(counts), violations=wrong)


def random_networks(first: int) -> Outcome:
    """CHUNK cases from seed `first` on."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + CHUNK):
            family = FAMILIES[seed % len(FAMILIES)]
            found = violations(Case(seed=seed, family=family), Path(folder))
            lines += [f"VIOLATION, seed {seed}, {family}: {words}" for words in found]
    return Outcome(lines=lines, cases=CHUNK, violations=len(lines))


def planted_bug(name: str, first: int) -> Outcome:
    """One planted bug."""
    start, seeds = time.monotonic(), range(first, first + SEEDS)
    look = found_by if name in PROVER else missed_by_the_checker
    with tempfile.TemporaryDirectory() as folder:
        found = look(name, Path(folder), seeds)
    words = "NOT FOUND" if found is None else f"case {found[0]}: {found[1][:100]}"
    return Outcome(
        lines=[f"planted: {name}: {words} ({time.monotonic() - start:.0f} s)"],
        missed=int(found is None),
    )
