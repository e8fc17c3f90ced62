"""The short form of the gate: some random networks, and planted bugs that are found in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soundness.bugs import found_by
from tests.soundness.cases import Case, violations


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 40))])
def test_a_random_certificate_holds(seed: int, tmp_path: Path) -> None:
    assert list(violations(Case(seed=seed), tmp_path)) == []


@pytest.mark.parametrize(
    ("bug", "seeds"),
    [
        ("one fooled input too few", range(3, 5)),
        ("a radius by signed weights", range(4, 6)),
        pytest.param("half of eps", range(14, 20), marks=pytest.mark.slow),
        pytest.param("a rival that is left out", range(15, 24), marks=pytest.mark.slow),
        pytest.param("float32 errors left out", range(78, 90), marks=pytest.mark.slow),
    ],
)
def test_a_planted_bug_is_found(bug: str, seeds: range, tmp_path: Path) -> None:
    assert found_by(bug, tmp_path, seeds) is not None
