"""Proofs that `certify-uap --certificate` writes, and the checker that verifies them."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from citrus_tool.bounds.ascent import ROOT
from citrus_tool.bounds.crown import relax
from citrus_tool.bounds.execution import FoldedExecution
from citrus_tool.certification import joint_loop as loop
from citrus_tool.certification.search import MarginProblem, Search
from citrus_tool.certification.uap import certify_uap
from citrus_tool.checker.bounds import Execution, SharedNeurons, Signs, lowest
from citrus_tool.checker.check import Checked, check
from citrus_tool.checker.counting import choosable
from citrus_tool.checker.graph import AffineMap, Graph, read_graph
from citrus_tool.checker.leaves import covers
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.data import Dataset, load
from citrus_tool.errors import (
    CheckFailedError,
    InputFileError,
    InterruptedRunError,
    UnsupportedNetworkError,
    UsageError,
)
from citrus_tool.network import GraphBuilder, Network, Reshape, chain
from citrus_tool.onnx_io import OnnxModel, read
from citrus_tool.progress import Progress, Silent
from citrus_tool.results.certificate import Certificate
from citrus_tool.threat import Threat
from tests.certification.toys import SHAPE, as_onnx, data_for, tiny_chain, tiny_residual
from tests.checker.corruption import Content, Group, corrupt, pictures, products

SETTINGS = CertifySettings(
    group_size=4, bounds="full", branch_nodes=200, time_limit=60.0, attack_steps=20, attack_restarts=2
)


def deep_chain(seed: int, *, slope: float = 0.0) -> Network:
    torch.manual_seed(seed)
    act = nn.LeakyReLU(slope) if slope else nn.ReLU()
    layers = [Reshape((4,)), nn.Linear(4, 16), act, nn.Linear(16, 16), act, nn.Linear(16, 3)]
    network = chain(layers, SHAPE)
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(1.5)
        x = torch.rand(500, *SHAPE, generator=torch.Generator().manual_seed(0))
        layers[-1].bias.sub_(network(x).mean(0))  # type: ignore[operator, union-attr]
    return network.eval()


@dataclass(frozen=True, kw_only=True)
class Proven:
    model: OnnxModel
    data: Dataset
    found: Certificate
    path: Path

    def check(self, path: Path | None = None) -> Checked:
        return check(path or self.path, self.model.path, images=pictures(self.data))


def prove(
    network: Network,
    folder: Path,
    eps: float,
    *,
    count: int = 12,
    threat: Threat | None = None,
    seed: int = 0,
    settings: CertifySettings = SETTINGS,
) -> Proven:
    model, data = as_onnx(network, folder), data_for(network, count, seed)
    path = folder / "proof"
    found = certify_uap(model, data, threat or Threat(eps=eps), settings, proof=path)
    return Proven(model=model, data=data, found=found, path=path)


def agrees(proven: Proven) -> None:
    checked = proven.check()
    assert (checked.inputs, checked.certified) == (proven.found.inputs, proven.found.certified)
    assert checked.groups == len(proven.found.groups)


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Proven:
    """A proof with combinations of one and of several inputs, and with splits."""
    return prove(deep_chain(2), tmp_path_factory.mktemp("proof"), 0.08, count=24)


# --- what is accepted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["chain", "residual", "deep", "leaky"])
def test_proofs_of_random_networks_hold(kind: str, seed: int, tmp_path: Path) -> None:
    make: dict[str, Callable[[], Network]] = {
        "chain": lambda: tiny_chain(seed, hidden=12),
        "residual": lambda: tiny_residual(seed, channels=3),
        "deep": lambda: deep_chain(seed),
        "leaky": lambda: deep_chain(seed, slope=0.1),
    }
    agrees(prove(make[kind](), tmp_path, 0.1, count=8, seed=seed))


@pytest.mark.parametrize("threat", [Threat(eps=0.1, clip=True), Threat(eps=0.1, target=1)])
def test_variants_of_the_threat_hold(threat: Threat, tmp_path: Path) -> None:
    agrees(prove(deep_chain(5), tmp_path, 0.1, threat=threat, count=8))


@pytest.mark.parametrize("name", ["digits_convtiny.onnx", "digits_convtiny_citrus.onnx"])
def test_shipped_networks(name: str, repository: Path, tmp_path: Path) -> None:
    data = load("digits", split="test", limit=10)
    model = read(repository / "models" / name, input_shape=data.shape)
    found = certify_uap(model, data, Threat(eps=0.05), replace(SETTINGS, group_size=5), proof=tmp_path / "p")
    agrees(Proven(model=model, data=data, found=found, path=tmp_path / "p"))


def test_the_fixture_has_every_kind_of_proof(proven: Proven) -> None:
    groups = [group.facts for group in Content.of(proven.path).groups]
    widths = {len(proof["atoms"]) for facts in groups for proof in facts["proofs"]}
    assert {1, 2} <= widths
    assert any(facts["listed"] and any(view["steps"] for view in facts["listed"]) for facts in groups)
    assert {kind for facts in groups for kind in facts["kinds"]} == {"lost", "interval", "bounds"}
    assert any(proof["fronts"] for facts in groups for proof in facts["proofs"])
    assert any(len(group.arrays[name]) for group in Content.of(proven.path).groups for name in products(group))
    assert proven.check().leaves > proven.check().combinations
    assert proven.found.certified > proven.found.individually_certified


# --- the checker's bounds


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_at_random_points(seed: int, clip: bool, tmp_path: Path) -> None:
    network = tiny_residual(seed, channels=3) if seed else deep_chain(seed, slope=0.2)
    graph = graph_of(as_onnx(network, tmp_path), clip=clip)
    rng = np.random.default_rng(seed)
    x, radius = rng.random(4), 0.2
    execution = Execution(graph, x, radius, {}, "real")
    rows = execution.margins(0)
    units = len(execution.floor)
    assert units > 4
    for _ in range(200):
        u = rng.uniform(-radius, radius, 4) * rng.choice([1.0, 1 / rng.uniform(0.5, 1)])
        u = np.clip(u, -radius, radius)
        values = forward(graph, x + u)
        for lower, upper, value in zip(execution.lower, execution.upper, values, strict=True):
            assert bool(((lower[:, 0] <= value) & (value <= upper[:, 0])).all())
        z, h = neurons(execution, graph, values)
        exact = rows.at_v @ (u / radius) + rows.at_h @ h + rows.offset
        assert np.abs(exact - (values[-1][0] - values[-1])).max() <= rows.slack.max() + 1e-12
        low = rng.uniform(execution.floor, 1.0, (3, units))
        neuron = rng.choice(units, 2, replace=False)
        signs = Signs(
            row=np.repeat(np.arange(3), 2),
            neuron=np.tile(neuron, 3),
            side=np.tile(np.where(z[neuron] >= 0, 1.0, -1.0), 3),
            beta=rng.random(6),
        )
        first = execution.stages.get(0)
        some = np.arange(0 if first is None else first.stop)[:: int(rng.integers(1, 3))]
        share = rng.random((len(some), 4))
        planes = replace(execution.lines, above=execution.planes_above(some, share)) if len(some) else execution.lines
        for lines in (execution.lines, planes):
            a, offset = execution.plane(rows, lines, low, signs)
            assert bool((a @ (u / radius) + offset <= values[-1][0] - values[-1] + 1e-12).all())
            assert bool((lowest(a, offset) <= values[-1][0] - values[-1] + 1e-12).all())


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("members", [2, 3])
def test_what_executions_share_holds_at_random_points(members: int, clip: bool, tmp_path: Path) -> None:
    """Any coefficients, slopes and signs; and no part that holds a point is empty."""
    graph = graph_of(as_onnx(deep_chain(1, slope=0.2), tmp_path), clip=clip)
    rng = np.random.default_rng(members)
    radius, tight = 0.2, 0
    executions = [Execution(graph, x, radius, {}, "real") for x in rng.random((members, 4)) * (0.3 if clip else 1.0)]
    shared = SharedNeurons(executions, [execution.lines for execution in executions])
    assert min(map(len, shared.apart)) > 0
    for _ in range(100):
        u = rng.uniform(-radius, radius, 4)
        values = [forward(graph, execution.x + u) for execution in executions]
        z, h = zip(*(neurons(e, graph, v) for e, v in zip(executions, values, strict=True)), strict=True)
        left = [tuple(0.3 * rng.standard_normal((2, 3, len(mine)))) for mine in shared.apart]
        signs = []
        for inputs, mine in zip(z, shared.apart, strict=True):
            some = rng.choice(len(inputs), 3)
            signs.append(
                Signs(row=np.arange(3), neuron=some, side=np.where(inputs[some] >= 0, 1.0, -1.0), beta=np.zeros(3))
            )
            assert len(mine) <= len(inputs)
        least, empty = shared.least(left, signs)  # type: ignore[arg-type]
        each = [
            (w * h[m][mine] - nu * z[m][mine]).sum(1)
            for m, ((w, nu), mine) in enumerate(zip(left, shared.apart, strict=True))
        ]
        assert not empty.any()
        assert (least <= sum(each) + 1e-12).all()
        tight += int((least > sum(each) - 0.3).sum())
    assert tight > 0


def test_executions_that_share_nothing(tmp_path: Path) -> None:
    graph = graph_of(as_onnx(deep_chain(1), tmp_path))
    one = Execution(graph, np.full(4, 0.5), 0.2, {}, "real")
    rows = np.arange(one.stages[0].stop)
    above = replace(one.lines, above=one.planes_above(rows, np.ones((len(rows), 4))))
    for lines in ([one.lines], [one.lines, above]):
        shared = SharedNeurons([one] * len(lines), lines)
        assert [len(mine) for mine in shared.apart] == [0] * len(lines)
        none = Signs(row=np.zeros(0, int), neuron=np.zeros(0, int), side=np.zeros(0), beta=np.zeros(0))
        least, empty = shared.least([(np.zeros((2, 0)),) * 2] * len(lines), [none] * len(lines))
        assert (least == 0).all()
        assert not empty.any()


def graph_of(model: OnnxModel, *, clip: bool = False) -> Graph:
    form = model.contract
    return read_graph(model.path, form.pixel_shape, mean=form.mean, std=form.std, layout=form.layout, clip=clip)


def forward(graph: Graph, x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    values = [x]
    for layer in graph.layers:
        if isinstance(layer, AffineMap):
            parts = [m @ values[s] for m, s in zip(layer.matrices, layer.sources, strict=True)]
            values.append(sum(parts, layer.bias))
        else:
            z = values[layer.source]
            values.append(np.where(z > 0, z, layer.floor * z))
    return values


def neurons(
    execution: Execution, graph: Graph, values: list[NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nodes = [number for number, layer in enumerate(graph.layers, 1) if not isinstance(layer, AffineMap)]
    z, h = [], []
    for number, stage in execution.stages.items():
        layer = graph.layers[nodes[number] - 1]
        z.append(values[layer.source][stage.entry])  # type: ignore[union-attr]
        h.append(values[nodes[number]][stage.entry])
    return np.concatenate(z), np.concatenate(h)


# --- covers and the counting argument


def test_covers() -> None:
    assert covers([()])
    assert covers([((3, 1),), ((3, -1), (1, 1)), ((3, -1), (1, -1))])
    assert not covers([])
    assert not covers([((3, 1),)])  # half of it is missing
    assert not covers([((3, 1),), ((4, -1),)])  # other neurons
    assert not covers([(), ((3, 1),)])  # a part that lies in another one
    assert not covers([((3, 1),), ((3, -1), (1, 1))])


def test_the_counting_argument_agrees_with_enumeration() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        options = [[(i, label) for label in range(rng.integers(0, 4))] for i in range(rng.integers(1, 6))]
        atoms = [atom for option in options for atom in option]
        refuted = set()
        for _ in range(rng.integers(0, 12)):
            owners = rng.choice(len(options), min(len(options), int(rng.integers(1, 4))), replace=False)
            own = [[atom for atom in atoms if atom[0] == owner] for owner in owners]
            if all(own):
                refuted.add(frozenset(some[rng.integers(len(some))] for some in own))
        choices = product(*([None, *option] for option in options))
        chosen = [frozenset(atom for atom in choice if atom is not None) for choice in choices]
        best = max(len(choice) for choice in chosen if not any(old <= choice for old in refuted))
        assert choosable(options, refuted, best)
        assert not choosable(options, refuted, best + 1)


# --- what is rejected


def rejected(proven: Proven, path: Path, words: str | None = None) -> str:
    with pytest.raises(CheckFailedError, match=words) as caught:
        proven.check(path)
    return str(caught.value)


def test_content_survives_a_round_trip(proven: Proven, tmp_path: Path) -> None:
    assert proven.check(Content.of(proven.path).write(tmp_path / "c")) == proven.check()


def test_any_changed_byte_of_a_part_is_seen(proven: Proven, tmp_path: Path) -> None:
    content = bytearray(proven.path.read_bytes())
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(proven.path) as archive:
        parts = [info for info in archive.infolist() if info.filename.startswith("groups/")]
    for info in parts:
        start = info.header_offset + 30 + len(info.filename)
        place = start + int(rng.integers(info.file_size))
        changed = content.copy()
        changed[place] ^= 0x10
        (tmp_path / "c").write_bytes(changed)
        rejected(proven, tmp_path / "c")


def test_a_changed_front_page_is_seen(proven: Proven, tmp_path: Path) -> None:
    with zipfile.ZipFile(proven.path) as archive, zipfile.ZipFile(tmp_path / "c", "w") as copy:
        for name in archive.namelist():
            text = archive.read(name)
            if name == "certificate.json":
                page = json.loads(text)
                page["run"]["eps"] = (0.01).hex()
                text = json.dumps(page).encode()
            copy.writestr(name, text)
    rejected(proven, tmp_path / "c", "its digest is another")


def test_another_network(proven: Proven, tmp_path: Path) -> None:
    model = onnx.load(proven.model.path)
    weight = model.graph.initializer[0]
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] *= 1.0001
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckFailedError, match="the model: is another one"):
        check(proven.path, tmp_path / "other.onnx")


def test_a_worse_network_under_a_false_digest(proven: Proven, tmp_path: Path) -> None:
    model = onnx.load(proven.model.path)
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32:
            weight.CopyFrom(numpy_helper.from_array((values * np.float32(1.5)), weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    content = Content.of(proven.path)
    digest = hashlib.sha256((tmp_path / "other.onnx").read_bytes()).hexdigest()
    content.head["run"]["model_sha256"] = digest
    for group in content.groups:
        group.facts["run"]["model_sha256"] = digest
    with pytest.raises(CheckFailedError, match="does not hold: group"):
        check(content.write(tmp_path / "c"), tmp_path / "other.onnx")


def test_a_larger_eps(proven: Proven, tmp_path: Path) -> None:
    content = Content.of(proven.path)
    for run in (content.head["run"], *(group.facts["run"] for group in content.groups)):
        run["eps"] = (0.1).hex()
    rejected(proven, content.write(tmp_path / "c"), "does not hold: group")


def test_a_group_of_another_run(proven: Proven, tmp_path: Path) -> None:
    content = Content.of(proven.path)
    content.groups[0].facts["run"]["eps"] = (0.05).hex()
    rejected(proven, content.write(tmp_path / "c"), "group 0, facts.run: is not that of the first page")


def test_the_same_group_twice(proven: Proven, tmp_path: Path) -> None:
    content = Content.of(proven.path)
    content.groups.append(Group(facts={**content.groups[0].facts, "index": 6}, arrays=content.groups[0].arrays))
    rejected(proven, content.write(tmp_path / "c"), "group 6: has inputs of an earlier group")


def test_a_changed_image_and_label(proven: Proven, tmp_path: Path) -> None:
    content = Content.of(proven.path)
    content.groups[1].arrays["images"][0, 0, 0, 0] += 2.0**-20
    rejected(proven, content.write(tmp_path / "c"), "group 1: its images or labels are not those of the data set")


def widest(content: Content) -> tuple[Group, int]:
    """A combination of several inputs, and its group."""
    found = [(group, n) for group in content.groups for n, p in enumerate(group.facts["proofs"]) if len(p["atoms"]) > 1]
    return found[0]


def deepest(content: Content) -> tuple[int, Group, int]:
    """The combination with most leaves."""
    found = [
        (len(group.arrays[f"proof{n}/depth"]), place, n)
        for place, group in enumerate(content.groups)
        for n in range(len(group.facts["proofs"]))
    ]
    _, place, number = max(found)
    return place, content.groups[place], number


def hulls(group: Group) -> list[str]:
    """The arrays of planes above."""
    return sorted(name for name in group.arrays if name.endswith("/hull"))


def drop_leaf(group: Group, number: int, leaf: int) -> None:
    names = ("alpha", "share", "depth", "split", "side", "beta")
    arrays = {name: group.arrays[f"proof{number}/{name}"] for name in names}
    owner = np.repeat(np.arange(len(arrays["depth"])), arrays["depth"])
    for name in names:
        keep = (owner if name in ("split", "side", "beta") else np.arange(len(arrays["depth"]))) != leaf
        group.arrays[f"proof{number}/{name}"] = arrays[name][keep]


def test_a_dropped_leaf(proven: Proven, tmp_path: Path) -> None:
    content = Content.of(proven.path)
    place, group, number = deepest(content)
    drop_leaf(group, number, 1)
    rejected(proven, content.write(tmp_path / "c"), f"group {place}, combination {number}: its leaves do not cover")


def test_a_leaf_with_bad_slopes_is_named(proven: Proven, tmp_path: Path) -> None:
    content = Content.of(proven.path)
    place, group, number = deepest(content)
    group.arrays[f"proof{number}/beta"][-1] = 1e4
    last = len(group.arrays[f"proof{number}/depth"]) - 1
    message = rejected(proven, content.write(tmp_path / "c"))
    assert f"group {place}, combination {number} (input" in message
    assert f"leaf {last}: is not above 0" in message


def test_a_raised_count(proven: Proven, tmp_path: Path) -> None:
    for claim in ("certified", "fooled"):
        content = Content.of(proven.path)
        facts = next(group.facts for group in content.groups if group.facts["fooled"])
        facts["certified"] += 1
        facts["fooled"] -= claim == "fooled"
        rejected(
            proven,
            content.write(tmp_path / "c"),
            "is not the 4 inputs that are not lost" if claim == "certified" else "allow that more",
        )


def test_random_single_corruptions_are_rejected(proven: Proven, tmp_path: Path) -> None:
    rng = np.random.default_rng(150)
    kinds = set()
    for number in range(150):
        content = Content.of(proven.path)
        what = corrupt(content, rng, 3)
        kinds.add(what)
        try:
            proven.check(content.write(tmp_path / "c"))
        except CheckFailedError:
            continue
        pytest.fail(f"corruption {number} of {what} was accepted")
    assert kinds >= {
        "mix",
        "part",
        "front",
        "share",
        "depth",
        "split",
        "side",
        "beta",
        "atom",
        "image",
        "fooled",
        "certified",
        "excluded",
        "type",
        "a field less",
        "a field more",
        "array: dtype",
        "array: axis",
        "array: row",
        "array: gone",
        "array: more",
    }


def test_proofs_with_planes_hold_and_need_planes_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "FACTOR_NODES", (0, 0))  # so that inputs are left for planes
    settings = replace(SETTINGS, branch_nodes=1)
    proven = prove(tiny_chain(0, hidden=12), tmp_path, 0.1, settings=settings)
    agrees(proven)
    changes = {
        "has the shape": (lambda share: share[1:], lambda share: share[:, 1:]),
        "has the type '<f4', not |u1": (lambda share: share.astype(np.float32),),
    }
    for words, change in ((words, change) for words, some in changes.items() for change in some):
        content = Content.of(proven.path)
        group = next(group for group in content.groups if hulls(group))
        name = hulls(group)[0]
        group.arrays[name] = change(group.arrays[name])
        rejected(proven, content.write(tmp_path / "c"), f"{name}: {re.escape(words)}")


def test_views_belong_to_one_input(proven: Proven, tmp_path: Path) -> None:
    content = Content.of(proven.path)
    group, number = widest(content)
    (first, _), (second, _) = group.facts["proofs"][number]["atoms"][:2]
    views = group.facts["proofs"][number]["views"]
    group.facts["views"][first].append(views[1])
    views[0] = views[1]
    assert first != second
    rejected(proven, content.write(tmp_path / "c"))


def test_weights_in_other_files(proven: Proven, tmp_path: Path) -> None:
    model = onnx.load(proven.model.path)
    onnx.save(model, tmp_path / "out.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(UnsupportedNetworkError, match="which no digest covers"):
        read_graph(tmp_path / "out.onnx", SHAPE, mean=(0.0,), std=(1.0,), layout="nchw", clip=False)


def test_damaged_and_missing_files(proven: Proven, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="none: cannot be read"):
        check(tmp_path / "none", proven.model.path)
    with pytest.raises(InputFileError, match="is no certificate"):
        check(proven.model.path, proven.model.path)
    content = Content.of(proven.path)
    del content.groups[0].facts["kinds"]
    rejected(proven, content.write(tmp_path / "c"), "group 0, facts: has no field kinds")
    (tmp_path / "cut").write_bytes(proven.path.read_bytes()[:1000])
    with pytest.raises(InputFileError, match="is no certificate"):
        proven.check(tmp_path / "cut")


# --- the writer


def test_nothing_is_closed_by_an_ascent_alone() -> None:
    """Between guard and goal the ascent's float32 bound is no claim."""
    network = deep_chain(0).frozen(dtype=torch.float64, device="cpu")
    x = torch.full((1, *SHAPE), 0.5)
    with torch.no_grad():
        relaxed = relax(network, Threat(eps=0.1).enclosure(x))
        execution = FoldedExecution.of(relaxed, 0, 0)
        problem = MarginProblem(execution=execution, classes=torch.tensor([1, 2]))
        found = execution.root(problem.classes, ROOT)[1]
        search = Search(problem=problem, guard=-1e9, goal=1e9, record=True)
        search.start(found)
        assert search.proven() == []
        assert search.leaves == []
        search = Search(problem=problem, guard=-1e9, goal=-1e9, record=True)
        search.start(found)
        assert search.proven() == [0, 1]
        assert [leaf.target for leaf in search.leaves or ()] == [0, 1]


