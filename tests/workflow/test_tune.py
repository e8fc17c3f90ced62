"""Tuning: the space, the front, giving up, three tiny trials on digits, resuming, and every refusal."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from citrus_tool import onnx_io, plots
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import TuneSettings
from citrus_tool.choices.space import Range, Values, default_space, dimension, require_recipes
from citrus_tool.context import RunContext
from citrus_tool.data import load
from citrus_tool.errors import CheckFailedError, InputFileError, InterruptedRunError, UsageError
from citrus_tool.progress import Progress, Silent
from citrus_tool.results.trial import Trial
from citrus_tool.results.tuning import TuneReport
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.training import recipes
from citrus_tool.training.methods import METHODS
from citrus_tool.training.recipes import named
from citrus_tool.training.trainer import accuracy
from citrus_tool.workflow.recipe_choice import choose_recipe
from citrus_tool.workflow.tune import search
from citrus_tool.workflow.tune.front import front, hopeless
from citrus_tool.workflow.tune.tune import draw, tune_file

RECIPE = Recipe(
    eps=0.03,
    tau_ratio=0.5,
    epochs=3,
    warmup_epochs=0,
    ramp_epochs=1,
    lr=5e-3,
    groups_per_batch=50,
    pgd_steps=1,
    init="shi",
    certified_inputs=10,
    l1=1e-6,
)
SETTINGS = TuneSettings(trials=3, inputs=20, bounds="ibp")
SPACE = {"lr": Range(low=1e-3, high=1e-2, log=True), "worst": Values(values=(0, 1))}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


class _Stops(Progress):
    """Sends SIGINT after so many steps of training batches or certified groups."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.steps, self.stages = after, 0, []

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.stages.append(stage)

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.steps += 1
        if self.steps == self.after:
            signal.raise_signal(signal.SIGINT)

    def finish(self) -> None:
        return None


