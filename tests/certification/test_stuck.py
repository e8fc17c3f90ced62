"""Parts of the box with no neuron left to split: a linear program settles them where no ascent does.

The networks and images are fixed in short decimals, and the ascents take no step, so that nothing hangs on how a
machine rounds them: only the programs can close what the splits alone do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from citrus_tool.bounds.duals import Duals
from citrus_tool.bounds.workspace import Schedule
from citrus_tool.certification import joint_loop as loop
from citrus_tool.certification import search as searching
from citrus_tool.certification.execution import OpenExecution, executions
from citrus_tool.certification.joint import JointProblem
from citrus_tool.certification.joint_loop import GroupBracket, bracket_group
from citrus_tool.certification.search import Search
from citrus_tool.certification.uap import certify_uap
from citrus_tool.checker.check import check
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import Dataset
from citrus_tool.network import INPUT, Network, Reshape, chain
from citrus_tool.results.certificate import Status
from citrus_tool.threat import Threat
from tests.bounds.networks import values_at
from tests.certification.oracle import fooled_at_most
from tests.certification.toys import SHAPE, as_onnx
from tests.checker.corruption import pictures

EPS = 0.25
STILL = Schedule(steps=0)
Rows = list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A chain of three linear layers with ReLUs between them, three images, and how many of them one u fools."""

    weights: tuple[tuple[Rows, list[float]], ...]
    images: Rows
    fooled: int

    def network(self) -> Network:
        layers = [Reshape((4,)), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)]
        network = chain(layers, SHAPE)
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for layer, (weight, bias) in zip(linear, self.weights, strict=True):
                layer.weight.copy_(torch.tensor(weight))
                layer.bias.copy_(torch.tensor(bias))
        return network.eval()

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Images (3, *SHAPE) and the network's own labels (3,)."""
        x = torch.tensor(self.images).reshape(-1, *SHAPE)
        with torch.no_grad():
            return x, self.network()(x).argmax(1)

    def executions(self) -> list[OpenExecution]:
        """The images' executions with every wrong label open."""
        x, labels = self.inputs()
        wrong = [tuple(c for c in range(3) if c != label) for label in labels.tolist()]
        bounded = self.network().frozen(dtype=torch.float64, device="cpu")
        return executions(bounded, x, labels.tolist(), wrong, Threat(eps=EPS))

    def settled(self) -> GroupBracket:
        """The loop's result."""
        return bracket_group(
            self.network().frozen(dtype=torch.float32, device="cpu"),
            self.executions(),
            torch.zeros(SHAPE),
            Threat(eps=EPS),
            seconds=600.0,
            generator=torch.Generator().manual_seed(0),
            record=True,
        )


CASES = [
    Case(
        weights=(
            (
                [[1.0, -1.1, 1.2, 1.0], [1.3, -1.2, -1.0, 0.7], [-1.4, 1.5, 0.3, 0.2], [-1.3, 0.5, 0.6, 0.2]],
                [-1.0, 0.1, -0.3, -0.0],
            ),
            (
                [[0.5, -0.7, -1.4, 0.9], [1.4, -1.2, 0.1, 0.5], [-0.7, -0.3, -1.0, -0.7], [-1.4, -0.0, 0.9, 0.7]],
                [1.4, -1.3, -0.2, 1.5],
            ),
            ([[0.2, -0.4, -1.4, 0.7], [1.1, 1.2, 1.3, 0.3], [1.1, -0.4, 1.2, -0.1]], [-1.3, -1.8, -1.1]),
        ),
        images=[[0.85, 0.15, 0.9, 0.8], [0.9, 0.1, 0.15, 0.75], [0.05, 1.0, 0.6, 0.55]],
        fooled=1,
    ),
    Case(
        weights=(
            (
                [[-0.2, -0.6, -0.2, -0.4], [1.4, -1.2, -0.6, 1.3], [0.3, -1.1, 0.5, -1.2], [0.9, 0.2, -0.1, -0.8]],
                [0.8, -0.4, 0.8, -0.1],
            ),
            (
                [[0.4, -1.0, -0.6, -0.9], [0.1, -1.4, 1.2, 1.0], [1.3, -0.6, -0.1, -0.1], [-0.5, 0.5, 0.5, -0.9]],
                [-0.1, -1.2, 0.6, 0.8],
            ),
            ([[0.2, -1.3, -0.6, 0.9], [-0.7, 0.2, -1.1, -0.2], [-0.9, -1.3, -0.8, -0.6]], [-0.4, 0.8, 1.0]),
        ),
        images=[[0.45, 0.3, 0.4, 0.35], [0.95, 0.1, 0.3, 0.9], [0.6, 0.15, 0.65, 0.1]],
        fooled=2,
    ),
]


