"""One perturbation for a whole data set: partitions by enumeration, counts by the exact MILP over all inputs."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from citrus_tool.certification import uap
from citrus_tool.certification.conflicts import Conflicts
from citrus_tool.certification.dataset_scope import Remainder
from citrus_tool.certification.partition import exclusive, partition, total
from citrus_tool.certification.uap import certify_uap
from citrus_tool.checker.check import check
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import Dataset
from citrus_tool.errors import InputFileError, InterruptedRunError, SoundnessError
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.results.certificate import Certificate, GroupResult, Status
from citrus_tool.threat import Threat
from tests.certification.oracle import fooled_at_most
from tests.certification.test_joint_loop import largest_by_enumeration
from tests.certification.toys import as_onnx, data_for, in_context, tiny_chain, tiny_residual

EPS = 0.15
SETTINGS = CertifySettings(
    bounds="full", scope="dataset", group_size=2, branch_nodes=8, attack_restarts=1, attack_steps=20, time_limit=5.0
)


def random_conflicts(draw: random.Random) -> Conflicts:
    """Pairs, mostly, over up to eight inputs with one or two labels."""
    count = draw.randint(1, 8)
    conflicts = Conflicts(rivals=[draw.sample(range(4), draw.choice([1, 1, 2])) for _ in range(count)])
    for _ in range(draw.randint(0, 40)):
        owners = sorted(draw.sample(range(count), min(draw.choice([1, 2, 2, 2, 2, 3]), count)))
        conflicts.add([(owner, draw.choice(conflicts.rivals[owner])) for owner in owners])
    return conflicts


def random_blocks(draw: random.Random, count: int) -> list[list[int]]:
    members = list(range(count))
    blocks: list[list[int]] = []
    while members:
        blocks.append([members.pop(0) for _ in range(min(draw.randint(1, 3), len(members)))])
    return blocks


def test_partitions_cover_and_bound_what_can_happen_and_are_no_worse_than_the_given_blocks() -> None:
    better = tight = 0
    for seed in range(200):
        draw = random.Random(seed)
        conflicts = random_conflicts(draw)
        count = len(conflicts.rivals)
        given = random_blocks(draw, count)
        found = partition(conflicts, given)
        assert sorted(member for one in found for member in one.members) == list(range(count))
        start = sum(conflicts.within(members).largest().bound for members in given)
        truth = largest_by_enumeration(conflicts)
        assert truth <= total(found) <= start, seed
        better += total(found) < start
        tight += total(found) == truth
    assert better > 60
    assert tight > 150


def test_a_clique_counts_for_one() -> None:
    conflicts = Conflicts(rivals=[[1]] * 6)
    for i in range(6):
        for j in range(i):
            if i % 2 == j % 2:
                conflicts.add([(j, 1), (i, 1)])
    found = partition(conflicts, [[0, 1], [2, 3], [4, 5]])
    assert [one.members for one in found] == [(0, 2, 4), (1, 3, 5)]
    assert total(found) == 2


def test_inputs_exclude_each_other_if_all_their_labels_do() -> None:
    conflicts = Conflicts(rivals=[[1, 2], [3], [4, 5]])
    conflicts.add([(0, 1), (1, 3)])
    assert exclusive(conflicts) == set()
    conflicts.add([(0, 2), (1, 3)])
    assert exclusive(conflicts) == {(0, 1)}
    conflicts.add([(2, 4)])
    conflicts.add([(1, 3), (2, 5)])
    assert exclusive(conflicts) == {(0, 1), (1, 2)}


def test_blocks_that_are_no_partition() -> None:
    with pytest.raises(ValueError, match="no partition"):
        partition(Conflicts(rivals=[[1], [1]]), [[0]])


def judge(model: OnnxModel, data: Dataset, **more: Any) -> Certificate:
    return certify_uap(model, data, Threat(eps=EPS), more.pop("settings", SETTINGS), **in_context(more))


@pytest.mark.parametrize("make", [tiny_chain, tiny_residual])
@pytest.mark.parametrize("seed", range(2))
def test_the_bracket_holds_the_truth_and_is_never_below_the_groups(make: Any, seed: int, tmp_path: Path) -> None:
    network = make(seed)
    model, data = as_onnx(network, tmp_path), data_for(network, 12, seed)
    found = judge(model, data, proof=tmp_path / "proof")
    apart = judge(model, data, settings=replace(SETTINGS, scope="groups"))
    correct = torch.nonzero(network(data.images).argmax(1) == data.labels).flatten()
    fooled = fooled_at_most(network.double(), data.images[correct].double(), data.labels[correct], EPS)
    truth = len(correct) - fooled
    assert apart.certified <= found.certified <= truth <= found.attacked
    assert sum(group.attacked for group in found.groups) <= found.attacked
    assert sorted(index for group in found.groups for index in group.indices) == list(range(12))
    assert (found.clean_correct, found.ibp_certified) == (apart.clean_correct, apart.ibp_certified)
    assert check(tmp_path / "proof", model.path).certified == found.certified
    assert found.to_json()["scope"] == "dataset"


def test_pairs_across_groups_are_refuted(tmp_path: Path) -> None:
    """Over some networks, the partition certifies more than the groups do, often up to the best attack."""
    gained = exact = 0
    for seed in (0, 2, 3):
        network = tiny_chain(seed)
        model, data = as_onnx(network, tmp_path), data_for(network, 10, seed)
        found, apart = judge(model, data), judge(model, data, settings=replace(SETTINGS, scope="groups"))
        gained += found.certified - apart.certified
        exact += found.certified == found.attacked
    assert gained >= 2
    assert exact >= 1


@pytest.mark.parametrize("bounds", ["ibp", "crown", "alpha"])
def test_other_bounds_keep_the_groups_and_attack_all_inputs(bounds: Any, tmp_path: Path) -> None:
    network = tiny_chain(0)
    model, data = as_onnx(network, tmp_path), data_for(network, 12, 0)
    found = judge(model, data, settings=replace(SETTINGS, bounds=bounds))
    apart = judge(model, data, settings=replace(SETTINGS, bounds=bounds, scope="groups"))
    assert found.certified == apart.certified
    assert [group.indices for group in found.groups] == [group.indices for group in apart.groups]
    assert apart.attacked <= found.attacked


def test_nothing_open_and_eps_0(tmp_path: Path) -> None:
    network = tiny_chain(1)
    model, data = as_onnx(network, tmp_path), data_for(network, 8, 1)
    found = certify_uap(model, data, Threat(eps=0.0), SETTINGS, proof=tmp_path / "proof")
    assert found.certified == found.attacked == found.clean_correct
    assert check(tmp_path / "proof", model.path).certified == found.certified


@pytest.mark.parametrize("proof", [False, True])
def test_a_stopped_run_goes_on(proof: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_chain(2)
    model, data = as_onnx(network, tmp_path), data_for(network, 12, 2)
    wanted = judge(model, data)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    more: dict[str, Any] = {"journal": tmp_path / "j", "proof": tmp_path / "proof" if proof else None}
    with monkeypatch.context() as patch:
        patch.setattr(uap, "whole_data_set", stop)
        with pytest.raises(InterruptedRunError, match="6 of 6 groups"):
            judge(model, data, **more)
    found = judge(model, data, resume=True, **more)
    assert (found.certified, found.attacked) == (wanted.certified, wanted.attacked)
    assert [group.indices for group in found.groups] == [group.indices for group in wanted.groups]


def test_a_damaged_note_is_an_error(tmp_path: Path) -> None:
    network = tiny_chain(2)
    model, data = as_onnx(network, tmp_path), data_for(network, 12, 2)
    journal = tmp_path / "j"
    judge(model, data, journal=journal)
    lines = journal.read_text().splitlines()
    line = json.loads(lines[1])
    del line["note"]["labels"]
    journal.write_text("\n".join([lines[0], json.dumps(line), *lines[2:]]) + "\n")
    with pytest.raises(InputFileError, match="a note is damaged"):
        judge(model, data, journal=journal, resume=True)


def test_open_inputs_without_labels_stop_the_run(tmp_path: Path) -> None:
    """A journal that says so would otherwise count such an input as safe."""
    network = tiny_chain(2)
    model, data = as_onnx(network, tmp_path), data_for(network, 12, 2)
    journal = tmp_path / "j"
    judge(model, data, journal=journal)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    noted = next(line for line in lines if line.get("note", {}).get("inputs"))
    noted["note"]["labels"][0] = []
    noted["note"]["refuted"] = []
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SoundnessError, match="no label that may win"):
        judge(model, data, journal=journal, resume=True)


def test_remainders_survive_a_round_trip() -> None:
    one = Remainder(
        inputs=(3, 7), rivals=((1,), (0, 2)), gaps=(0.5, 0.25), refuted=(((0, 1), (1, 2)), ((1, 0),)), u=None
    )
    assert Remainder.of(json.loads(json.dumps(one.to_json()))) == one


def test_more_certified_than_attacked_stops_the_run(tmp_path: Path) -> None:
    network = tiny_chain(3)
    found = judge(as_onnx(network, tmp_path), data_for(network, 6, 3))
    with pytest.raises(SoundnessError, match="data set: certified"):
        replace(found, together=found.certified - 1)


def test_a_group_less_its_open_inputs() -> None:
    whole = GroupResult(
        index=3,
        indices=(4, 5, 6, 7),
        clean_correct=3,
        ibp_certified=1,
        individually_certified=1,
        certified=2,
        attacked=2,
        status=Status.EXACT,
        detail="",
        stages={"IBP": 1.0},
    )
    less = whole.without(2, (4, 7), index=0)
    assert (less.clean_correct, less.certified, less.attacked, less.individually_certified) == (1, 1, 1, 1)
    assert less.indices == (4, 7)
