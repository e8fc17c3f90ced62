"""The published properties beside the checkout: all parse, and agree with an independent regex reader."""

from __future__ import annotations

import csv
import re
from fractions import Fraction
from pathlib import Path

import pytest

from citrus_tool.queries import parse, read, text1, text2
from citrus_tool.queries.verify import Verdict, read_models, verify
from tests.queries.literal_queries import boxes, plain_text

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "vnnlib"
FILES = sorted(FOLDER.glob("*/*.vnnlib*"))
needs_files = pytest.mark.skipif(
    not FILES, reason="needs the published properties in ../shared/vnnlib, which is absent"
)


@needs_files
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name[:28]}")
def test_published_property(path: Path) -> None:
    spec, text = read(path), plain_text(path)
    lower, upper = boxes(text)
    box = spec.common_case.boxes["X"]
    count = len(re.findall(r"declare-const X_", text))
    assert box.lower.shape == (count,) == (len(lower),) == (len(upper),)
    for index in range(count):
        assert Fraction(box.lower[index]) <= lower[index] <= Fraction(box.inner_lower[index])
        assert Fraction(box.inner_upper[index]) <= upper[index] <= Fraction(box.upper[index])
    pairs = re.findall(r"\(([<>]=) Y_(\d+) Y_(\d+)\)", text)
    wanted = {(int(a), int(b)) if relation == "<=" else (int(b), int(a)) for relation, a, b in pairs}
    rows = [*spec.common_case.outputs, *(row for clause in spec.clauses for part in clause for row in part)]
    # small <= large has coefficient 1 at small and -1 at large
    assert {tuple(v.flat for v, _ in sorted(row.terms, key=lambda t: -t[1])) for row in rows} == wanted
    assert spec.is_box()
    assert spec.case_count == max(1, text.count("(and"))
    least, greatest = spec.rounded().common_case.boxes["X"].float32()
    assert (least <= greatest).mean() > 0.99  # the scorer's reading leaves room for a float32 witness


@needs_files
@pytest.mark.parametrize("path", FILES[::7], ids=lambda path: path.name[:28])
def test_round_trips(path: Path) -> None:
    spec = read(path)
    assert parse(text1(spec)) == spec
    assert parse(text2(spec)) == spec


@needs_files
def test_every_listed_instance_is_there() -> None:
    listed = {
        (table.parent / row[1]).resolve()
        for table in FOLDER.glob("*/instances.csv")
        for row in csv.reader(table.read_text().splitlines())
    }
    assert listed == {path.resolve() for path in FILES}


@needs_files
@pytest.mark.slow
@pytest.mark.parametrize("index", [56, 7167, 7955])
def test_the_sigmoid_network_is_proven(shared_models: Path, index: int) -> None:
    """CROWN alone proves the first; optimised slopes prove all, about 15 s of CPU each."""
    spec = read(FOLDER / "eran" / f"mnist_spec_idx_{index}_eps_0.01200.vnnlib.gz")
    models = read_models(spec, {"N": shared_models / "mnist_ffnnSIGMOID__Point_6x200.onnx"})
    assert verify(spec, models).verdict is Verdict.UNSAT
