from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pulp
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import citrus_tool
from citrus_tool.bounds.crown import LinearMargins, crown
from citrus_tool.certification import chunks, individual, milp, uap
from citrus_tool.certification.milp import Ending, Solver, SolverAnswer
from citrus_tool.certification.uap import certify_uap
from citrus_tool.checker.check import check
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import Dataset
from citrus_tool.errors import (
    CheckFailedError,
    DataError,
    InputFileError,
    InterruptedRunError,
    SoundnessError,
    UsageError,
)
from citrus_tool.network import Network, Reshape, chain
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.progress import Progress
from citrus_tool.results.certificate import Certificate, GroupResult, Status
from citrus_tool.threat import Threat
from tests.certification.oracle import fooled_at_most
from tests.certification.toys import CLASSES, SHAPE, as_onnx, data_for, in_context, tiny_chain, tiny_residual

Make = Callable[[int], Network]
QUICK = CertifySettings(group_size=3, attack_steps=20, attack_restarts=4, time_limit=120)


def certify(model: OnnxModel, data: Dataset, eps: float, settings: CertifySettings = QUICK, **more: Any) -> Certificate:
    return certify_uap(model, data, Threat(eps=eps), settings, **in_context(more))


def truth(network: Network, data: Dataset, group: GroupResult, eps: float) -> int:
    """The group's true minimum: clean count less what the exact MILP says can be fooled."""
    index = torch.tensor(group.indices)
    x, labels = data.pixels(index), data.labels[index]
    with torch.no_grad():
        right = network(x).argmax(dim=1) == labels
    return int(right.sum()) - fooled_at_most(network, x[right], labels[right], eps)


def comparable(certificate: Certificate) -> dict[str, Any]:
    """Everything but the times."""
    content = certificate.to_json()
    for entry in [content, *content["groups"]]:
        entry.pop("seconds")
    content.pop("stages")
    return content


@pytest.mark.parametrize("solver", ["cbc", "highs"])
@pytest.mark.parametrize("make", [tiny_chain, tiny_residual])
@pytest.mark.parametrize("seed", range(3))
def test_brackets_the_truth(make: Make, seed: int, solver: Any, tmp_path: Path) -> None:
    network = make(seed)
    data = data_for(network, 12, seed)
    for eps in (0.08, 0.2):
        certificate = certify(as_onnx(network, tmp_path), data, eps, replace(QUICK, solver=solver))
        for group in certificate.groups:
            assert group.certified <= truth(network, data, group, eps) <= group.attacked


