"""Run folders -> records: gold values, and one sentence for everything that is wrong with a file."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from citrus_tool.errors import InputFileError
from citrus_tool.reports.citations import BOUNDS, CITATIONS, METHODS, STAGES, of_certificate, of_method
from citrus_tool.reports.data import Certified, Reported, parse, read
from citrus_tool.reports.render import STAGES as NAMES
from citrus_tool.results.attack import AttackReport
from citrus_tool.results.certificate import Certificate, Status
from citrus_tool.results.evaluation import Evaluation
from citrus_tool.results.evidence import Evidence, InputVerdict
from citrus_tool.results.harden import HardenReport
from citrus_tool.results.record import Place, from_json
from citrus_tool.results.sweep import Sweep
from citrus_tool.results.train import TrainReport
from citrus_tool.training.methods import METHODS as TRAINING
from tests.reports.conftest import ATTACK, EVALUATION, Edit, harden_report

HERE = Place(where="here")


def certified(run: Reported) -> Certified:
    """The certificate that the run is."""
    assert isinstance(run.result, Certificate)
    return run.certificates[""]


def test_certificate(gold: Path) -> None:
    run = certified(read(gold))
    one = run.certificate
    assert (one.inputs, one.clean_correct, one.ibp_certified, one.individually_certified) == (23, 23, 0, 16)
    assert (one.certified, one.attacked, len(one.groups), one.group_size) == (17, 20, 6, 4)
    assert [group.status for group in one.groups].count(Status.EXACT) == 4
    told = {"seconds": 0, "arithmetic": "real"}  # of a citrus that knew no other
    assert one.to_json() | {"seconds": 0} == json.loads((gold / "certificate.json").read_text()) | told
    kept = [group.evidence for group in one.groups]
    assert all(entry is not None for entry in kept)
    perturbed = [entry.perturbation for entry in kept if entry is not None and entry.perturbation is not None]
    assert len(perturbed) == 3
    for u in perturbed:
        assert u.shape == (1, 8, 8)
        assert 0.04 < float(np.abs(u).max()) <= 0.05
    assert run.origin.mean == (0.0,)
    assert run.origin.seed == 0


def test_a_certificate_alone_has_verdicts_but_no_perturbations(gold: Path, tmp_path: Path) -> None:
    shutil.copy(gold / "certificate.json", tmp_path / "c.json")
    run = certified(read(tmp_path / "c.json"))
    assert {v for g in run.certificate.groups if g.evidence for v in g.evidence.verdicts} == {
        InputVerdict.PROVEN,
        InputVerdict.FOOLED,
        InputVerdict.OPEN,
    }
    assert all(g.evidence is not None and g.evidence.perturbation is None for g in run.certificate.groups)


def test_other_results(hardened: Path, benchmark: Path, gold: Path) -> None:
    run = read(hardened)
    trained = run.result
    assert isinstance(trained, HardenReport)
    assert run.certificates.keys() == {"after"}
    assert run.certificates["after"].certificate.certified == 17
    assert trained.before.attacked_uap_accuracy == 30.25
    assert len(trained.history) == 6
    bench = read(benchmark).result
    assert isinstance(bench, tuple)
    assert [one.verdict for one in bench] == ["sat", "unsat", "timeout", "error"]
    evaluated, attacked = parse(EVALUATION, "e").result, parse(ATTACK, "a").result
    assert isinstance(evaluated, Evaluation)
    assert (evaluated.eps, evaluated.certificate) == (2 / 255, None)
    assert isinstance(attacked, AttackReport)
    assert (attacked.threat.clip, attacked.threat.target) == (True, 3)
    certificate = json.loads((gold / "certificate.json").read_text())
    for content in ([certificate, certificate], {"sweep": [certificate]}):
        swept = parse(content, "s")
        assert isinstance(swept.result, Sweep)
        assert swept.certificates["0."].certificate.certified == 17
    plain = {k: v for k, v in harden_report().items() if k not in ("before", "after", "model")}
    train = parse(plain | {"architecture": "convtiny", "standard_accuracy": 95.5}, "t").result
    assert isinstance(train, TrainReport)
    assert train.standard_accuracy == 95.5


def test_a_sweep_folder_finds_the_perturbations_of_each_eps(gold: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(gold, folder / "eps_0.05")
    certificate = json.loads((gold / "certificate.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({"sweep": [certificate]}))
    run = read(folder)
    assert isinstance(run.result, Sweep)
    groups = run.certificates["0."].certificate.groups
    assert sum(g.evidence is not None and g.evidence.perturbation is not None for g in groups) == 3


def test_evidence_round_trip() -> None:
    u = np.linspace(-0.1, 0.1, 12, dtype=np.float32).reshape(3, 2, 2)
    one = Evidence(labels=(1, 2), verdicts=(InputVerdict.FOOLED, InputVerdict.LOST), perturbation=u)
    again = from_json(Evidence, json.loads(json.dumps(one.packed())), HERE)
    assert again == one
    assert again.perturbation is not None
    np.testing.assert_array_equal(again.perturbation, u)
    assert from_json(Evidence, one.to_json(), HERE) == one


@pytest.mark.parametrize("packed", ["!", "AAAA", 7, "eJwDAAAAAAE="])
def test_a_damaged_perturbation_is_an_error(packed: object) -> None:
    with pytest.raises(InputFileError, match=r"^here: "):
        from_json(Evidence, {"labels": [1], "verdicts": ["open"], "perturbation": packed}, HERE)


def sets(**values: Any) -> Edit:
    return lambda content: content.update(values)


def group(number: int, **values: Any) -> Edit:
    return lambda content: content["groups"][number].update(values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (sets(certified=18), "certified is 18, but its groups add up to 17; make the result again"),
        (sets(certified_uap_accuracy=99.0), "certified_uap_accuracy is 99.0, but the counts give 73.9"),
        (sets(inputs=-1), "inputs is -1; it must be at least 0"),
        (sets(inputs="23"), 'inputs is "23", not a whole number'),
        (sets(inputs=True), "inputs is true, not a whole number"),
        (lambda content: content.pop("sha256"), "sha256 is missing"),
        (sets(groups=7), "groups is 7, not a list"),
        (sets(groups=[5]), r"groups[0]: is int, not an object"),
        (sets(threat={"eps": 2.0}), "threat: eps is 2.0; it must lie in [0, 1]"),
        (group(2, indices=[]), "groups[2]: indices is not a list of input numbers"),
        (group(2, status="fine"), "groups[2]: 'fine' is not a valid Status"),
        (group(2, certified=9), "groups[2]: group 2 (inputs 8 to 11): certified count 9 lies above"),
        (group(0, verdicts=["lost"] * 4), "groups[0]: the verdicts of its inputs do not give its counts"),
        (group(0, verdicts=["safe"] * 4), "groups[0]: 'safe' is not a valid Verdict"),
    ],
)
def test_what_is_wrong_with_a_certificate(edited: Callable[[Edit], Path], edit: Edit, message: str) -> None:
    path = edited(edit)
    with pytest.raises(InputFileError) as raised:
        read(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(path))
    assert raised.value.exit_code == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "no", "is not JSON"),
        ("c.json", '{"groups": NaN}', "NaN is not a number"),
        ("c.json", "{}", "is not a result of citrus that a report can show; give a run folder"),
        ("c.json", "[]", "the list of certificates is empty"),
        ("c.json", "7", "is int, not an object"),
        ("results.jsonl", "", "holds no result yet"),
        ("results.jsonl", "{", "holds no result yet"),  # torn
        ("results.jsonl", "{\n", "line 1: is damaged ("),
        ("results.jsonl", "{\n", "); remove the line to run its instance again."),
        ("results.jsonl", '{"onnx": 1}', "line 1: onnx is 1, not text"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputFileError, match=re.escape(message)):
        read(tmp_path / name)


def test_folders_without_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="cannot be read"):
        read(tmp_path / "none.json")
    with pytest.raises(InputFileError, match="holds no finished run; give a run folder"):
        read(tmp_path)
    for run, kept in enumerate(("journal.jsonl", "before.jsonl", "settings.toml", "eps_0.1/journal.jsonl")):
        file = tmp_path / str(run) / kept
        file.parent.mkdir(parents=True)
        file.write_text("")
        with pytest.raises(InputFileError, match="the run is not finished; run the same command again with --resume"):
            read(tmp_path / str(run))
        if file.suffix == ".jsonl":
            with pytest.raises(InputFileError, match=f"is the journal of a run, not its result; give .*{file.parent}"):
                read(file)


def test_a_folder_of_several_runs_says_which(gold: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    for name in ("a", "b"):
        shutil.copytree(gold, both / name)
    (both / "settings.toml").write_text("")  # as `compare` leaves it
    (both / "comparison.json").write_text("{}")
    for path in (both, both / "comparison.json"):
        with pytest.raises(InputFileError) as raised:
            read(path)
        words = f"holds no finished run itself, but the folders in it do; give these: {both / 'a'} {both / 'b'}."
        assert str(raised.value) == f"{path}: {words}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:2] + lines[3:], "groups are missing"),
        (lambda lines: [lines[0], "{", *lines[2:]], r"line 2: is damaged \(.*\); remove the file to start again"),
        (lambda lines: [lines[0], "{}", *lines[2:]], r"line 2: is damaged \(.*\); remove the file to start again"),
        (lambda lines: lines[1:], "is not a journal of citrus"),
        (
            lambda lines: [lines[0], lines[1].replace("[0, 1, 2, 3]", "[9, 1, 2, 3]"), *lines[2:]],
            "is not the journal of",
        ),
    ],
)
def test_what_is_wrong_with_a_journal(gold: Path, change: Callable[[list[str]], list[str]], message: str) -> None:
    path = gold / "journal.jsonl"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(InputFileError, match=message):
        read(gold)


def test_a_harden_run_whose_journal_says_something_else(hardened: Path) -> None:
    content = json.loads((hardened / "report.json").read_text())
    content["after"]["attacked_uap_accuracy"] = 99.0
    (hardened / "report.json").write_text(json.dumps(content))
    with pytest.raises(InputFileError, match=r"its groups give attacked_uap_accuracy 86\.9565, the report beside it"):
        read(hardened)


def test_scope_dataset_has_one_attacked_count_for_all(edited: Callable[[Edit], Path]) -> None:
    """The count of the perturbation for all inputs; the groups' own counts do not add up to it."""
    accuracy = 100 * 21 / 23
    run = certified(read(edited(sets(scope="dataset", attacked=21, attacked_uap_accuracy=accuracy))))
    assert (run.certificate.attacked, run.certificate.together) == (21, 21)
    with pytest.raises(InputFileError, match="certified 17, attacked 16 and clean 23 counts are not in order"):
        read(edited(sets(attacked=16, attacked_uap_accuracy=100 * 16 / 23)))


