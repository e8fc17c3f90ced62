"""The page: every figure is the JSON's, nothing is loaded, nothing that a file name holds is run."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from citrus_tool import data
from citrus_tool.errors import CheckFailedError
from citrus_tool.reports import read, write_report
from citrus_tool.reports.figures import Series, curves
from citrus_tool.reports.render import spelled
from tests.reports.conftest import ATTACK, EVALUATION, GOLD, Edit
from tests.reports.page import Page, check_numbers, read_page

Reported = Callable[..., tuple[Page, str]]


def free_figures(page: Page) -> list[str]:
    """Digits in running text that stand outside <data>: only those of the templates' own words are left."""
    words = re.sub(r"\[0, 1\]|clip\(x \+ u, 0, 1\)|sha256|100 %", "", " ".join(page.free))
    return re.findall(r"\d+", words)


def test_every_figure_of_a_certificate_is_the_json_s(gold: Path, reported: Reported) -> None:
    page, _ = reported(gold)
    assert check_numbers(page) > 80
    assert free_figures(page) == []
    groups = json.loads((gold / "certificate.json").read_text())["groups"]
    assert page.tiles == [
        f"Group {n}: {g['status']}, {g['certified']} of {len(g['indices'])} certified, {g['attacked']} attacked"
        for n, g in enumerate(groups)
    ]


def test_every_figure_of_the_other_runs(hardened: Path, benchmark: Path, tmp_path: Path, reported: Reported) -> None:
    (tmp_path / "e.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "a.json").write_text(json.dumps(ATTACK))
    paths = (hardened, benchmark, tmp_path / "e.json", tmp_path / "a.json")
    page, html = reported(*paths)
    assert check_numbers(page) > 200
    assert free_figures(page) == []
    assert html.count("<svg") == 4  # accuracies, losses, eps; decided instances
    assert "Xu and Singh. Cross-Input" in html
    for chip in ("milestones 4 5", "flip no", "uat step 0.25"):
        assert f'<span class="chip">{chip}</span>' in html
    assert page.text[page.text.index("p.vnnlib") :][:5] == ["p.vnnlib", "2", "0.05", "sat", "unsat"]


def test_several_eps_make_a_curve(gold: Path, tmp_path: Path, reported: Reported) -> None:
    content = json.loads((gold / "certificate.json").read_text())
    other = json.loads(json.dumps(content))
    other["eps"] = other["threat"]["eps"] = 2 / 255
    (tmp_path / "sweep.json").write_text(json.dumps({"sweep": [content, other]}))
    page, html = reported(tmp_path / "sweep.json")
    check_numbers(page)
    assert free_figures(page) == []
    assert "2/255" in html
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "c.json").write_text(json.dumps(other))
    page, html = reported(gold, tmp_path / "two" / "c.json")
    check_numbers(page)
    assert "The same network, inputs and groups" in html