def test_brackets_are_not_empty_talk(tmp_path: Path) -> None:
    """Over many tiny networks the bracket is often exact, the MILP helps, and the attack finds the minimum."""
    exact = helped = met = groups = 0
    for seed in range(8):
        network = tiny_chain(seed)
        data = data_for(network, 12, seed)
        certificate = certify(as_onnx(network, tmp_path), data, 0.15)
        for group in certificate.groups:
            groups += 1
            exact += group.status is Status.EXACT
            helped += group.certified > group.individually_certified
            met += group.attacked == truth(network, data, group, 0.15)
    assert exact > groups / 3
    assert helped > 0
    assert met > 0.9 * groups


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    make=st.sampled_from([tiny_chain, tiny_residual]),
    eps=st.sampled_from([0.0, 0.02, 0.1, 0.3]),
    size=st.integers(1, 7),
    protocol=st.sampled_from(["all", "correct"]),
)
def test_order_and_sampled_containment(
    tmp_path: Path, seed: int, make: Make, eps: float, size: int, protocol: Any
) -> None:
    network = make(seed)
    data = data_for(network, 9, seed)
    with torch.no_grad():
        logits = network(data.images)
    clear = logits.topk(2).values.diff().flatten() < -1e-6
    assume(bool((clear & (logits.argmax(dim=1) == data.labels)).any()))  # else there is nothing to judge
    model = as_onnx(network, tmp_path)
    settings = replace(QUICK, group_size=size, protocol=protocol, attack_steps=5, attack_restarts=2)
    ibp, both = (certify(model, data, eps, replace(settings, bounds=bounds)) for bounds in ("ibp", "crown"))
    samples = (torch.rand(200, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * eps
    samples[:100] = samples[:100].sign() * eps
    for weak, group in zip(ibp.groups, both.groups, strict=True):
        assert weak.individually_certified == weak.ibp_certified == group.ibp_certified
        assert weak.certified == weak.ibp_certified
        assert group.ibp_certified <= group.individually_certified <= group.certified <= group.attacked
        assert group.attacked <= group.clean_correct <= len(group.indices)
        index = torch.tensor(group.indices)
        x, labels = data.pixels(index), data.labels[index]
        with torch.no_grad():
            logits = network((x[None] + samples[:, None]).flatten(0, 1)).reshape(len(samples), len(x), -1)
        right = (logits.argmax(dim=2) == labels).sum(dim=1)
        assert int(right.min()) >= group.certified


def test_eps_0_certifies_what_is_correct(tmp_path: Path) -> None:
    network = tiny_residual(1)
    data = data_for(network, 20, 1, noise=0.3)
    certificate = certify(as_onnx(network, tmp_path), data, 0.0)
    assert certificate.ibp_certified == certificate.certified == certificate.attacked == certificate.clean_correct
    assert 0 < certificate.clean_correct < 20
    assert {group.status for group in certificate.groups} == {Status.EXACT}


@pytest.mark.parametrize(("count", "size", "sizes"), [(7, 3, [3, 3, 1]), (1, 5, [1]), (4, 1, [1, 1, 1, 1])])
def test_group_sizes(count: int, size: int, sizes: list[int], tmp_path: Path) -> None:
    network = tiny_chain(0)
    certificate = certify(as_onnx(network, tmp_path), data_for(network, count, 0), 0.1, replace(QUICK, group_size=size))
    assert [len(group.indices) for group in certificate.groups] == sizes
    assert [i for group in certificate.groups for i in group.indices] == list(range(count))


def test_chunks_do_not_change_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_chain(3)
    data, model = data_for(network, 14, 3), as_onnx(network, tmp_path)
    whole = certify(model, data, 0.15)
    monkeypatch.setattr(chunks, "CHUNK_INPUTS", 4)
    cut = certify(model, data, 0.15)
    assert [g.indices for g in cut.groups] == [g.indices for g in whole.groups]
    assert [g.certified for g in cut.groups] == [g.certified for g in whole.groups]


def test_protocols(tmp_path: Path) -> None:
    network = tiny_chain(0)
    data, model = data_for(network, 40, 0, noise=0.5), as_onnx(network, tmp_path)
    with torch.no_grad():
        right = torch.nonzero(network(data.pixels()).argmax(dim=1) == data.labels).flatten()
    whole = certify(model, data, 0.05, replace(QUICK, limit=10))
    assert (whole.inputs, whole.examined) == (10, 10)
    assert whole.clean_correct == int((right < 10).sum()) == whole.examined_correct
    kept = certify(model, data, 0.05, replace(QUICK, limit=6, protocol="correct"))
    assert [i for group in kept.groups for i in group.indices] == right[:6].tolist()
    assert (kept.inputs, kept.clean_correct, kept.examined) == (6, 6, 18)
    assert kept.to_json()["standard_accuracy"] == pytest.approx(100 * int((right < 18).sum()) / 18)
    rest = certify(model, data, 0.05, replace(QUICK, protocol="correct"))
    assert rest.inputs == len(right)


def test_misclassified_inputs_are_lost_on_both_sides(tmp_path: Path) -> None:
    network = tiny_chain(0)
    data = data_for(network, 6, 0, noise=1.0)
    certificate = certify(as_onnx(network, tmp_path), data, 0.0)
    assert certificate.clean_correct == certificate.certified == certificate.attacked == 0


def constant_logits(*values: float) -> Network:
    layer = nn.Linear(4, len(values))
    layer.weight.data.zero_()
    layer.bias.data = torch.tensor(values)
    return chain([Reshape((4,)), layer], SHAPE).eval()


@pytest.mark.parametrize(
    ("arithmetic", "values", "certified", "correct"),
    [
        ("float32", (1.0, 1.0, 0.0), 0, 0),
        ("float32", (1.0, 1.0 - 1e-6, 0.0), 0, 4),
        ("float32", (1.0, 0.9, 0.0), 4, 4),
        ("real", (1.0, 1.0, 0.0), 0, 0),
        ("real", (1.0, 1.0 - 1e-6, 0.0), 4, 4),
    ],
)
def test_ties_are_lost_and_near_ties_are_not_proven_of_float32(
    arithmetic: Any, values: tuple[float, ...], certified: int, correct: int, tmp_path: Path
) -> None:
    data = Dataset(
        name="toy",
        split="test",
        images=torch.rand(4, *SHAPE),
        labels=torch.zeros(4, dtype=torch.int64),
        num_classes=CLASSES,
    )
    found = certify(as_onnx(constant_logits(*values), tmp_path), data, 0.1, replace(QUICK, arithmetic=arithmetic))
    assert (found.certified, found.attacked, found.clean_correct) == (certified, correct, correct)


def test_an_input_is_correct_only_if_the_file_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_chain(0)
    data, model = data_for(network, 6, 0, noise=0.0), as_onnx(network, tmp_path)
    honest = OnnxRunner.logits

    def flipped(self: OnnxRunner, x: Tensor) -> Any:
        logits = honest(self, x)
        logits[0] = -logits[0]
        return logits

    monkeypatch.setattr(OnnxRunner, "logits", flipped)
    monkeypatch.setattr(uap, "require_parity", lambda *_: None)
    assert certify(model, data, 0.0).clean_correct == 5


def test_json_has_the_designs_fields(tmp_path: Path) -> None:
    network = tiny_chain(2)
    certificate = certify(as_onnx(network, tmp_path), data_for(network, 8, 2), 0.1)
    content = json.loads(json.dumps(certificate.to_json(), allow_nan=False))
    names = (
        "model sha256 data split eps group_size protocol inputs clean_correct ibp_certified individually_certified"
        " certified attacked certified_uap_accuracy attacked_uap_accuracy standard_accuracy seconds version settings"
        " groups"
    )
    assert set(names.split()) <= set(content)
    for name in ("clean_correct", "ibp_certified", "individually_certified", "certified", "attacked"):
        assert content[name] == sum(group[name] for group in content["groups"])
    assert content["certified_uap_accuracy"] == 100 * content["certified"] / 8
    assert content["attacked_uap_accuracy"] == 100 * content["attacked"] / 8
    assert content["settings"]["solver"] == "cbc"
    assert set(content["stages"]) >= {"clean", "ibp", "crown", "attack", "replay"}
    assert content["seconds"] == pytest.approx(sum(content["stages"].values()))
    for group in content["groups"]:
        assert {"indices", "certified", "attacked", "status", "seconds"} <= set(group)
        assert group["status"] in {"exact", "bounded", "timeout", "error"}


# -- solvers that fail ---------------------------------------------------------------------------------------------


class Says(Solver):
    def __init__(self, answer: SolverAnswer | Exception) -> None:
        self.answer = answer
        self.calls = 0

    def solve(self, problem: pulp.LpProblem, *, time_limit: float, threads: int) -> SolverAnswer:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (SolverAnswer(ending=Ending.TIME_LIMIT, dual_bound=99.0, objective=0.0, words="late"), Status.TIMEOUT),
        (SolverAnswer(ending=Ending.NO_BOUND, dual_bound=None, objective=0.0, words="Infeasible"), Status.ERROR),
        (SolverAnswer(ending=Ending.OPTIMAL, dual_bound=float("nan"), objective=0.0, words="nonsense"), Status.ERROR),
        (pulp.PulpSolverError("killed by the system"), Status.ERROR),
    ],
)
def test_failing_solvers_lose_inputs_and_say_so(
    answer: SolverAnswer | Exception, status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milp, "search", lambda *args, **kwargs: None)
    network = tiny_chain(1)
    data, model = data_for(network, 15, 1), as_onnx(network, tmp_path)
    solver = Says(answer)
    certificate = certify(model, data, 0.15, replace(QUICK, attack_restarts=0), solver=solver)
    assert solver.calls > 0
    asked = [group for group in certificate.groups if group.status is status]
    assert len(asked) == solver.calls
    for group in asked:
        assert group.certified == group.individually_certified <= truth(network, data, group, 0.15)
        assert group.detail


