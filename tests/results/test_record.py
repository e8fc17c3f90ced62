"""Every result is read back as it was written, and both follow from its fields: a new one is one line."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from citrus_tool.choices.recipe import Recipe
from citrus_tool.errors import InputFileError
from citrus_tool.results.attack import AttackReport
from citrus_tool.results.certificate import Certificate, GroupResult, Status
from citrus_tool.results.comparison import Comparison, Judged, Pair
from citrus_tool.results.evaluation import Evaluation, Figures
from citrus_tool.results.evidence import Evidence, InputVerdict
from citrus_tool.results.harden import HardenReport, SpecVerdict
from citrus_tool.results.instance import Record
from citrus_tool.results.measurements import BoxLosses, Entry
from citrus_tool.results.record import Place, about, from_json, to_json
from citrus_tool.results.train import TrainReport
from citrus_tool.results.trial import Trial
from citrus_tool.threat import Threat

HERE = Place(where="here")
U = np.linspace(-0.1, 0.1, 12, dtype=np.float32).reshape(3, 2, 2)
GROUP = GroupResult(
    index=0,
    indices=(0, 1, 2),
    clean_correct=2,
    ibp_certified=0,
    individually_certified=1,
    certified=1,
    attacked=1,
    status=Status.EXACT,
    detail="found",
    stages={"all": 1.5},
    evidence=Evidence(
        labels=(4, 0, 2), verdicts=(InputVerdict.LOST, InputVerdict.PROVEN, InputVerdict.FOOLED), perturbation=U
    ),
)
CERTIFICATE = Certificate(
    model="M.onnx",
    sha256="ab",
    data="digits",
    split="test",
    data_sha256="cd",
    threat=Threat(eps=0.1, target=3),
    settings={"scope": "groups", "group_size": 3, "protocol": "all"},
    examined=3,
    examined_correct=2,
    groups=(GROUP,),
    stages={"clean": 0.25, "ibp": 1.0},
    version="0.1.0",
)
TOGETHER = dataclasses.replace(
    CERTIFICATE, settings={**CERTIFICATE.settings, "scope": "dataset"}, together=1, perturbation=U
)
FIGURES = Figures(
    standard_accuracy=97.5,
    ibp_certified_accuracy=0.0,
    certified_uap_accuracy=CERTIFICATE.certified_uap_accuracy,
    attacked_uap_accuracy=CERTIFICATE.attacked_uap_accuracy,
)
RECIPE = Recipe(method="citrus", eps=0.1, tau_ratio=0.5, epochs=6, warmup_epochs=1, ramp_epochs=2)
EPOCH = {"epoch": 1, "phase": "full", "eps": 0.1, "validation_standard_accuracy": None}
TRAINING: dict[str, Any] = {
    "out": Path("H.onnx"),
    "method": RECIPE.method,
    "eps": RECIPE.eps,
    "epochs": RECIPE.epochs,
    "seconds": 1.25,
    "best_epoch": 5,
    "data": "digits",
    "recipe": RECIPE,
    "history": [EPOCH],
    "version": "0.1.0",
}
RUN = {"command": "citrus", "commit": "ef", "machine": "m", "versions": {"torch": "2"}}
RESULTS = [
    CERTIFICATE,
    TOGETHER,
    GROUP,
    GROUP.evidence,
    FIGURES,
    HardenReport(
        model=Path("M.onnx"),
        group_size=5,
        inputs=100,
        before=FIGURES,
        after=FIGURES,
        spec=(SpecVerdict(file=Path("p.vnnlib"), images=2, eps=0.05, before="sat", after="unsat"),),
        **TRAINING,
    ),
    TrainReport(architecture="convtiny", standard_accuracy=95.5, **TRAINING),
    TrainReport(architecture="convtiny", standard_accuracy=95.5, **{**TRAINING, "recipe": {"method": "citrus"}}),
    Evaluation(
        model=Path("M.onnx"),
        data="digits",
        split="test",
        eps=0.1,
        group_size=3,
        inputs=3,
        pgd_accuracy=50.0,
        figures=FIGURES,
        certificate=CERTIFICATE,
    ),
    AttackReport(
        model=Path("M.onnx"),
        data="digits",
        split="test",
        threat=Threat(eps=0.1, clip=True),
        group_size=5,
        inputs=90,
        groups=18,
        correct=88,
        attacked=41,
        perturbations=torch.ones(18, 1, 8, 8),
    ),
    Trial(
        number=3,
        state="complete",
        parameters={"lr": 0.1, "worst": 2, "flip": True},
        standard=90.5,
        certified=None,
        best_epoch=4,
        epochs=6,
        seconds=1.5,
        validations=((0.5, 90.0, 80.0),),
    ),
    Record(onnx="M.onnx", vnnlib="p.vnnlib", timeout=30.0, verdict="sat", seconds=1.5, witness=True, note=""),
    Entry(
        contest="toy",
        method="ibp",
        recipe="12",
        seed=0,
        certifier="34",
        standard=90.0,
        certified=1.0,
        attacked=2.0,
        individually=1.0,
        ibp=0.0,
        inputs=10,
        best_epoch=1,
        train_seconds=1.0,
        certify_seconds=2.0,
        model="56",
        **RUN,
    ),
    BoxLosses(contest="toy", method="ibp", recipe="12", seed=0, own=1.0, total=2.0, largest=1.5, inputs=10, **RUN),
    Judged(name="a", path=Path("M.onnx"), standard_accuracy=90.0),
    Pair(a="a", b="b", eps=0.1, groups=2, groups_a=1, groups_b=0, inputs_a=1, inputs_b=0, p_value=1.0),
    Comparison(networks=(Judged(name="a", path=Path("M.onnx")),), pairs=()),
]


def through(text: Any) -> Any:
    """As a file gives it back."""
    return json.loads(json.dumps(text, allow_nan=False))


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_what_is_written_is_read_back(result: Any) -> None:
    given = {"index": 0, "stages": GROUP.stages} if result is GROUP else {}
    read = getattr(type(result), "from_json", functools.partial(from_json, type(result)))
    again = read(through(to_json(result)), HERE, **given)
    assert again == result
    assert to_json(again) == to_json(result)


def test_a_journal_line_is_read_back_with_its_perturbation() -> None:
    again = GroupResult.from_json(through(GROUP.to_line()), HERE)
    assert again == GROUP
    assert again.evidence is not None
    np.testing.assert_array_equal(again.evidence.perturbation, U)
    whole = Certificate.from_json(through(TOGETHER.to_json(perturbations=True)), HERE)
    np.testing.assert_array_equal(whole.perturbation, U)
    assert whole.groups[0].evidence is not None
    np.testing.assert_array_equal(whole.groups[0].evidence.perturbation, U)


@pytest.mark.parametrize("kind", sorted({type(result) for result in RESULTS}, key=lambda kind: kind.__name__))
def test_a_new_field_is_one_line(kind: type[Any]) -> None:
    """A field that a class gains is written, read, and demanded of a file, with nothing else said about it."""
    one = next(result for result in RESULTS if type(result) is kind)
    novelty = [("novelty", float)]
    grown = dataclasses.make_dataclass("Grown", novelty, bases=(kind,), frozen=True, kw_only=True, repr=False)
    fields = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    written = through(to_json(grown(**fields, novelty=0.5)))
    assert written["novelty"] == 0.5
    assert {name: value for name, value in written.items() if name != "novelty"} == through(to_json(one))
    known = {name: fields[name] for name in ("index", "stages", "examined_correct", "together") if name in fields}
    assert from_json(grown, written, HERE, **known).novelty == 0.5
    with pytest.raises(InputFileError, match="here: novelty is missing; make the result again"):
        from_json(grown, {name: value for name, value in written.items() if name != "novelty"}, HERE, **known)


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A part."""

    count: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Of every kind of field."""

    text: str
    flag: bool
    share: float
    parts: tuple[Inner, ...]
    pair: tuple[int, float]
    named: dict[str, float]
    status: Status
    maybe: int | None = about(default=None, absent=True)


WHOLE = {
    "text": "t",
    "flag": True,
    "share": 1,
    "parts": [{"count": 2}],
    "pair": [1, 2.5],
    "named": {"a": 0.5},
    "status": "exact",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": 7}, "text is 7, not text; make the result again."),
        ({"flag": 1}, "flag is 1, not true or false"),
        ({"share": True}, "share is true, not a number"),
        ({"share": float("inf")}, "share is inf; it must be finite."),
        ({"parts": {}}, "parts is {}, not a list"),
        ({"parts": [7]}, "parts[0]: is int, not an object"),
        ({"parts": [{"count": -1}]}, "parts[0]: count is -1; it must be at least 0."),
        ({"parts": [{}]}, "parts[0]: count is missing"),
        ({"pair": [1]}, "pair is [1], not a list of 2"),
        ({"pair": [1, "x"]}, 'pair[1] is "x", not a number'),
        ({"named": []}, "named is [], not an object"),
        ({"named": {"a": None}}, "named: a is null, not a number"),
        ({"status": "fine"}, "'fine' is not a valid Status"),
        ({"maybe": 1.5}, "maybe is 1.5, not a whole number"),
    ],
)
def test_what_cannot_have_been_written_is_named(change: dict[str, Any], message: str) -> None:
    whole = from_json(Outer, WHOLE, HERE)
    assert (whole.parts, whole.pair, whole.status, whole.maybe) == ((Inner(count=2),), (1, 2.5), Status.EXACT, None)
    assert to_json(whole) == WHOLE
    with pytest.raises(InputFileError) as raised:
        from_json(Outer, {**WHOLE, **change}, HERE)
    path, _, rest = str(raised.value).partition(": ")
    assert path == "here"
    assert message in rest
