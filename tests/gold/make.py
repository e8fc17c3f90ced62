"""Runs the cases of tests/gold/cases.py and writes what they gave to tests/gold/data.

    python -m tests.gold.make                   all groups
    python -m tests.gold.make certify old       these groups
    python -m tests.gold.make --old             also writes tests/gold/old anew
    python -m tests.gold.make --journals        also writes the journals there that runs are resumed from

Run from the top of the repository with the package of that checkout. Gold files say what a version did; write
them new only for a change of behaviour that is meant. tests/gold/old holds journals, a proof and run folders that an
earlier version wrote: they stay as they are, and later versions must be able to read them. The two journals that runs
are resumed from are of today's prover (`--journals` writes them anew), for another prover's run is not continued.
Everything runs with one thread; two runs on one machine give equal files.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.gold.cases import GROUPS, PLAIN, Case
from tests.gold.fixtures import HERE, OLD, ROOT, prepare
from tests.gold.normal import keys, result

DATA = HERE / "data"


def environment(folder: Path) -> dict[str, str]:
    """One thread, a fixed width of the terminal, no data sets beside the embedded one."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("CITRUS_", "COVERAGE", "PYTEST"))}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    places = {"HOME": str(folder / "home"), "MPLCONFIGDIR": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    width = {"COLUMNS": "100", "LINES": "40", "NO_COLOR": "1", "TERM": "dumb", "PYTHONHASHSEED": "0"}
    hidden = {"CUDA_VISIBLE_DEVICES": "", "LC_ALL": "C.UTF-8", "PYTHONWARNINGS": "ignore"}
    return {**kept, **threads, **places, **width, **hidden}


def run(cases: Sequence[Case], folder: Path) -> dict[str, dict[str, Any]]:
    """Runs cases one after the other in a folder, and collects what they gave."""
    folder.mkdir(exist_ok=True)
    folder = folder.resolve()
    prepare(folder)
    steps = []
    for case in cases:
        words = case.words
        steps.append(
            {"name": case.name, "script": words[1]} if words[:1] == ["script"] else {"name": case.name, "argv": words}
        )
    plan = folder / "plan.json"
    plan.write_text(json.dumps(steps))
    subprocess.run(
        [sys.executable, str(HERE / "driver.py"), str(plan)], cwd=folder, env=environment(folder), check=True
    )
    return {case.name: result(case, folder) for case in cases}


def load(group: str) -> dict[str, dict[str, Any]]:
    """The gold results of a group."""
    found: dict[str, dict[str, Any]] = json.loads(gzip.decompress((DATA / f"{group}.json.gz").read_bytes()))
    return found


def json_keys(results: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """The key paths of every JSON file and JSON line that the cases wrote."""
    return {
        f"{name} {file}": sorted(keys(content))
        for name, one in results.items()
        for file, content in {"stdout": one["stdout"], **one.get("files", {})}.items()
        if file.endswith((".json", ".jsonl")) or (file == "stdout" and not isinstance(content, str))
    }


def write(group: str, results: dict[str, dict[str, Any]]) -> None:
    """Writes the gold results of a group; equal results give equal files."""
    DATA.mkdir(exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False)
    (DATA / f"{group}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, paths in json_keys(results).items():
        alike.setdefault(tuple(paths), []).append(name)
    named = json.dumps([{"files": names, "keys": paths} for paths, names in alike.items()], indent=1)
    (DATA / f"{group}.keys.json").write_text(named + "\n")


def load_keys(group: str) -> dict[str, list[str]]:
    """The gold key paths of a group's JSON files, as of `json_keys`."""
    named = json.loads((DATA / f"{group}.keys.json").read_text())
    return {name: entry["keys"] for entry in named for name in entry["files"]}


def write_old(*, journals: bool) -> None:
    """Makes the old files with this version, or the journals that runs are resumed from alone."""
    OLD.mkdir(exist_ok=True)
    options = "--bounds full --solver highs --threads 1 --seed 0 --quiet"
    commands = {
        "groups": f"certify-uap {PLAIN} --eps 0.05 --limit 20 {options}",
        "dataset": f"certify-uap {PLAIN} --eps 0.05 --limit 20 --scope dataset {options}",
        "proof": f"certify-uap {PLAIN} --eps 0.05 --limit 10 --certificate digits.proof {options}",
    }
    cases = [Case(name=name, command=f"{text} --run-dir {name}") for name, text in commands.items()]
    if journals:
        cases = cases[:2]
    harden = f"harden {PLAIN} --eps 0.1 --epochs 3 --limit 10 --solver highs --threads 1 --seed 0 --quiet"
    cases += [Case(name="harden", command=f"{harden} --run-dir harden")] * (not journals)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(cases, folder)
        shutil.copy(folder / "groups" / "journal.jsonl", OLD / "journal.jsonl")
        shutil.copy(folder / "dataset" / "journal.jsonl", OLD / "journal_dataset.jsonl")
        if journals:
            return
        shutil.copy(folder / "digits.proof", OLD / "digits.proof")
        for kind, source in (("certify", "groups"), ("harden", "harden")):
            shutil.rmtree(OLD / kind, ignore_errors=True)
            ignored = shutil.ignore_patterns("*.safetensors", "*.onnx")
            shutil.copytree(folder / source, OLD / kind, ignore=ignored)
        shutil.copy(ROOT / "results" / "journal.jsonl", OLD / "bench_journal.jsonl")


def main(words: Sequence[str]) -> None:
    """Writes the groups that are named, or all."""
    if "--old" in words or "--journals" in words:
        write_old(journals="--old" not in words)
    for group in [word for word in words if not word.startswith("--")] or GROUPS:
        with tempfile.TemporaryDirectory() as name:
            write(group, run(GROUPS[group], Path(name)))


if __name__ == "__main__":
    main(sys.argv[1:])