def test_a_group_is_exact_whatever_the_solver_says_when_the_attack_meets_the_bound(tmp_path: Path) -> None:
    network = tiny_chain(1)
    data, model = data_for(network, 15, 1), as_onnx(network, tmp_path)
    for group in certify(model, data, 0.4, solver=Says(OSError("gone"))).groups:
        assert (group.status is Status.EXACT) == (group.certified == group.attacked)


def test_the_milp_is_skipped_where_it_cannot_help(tmp_path: Path) -> None:
    network = tiny_chain(1)
    data, model = data_for(network, 15, 1), as_onnx(network, tmp_path)
    unused = Says(AssertionError("called"))
    assert certify(model, data, 0.1, replace(QUICK, group_size=1), solver=unused).inputs == 15
    assert certify(model, data, 0.25, replace(QUICK, bounds="ibp"), solver=unused).inputs == 15
    details = {group.detail for group in certify(model, data, 1.0, solver=unused).groups}
    assert any("fools every open input" in detail for detail in details)


# -- soundness violations ------------------------------------------------------------------------------------------


def group(**change: Any) -> GroupResult:
    counts = {"clean_correct": 4, "ibp_certified": 1, "individually_certified": 2, "certified": 3, "attacked": 3}
    return GroupResult(
        index=7, indices=(35, 36, 37, 38, 39), status=Status.BOUNDED, detail="", stages={}, **{**counts, **change}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ibp_certified": 3}, "group 7 (inputs 35 to 39): IBP count 3 lies above individual count 2"),
        ({"individually_certified": 4}, "individual count 4 lies above certified count 3"),
        ({"certified": 4}, "certified count 4 lies above attacked count 3"),
        ({"attacked": 5}, "attacked count 5 lies above clean count 4"),
        ({"clean_correct": 6}, "clean count 6 lies above inputs count 5"),
        ({"ibp_certified": -1}, "none count 0 lies above IBP count -1"),
    ],
)
def test_counts_out_of_order_stop_the_run(change: dict[str, int], message: str) -> None:
    with pytest.raises(SoundnessError) as raised:
        group(**change)
    assert message in str(raised.value)
    assert "certified" in str(raised.value)
    assert raised.value.exit_code == 4


