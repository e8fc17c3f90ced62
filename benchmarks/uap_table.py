"""The eight rows on which RACoon (Banerjee et al., ICML 2024) reports, with citrus beside the published figures.

    python benchmarks/uap_table.py [--rows 1,2] [--groups 10] [--bounds full] [--run-dir runs/uap_table] ...

Protocol `correct`: of the first 3 k P test images the misclassified ones are dropped, the first k P others kept and
cut into P groups of k. Each row has a journal below --run-dir; a run that was stopped continues where it was, and a
row that is finished is only printed again. Seconds are this machine's from the start of a row to its end, over the
number of groups; with --workers several groups run at a time, so that one of them may take longer. RACoon's are a
GPU's with Gurobi. With --check each row's proof is written and checked; `check` is the checker's processor time over
the seconds of all stages of all groups that made the proof.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from citrus_tool.choices import BoundsName
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.threat import Threat, parse_eps
from citrus_tool.workflow.certify import certify_file
from citrus_tool.workflow.check import check_file

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published setting and its figures: accuracies in percent, RACoon's seconds for a group."""

    network: str
    data: str
    eps: str
    group_size: int
    crown: float
    crown_milp: float
    alpha_milp: float
    racoon: float
    racoon_seconds: float


MNIST, POINT, CIFAR = "mnistconvSmallRELUDiffAI", "mnist_convSmallRELU__Point", "cifar10convSmallRELUDiffAI"
NAMES = ("crown", "crown_milp", "alpha_milp", "racoon", "racoon_seconds")
SECONDS = "seconds.json"
PUBLISHED = {
    (MNIST, "mnist", "0.13", 10): (53.0, 55.0, 61.0, 65.0, 2.5),
    (MNIST, "mnist", "0.13", 20): (56.0, 61.0, 64.5, 68.0, 3.9),
    (MNIST, "mnist", "0.13", 50): (51.8, 62.8, 65.0, 65.2, 5.4),
    (MNIST, "mnist", "0.15", 20): (18.0, 20.0, 23.5, 28.0, 4.4),
    (POINT, "mnist", "0.07", 20): (56.0, 65.5, 67.0, 69.5, 4.5),
    (POINT, "mnist", "0.07", 50): (53.0, 65.8, 67.0, 65.8, 4.5),
    (CIFAR, "cifar10", "5/255", 10): (38.0, 47.0, 49.0, 49.0, 6.3),
    (CIFAR, "cifar10", "5/255", 20): (43.0, 54.0, 55.5, 55.0, 8.2),
}
ROWS = tuple(
    Row(network=network, data=data, eps=eps, group_size=k, **dict(zip(NAMES, figures, strict=True)))
    for (network, data, eps, k), figures in PUBLISHED.items()
)


def main() -> None:
    """Parses the command line, runs the rows that are not finished, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=range(1, 9))
    parser.add_argument("--groups", type=int, default=10, help="P")
    parser.add_argument("--bounds", choices=get_args(BoundsName), default="full")
    parser.add_argument("--branch-nodes", type=int, default=CertifySettings.branch_nodes)
    parser.add_argument("--solver", choices=["cbc", "highs"], default="cbc")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds of a group's joint stage")
    parser.add_argument("--models-root", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--run-dir", type=Path, default=Path("runs") / "uap_table")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--workers", type=int, default=1, help="processes, each with --threads threads")
    parser.add_argument("--check", action="store_true", help="write and check the proofs")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"{options.workers} x {torch.get_num_threads()} threads, {options.bounds}, {options.branch_nodes} nodes")
    published, ours = "CROWN +MILP alpha RACoon     s", "alone certified attacked exact     s  check"
    print(f"{'network':<27} {'eps':>5} {'k':>4} |  {published} |  {ours}")
    for number in options.rows:
        row = ROWS[number - 1]
        found = certificate(row, number, options)
        wall = json.loads((folder_of(number, options) / SECONDS).read_text(encoding="utf-8"))
        print(line(row, found, wall) + (checked(row, number, options, found) if options.check else ""), flush=True)


def folder_of(number: int, options: argparse.Namespace) -> Path:
    """Where a row's journal, certificate and proof stand."""
    name = (
        f"row{number}_P{options.groups}_{options.bounds}_{options.branch_nodes}_{options.time_limit:g}_{options.solver}"
    )
    folder: Path = options.run_dir / name
    return folder


def checked(row: Row, number: int, options: argparse.Namespace, found: dict[str, Any]) -> str:
    """Checks a row's proof against network and data: the last column."""
    began = time.process_time()
    proof = check_file(
        folder_of(number, options) / "proof",
        options.models_root / f"{row.network}.onnx",
        DataChoice(name=row.data, root=options.data_root),
        RunContext(),
    )
    taken = time.process_time() - began
    assert (proof.certified, proof.inputs) == (found["certified"], found["inputs"])
    return f" {taken:5.0f}/{found['seconds']:.0f}"


def certificate(row: Row, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """The row's certificate as JSON values, from --run-dir if it is finished."""
    folder = folder_of(number, options)
    done = folder / "certificate.json"
    if not done.is_file():
        with stopwatch(folder / SECONDS):
            certify_file(
                ModelChoice(path=options.models_root / f"{row.network}.onnx"),
                DataChoice(name=row.data, root=options.data_root),
                Threat(eps=parse_eps(row.eps)),
                CertifySettings(
                    group_size=row.group_size,
                    protocol="correct",
                    limit=row.group_size * options.groups,
                    bounds=options.bounds,
                    branch_nodes=options.branch_nodes,
                    solver=options.solver,
                    time_limit=options.time_limit,
                    threads=torch.get_num_threads(),
                ),
                RunContext(run_dir=folder, resume=(folder / "journal.jsonl").is_file(), workers=options.workers),
                proof=folder / "proof" if options.check else None,
            )
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return found


@contextmanager
def stopwatch(path: Path) -> Iterator[None]:
    """Adds the seconds that what is done inside takes to the number in the file."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else 0.0
    start = time.monotonic()
    try:
        yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(before + time.monotonic() - start), encoding="utf-8")


def line(row: Row, found: dict[str, Any], wall: float) -> str:
    """One line of the table; `wall` in seconds."""
    percent = 100 / found["inputs"]
    exact = sum(group["status"] == "exact" for group in found["groups"])
    return (
        f"{row.network:<27} {row.eps:>5} {row.group_size:>4} |"
        f" {row.crown:6.1f} {row.crown_milp:5.1f} {row.alpha_milp:5.1f} {row.racoon:6.1f} {row.racoon_seconds:5.1f} |"
        f" {percent * found['individually_certified']:6.1f} {found['certified_uap_accuracy']:9.1f}"
        f" {found['attacked_uap_accuracy']:8.1f} {exact:2d}/{len(found['groups']):2d}"
        f" {wall / len(found['groups']):5.1f}"
    )


if __name__ == "__main__":
    main()
