"""The soundness gate: `make soundness`, or python -m tests.soundness [--seconds S] [--points N] [--first SEED].

It certifies crafted backdoors and random networks and holds every certificate against onnxruntime at three levels of
graph optimisation, against the checker and against what has to follow; then it plants bugs, each of which has to
be found by the same means. Exit code 1 where something is violated or a bug is not found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from citrus_tool import onnx_io
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import Dataset
from citrus_tool.threat import Threat
from tests.soundness.backdoors import BACKDOORS, EPS, build, inputs
from tests.soundness.bugs import CHECKER, PROVER, found_by, missed_by_the_checker
from tests.soundness.cases import Case, violations
from tests.soundness.test_backdoors import COUNT, fooled_most

SEEDS = 400
"""Cases that may be tried on one planted bug before it counts as not found."""


def say(words: str) -> None:
    """A line on stdout, at once."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def backdoors(folder: Path, points: int) -> int:
    """Violations on the crafted files."""
    wrong = 0
    data = Dataset(
        name="toy",
        split="test",
        images=torch.from_numpy(inputs(COUNT)),
        labels=torch.zeros(COUNT, dtype=torch.int64),
        num_classes=2,
    )
    for name in BACKDOORS:
        path = build(name, folder / f"{name}.onnx")
        kept, counts = COUNT - fooled_most(path, inputs(COUNT), points), []
        for bounds in ("ibp", "crown", "full"):
            effort = {"attack_steps": 5, "attack_restarts": 1, "branch_nodes": 20, "time_limit": 0.5}
            settings = CertifySettings(bounds=bounds, group_size=COUNT, branch_seconds=0.5, **effort)  # type: ignore[arg-type]
            counts.append(certify_uap(onnx_io.read(path), data, Threat(eps=EPS), settings).certified)
        wrong += max(counts) > kept
        say(f"backdoor {name}: certified {counts} of {COUNT}, {kept} stay correct" + " WRONG" * (max(counts) > kept))
    return wrong


def random_networks(folder: Path, first: int, seconds: float) -> int:
    """Violations on random networks."""
    end, seed, wrong = time.monotonic() + seconds, first, 0
    while time.monotonic() < end:
        for words in violations(Case(seed=seed), folder):
            wrong += 1
            say(f"VIOLATION, seed {seed}: {words}")
        seed += 1
    say(f"random networks: {seed - first} cases, {wrong} violations")
    return wrong


def planted_bugs(folder: Path, first: int) -> int:
    """Planted bugs that are not found."""
    missed = 0
    seeds = range(first, first + SEEDS)
    for name in (*PROVER, *CHECKER):
        start = time.monotonic()
        if name in PROVER:
            found = found_by(PROVER[name](), folder, seeds)
        else:
            found = missed_by_the_checker(name, folder, seeds)
        missed += found is None
        words = "NOT FOUND" if found is None else f"case {found[0]}: {found[1][:100]}"
        say(f"planted: {name}: {words} ({time.monotonic() - start:.0f} s)")
    return missed


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="for the random networks")
    parser.add_argument("--points", type=int, default=1_000_000, help="perturbations on each backdoor")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wrong = random_networks(folder, options.first, options.seconds)
        wrong += backdoors(folder, options.points)
        missed = planted_bugs(folder, options.first)
    say(f"{wrong} violations, {missed} planted bugs not found")
    sys.exit(1 if wrong or missed else 0)


if __name__ == "__main__":
    main()
