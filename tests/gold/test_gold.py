"""The command line and the public names do what they did when the files of tests/gold were written.

By default floats may differ by 1e-4 of their size, and what the last bits of floats decide is not compared, so that
other processors pass too. With CITRUS_GOLD=exact in the environment all cases are run and every number must be equal:
use it on one machine, before and after a change that must not change behaviour (`python -m tests.gold.make` first
where the files were made on another one).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.gold.cases import GROUPS, Case
from tests.gold.fixtures import old_journal
from tests.gold.make import DATA, json_keys, load, load_keys, run
from tests.gold.normal import differences, keys, loose

EXACT = os.environ.get("CITRUS_GOLD") == "exact"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the driver forks")


def compared(case: Case, old: Any, new: Any) -> list[str]:
    """Where a case's result differs from its gold."""
    if EXACT:
        return differences(old, new, case.name)
    return differences(loose(old, case.kind), loose(new, case.kind), case.name, tolerance=1e-4)


def bracketed(content: Any, path: str) -> list[str]:
    """Where counts in a result are not in the order that they must have."""
    order = ("ibp_certified", "individually_certified", "certified", "attacked", "clean_correct")
    if isinstance(content, list):
        return [line for place, one in enumerate(content) for line in bracketed(one, f"{path}[{place}]")]
    if not isinstance(content, dict):
        return []
    counts = [content[name] for name in order if isinstance(content.get(name), int)]
    wrong = len(counts) == len(order) and counts != sorted(counts)
    return [f"{path}: counts out of order {counts}"] * wrong + [
        line for name, one in content.items() for line in bracketed(one, f"{path}.{name}")
    ]


@pytest.mark.parametrize("group", GROUPS)
def test_gold(group: str, tmp_path: Path) -> None:
    cases = [case for case in GROUPS[group] if EXACT or case.always]
    gold, found = load(group), run(cases, tmp_path / "run")
    wrong: list[str] = []
    for case in cases:
        wrong += compared(case, gold[case.name], found[case.name])
        wrong += bracketed(found[case.name], case.name)
    if EXACT:
        new = json_keys(found)
        wrong += [f"{name}: other keys or types" for name, old in load_keys(group).items() if old != new.get(name)]
    if group == "old":
        wrong += resumed(tmp_path / "run")
    assert not wrong, "\n".join([f"{len(wrong)} differences from tests/gold/data/{group}.json.gz", *wrong[:60]])


def resumed(folder: Path) -> list[str]:
    """Recorded groups that a resumed run did again: their lines and times are those of the old journal."""
    wrong = []
    for name, source in (("resumed", "journal.jsonl"), ("resumed_dataset", "journal_dataset.jsonl")):
        if not (folder / f"{name}.json").exists():
            continue
        old = old_journal(source)[:3]
        if (folder / name / "journal.jsonl").read_text().splitlines(True)[:3] != old:
            wrong.append(f"{name}: recorded lines of the journal were changed")
        groups = json.loads((folder / f"{name}.json").read_text())["groups"]
        times = [json.loads(line)["seconds"] for line in old[1:]]
        if [one["seconds"] for one in groups][: len(times)] != times:
            wrong.append(f"{name}: recorded groups were judged again")
    return wrong


def test_resuming_gives_the_certificate_of_an_uninterrupted_run() -> None:
    """Of the gold files themselves."""
    old, certify = load("old"), load("certify")
    for resumed_name, whole in (("resumed", "full"), ("finished", "full"), ("torn", "full")):
        one = old[resumed_name]["files"][f"{resumed_name}.json"]
        other = certify[whole]["files"][f"{whole}.json"]
        assert not differences(other, one, resumed_name)


def test_gold_files_are_small_and_hold_no_place() -> None:
    files = [path for path in DATA.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    for group in GROUPS:
        text = json.dumps(load(group))
        assert not re.search(r"/(tmp|home|root|Users|work)/\w", text), group


def test_comparison_sees_what_changed() -> None:
    old = {"a": [1.0, 2], "certified": 3, "seconds": "TIME"}
    assert differences(old, {**old, "a": [1.0, 3]}) == [".a[1]: was 2, is 3"]
    assert differences(old, {**old, "a": [1.00001, 2]}, tolerance=1e-4) == []
    assert differences(old, {**old, "a": [1.00001, 2]}) != []
    assert differences(old, {"a": [1.0, 2], "certified": 3}) == [".seconds: is gone"]
    assert differences({"a": 1, "b": 2}, {"b": 2, "a": 1}) == [": keys in another order"]
    assert not differences(loose(old, "certify"), loose({**old, "certified": 4}, "certify"))
    assert keys(old) == {": object", ".a: list", ".a[]: float", ".a[]: int", ".certified: int", ".seconds: seconds"}