def test_a_proof_that_the_replay_refutes_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken bounds: CROWN claims positive margins for half the labels, the planes of the others are too high."""

    def broken(network: Network, box: Any, labels: Tensor, **options: Any) -> LinearMargins:
        found = crown(network, box, labels, **options)
        return replace(found, offset=found.offset + 100.0)

    network = tiny_chain(1)
    data, model = data_for(network, 15, 1), as_onnx(network, tmp_path)
    monkeypatch.setattr(individual, "crown", broken)
    with pytest.raises(SoundnessError, match=r"group \d+: a perturbation within eps 0.4 fools input \d+ although"):
        certify(model, data, 0.4)


@pytest.mark.parametrize(("arithmetic", "left"), [("float32", 0), ("real", 1)])
def test_what_float32_rounds_away_counts_in_float32_alone(arithmetic: Any, left: int, tmp_path: Path) -> None:
    """Logits 4096 + x_0 and 4096.5, less 4096: float32 has 12 bits left and makes a tie of a true margin of 1e-4."""
    hidden, last = nn.Linear(4, 2), nn.Linear(2, 2)
    with torch.no_grad():
        hidden.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
        hidden.bias.copy_(torch.tensor([4096.0, 4096.5]))
        last.weight.copy_(torch.eye(2))
        last.bias.fill_(-4096.0)
    model = as_onnx(chain([Reshape((4,)), hidden, nn.ReLU(), last], SHAPE), tmp_path)
    images = torch.full((2, *SHAPE), 0.5)
    images[:, 0, 0, 0] = torch.tensor([0.6, 0.55])
    data = Dataset(name="toy", split="test", images=images, labels=torch.zeros(2, dtype=torch.int64), num_classes=2)
    eps = 0.0999
    assert not OnnxRunner(model).logits(images[:1] - eps).argmax()  # a tie
    found = certify(model, data, eps, replace(QUICK, arithmetic=arithmetic))
    assert (found.certified, found.attacked, found.clean_correct) == (left, left, 2)


# -- journal -------------------------------------------------------------------------------------------------------


class StopAfter(Progress):
    """Ctrl-C after some groups."""

    def __init__(self, groups: int) -> None:
        self.groups, self.stage = groups, ""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.stage = stage

    def advance(self, amount: int = 1, note: str = "") -> None:
        if self.stage == "groups":
            self.groups -= amount
            if self.groups < 0:
                raise KeyboardInterrupt

    def finish(self) -> None:
        return None


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Certificate]:
    """certify on a toy with 8 groups in chunks of 3 groups, journal at tmp_path/journal.jsonl."""
    monkeypatch.setattr(chunks, "CHUNK_INPUTS", 9)
    network = tiny_chain(5)
    data, model = data_for(network, 24, 5), as_onnx(network, tmp_path)

    def call(*, eps: float = 0.2, settings: CertifySettings = QUICK, **more: Any) -> Certificate:
        return certify(model, data, eps, settings, journal=tmp_path / "journal.jsonl", **more)

    return call


@pytest.mark.parametrize("stop", [0, 4, 7])
def test_resume_equals_an_uninterrupted_run(stop: int, run: Callable[..., Certificate], tmp_path: Path) -> None:
    whole = comparable(run())
    journal = tmp_path / "journal.jsonl"
    journal.unlink()
    with pytest.raises(InterruptedRunError) as raised:
        run(progress=StopAfter(stop))
    assert f"stopped after {stop + 1} of 8 groups; continue with --resume" in str(raised.value)
    assert raised.value.exit_code == 5
    before = journal.read_text()
    assert len(before.splitlines()) == 1 + stop + 1
    assert comparable(run(resume=True)) == whole
    assert journal.read_text().startswith(before)
    assert comparable(run(resume=True)) == whole  # finished: nothing is left to do
    assert journal.read_text().count("finished") == 1


def test_a_torn_last_line_is_dropped(run: Callable[..., Certificate], tmp_path: Path) -> None:
    whole = comparable(run())
    journal = tmp_path / "journal.jsonl"
    journal.write_text(journal.read_text()[:-60])
    assert comparable(run(resume=True)) == whole
    for line in journal.read_text().splitlines():
        json.loads(line)


def test_without_resume_a_finished_journal_is_replaced_and_an_unfinished_one_is_kept(
    run: Callable[..., Certificate], tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    run()
    run(eps=0.1)
    assert '"eps": 0.1' in journal.read_text().splitlines()[0]
    with pytest.raises(InterruptedRunError):
        run(eps=0.2, progress=StopAfter(2))
    kept = journal.read_text()
    with pytest.raises(UsageError, match=r"holds an unfinished run of 3 groups; continue it with --resume"):
        run(eps=0.2)
    assert journal.read_text() == kept


def test_the_attack_depends_on_seed_and_chunk_and_not_on_what_was_done_before(
    run: Callable[..., Certificate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    honest = chunks.attack_groups

    def spied(*args: Any, **more: Any) -> tuple[Tensor, Tensor]:
        if more.get("starts") is None:
            seeds.append(next(a for a in args if isinstance(a, torch.Generator)).initial_seed())
        return honest(*args, **more)

    def of_run(**more: Any) -> list[int]:
        seeds.clear()
        (tmp_path / "journal.jsonl").unlink(missing_ok=True)
        run(settings=replace(QUICK, **more))
        return list(seeds)

    monkeypatch.setattr(chunks, "attack_groups", spied)
    first, again, other = of_run(), of_run(), of_run(seed=1)
    assert len(set(first)) == 3
    assert first == again
    assert not set(first) & set(other)
    (tmp_path / "journal.jsonl").unlink()
    with pytest.raises(InterruptedRunError):
        run(progress=StopAfter(4))
    seeds.clear()
    run(resume=True)
    assert seeds == first[1:]


def test_resume_without_a_journal_starts_one(run: Callable[..., Certificate], tmp_path: Path) -> None:
    assert run(resume=True).inputs == 24
    assert (tmp_path / "journal.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.1}, "eps 0.2, this run has 0.1"),
        ({"settings": replace(QUICK, group_size=4)}, "group_size 3, this run has 4"),
        ({"settings": replace(QUICK, solver="highs")}, "solver 'cbc', this run has 'highs'"),
        ({"settings": replace(QUICK, limit=5)}, "limit None, this run has 5"),
    ],
)
def test_a_journal_of_another_run_is_refused(
    change: dict[str, Any], message: str, run: Callable[..., Certificate]
) -> None:
    run()
    with pytest.raises(UsageError) as raised:
        run(resume=True, **change)
    assert f"is of a run with {message}" in str(raised.value)


def test_a_journal_of_another_version_is_continued_and_one_of_another_prover_is_not(
    run: Callable[..., Certificate], tmp_path: Path
) -> None:
    whole = comparable(run())
    journal = tmp_path / "journal.jsonl"
    first, *groups = journal.read_text().splitlines()
    head = json.loads(first)
    assert head["run"]["version"] == citrus_tool.__version__

    def written_by(**fields: object) -> None:
        """The journal's first two groups, as another citrus wrote them."""
        changed = json.dumps({**head, "run": {**head["run"], **fields}})
        journal.write_text("\n".join([changed, *groups[:2]]) + "\n")

    written_by(version="0.1.0")
    before = journal.read_text()
    assert comparable(run(resume=True)) == whole
    assert journal.read_text().startswith(before)  # these groups are not judged again, and their writer stays named
    written_by(prover=head["run"]["prover"] - 1)
    with pytest.raises(UsageError, match="is of a run with prover"):
        run(resume=True)