@pytest.fixture
def _no_ascent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the box get the bounds of the duals that they start from."""
    monkeypatch.setattr(searching, "CHILD", STILL)
    monkeypatch.setattr(searching, "LAST", STILL)
    monkeypatch.setattr(loop, "JOINT_ROOT", STILL)


@pytest.mark.usefixtures("_no_ascent")
@pytest.mark.parametrize("case", CASES)
def test_the_loop_is_exact_without_an_ascent(case: Case) -> None:
    x, labels = case.inputs()
    found = case.settled()
    assert found.complete
    assert not found.late
    assert found.fooled_upper == fooled_at_most(case.network(), x, labels, EPS) == case.fooled


@pytest.mark.usefixtures("_no_ascent")
@pytest.mark.parametrize("case", CASES)
def test_a_loop_with_something_left_is_not_complete(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "solve", lambda system, targets, duals: None)
    found = case.settled()
    assert found.fooled_upper > case.fooled
    assert not found.complete
    assert not found.late


@pytest.mark.usefixtures("_no_ascent")
@pytest.mark.parametrize("case", CASES)
def test_the_checker_verifies_what_programs_close(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without the programs the group's status says that a stronger bound may help, not that time was up."""
    settings = CertifySettings(group_size=3, bounds="full", branch_nodes=1, time_limit=600.0, attack_steps=5)
    x, labels = case.inputs()
    model = as_onnx(case.network(), tmp_path)
    data = Dataset(name="toy", split="test", images=x, labels=labels, num_classes=3)
    path = tmp_path / "proof"
    found = certify_uap(model, data, Threat(eps=EPS), settings, proof=path)
    assert found.certified == 3 - case.fooled
    assert [one.status for one in found.groups] == [Status.EXACT]
    assert check(path, model.path, images=pictures(data)).certified == found.certified
    monkeypatch.setattr(searching, "solve", lambda system, targets, duals: None)
    weak = certify_uap(model, data, Threat(eps=EPS), settings)
    assert weak.certified < found.certified
    assert [one.status for one in weak.groups] == [Status.BOUNDED]


@pytest.mark.usefixtures("_no_ascent")
@pytest.mark.parametrize("case", CASES)
def test_a_part_is_closed_or_its_best_point_is_judged(case: Case) -> None:
    """Parts with all signs of sampled perturbations, for two inputs: nothing closed holds a u that fools both."""
    inputs = case.executions()
    x, labels = case.inputs()
    network = case.network().frozen(dtype=torch.float64, device="cpu")
    u = (torch.rand(2000, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1) * EPS
    u[::2] = u[::2].sign() * EPS
    closed = fooled = 0
    for pair in combinations(range(len(inputs)), 2):
        members = tuple(inputs[place].member for place in pair)
        z = []
        for member, place in zip(members, pair, strict=True):
            values = {INPUT: x[place] + u, **values_at(network, (x[place] + u)[:, None])}
            z += [values[stage.source].flatten(1)[:, stage.entry] for stage in member.execution.system.stages]
        signs, part = torch.unique(torch.cat(z, dim=1) >= 0, dim=0, return_inverse=True)
        for wrong in product(*[member.rivals for member in members]):
            problem = JointProblem(members=members, combinations=(wrong,))

            def worst(some: Tensor, pair: Sequence[int] = pair, wrong: Sequence[int] = wrong) -> Tensor:
                """(s,) the larger of the margins at perturbations (s, *SHAPE)."""
                logits = [network(x[place] + some) for place in pair]
                margins = [
                    one[:, labels[place]] - one[:, rival] for one, place, rival in zip(logits, pair, wrong, strict=True)
                ]
                return torch.stack(margins).amax(0)

            inside = set(part[worst(u) <= 0].tolist())
            for number in [*sorted(inside)[:10], *(n for n in range(min(len(signs), 10)) if n not in inside)]:
                shown: list[Tensor] = []
                search = Search(
                    problem=problem,
                    guard=0.0,
                    goal=problem.goal,
                    watch=lambda bound, point, shown=shown: shown.append(point),  # type: ignore[misc]
                    record=True,
                )
                start = problem.start(1)
                given = Duals(
                    alpha=start.alpha,
                    split=torch.arange(problem.system.neurons)[:, None],
                    side=torch.where(signs[number], 1.0, -1.0)[:, None],
                    beta=torch.zeros(problem.system.neurons, 1),
                    share=start.share,
                )
                search.start_from_parts(given)
                assert search.done
                if search.proven():
                    assert number not in inside
                    assert len(search.leaves or ()) == 1
                    closed += 1
                elif number in inside:
                    points = torch.cat(shown, dim=1).T.reshape(-1, *SHAPE).double() * EPS
                    assert (worst(points) <= 1e-6).any()
                    fooled += 1
    assert closed > 20
    assert bool(fooled) == (case.fooled > 1)