def test_gold_text(gold: Path, reported: Reported) -> None:
    """The words of a whole page. After a wanted change: CITRUS_UPDATE_GOLD=1 pytest tests/report."""
    page, _ = reported(gold)
    text = "\n".join(page.text).replace(str(gold), "RUN")
    text = re.sub(r"(?<=^Written by citrus ).*$|(?<=^onnxruntime )[\d.]+$", "VERSION", text, flags=re.MULTILINE) + "\n"
    path = GOLD / "certify.txt"
    if os.environ.get("CITRUS_UPDATE_GOLD"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_claim_says_threat_groups_protocol_and_what_unknown_means(
    edited: Callable[[Edit], Path], reported: Reported
) -> None:
    def claim(edit: Edit) -> str:
        _, html = reported(edited(edit))
        found = re.search(r'<div class="claim">(.*?)</div>', html, re.DOTALL)
        assert found
        return " ".join(re.sub(r"<[^>]+>", "", found[1]).split())

    def variant(edit: Edit) -> str:
        return claim(lambda c: (c.update(model="gone.onnx"), edit(c)))  # type: ignore[func-returns-value]

    plain = claim(lambda content: None)
    for part in (
        "Inputs: 23 images of digits (test split), all in order; misclassified ones count as lost (protocol all).",
        "in groups of 4: one perturbation u for all inputs of a group, another one for each group.",
        "every u with |u|∞ ≤ 0.05 in pixel space [0, 1]; the network sees x + u, not clipped to [0, 1].",
        "for every such choice of perturbations at least 17 inputs are classified correctly, in real arithmetic"
        " (arithmetic real).",
        "whatever is unknown (a time-out, a solver error, an open case) counts as lost.",
        "replayed on onnxruntime, 20 are: an upper bound on the truth",
        "The exact worst case lies between the two.",
    ):
        assert part in plain, part
    other = variant(lambda c: c["settings"].update(arithmetic="float32"))
    assert "are classified correctly, in every float32 run of the file on a CPU (arithmetic float32)." in other
    other = variant(lambda c: c.update(threat={"eps": 0.05, "clip": True, "target": 3}))
    assert "the network sees clip(x + u, 0, 1)." in other
    assert "are not driven to class 3" in other
    together = variant(lambda c: c.update(scope="dataset"))
    assert "They are judged together: one perturbation for all of them." in together
    correct = variant(lambda c: c["settings"].update(protocol="correct", group_size=23))
    assert "(protocol correct)" in correct
    assert "together: one perturbation for all of them" in correct


@pytest.mark.parametrize("train_on", [None, "train", "all"])
def test_page_says_how_the_epoch_was_kept(hardened: Path, reported: Reported, train_on: str | None) -> None:
    """Reports of earlier versions have no `train_on`: they validated."""
    content = json.loads((hardened / "report.json").read_text())
    if train_on:
        content["recipe"]["train_on"] = train_on
    (hardened / "report.json").write_text(json.dumps(content))
    _, html = reported(hardened)
    everything = train_on == "all"
    assert ("Training ended by its schedule, on the validation split too." in html) is everything
    assert ("the last one, since training had the validation split too" in html) is everything
    assert ("The epoch was chosen on a validation split." in html) is not everything
    assert ("the best of those at full eps on the validation split" in html) is not everything


def test_nothing_is_loaded_from_anywhere(gold: Path, hardened: Path, reported: Reported) -> None:
    page, html = reported(gold, hardened)
    assert all(link.startswith(("#", "data:")) for link in page.links), page.links
    assert len(page.images) > 23
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", html)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy
    assert policy[1].startswith("default-src 'none'; img-src data:;")
    assert len(html.encode()) < 10 * 2**20
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


HOSTILE = "\"><script>alert(1)</script>'{{ 7 * 7 }}$x$&amp;.onnx"


def test_hostile_names_stay_text(
    edited: Callable[[Edit], Path], hardened: Path, benchmark: Path, reported: Reported
) -> None:
    """In whatever a file may say of itself: paths, data, solver words, recipe names, versions."""
    certificate = edited(
        lambda c: (
            c.update(model=HOSTILE, data=HOSTILE, split=HOSTILE, version=HOSTILE, sha256=HOSTILE),
            c["groups"][0].update(detail=HOSTILE),
            c["settings"].update({HOSTILE: HOSTILE}),
            c["stages"].update({HOSTILE: 1.0}),
        )  # type: ignore[func-returns-value]
    )
    content = json.loads((hardened / "report.json").read_text())
    content.update(model=HOSTILE, out=HOSTILE, method=HOSTILE, data=HOSTILE, recipe={HOSTILE: HOSTILE})
    content["history"] = [{**entry, HOSTILE: 1.0, "phase": HOSTILE} for entry in content["history"]]
    (hardened / "report.json").write_text(json.dumps(content))
    lines = [json.loads(line) for line in (benchmark / "results.jsonl").read_text().splitlines()]
    texts = {"onnx": HOSTILE, "vnnlib": HOSTILE, "note": HOSTILE}
    (benchmark / "results.jsonl").write_text("".join(json.dumps(line | texts) + "\n" for line in lines))
    page, html = reported(certificate, hardened, benchmark)
    assert html.count("<script") == 1
    assert "<script>alert" not in html
    assert "49" not in " ".join(page.text)
    assert any("<script>alert(1)</script>" in text for text in page.text)


def test_pictures_are_replays(gold: Path, reported: Reported) -> None:
    """Predictions before and after are those of a session of our own, on pixels of our own reading."""
    _, html = reported(gold)
    session = onnxruntime.InferenceSession("models/digits_convtiny.onnx", providers=["CPUExecutionProvider"])
    digits = data.load("digits", split="test")
    run = read(gold)
    name = session.get_inputs()[0].name
    found = 0
    for group in run.certificates[""].certificate.groups:
        kept = group.evidence
        assert kept is not None
        for place, index in enumerate(group.indices):
            x = digits.images[index : index + 1].numpy().astype(np.float32)
            x = x / 255 if digits.images.dtype.itemsize == 1 else x
            before = int(session.run(None, {name: x})[0].argmax())
            assert f'class <data value="{kept.labels[place]}" data-rule="label">' in html
            words = (
                rf">{index}</data></div>\s*<div>class <data[^>]*>{kept.labels[place]}</data>, seen as"
                r" <span[^>]*><data[^>]*>(\d)"
            )
            seen = {int(match) for match in re.findall(words, html)}
            assert seen == {before}
            if kept.verdicts[place].value == "fooled":
                assert kept.perturbation is not None
                after = int(session.run(None, {name: x + kept.perturbation})[0].argmax())
                assert after != kept.labels[place]
                assert re.search(words + rf"</data></span>, then as <span[^>]*><data[^>]*>{after}<", html)
                found += 1
    assert found == 3


def test_a_perturbation_that_does_less_than_it_says_is_an_error(gold: Path, reported: Reported) -> None:
    path = gold / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    packed = [line for line in lines if line.get("perturbation")]
    packed[0]["perturbation"], packed[1]["perturbation"] = packed[1]["perturbation"], packed[0]["perturbation"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CheckFailedError, match="is said to be fooled, which onnxruntime contradicts"):
        reported(gold)


@pytest.mark.parametrize("factor", [2, math.nan])
def test_a_perturbation_larger_than_eps_or_of_no_numbers_is_an_error(
    gold: Path, reported: Reported, factor: float
) -> None:
    from citrus_tool.results.evidence import Evidence
    from citrus_tool.results.record import Place, from_json

    path = gold / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    line = next(line for line in lines if line.get("perturbation"))
    kept = from_json(Evidence, line, Place(where="line"))
    assert kept.perturbation is not None
    line.update(
        Evidence(
            labels=kept.labels, verdicts=kept.verdicts, perturbation=np.float32(factor) * kept.perturbation
        ).packed()
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CheckFailedError, match="is not within eps"):
        reported(gold)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.update(model="gone.onnx"), "gone.onnx: the network with sha256 "),
        (
            lambda c: c.update(sha256="0" * 64),
            "the network with sha256 000000000000... is not there; name its file with",
        ),
        (lambda c: c.update(data_sha256="0" * 64), "data digits (test) is not what was certified"),
        (lambda c: [g.pop("verdicts") for g in c["groups"]], "made by a citrus that kept no verdicts of single inputs"),
    ],
)
def test_what_cannot_be_seen_again_is_left_out_with_a_reason(
    edited: Callable[[Edit], Path], edit: Edit, reason: str, tmp_path: Path
) -> None:
    path = edited(edit)
    path = path.rename(path.with_name("alone.json"))
    missing = write_report([read(path)], tmp_path / "r.html")
    assert len(missing) == 1
    assert reason in missing[0]
    page = read_page((tmp_path / "r.html").read_text())
    assert page.images == []
    assert any(reason in text for text in page.text)
    check_numbers(page)