def test_a_journal_of_other_data_or_another_model_is_refused(run: Callable[..., Certificate], tmp_path: Path) -> None:
    run()
    journal = tmp_path / "journal.jsonl"
    network = tiny_chain(5)
    other = as_onnx(tiny_chain(6), tmp_path, "other.onnx")
    with pytest.raises(UsageError, match="is of a run with model sha256"):
        certify(other, data_for(network, 24, 5), 0.2, journal=journal, resume=True)
    with pytest.raises(UsageError, match="is of a run with data sha256"):
        certify(as_onnx(network, tmp_path), data_for(network, 24, 6), 0.2, journal=journal, resume=True)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, '{"journal": 99}', "is not a journal of this citrus version"),
        (0, "hello", "line 1: is damaged ("),
        (3, '{"index": 2', "line 4: is damaged ("),
        (3, '{"index": 2}', "line 4: is damaged"),
        (3, "[]", "line 4: is damaged ("),
    ],
)
def test_a_damaged_journal_is_an_error(
    line: int, text: str, message: str, run: Callable[..., Certificate], tmp_path: Path
) -> None:
    run()
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines()
    lines[line] = text
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputFileError) as raised:
        run(resume=True)
    assert message in str(raised.value)
    assert str(journal) in str(raised.value)


def test_groups_with_other_inputs_are_an_error(run: Callable[..., Certificate], tmp_path: Path) -> None:
    run()
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines()
    entry = json.loads(lines[2])
    lines[2] = json.dumps({**entry, "indices": [index + 1 for index in entry["indices"]]})
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputFileError, match="line 3: group 1 has other inputs than this run"):
        run(resume=True)