def _tune(folder: Path, **changes: Any) -> TuneReport:
    values = {
        "source": "mlp",
        "recipe": RECIPE,
        "settings": SETTINGS,
        "space": SPACE,
        **changes,
    }
    context = RunContext(
        device="cpu", run_dir=folder, resume=values.pop("resume", False), progress=values.pop("progress", Silent())
    )
    source, recipe, settings = (values.pop(name) for name in ("source", "recipe", "settings"))
    return tune_file(source, DataChoice(name="digits"), recipe, settings, context, **values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TuneReport:
    return _tune(tmp_path_factory.mktemp("whole"))


def _timeless(report: TuneReport) -> list[Trial]:
    return [dataclasses.replace(trial, seconds=0.0) for trial in report.trials]


# --- what is searched -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        ("tau_ratio=0.2:0.9", "tau_ratio", Range(low=0.2, high=0.9)),
        ("l1=1e-7:1e-4:log", "l1", Range(low=1e-7, high=1e-4, log=True)),
        ("ramp_epochs=2:9", "ramp_epochs", Range(low=2, high=9, whole=True)),
        ("worst=0,1,2", "worst", Values(values=(0, 1, 2))),
        ("lr=0.001", "lr", Values(values=(0.001,))),
        ("box_loss=sum,mean", "box_loss", Values(values=("sum", "mean"))),
        ("flip=true,false", "flip", Values(values=(True, False))),
    ],
)
def test_dimensions(text: str, name: str, wanted: Range | Values) -> None:
    assert dimension(text) == (name, wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", r"--search 'lr' says no values; write FIELD=LOW:HIGH"),
        ("lrr=1:2", r"'lrr' is no field that can be searched; did you mean lr\?"),
        ("eps=0.1:0.2", r"'eps' is no field that can be searched; "),
        ("train_on=train,all", r"'train_on' is no field that can be searched; "),
        ("zzzz=1", r"'zzzz' is no field that can be searched; fields are "),
        ("taps=1:2", r"'taps' is no field that can be searched"),
        ("lr=a:b", r"'a:b' is not what lr takes; write"),
        ("worst=0.5", r"'0.5' is not what worst takes"),
        ("flip=yes", r"'yes' is not what flip takes"),
        ("lr=2:1", r"'2:1' is no range of lr"),
        ("lr=0:1:log", r"'0:1:log' is no range of lr; .* and a log range above 0"),
        ("lr=1:2:3", r"'1:2:3' is no range of lr"),
        ("lr=0:inf", r"'0:inf' is no range of lr"),
        ("box_loss=1:2", r"'1:2' is no range of box_loss"),
    ],
)
def test_senseless_dimensions(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dimension(text)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mnist-0.1", "digits", "mnist-cpu"])
def test_the_default_space_of_every_method_makes_recipes(name: str, method: str) -> None:
    recipe = named(name, method)
    space = default_space(recipe)
    require_recipes(recipe, space)
    assert ("tau_ratio" in space) == (method in ("sabr", "staps", "citrus", "citrus-si", "kcp", "citrus-plus"))
    assert ("attack_ratio" in space) == (method in ("mtl-ibp", "cc-ibp", "exp-ibp", "citrus-plus"))
    assert ("worst" in space) == (method == "citrus-plus")


# --- the front and giving up ------------------------------------------------------------------------------------------


def _trial(number: int, standard: float, certified: float, *validations: tuple[float, float, float]) -> Trial:
    return Trial(
        number=number,
        state="complete",
        parameters={},
        standard=standard,
        certified=certified,
        best_epoch=1,
        epochs=1,
        seconds=0.0,
        validations=validations,
    )


def test_front_is_what_nothing_beats() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(0, 6, (12, 2), generator=generator).tolist()
    trials = [_trial(n, float(a), float(b)) for n, (a, b) in enumerate(points)]
    literal = set()
    for n, (a, b) in enumerate(points):
        beaten = False
        for c, d in points:
            beaten |= c >= a and d >= b and (c > a or d > b)
        if not beaten:
            literal.add(n)
    found = front([*trials, dataclasses.replace(trials[0], number=99, state="pruned", standard=None)])
    assert set(found) == literal
    assert 1 < len(found) < 12
    assert [points[n][0] for n in found] == sorted((points[n][0] for n in found), reverse=True)


def test_a_trial_is_hopeless_when_most_were_better_in_both_figures() -> None:
    def others(*figures: tuple[float, float]) -> list[Trial]:
        return [_trial(n, 0, 0, (0.5, a, b), (1.0, 99.0, 99.0)) for n, (a, b) in enumerate(figures)]

    better, mixed, worse = (60.0, 60.0), (60.0, 40.0), (40.0, 40.0)
    at = (0.5, 50.0, 50.0)
    for picked in product((better, mixed, worse), repeat=4):
        assert hopeless(at, others(*picked)) == (sum(p == better for p in picked) > 2)
    assert not hopeless(at, others(better, better, better))  # too few to tell
    assert not hopeless((0.4, 50.0, 50.0), others(*[better] * 4))  # none of them was judged so early
    assert hopeless((0.7, 50.0, 50.0), others(*[better] * 4))  # the last validation before counts


# --- a search ---------------------------------------------------------------------------------------------------------


def test_three_trials(whole: TuneReport) -> None:
    folder = whole.file.parent
    assert [trial.number for trial in whole.trials] == [0, 1, 2]
    assert all(trial.state == "complete" for trial in whole.trials)
    assert whole.trials[0].parameters == {"lr": RECIPE.lr, "worst": RECIPE.worst}
    assert len({trial.parameters["lr"] for trial in whole.trials}) == 3
    assert whole.front == front(whole.trials)
    assert sorted(path.name for path in (folder / "front").iterdir()) == sorted(f"trial_{n}.toml" for n in whole.front)
    assert {path.name for path in (folder / "trials" / "1").iterdir()} == {"model.onnx", "result.json"}
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(whole.to_json()))
    scores = {n: sum(whole.trials[n].figures()) for n in whole.front}
    assert scores[whole.best] == max(scores.values())