def test_bounds_without_a_proof(tmp_path: Path) -> None:
    network = tiny_chain(0)
    model, data = as_onnx(network, tmp_path), data_for(network, 4, 0)
    for settings in (replace(SETTINGS, bounds="crown"), replace(SETTINGS, intermediate="crown")):
        with pytest.raises(UsageError, match="leave --certificate out"):
            certify_uap(model, data, Threat(eps=0.1), settings, proof=tmp_path / "p")
    builder = GraphBuilder(SHAPE)
    builder.add(Reshape((4,)))
    builder.add(nn.Linear(4, 3))
    builder.add(nn.Sigmoid())
    builder.add(nn.Linear(3, 3))
    smooth = as_onnx(builder.build(), tmp_path, "smooth.onnx")
    with pytest.raises(UsageError, match="leave --certificate out"):
        certify_uap(smooth, data, Threat(eps=0.1), SETTINGS, proof=tmp_path / "p")
    assert not (tmp_path / "p").exists()


class Stop(Progress):
    """Interrupts after a number of groups."""

    def __init__(self, groups: int) -> None:
        self.left, self.stage = groups, ""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.stage = stage

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.left -= amount if self.stage == "groups" and note else 0
        if self.left == 0:
            raise KeyboardInterrupt

    def finish(self) -> None: ...


def test_a_stopped_run_goes_on_and_gives_the_same_proof(proven: Proven, tmp_path: Path) -> None:
    path, journal = tmp_path / "p", tmp_path / "journal.jsonl"

    def run(progress: Progress | None, *, resume: bool) -> Certificate:
        threat, context = Threat(eps=0.08), RunContext(device="cpu", resume=resume, progress=progress or Silent())
        return certify_uap(proven.model, proven.data, threat, SETTINGS, context, journal=journal, proof=path)

    with pytest.raises(InterruptedRunError):
        run(Stop(3), resume=False)
    assert not path.exists()
    parts = sorted((tmp_path / "p.parts").iterdir())
    assert len(parts) == 3
    parts[1].write_bytes(b"torn")  # is found and done again
    found = run(None, resume=True)
    agrees(replace(proven, found=found, path=path))
    assert not (tmp_path / "p.parts").exists()
    assert found.certified == proven.found.certified