def test_a_journal_that_claims_too_much_is_an_error(run: Callable[..., Certificate], tmp_path: Path) -> None:
    run()
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines()
    entry = json.loads(lines[2])
    lines[2] = json.dumps({**entry, "certified": 99})
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(SoundnessError, match="group 1"):
        run(resume=True)


def test_a_binary_journal_is_an_error(run: Callable[..., Certificate], tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b"\xff\xfe\n\n")
    with pytest.raises(InputFileError, match="cannot be read as a journal"):
        run(resume=True)


def test_the_journals_folder_must_exist(tmp_path: Path) -> None:
    network = tiny_chain(0)
    with pytest.raises(InputFileError, match="does not exist"):
        certify(as_onnx(network, tmp_path), data_for(network, 3, 0), 0.1, journal=tmp_path / "none" / "j.jsonl")


def test_ctrl_c_without_a_journal_says_that_nothing_was_saved(tmp_path: Path) -> None:
    network = tiny_chain(0)
    with pytest.raises(InterruptedRunError, match="stopped after 2 of 4 groups; nothing was saved"):
        certify(as_onnx(network, tmp_path), data_for(network, 12, 0), 0.1, progress=StopAfter(1))


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 0}, "group_size is 0; it must be an integer of at least 1"),
        ({"limit": 0}, "limit is 0; it must be an integer of at least 1"),
        ({"threads": 0}, "threads is 0; it must be an integer of at least 1"),
        ({"attack_steps": -1}, "attack_steps is -1; it must be an integer of at least 0"),
        ({"attack_restarts": 1.5}, "attack_restarts is 1.5; it must be an integer of at least 0"),
        ({"seed": -1}, "seed is -1; it must be an integer of at least 0"),
        ({"time_limit": 0.0}, "time_limit is 0.0; it must be a positive number of seconds"),
        ({"time_limit": float("nan")}, "time_limit is nan; it must be a positive number of seconds"),
        ({"protocol": "some"}, "protocol is 'some'; choose one of all, correct"),
        ({"bounds": "best"}, "bounds is 'best'; choose one of ibp, crown"),
        ({"intermediate": "ibp"}, "intermediate is 'ibp'; choose one of crown, intersect"),
        ({"solver": "gurobi"}, "solver is 'gurobi'; choose one of cbc, highs"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        CertifySettings(**change)
    assert message in str(raised.value)


def _data(images: Tensor, classes: int, **more: Any) -> Dataset:
    labels = torch.zeros(len(images), dtype=torch.int64)
    return Dataset(name="toy", split="test", images=images, labels=labels, num_classes=classes, **more)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_data(torch.rand(2, 1, 3, 3), CLASSES), r"takes inputs of shape \(1, 2, 2\), but data toy has \(1, 3, 3\)"),
        (_data(torch.rand(2, *SHAPE), 4), "has 3 outputs, but data toy has 4 classes"),
        (_data(torch.rand(2, *SHAPE), 2), "has 3 outputs, but data toy has 2 classes"),
    ],
)
def test_data_that_does_not_fit(data: Dataset, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        certify(as_onnx(tiny_chain(0), tmp_path), data, 0.1)


def test_protocol_correct_needs_a_correct_input(tmp_path: Path) -> None:
    network = tiny_chain(0)
    data = data_for(network, 4, 0, noise=1.0)
    with pytest.raises(DataError, match="none of the first 4 inputs is classified correctly"):
        certify(as_onnx(network, tmp_path), data, 0.1, replace(QUICK, protocol="correct"))


def test_a_missing_cbc_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulp.PULP_CBC_CMD, "available", lambda self: False)
    network = tiny_chain(0)
    model, data = as_onnx(network, tmp_path), data_for(network, 4, 0)
    with pytest.raises(UsageError, match="PuLP has no CBC executable for this machine; use --solver highs"):
        certify(model, data, 0.1)
    assert certify(model, data, 0.1, replace(QUICK, solver="highs")).inputs == 4