def test_figures_are_of_the_validation_split(whole: TuneReport) -> None:
    trial, folder = whole.trials[1], whole.file.parent
    validation = load("digits", split="validation")
    model = onnx_io.read(folder / "trials" / "1" / "model.onnx", input_shape=validation.shape)
    assert accuracy(model.network, validation) == trial.standard
    share, standard, single = trial.validations[trial.best_epoch - 2]  # the first epoch is the ramp's
    assert share == trial.best_epoch / 3
    assert standard == trial.standard
    assert 0 <= single <= 100
    assert trial.certified is not None
    assert trial.certified % 5 == 0  # of 20 inputs


def test_the_best_recipe_is_one_for_harden(whole: TuneReport) -> None:
    """As `citrus harden --recipe best.toml --eps E` reads it, in whose defaults method and init differ."""
    harden = {"method": "sabr", "init": "keep", "group_size": 5, "seed": 0}
    assert (
        choose_recipe("digits", name=str(whole.file), eps=0.03, epochs=None, changes={}, defaults=harden)
        == whole.recipe
    )
    assert whole.recipe.init == "shi"
    asked = {"method": "citrus-plus", "init": "keep"}
    other = choose_recipe("digits", name=str(whole.file), eps=0.03, epochs=None, changes=asked, defaults=harden)
    assert other == dataclasses.replace(whole.recipe, **asked)


@pytest.mark.parametrize("after", [3, 12, 24])
def test_stopped_and_resumed_is_the_same_search(tmp_path: Path, whole: TuneReport, after: int) -> None:
    """In a trial's training, in another's, and in a certificate."""
    with pytest.raises(InterruptedRunError, match=r"tuning stopped in trial \d of 3; .* again with --resume"):
        _tune(tmp_path, progress=_Stops(after))
    assert not (tmp_path / "report.json").exists()
    resumed = _tune(tmp_path, resume=True)
    assert _timeless(resumed) == _timeless(whole)
    assert resumed.recipe == whole.recipe


def test_more_trials_later(tmp_path: Path, whole: TuneReport) -> None:
    _tune(tmp_path, settings=dataclasses.replace(SETTINGS, trials=1))
    progress = _Stops()
    later = _tune(tmp_path, resume=True, progress=progress)
    assert _timeless(later) == _timeless(whole)
    assert {stage.partition(":")[0] for stage in progress.stages} == {"trial 2/3", "trial 3/3"}
    nothing = _Stops()
    assert _tune(tmp_path, resume=True, progress=nothing).to_json() == later.to_json()
    assert nothing.stages == []


def test_a_file_is_tuned_from_its_own_weights(tmp_path: Path, whole: TuneReport) -> None:
    model = whole.file.parent / "trials" / "0" / "model.onnx"
    recipe = dataclasses.replace(RECIPE, init="keep", distil=0.5)
    settings = dataclasses.replace(SETTINGS, trials=1)
    report = _tune(tmp_path, source=ModelChoice(path=model), recipe=recipe, settings=settings)
    assert report.trials[0].figures()[0] >= whole.trials[0].figures()[0] - 5
    assert recipes.read(report.file).distil == 0.5


def test_poor_trials_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def second(at: tuple[float, float, float], finished: Any) -> bool:
        seen.append(len(finished))
        return len(finished) == 1

    monkeypatch.setattr(search, "hopeless", second)
    report = _tune(tmp_path)
    assert [trial.state for trial in report.trials] == ["complete", "pruned", "complete"]
    assert report.trials[1].epochs == 2
    assert report.trials[1].standard is None
    assert 1 not in report.front
    assert seen == [0, 1, 2]  # the last epoch is never given up
    seen.clear()
    settings = dataclasses.replace(SETTINGS, prune=False, trials=1)
    _tune(tmp_path / "whole", settings=settings)
    assert seen == []