@pytest.mark.parametrize(
    ("bounds", "solver", "stages", "named"),
    [
        ("ibp", "cbc", {"ibp": 1.0, "crown": 0.0}, ["Gowal"]),
        ("crown", "highs", {"crown": 1.0, "milp": 1.0}, ["Gowal", "Zhang", "Zeng", "Huangfu"]),
        (
            "alpha",
            "both",
            {"milp": 0.5, "attack": 1.0},
            [
                "Gowal",
                "Zhang",
                "Xu",
                "Moosavi-Dezfooli",
                "Agrawal",
                "Wang",
                "Dong",
                "Madry",
                "Zeng",
                "Forrest",
                "Huangfu",
            ],
        ),
        (
            "full",
            "cbc",
            {"joint": 2.0, "branch": 1.0},
            ["Gowal", "Zhang", "Xu", "Wang", "Suresh", "Banerjee", "Codato"],
        ),
        ("full", "cbc", {"dataset": 2.0}, ["Gowal", "Zhang", "Xu", "Wang", "Suresh", "Shafahi", "Banerjee"]),
    ],
)
def test_exactly_the_methods_that_were_used_are_cited(
    edited: Callable[[Edit], Path], bounds: str, solver: str, stages: dict[str, float], named: list[str]
) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["settings"].update(bounds=bounds, solver=solver)
        content["stages"] = stages

    path = edited(edit)
    run = certified(read(path.rename(path.with_name("alone.json"))))
    assert [text.split()[0].removesuffix(",") for text in of_certificate(run.certificate)] == named