# -- the oracle itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_chain, tiny_residual])
@pytest.mark.parametrize("seed", range(3))
def test_the_oracle_is_above_every_sample_and_attained(make: Make, seed: int) -> None:
    network = make(seed)
    data = data_for(network, 4, seed, noise=0.0)
    x, eps = data.pixels(), 0.3
    exact = fooled_at_most(network, x, data.labels, eps)
    u = (torch.rand(20000, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1) * eps
    u[:10000] = u[:10000].sign() * eps
    with torch.no_grad():
        logits = network((x[None] + u[:, None]).flatten(0, 1)).reshape(len(u), len(x), -1)
    sampled = int((logits.argmax(dim=2) != data.labels).sum(dim=1).max())
    assert sampled <= exact
    assert exact - sampled <= 1


def test_clean_margins_are_those_of_numpy() -> None:
    logits = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [0.0, 5.0, np.nan]])
    labels = np.array([0, 1, 1])
    assert individual.held(logits, labels).tolist() == [True, False, False]


def test_a_network_that_is_no_longer_the_files(tmp_path: Path) -> None:
    network = tiny_chain(0)
    model, data = as_onnx(network, tmp_path), data_for(network, 4, 0)
    with torch.no_grad():
        next(model.network.parameters()).add_(0.5)
    with pytest.raises(CheckFailedError, match="the torch network and onnxruntime differ"):
        certify(model, data, 0.1)


