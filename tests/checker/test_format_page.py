"""The example of docs/proof-format.md is a proof, and its numbers are what the checker computes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from citrus_tool.certification.proof import front_page
from citrus_tool.checker import schema
from citrus_tool.checker.bounds import Execution, SharedNeurons, Signs, lowest
from citrus_tool.checker.check import check
from citrus_tool.checker.graph import Graph, read_graph
from citrus_tool.errors import CheckFailedError
from tests.checker.corruption import Content, Group

DTYPES = {"images": "<f4", "depth": "<i4", "alpha": "|u1", "share": "<f4", "split": "<i4", "side": "|i1", "beta": "<f4"}


@dataclass(frozen=True, kw_only=True)
class Example:
    """The page's text, and its example as files."""

    page: str
    model: Path
    proof: Path
    graph: Graph
    images: np.ndarray[Any, np.dtype[np.float64]]


def network(weights: list[Any], path: Path) -> Path:
    nodes, constants, value = [helper.make_node("Flatten", ["x"], ["v0"])], [], "v0"
    for number, weight in enumerate(weights):
        constants.append(numpy_helper.from_array(np.array(weight, dtype=np.float32), f"w{number}"))
        out = f"v{number + 1}"
        nodes.append(helper.make_node("Gemm", [value, f"w{number}"], [f"z{number}"], transB=1))
        nodes.append(helper.make_node("Relu" if number == 0 else "Identity", [f"z{number}"], [out]))
        value = out
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 1, 2])]
    outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, [1, 2])]
    graph = helper.make_graph(nodes, "example", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def example(repository: Path, tmp_path: Path) -> Example:
    page = (repository / "docs" / "proof-format.md").read_text()
    given = json.loads(re.findall(r"```json\n(.*?)```", page, re.DOTALL)[0])
    model = network(given["weights"], tmp_path / "example.onnx")
    run = {**given["run"], "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
    facts = {**given["facts"], "run": run}
    arrays = {name: np.array(value, DTYPES[name.split("/")[-1]]) for name, value in given["arrays"].items()}
    entry = {"file": "groups/group000000.npz", "sha256": "", "inputs": 2, "certified": 1}
    about = dict.fromkeys(("data", "split", "version", "protocol", "scope"), "by hand")
    head = json.loads(front_page(run, [entry], about))
    del head["digest"]
    content = Content(head=head, groups=[Group(facts=facts, arrays=arrays)], original=json.loads(json.dumps(head)))
    names = {name: run[name] for name in ("mean", "std", "layout", "clip")}
    return Example(
        page=page,
        model=model,
        proof=content.write(tmp_path / "proof"),
        graph=read_graph(model, run["shape"], **names),
        images=arrays["images"].astype(np.float64).reshape(2, 2),
    )


def test_the_example_holds(example: Example) -> None:
    found = check(example.proof, example.model)
    assert (found.inputs, found.certified, found.eps, found.arithmetic) == (2, 1, 3 / 32, "real")
    content = Content.of(example.proof)
    content.groups[0].facts |= {"fooled": 0, "certified": 2}
    with pytest.raises(CheckFailedError, match="more than the claimed 0 inputs are fooled"):
        check(content.write(example.proof), example.model)


def test_the_examples_numbers(example: Example) -> None:
    near = pytest.approx
    p, q = (Execution(example.graph, x, 3 / 32, {}, "real") for x in example.images)
    assert p.known_lower.tolist() == near([-1 / 16, -5 / 16], abs=1e-12)
    assert p.known_upper.tolist() == near([5 / 16, 1 / 16], abs=1e-12)
    assert q.known_upper.tolist() == near([1 / 16, 5 / 16], abs=1e-12)
    assert (p.lines.low[0], p.lines.up[1], p.lines.top[1]) == near((1, 1 / 6, 5 / 96), abs=1e-12)
    rows = p.margins(0).pick(np.array([1]))
    a, offset = p.plane(rows, p.lines)
    assert (a / (3 / 32)).ravel().tolist() == near([7 / 6, -7 / 6], abs=1e-12)  # 7/6 t, with t = r (v1 - v2)
    assert offset[0] == near(3 / 32, abs=1e-12)
    assert lowest(a, offset)[0] == near(-1 / 8, abs=1e-12)
    assert p.interval_margins(0)[1, 0] == near(-1 / 16, abs=1e-12)

    shared = SharedNeurons([p, q], [p.lines, q.lines])
    assert [len(mine) for mine in shared.apart] == [2, 2]
    none = Signs(row=np.zeros(0, int), neuron=np.zeros(0, int), side=np.zeros(0), beta=np.zeros(0))
    left, total, constant = [], np.zeros((1, 2)), 0.0
    for execution, rival, apart in zip((p, q), (0, 1), shared.apart, strict=True):
        some = execution.margins(rival).pick(np.array([1 - rival]))
        a, offset, w, nu = execution.plane_apart(some, execution.lines, None, None, apart)
        left.append((w, nu))
        total, constant = total + a, constant + float(offset[0])
    assert left[0][0].ravel().tolist() == near([1, -1])
    assert left[0][1].ravel().tolist() == near([1, -1 / 6])
    assert left[1][1].ravel().tolist() == near([-1 / 6, 1])
    assert np.abs(total).max() < 1e-12
    assert constant == near(7 / 24, abs=1e-12)
    least, empty = shared.least(left, [none, none])
    assert (float(least[0]), bool(empty[0])) == (near(-10 / 96, abs=1e-12), False)
    assert constant + float(least[0]) == near(3 / 16, abs=1e-11)

    def g(t: float) -> float:
        return max(t + 1 / 8, 0) - (t + 1 / 8) - max(t - 1 / 8, 0) + (t - 1 / 8) / 6

    found = [96 * g(t) for t in (-3 / 16, -1 / 8, 1 / 8, 3 / 16)]
    assert found == near([1, -4, 0, -5], abs=1e-12)


def test_the_page_names_every_field_and_array(example: Example) -> None:
    group = check_fields()
    for name in (*schema.PAGE, *schema.NEWER, *schema.RUN, *schema.GROUP, *group, "arithmetic", "format"):
        assert f"`{name}`" in example.page, name
    for kinds, prefix in ((schema.VIEW, "viewN/"), (schema.TREE, "…/"), (schema.PRODUCTS, "proofN/")):
        for name, kind in kinds.items():
            number = {"hull": "", "part": "M", "mix": "M"}.get(name, "R" if prefix == "viewN/" else "")
            rows = [line for line in example.page.splitlines() if f"/{name}{number}`" in line.split(" | ")[0]]
            assert any(f"`{kind.dtype}`" in row for row in rows), name


def check_fields() -> set[str]:
    """The fields of a group's facts."""
    fields = {"run", "index", "indices", "labels", "rivals", "kinds", "excluded", "views", "listed", "fronts"}
    return {*fields, "proofs", "fooled", "certified", "atoms", "atom", "view", "closed", "final", "steps"}