def test_every_method_has_its_citations() -> None:
    """And the first of them is the paper that the first lines of the method's file name."""
    assert METHODS.keys() == TRAINING.keys()
    for name, keys in METHODS.items():
        if name != "standard":
            author = CITATIONS[keys[0]].split()[0].replace("ü", "ue")
            about = importlib.import_module(TRAINING[name].__module__).__doc__ or ""
            assert author in about or (name, author) == ("citrus-plus", "Xu"), name
    assert of_method("another", {}) == []


def test_only_what_the_recipe_has_is_cited() -> None:
    def cited(**recipe: object) -> set[str]:
        texts = of_method("citrus-plus", recipe)
        return {key for key, text in CITATIONS.items() if text in texts}

    plain = {"citrus", "expressive", "ibp", "pgd"}
    assert cited(init="shi", shi_lambda=0.0) == cited(init="keep", shi_lambda=0.5) == plain | {"shi"}
    assert cited(init="keep", shi_lambda=0.0) == plain
    assert cited(init="keep", shi_lambda=0.0, distil=1.0, pool=3) == plain | {"distil", "uat"}
    assert cited(init="keep", shi_lambda=0.0, pretrain="sabr") == plain | {"sabr"}


def test_every_stage_that_takes_time_has_a_name_and_its_citations() -> None:
    """Stages are the names under which the certifier keeps seconds."""
    folder = Path(__file__).resolve().parents[2] / "citrus_tool" / "certification"
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    stages = set(re.findall(r'timed\([^"\n]*"(\w+)"', text)) | set(re.findall(r'seconds\["(\w+)"\]', text)) | {"clean"}
    assert {"ibp", "crown", "branch", "attack", "replay", "joint", "milp", "dataset"} < stages
    assert stages == set(NAMES) - {"all"}
    assert set(STAGES) == stages - {"clean", "replay", "ibp", "crown", "branch"}  # these follow nothing, or BOUNDS


def test_citations_are_whole_and_used() -> None:
    """Authors, title, venue and year; every row of the table is reached by some run."""
    for text in CITATIONS.values():
        assert re.fullmatch(r"[^.]+(?: et al)?\. .+\. .*\b(19|20)\d\d(?: \(HiGHS\))?\.", text), text
    used = {key for table in (BOUNDS, STAGES, METHODS) for keys in table.values() for key in keys}
    assert used | {"cbc", "highs", "raven", "distil"} == set(CITATIONS)
