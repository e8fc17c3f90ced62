"""Certificates at several eps: what is carried from one to another, what contradicts, tables, names."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from citrus_tool.errors import SoundnessError
from citrus_tool.results.certificate import Certificate, GroupResult, Status
from citrus_tool.results.comparison import Pair
from citrus_tool.results.evidence import Evidence, Verdict
from citrus_tool.results.sweep import csv_rows
from citrus_tool.tables import to_csv, to_latex
from citrus_tool.threat import Threat, parse_eps, spelled
from citrus_tool.workflow.compare import distinct
from citrus_tool.workflow.sweep import carried, folder

K = 6


def group(index: int, certified: int, attacked: int, *, clean: int = K, individually: int = 0) -> GroupResult:
    return GroupResult(
        index=index,
        indices=tuple(range(index * K, index * K + K)),
        clean_correct=clean,
        ibp_certified=0,
        individually_certified=individually,
        certified=certified,
        attacked=attacked,
        status=Status.EXACT if certified == attacked else Status.BOUNDED,
        detail="found",
        stages={"milp": 1.0},
    )


def certificate(eps: float, *groups: GroupResult) -> Certificate:
    return Certificate(
        model="m.onnx",
        sha256="",
        data="toy",
        split="test",
        data_sha256="",
        threat=Threat(eps=eps),
        settings={"group_size": K, "protocol": "all", "scope": "groups"},
        examined=K,
        examined_correct=K,
        groups=groups,
        stages={},
        version="0",
    )


@st.composite
def truths(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """(certified, true minimum, attacked) at ascending eps; the true minimum falls."""
    minima = sorted(draw(st.lists(st.integers(0, K), min_size=1, max_size=5)), reverse=True)
    return [(draw(st.integers(0, m)), m, draw(st.integers(m, K))) for m in minima]


@settings(max_examples=200, deadline=None)
@given(truths())
def test_brackets_are_narrowed_and_still_hold_the_truth(rows: list[tuple[int, int, int]]) -> None:
    found = carried([certificate(0.01 * (n + 1), group(0, low, high)) for n, (low, _, high) in enumerate(rows)])
    for place, (one, (low, minimum, high)) in enumerate(zip(found, rows, strict=True)):
        narrowed = one.groups[0]
        assert low <= narrowed.certified <= minimum <= narrowed.attacked <= high
        assert narrowed.certified == max(row[0] for row in rows[place:])  # the literal rule
        assert narrowed.attacked == min(row[2] for row in rows[: place + 1])
        assert (narrowed.status is Status.EXACT) == (narrowed.certified == narrowed.attacked)
    assert [one.certified for one in found] == sorted((one.certified for one in found), reverse=True)
    assert carried(found) == found


def test_carried_counts_name_their_eps() -> None:
    found = carried([certificate(1 / 255, group(0, 1, 4)), certificate(0.1, group(0, 3, 5, individually=2))])
    assert [(one.certified, one.attacked, one.individually_certified) for one in found] == [(3, 4, 2), (3, 4, 2)]
    assert found[0].groups[0].detail == "found; certified count from eps 0.1"
    assert found[1].groups[0].detail == "found; attacked count from eps 1/255"


def judged(*words: str) -> GroupResult:
    """A group of three inputs by their verdicts."""
    verdicts = tuple(Verdict(word) for word in words)
    proven = sum(verdict in (Verdict.IBP, Verdict.PROVEN) for verdict in verdicts)
    clean = sum(verdict is not Verdict.LOST for verdict in verdicts)
    perturbation = np.full((1, 1, 1), sum(verdict is Verdict.FOOLED for verdict in verdicts), np.float32)
    return replace(
        group(0, proven, clean - sum(verdict is Verdict.FOOLED for verdict in verdicts), clean=clean),
        indices=(0, 1, 2),
        individually_certified=proven,
        ibp_certified=sum(verdict is Verdict.IBP for verdict in verdicts),
        evidence=Evidence(labels=(0, 0, 0), verdicts=verdicts, perturbation=perturbation),
    )


def test_verdicts_are_carried_with_the_counts() -> None:
    low, high = carried(
        [certificate(0.1, judged("fooled", "open", "ibp")), certificate(0.2, judged("open", "proven", "open"))]
    )
    for one, words in ((low, ["fooled", "proven", "ibp"]), (high, ["fooled", "proven", "open"])):
        result = one.groups[0]
        assert result.evidence is not None
        assert [verdict.value for verdict in result.evidence.verdicts] == words
        assert result.attacked == 3 - words.count("fooled")
        assert result.individually_certified == 3 - words.count("fooled") - words.count("open")
        assert result.evidence.perturbation is not None
        assert result.evidence.perturbation.item() == 1  # the witness of the smaller eps
    assert low.groups[0].certified == 2
    assert low.groups[0].detail == "found; inputs proven at larger eps"


def test_an_input_that_is_proven_and_fooled_stops_the_run() -> None:
    low, high = judged("fooled", "open", "ibp"), judged("proven", "open", "open")
    with pytest.raises(SoundnessError, match=r"input 0 is proven at eps 0\.1 or above, but .* eps 0\.1 fools it"):
        carried([certificate(0.1, low), certificate(0.2, high)])


def test_a_contradiction_stops_the_run() -> None:
    with pytest.raises(
        SoundnessError, match=r"group 0: 3 inputs are certified at eps 0\.1, .* eps 2/255 leaves only 2"
    ):
        carried([certificate(2 / 255, group(0, 1, 2)), certificate(0.1, group(0, 3, 5))])


@pytest.mark.parametrize("other", [group(0, 1, 2, clean=5), group(1, 1, 2)])
def test_other_groups_cannot_be_swept_together(other: GroupResult) -> None:
    with pytest.raises(SoundnessError, match=r"its inputs or its clean count 6 at eps 0\.1 are not those at"):
        carried([certificate(0.1, group(0, 1, 2)), certificate(0.2, other)])


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.integers(0, 255).map(lambda n: n / 255), st.floats(0, 1)))
def test_spelled_eps_reads_back_equal(eps: float) -> None:
    assert parse_eps(spelled(eps)) == eps
    assert "/" not in folder(eps)


def test_certificates_of_the_whole_data_set_are_compared_as_a_whole() -> None:
    low, high = (replace(certificate(eps, group(0, 2, 5)), together=5) for eps in (0.1, 0.2))
    assert carried([low, high]) == (low, high)
    with pytest.raises(SoundnessError, match=r"data set: 2 inputs are certified at eps 0.2, but .* leaves only 1"):
        carried([replace(certificate(0.1, group(0, 1, 5)), together=1), high])


def test_spelling() -> None:
    assert [spelled(e) for e in (0.0, 0.1, 1 / 255, 8 / 255, 0.2, 0.11)] == [
        "0.0",
        "0.1",
        "1/255",
        "8/255",
        "0.2",
        "0.11",
    ]
    assert folder(2 / 255) == "eps_2_255"


def test_pairs() -> None:
    one = certificate(0.1, group(0, 3, 5), group(1, 1, 5), group(2, 2, 5))
    other = certificate(0.1, group(0, 1, 5), group(1, 2, 5), group(2, 2, 5))
    pair = Pair.of("a", "b", one, other)
    assert pair is not None
    assert (pair.groups, pair.groups_a, pair.groups_b, pair.inputs_a, pair.inputs_b) == (3, 1, 1, 2, 1)
    assert pair.p_value == 1
    eight = [group(n, 1, 5) for n in range(8)], [group(n, 0, 5) for n in range(8)]
    assert Pair.of("a", "b", certificate(0.1, *eight[0]), certificate(0.1, *eight[1])).p_value == 2 / 2**8  # type: ignore[union-attr]
    assert Pair.of("a", "b", one, certificate(0.1, group(0, 1, 5))) is None


def test_names_are_distinct() -> None:
    from pathlib import Path

    paths = [Path("a/M.onnx"), Path("b/M.onnx"), Path("M.onnx.gz"), Path("N.onnx")]
    assert distinct(paths) == ["M", "M-2", "M-3", "N"]


def test_csv_reads_back() -> None:
    header, rows = csv_rows([certificate(1 / 255, group(0, 1, 4)), certificate(0.1, group(0, 1, 3))])
    back = list(csv.DictReader(io.StringIO(to_csv(header, rows))))
    assert [float(row["eps"]) for row in back] == [1 / 255, 0.1]
    assert [int(row["attacked"]) for row in back] == [4, 3]
    assert float(back[1]["certified_percent"]) == 100 / 6
    assert to_csv(["a,b", "c"], [['"', None]]) == '"a,b",c\n"""",\n'


def test_latex_escapes_and_parts_blocks() -> None:
    text = to_latex(["net_work", "50 %"], [["a_1", "1.50"], ["a_1", "-"], ["b&", "2"]], "one\ntwo")
    assert text.splitlines() == [
        "% one",
        "% two",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"net\_work & 50 \% \\",
        r"\midrule",
        r"a\_1 & 1.50 \\",
        r"a\_1 & - \\",
        r"\midrule",
        r"b\& & 2 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