@pytest.mark.parametrize(("scope", "batch"), [("groups", 6), ("groups", 100), ("dataset", 6)])
def test_workers_give_the_same_result_and_proof(
    scope: Literal["groups", "dataset"], batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The groups of one batch are spread as well."""
    monkeypatch.setattr(chunks, "BRANCHED_INPUTS", batch)
    network = tiny_chain(5)
    data, model = data_for(network, 12, 5), as_onnx(network, tmp_path)
    settings = replace(QUICK, bounds="full", scope=scope, branch_nodes=8, attack_restarts=1, time_limit=30)
    alone, spread = (
        certify(model, data, 0.15, settings, proof=tmp_path / f"proof{workers}", workers=workers) for workers in (1, 2)
    )
    assert comparable(alone) == comparable(spread)
    assert check(tmp_path / "proof1", model.path).certified == check(tmp_path / "proof2", model.path).certified


@pytest.mark.parametrize("protocol", ["all", "correct"])
def test_parts_make_the_whole(
    protocol: Literal["all", "correct"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts in journals of their own, one of them unfinished, joined: what one run gives."""
    monkeypatch.setattr(chunks, "CHUNK_INPUTS", 3)
    network = tiny_chain(5)
    data, model = data_for(network, 14, 5, noise=0.3), as_onnx(network, tmp_path)
    settings = replace(QUICK, protocol=protocol)
    whole = certify(model, data, 0.2, settings)
    journals = [tmp_path / f"{number}.jsonl" for number in (1, 2)]
    parts = [
        certify(model, data, 0.2, settings, journal=path, part=(number, 2)) for number, path in enumerate(journals, 1)
    ]
    assert [group.indices for group in (*parts[0].groups, *parts[1].groups)] == [
        whole.groups[n].indices for n in (*range(0, len(whole.groups), 2), *range(1, len(whole.groups), 2))
    ]
    for name in ("inputs", "examined", "examined_correct", "clean_correct", "ibp_certified", "certified", "attacked"):
        assert sum(getattr(one, name) for one in parts) == getattr(whole, name)
    assert all(one.examined_correct == one.clean_correct < one.examined for one in parts)
    assert comparable(certify(model, data, 0.2, settings, journal=journals[0], part=(1, 2), resume=True)) == comparable(
        parts[0]
    )
    lines = journals[1].read_text().splitlines(keepends=True)
    journals[1].write_text("".join(lines[:-1]))
    joined = tmp_path / "joined.jsonl"
    assert comparable(certify(model, data, 0.2, settings, journal=joined, join=journals)) == comparable(whole)
    assert joined.read_text().endswith('{"finished": true}\n')
    with pytest.raises(UsageError, match=r"is of a run with eps 0\.2, this run has 0\.1"):
        certify(model, data, 0.1, settings, journal=tmp_path / "other.jsonl", join=journals)
    with pytest.raises(InputFileError, match="is not there, or empty; name the run folder of a part"):
        certify(model, data, 0.2, settings, journal=tmp_path / "other.jsonl", join=[tmp_path / "none.jsonl"])
    with pytest.raises(UsageError, match=r"part 1/9 of \d batches of 1 groups; parts are 1/N to N/N, N at most"):
        certify(model, data, 0.2, settings, part=(1, 9))
    with pytest.raises(UsageError, match="make the parts without them"):
        certify(model, data, 0.2, replace(settings, scope="dataset"), part=(1, 2))


def test_an_interrupted_pool_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_INPUTS", 6)
    network = tiny_chain(5)
    data, model = data_for(network, 12, 5), as_onnx(network, tmp_path)
    journal = tmp_path / "journal.jsonl"
    with pytest.raises(InterruptedRunError, match="continue with --resume"):
        certify(model, data, 0.2, journal=journal, workers=2, progress=StopAfter(1))
    resumed = certify(model, data, 0.2, journal=journal, workers=2, resume=True)
    assert comparable(resumed) == comparable(certify(model, data, 0.2))
