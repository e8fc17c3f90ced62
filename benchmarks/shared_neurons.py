"""What bounding shared neurons together adds to joint proofs: pairs of open inputs, with it and without.

    python benchmarks/shared_neurons.py [--rows 1,2,3,8] [--pairs 20] [--nodes 1024] [--threads 1]

For the first group of each published setting (benchmarks/uap_table.py) with at least two open inputs: pairs of atoms
(input, rival) that no attack of the loop makes happen, drawn with --seed, each searched for --nodes parts from the
product of its atoms' factors, as `certify-uap --bounds full` does. Printed: refuted pairs, the mean gap of those that
both leave open (in logits, weighted by the pair's shares), and seconds, each without and with, and their ratio.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.uap_table import ROWS, Row
from citrus_tool import data, onnx_io
from citrus_tool.bounds.fold import Fold, beside
from citrus_tool.bounds.rounding import exact_products
from citrus_tool.certification import joint
from citrus_tool.certification.chunks import Chunk, Prepared, prepared
from citrus_tool.certification.conflicts import Combination
from citrus_tool.certification.group_result import executions_of
from citrus_tool.certification.joint_loop import JointLoop
from citrus_tool.certification.milp import named
from citrus_tool.certification.selection import judged_inputs
from citrus_tool.certification.setup import Setup
from citrus_tool.certification.witnesses import Witnesses
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.progress import Silent
from citrus_tool.threat import Threat, parse_eps

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Parses the command line, searches the pairs twice, prints a line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2, 3, 8])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=1024)
    parser.add_argument("--groups", type=int, default=10, help="how many are looked at for one with open inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models-root", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("row group pairs | refuted without with | gap without with | seconds without with ratio")
    for number in options.rows:
        make, group = opened(ROWS[number - 1], options)
        with torch.no_grad(), exact_products():
            pairs = undecided(make(), options)
            plain, shared = (searched(make, pairs, options.nodes, together) for together in (False, True))
        both = [n for n, (a, b) in enumerate(zip(plain[0], shared[0], strict=True)) if a and b]
        gaps = [sum(found[n] for n in both) / max(1, len(both)) for found, _ in (plain, shared)]
        refuted = [sum(not gap for gap in found) for found, _ in (plain, shared)]
        print(
            f"{number:3d} {group:5d} {len(pairs):5d} | {refuted[0]:15d} {refuted[1]:4d} | {gaps[0]:11.3f} {gaps[1]:.3f}"
            f" | {plain[1]:15.1f} {shared[1]:.1f} {shared[1] / plain[1]:.2f}",
            flush=True,
        )


def opened(row: Row, options: argparse.Namespace) -> tuple[Callable[[], JointLoop], int]:
    """A maker of fresh loops over the open inputs of the first group that has two, and the group's number."""
    test = data.load(row.data, split="test", root=options.data_root)
    path = options.models_root / f"{row.network}.onnx"
    model = onnx_io.read(path, input_shape=test.shape, samples=test.take(16).pixels())
    settings = CertifySettings(
        bounds="full",
        protocol="correct",
        group_size=row.group_size,
        branch_nodes=1000,
        branch_seconds=3600,
        limit=row.group_size * options.groups,
    )
    threat = Threat(eps=parse_eps(row.eps))
    setup = Setup.of(model, test, threat, settings, named(settings.solver), "cpu", None, resume=False)
    selection = judged_inputs(setup, Silent())
    for index in range(options.groups):
        indices, clean = selection.of(range(index, index + 1))
        (group,) = prepared(setup, Chunk(first=index, indices=indices, clean=clean, skip=frozenset()))
        if int(group.group.open.sum()) > 1:
            return partial(loop_of, setup, group), index
    raise SystemExit(f"none of the first {options.groups} groups has two open inputs.")


def loop_of(setup: Setup, prepared: Prepared) -> JointLoop:
    """A loop over the group's open inputs that knows nothing yet."""
    group, individual = prepared.group, prepared.individual
    open_ = torch.nonzero(group.open).flatten()
    x, reference = group.x[open_], group.reference[open_]
    rivals = [tuple(individual.planes[place].rivals.tolist()) for place in open_.tolist()]
    inputs = executions_of(setup, rivals, x, reference)
    witnesses = Witnesses(network=setup.attacked, x=x, reference=reference, threat=setup.threat, best=group.u)
    witnesses.judge(group.u[None])
    return JointLoop(inputs, witnesses, time.monotonic() + 1e9, torch.Generator().manual_seed(0), record=False)


def undecided(loop: JointLoop, options: argparse.Namespace) -> list[Combination]:
    """Pairs of atoms of different inputs that no attack makes happen; none has an atom that is refuted alone."""
    atoms = [(member, label) for member, labels in enumerate(loop.conflicts.rivals) for label in labels]
    loop.attack_each(atoms)
    left = [atom for atom in atoms if loop.factor_of(atom, wide=False) is not None]
    pairs = [pair for pair in combinations(left, 2) if pair[0][0] != pair[1][0]]
    pairs = [pair for pair in pairs if not loop.witnesses.happened(frozenset(pair))]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(options.seed)).tolist()
    return [pairs[place] for place in order[: options.pairs]]


def searched(
    make: Callable[[], JointLoop], pairs: Sequence[Combination], nodes: int, together: bool
) -> tuple[list[float], float]:
    """The pairs' gaps after so many parts, 0 where refuted, and the seconds that took."""

    def system(systems: Sequence[Fold], first: str) -> Fold:
        found = beside(systems, first)
        return found if together else replace(found, twins=None)

    loop, gaps = make(), []
    for atom in {atom for pair in pairs for atom in pair}:
        loop.factor_of(atom, wide=False)
    start = time.monotonic()
    with patch.object(joint, "beside", system):
        for pair in pairs:
            loop.first_bound(pair)
            task = loop.tasks[pair]
            if task.search is not None:
                loop.search_on(pair, task, task.search.nodes + nodes)
            gaps.append(0.0 if task.search is None else task.gap)
    return gaps, time.monotonic() - start


if __name__ == "__main__":
    main()