def test_a_network_that_was_moved_is_found_by_its_digest(edited: Callable[[Edit], Path], tmp_path: Path) -> None:
    path = edited(lambda c: c.update(model="gone.onnx"))
    moved = tmp_path / "moved.onnx"
    shutil.copy("models/digits_convtiny.onnx", moved)
    assert write_report([read(path)], tmp_path / "r.html", models=[moved]) == ()
    assert read_page((tmp_path / "r.html").read_text()).images


@pytest.mark.parametrize(("x", "y"), [([1, 2, 3, 4], [3.0, 1.0, 2.5, 2.0]), ([0.01, 0.02, 0.05], [97.5, 60.25, 11.0])])
def test_a_curve_is_the_data_up_to_scale(x: list[float], y: list[float]) -> None:
    svg = str(curves("k", "title", [Series(name="a", x=x, y=y, paint="certified")], x="x", y="y"))
    line = re.search(r'<g id="k-series-a">\s*<path d="([^"]+)"', svg)
    assert line
    points = np.array([[float(v) for v in pair] for pair in re.findall(r"[ML] (\S+) (\S+)", line[1])])
    for drawn, given in zip(points.T, (x, y), strict=True):
        assert np.polynomial.polynomial.polyfit(given, drawn, 1, full=True)[1][0] < 1e-6
    assert "var(--certified)" in svg
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]", svg)


@pytest.mark.parametrize(("eps", "text"), [(0.1, "0.1"), (2 / 255, "2/255"), (0.0, "0"), (0.3, "0.3"), (1.0, "1")])
def test_eps_as_people_write_it(eps: float, text: str) -> None:
    assert spelled(eps) == text
