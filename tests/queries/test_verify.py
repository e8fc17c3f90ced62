"""verify against exact answers on tiny networks: UAP queries, mixed constraints, boxes that differ, several files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import citrus_tool.queries.verify as verify_module
from citrus_tool.bounds.execution import FoldedExecution
from citrus_tool.bounds.workspace import Schedule
from citrus_tool.errors import UsageError
from citrus_tool.network import INPUT, chain
from citrus_tool.onnx_io import export
from citrus_tool.queries import Spec, parse, prove, uap_query
from citrus_tool.queries.formula import Columns, Formula, with_rows, with_targets
from citrus_tool.queries.question import Files, Replay, questions
from citrus_tool.queries.verify import Answer, Verdict, read_models, verify
from tests.queries.exact_queries import Tiny, slack, tiny

CLEAR = 1e-3
"""Queries whose exact slack is nearer to 0 than this are left out: rounding may decide them either way."""


def answer(spec: Spec, networks: dict[str, Tiny], seconds: float = 60.0) -> Answer:
    models = read_models(spec, {name: network.path for name, network in networks.items()})
    found = verify(spec, models, seconds=seconds)
    if found.verdict is Verdict.SAT:
        assert found.witness is not None
        replay = Replay.of(Files.of(spec, models))
        inputs = {name: found.witness[name] for name in spec.inputs}
        assert replay.judge(replay.run(inputs)).holds
    return found


def agrees(spec: Spec, networks: dict[str, Tiny]) -> str:
    """Asserts that a clear query is decided as it should be; returns the verdict, or "close"."""
    exact = slack(spec, networks)
    found = answer(spec, networks)
    if abs(exact) < CLEAR:
        return "close"
    assert found.verdict is (Verdict.SAT if exact > 0 else Verdict.UNSAT), (exact, found)
    return found.verdict.value


def test_uap_queries(tmp_path: Path) -> None:
    verdicts = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        k = 1 + seed % 3
        network = tiny(tmp_path / f"{seed}.onnx", seed, inputs=3, hidden=2, outputs=3)
        images = rng.random((k, 1, 3)).astype(np.float32)
        logits = np.maximum(images.reshape(k, 3) @ network.w1.T + network.b1, 0) @ network.w2.T + network.b2
        spec = uap_query(images, logits.argmax(1).tolist(), float(rng.choice([0.1, 0.5, 1.0])), 3)
        verdicts.append(agrees(spec, {"f1": network}))
    assert verdicts.count("sat") >= 3
    assert verdicts.count("unsat") >= 3


def test_a_joint_proof_that_no_copy_gives_alone(tmp_path: Path) -> None:
    """Each copy can be fooled, but not both by one u: only the shared input refutes this."""
    found = 0
    for seed in range(24):
        network = tiny(tmp_path / f"{seed}.onnx", seed, inputs=2, hidden=3, outputs=2)
        rng = np.random.default_rng(seed)
        images = rng.random((2, 1, 2)).astype(np.float32)
        logits = np.maximum(images.reshape(2, 2) @ network.w1.T + network.b1, 0) @ network.w2.T + network.b2
        labels = logits.argmax(1).tolist()
        both = uap_query(images, labels, 0.5, 2)
        alone = [uap_query(images[i : i + 1], labels[i : i + 1], 0.5, 2) for i in range(2)]
        if slack(both, {"f1": network}) < -CLEAR and all(slack(one, {"f1": network}) > CLEAR for one in alone):
            assert answer(both, {"f1": network}).verdict is Verdict.UNSAT
            found += 1
    assert found >= 2


def declared(k: int = 1) -> str:
    return "(vnnlib-version <2.0>)" + "".join(
        f"(declare-network f{i} (declare-input X{i} real [1,2]) (declare-output Y{i} real [1,2]))"
        for i in range(1, k + 1)
    )


@pytest.mark.parametrize("seed", range(6))
def test_mixed_constraints_and_boxes_that_differ(tmp_path: Path, seed: int) -> None:
    network = tiny(tmp_path / "n.onnx", seed, inputs=2, hidden=4, outputs=2)
    bound = np.random.default_rng(seed).normal(size=3).round(2)
    spec = parse(
        declared()
        + "(assert (or (and (>= X1[0,0] 0.0) (<= X1[0,0] 0.5) (>= X1[0,1] -1.0) (<= X1[0,1] 0.0))"
        + "            (and (>= X1[0,0] 0.7) (<= X1[0,0] 1.0) (>= X1[0,1] 0.2) (<= X1[0,1] 0.9))))"
        + f"(assert (<= (+ Y1[0,0] (* 2.0 X1[0,0])) {bound[0]}))"
        + f"(assert (or (>= Y1[0,1] {bound[1]}) (and (<= Y1[0,1] {bound[2]}) (>= Y1[0,0] X1[0,1]))))"
    )
    agrees(spec, {"f1": network})


@pytest.mark.parametrize("seed", range(4))
def test_two_networks_with_inputs_of_their_own(tmp_path: Path, seed: int) -> None:
    networks = {f"f{i}": tiny(tmp_path / f"{i}.onnx", 10 * seed + i, inputs=2, hidden=3, outputs=2) for i in (1, 2)}
    box = "".join(f"(assert (>= X{i}[0,{j}] 0.0)) (assert (<= X{i}[0,{j}] 1.0))" for i in (1, 2) for j in (0, 1))
    bound = round(float(np.random.default_rng(seed).normal()), 2)
    spec = parse(declared(2) + box + f"(assert (>= (- Y1[0,0] Y2[0,1]) {bound})) (assert (<= Y2[0,0] Y1[0,1]))")
    agrees(spec, networks)


def test_layers_of_a_formula_are_its_value() -> None:
    """The margins of `with_targets` are all positive exactly where the formula fails, with and without a case list."""
    generator = torch.Generator().manual_seed(0)
    base = chain([torch.nn.Linear(3, 4)], (3,)).frozen(dtype=torch.float64)
    for size in (2, 9):  # 9^2 conjunctions are too many for a list
        count = 2 * size + 3
        formula = Formula(
            outputs=torch.randn(count, 4, generator=generator, dtype=torch.float64),
            inputs=torch.randn(count, 3, generator=generator, dtype=torch.float64),
            bound=torch.randn(count, generator=generator, dtype=torch.float64) + 1.5,
            error=torch.zeros(count, 7, dtype=torch.float64),
            clauses=(
                tuple((i, count - 1) for i in range(size)),
                tuple((size + i,) for i in range(size)),
                ((count - 3, count - 2),),
            ),
        )
        assert (formula.cases() is None) == (size == 9)
        z = torch.randn(200, 3, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            y = base(z)
            value = formula.value(y, z)
            logits = with_targets(base, formula)(z)
            assert torch.allclose(-logits[:, 1:].amax(1), value)
            rows = with_rows(base, formula, list(range(count)))(z)
        assert torch.allclose(-rows[:, 1:], formula.rows(y, z))
        assert bool((value > 0).any() and (value < 0).any())


def test_a_failing_row_leaves_its_conjunctions() -> None:
    columns = Columns(outputs={"Y": 0}, inputs={INPUT: 0}, output_size=1, input_size=1)
    empty = Formula.of((), [], columns)
    formula = Formula(
        outputs=torch.ones(3, 1),
        inputs=torch.zeros(3, 1),
        bound=torch.zeros(3),
        error=torch.zeros(3, 2),
        clauses=(((0,), (1, 2)),),
    )
    assert not empty.refuted
    assert formula.without([0]).clauses == (((1, 2),),)
    assert not formula.without([1]).refuted
    assert formula.without([0, 2]).refuted


def test_an_empty_box_and_a_formula_that_is_always_true(tmp_path: Path) -> None:
    network = {"f1": tiny(tmp_path / "n.onnx", 0, inputs=2, hidden=2, outputs=2)}
    box = "".join(f"(assert (>= X1[0,{j}] 0.0)) (assert (<= X1[0,{j}] 1.0))" for j in (0, 1))
    anything = parse(declared() + box)
    assert answer(anything, network).verdict is Verdict.SAT
    nothing = parse(declared() + box + "(assert (>= X1[0,0] 2.0))")
    assert answer(nothing, network).verdict is Verdict.UNSAT


def test_a_point_box_is_decided_by_the_replay(tmp_path: Path) -> None:
    network = {"f1": tiny(tmp_path / "n.onnx", 3, inputs=2, hidden=2, outputs=2)}
    point = "".join(f"(assert (>= X1[0,{j}] 0.1)) (assert (<= X1[0,{j}] 0.1))" for j in (0, 1))
    for relation in ("<=", ">="):
        found = answer(parse(declared() + point + f"(assert ({relation} Y1[0,0] Y1[0,1]))"), network).verdict
        assert found in (Verdict.UNSAT, Verdict.UNKNOWN, Verdict.SAT)
    verdicts = {
        answer(parse(declared() + point + f"(assert ({relation} Y1[0,0] Y1[0,1]))"), network).verdict
        for relation in ("<=", ">=")
    }
    assert Verdict.UNSAT in verdicts  # one of the two order relations fails at the point


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "network 'f1' has no file"),
        ({"f1": 2, "g": 2}, "declares no network 'g'"),
        ({"f1": 3}, "X1 has 2 entries"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, given: dict[str, int], words: str) -> None:
    spec = parse(declared() + "".join(f"(assert (>= X1[0,{j}] 0.0)) (assert (<= X1[0,{j}] 1.0))" for j in (0, 1)))
    paths = {
        name: tiny(tmp_path / f"{name}.onnx", 0, inputs=size, hidden=2, outputs=2).path for name, size in given.items()
    }
    with pytest.raises(UsageError, match=words):
        verify(spec, read_models(spec, paths))


def test_a_copy_takes_no_file(tmp_path: Path) -> None:
    spec = uap_query(np.zeros((2, 1, 2), dtype=np.float32), [0, 1], 0.1, 2)
    network = tiny(tmp_path / "n.onnx", 0, inputs=2, hidden=2, outputs=2)
    with pytest.raises(UsageError, match="equal-to"):
        read_models(spec, {"f1": network.path, "f2": network.path})


def test_problems_of_a_uap_query_are_one_over_u(tmp_path: Path) -> None:
    network = tiny(tmp_path / "n.onnx", 1, inputs=2, hidden=2, outputs=3)
    images = np.random.default_rng(0).random((3, 1, 2)).astype(np.float32)
    spec = uap_query(images, [0, 1, 2], 0.25, 3)
    (question,) = questions(Files.of(spec, read_models(spec, {"f1": network.path})))
    assert question.network.input_shape == (2,)
    u = torch.tensor([[0.125, -0.25]], dtype=torch.float64)
    with torch.no_grad():
        shared = question.network(u)[0].reshape(3, 3).numpy()
    x = images.reshape(3, 2) + u.numpy()
    expected = np.maximum(x @ network.w1.T + network.b1, 0) @ network.w2.T + network.b2
    assert np.allclose(shared, expected)
    assert [part.tensor for part in question.parts] == ["X1", "X2", "X3"]


@pytest.mark.slow
def test_branches_agree_with_the_plain_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the box with hidden bounds of their own close what the whole box needs many splits for, and no more."""
    splits: list[int] = []
    split = FoldedExecution.split

    def counted(instance: FoldedExecution, neuron: int, schedule: Schedule) -> tuple[FoldedExecution, FoldedExecution]:
        splits.append(neuron)
        return split(instance, neuron, schedule)

    monkeypatch.setattr(FoldedExecution, "split", counted)
    verdicts = []
    for seed in range(3):
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(4, 12), torch.nn.ReLU(), torch.nn.Linear(12, 12), torch.nn.ReLU()]
        network = chain([*layers, torch.nn.Linear(12, 2)], (4,))
        path = tmp_path / f"{seed}.onnx"
        export(network, path, metadata={})
        box = "".join(f"(assert (>= X1[0,{i}] -1.0)) (assert (<= X1[0,{i}] 1.0))" for i in range(4))
        text = declared().replace("[1,2]", "[1,4]", 1) + box
        with torch.no_grad():
            reached = float(network(torch.rand(20_000, 4) * 2 - 1)[:, 0].min())
        for margin in (-0.02, 0.02):
            spec = parse(text + f"(assert (<= Y1[0,0] {reached + margin:.6f}))")
            models = read_models(spec, {"f1": path})
            with monkeypatch.context() as patch:
                patch.setattr(verify_module, "PATIENCE", 0.0)
                patch.setattr(prove, "QUICK", 0.0)
                patch.setattr(prove, "SLICE", 2)
                patch.setattr(prove, "SHORTEST", 0.0)
                branched = verify(spec, models, seconds=60).verdict
            plain = verify(spec, models, seconds=60).verdict
            assert branched is plain
            assert plain in (Verdict.SAT, Verdict.UNSAT)
            assert margin < 0 or plain is Verdict.SAT
            verdicts.append(plain)
    assert len(splits) > 3
    assert verdicts.count(Verdict.UNSAT) >= 1