def test_a_failed_trial_says_why_and_the_search_goes_on(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, trials=5)
    report = _tune(tmp_path, space={"lr": Values(values=(RECIPE.lr, 1e30))}, settings=settings)
    assert {trial.parameters["lr"]: trial.state for trial in report.trials} == {RECIPE.lr: "complete", 1e30: "failed"}
    failed = next(trial for trial in report.trials if trial.state == "failed")
    assert "training diverged" in failed.reason
    with pytest.raises(CheckFailedError, match="no trial was completed; training diverged: "):
        _tune(tmp_path / "all", space={"lr": Values(values=(1e30,))}, settings=dataclasses.replace(SETTINGS, trials=1))
    excluded = {"epochs": Values(values=(2,)), "ramp_epochs": Values(values=(2,))}
    with pytest.raises(CheckFailedError, match="no trial was completed; 0 warm-up and 2 ramp epochs leave none of 2"):
        _tune(tmp_path / "none", space=excluded, settings=dataclasses.replace(SETTINGS, trials=1))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"study\.db already holds a search; add --resume or choose another --run-dir"),
        ({"resume": True, "recipe": dataclasses.replace(RECIPE, alpha=0.3)}, "another search: recipe field alpha"),
        ({"resume": True, "space": {"lr": SPACE["lr"]}}, "another search: space of worst differs"),
        ({"resume": True, "settings": dataclasses.replace(SETTINGS, inputs=30)}, "another search: inputs differs"),
        ({"resume": True, "source": "convtiny"}, "another search: network differs"),
    ],
)
def test_another_search_is_not_continued(whole: TuneReport, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _tune(whole.file.parent, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume": True}, "there is no search to continue; leave out --resume"),
        ({"space": {}}, "nothing is searched; name a field with --search"),
        ({"space": {"alpha": Range(low=0.5, high=1.5)}}, r"--search alpha: 1.5 makes no recipe: alpha is 1.5; it must"),
        ({"recipe": dataclasses.replace(RECIPE, distil=1.0)}, "distil needs a trained network to learn from"),
        ({"space": {"distil": Range(low=0, high=1)}}, "--search distil: an architecture from scratch has no trained"),
        (
            {"recipe": dataclasses.replace(RECIPE, train_on="all")},
            'train_on is "all", which leaves no validation split',
        ),
        ({"plot": Path("front.pdf")}, r"front\.pdf: plots are written as \.svg or \.png"),
    ],
)
def test_senseless_searches(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _tune(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trials": 0}, "trials is 0; it must be at least 1"),
        ({"inputs": 0}, "inputs is 0; it must be at least 1"),
        ({"weight": 1.5}, r"weight is 1.5; it must lie in \[0, 1\]"),
    ],
)
def test_senseless_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TuneSettings(**values)


def test_a_file_that_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("a letter")
    with pytest.raises(InputFileError, match=r"study\.db: is no study; name another --storage"):
        _tune(tmp_path, resume=True)


def test_a_lost_or_damaged_result_is_named(tmp_path: Path) -> None:
    _tune(tmp_path, settings=dataclasses.replace(SETTINGS, trials=1))
    path = tmp_path / "trials" / "0" / "result.json"
    kept = path.read_text()
    path.write_text("{}")
    with pytest.raises(InputFileError, match=r"result\.json: is no trial's result"):
        _tune(tmp_path, resume=True)
    plain = json.loads(kept)
    path.write_text(json.dumps({**plain, "parameters": {**plain["parameters"], "lr": 1.0}}))
    with pytest.raises(InputFileError, match=r"is no trial's result \(the study has other parameters\)"):
        _tune(tmp_path, resume=True)
    with pytest.raises(UsageError, match="already holds another search's trials; choose another --run-dir"):
        _tune(tmp_path, storage=tmp_path / "other.db")
    path.unlink()
    with pytest.raises(InputFileError, match=r"result\.json: cannot be read .*; the study and its run folder belong"):
        _tune(tmp_path, resume=True)


# --- the plot ---------------------------------------------------------------------------------------------------------


def test_plot(tmp_path: Path, whole: TuneReport) -> None:
    for name in ("a.svg", "b.svg", "c.png"):
        draw(whole, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert "standard accuracy, validation split (%)" in text
    assert "the recipe as it stands" in text
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_plots_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="plots need matplotlib, which is missing"):
        plots.require(tmp_path / "a.svg")
