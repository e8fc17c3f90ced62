"""Tuning: a search for recipes, by standard and certified UAP accuracy on the validation split.

Both figures are maximised at once (Optuna's tree-structured Parzen estimators), since no one balance of them is right
for every user: what comes out is the front of recipes that no other one beats in both, and one choice of it. The first
trial is the recipe as it stands. The test split is never read.

A trial trains by `trainer.fit`, which keeps the best epoch; that network is exported and its certified UAP accuracy
proven by `certify_uap` on the first inputs of the validation split. A trial is given up when more than half of the
finished ones were better in both validation figures at the same share of their epochs; Optuna's own pruners know one
objective only.

The study is an SQLite file of Optuna's, the results of trial n stand in `trials/n/result.json`. The sampler is seeded
anew for every trial, so that a search that was stopped and resumed asks for the same recipes as one that was not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from citrus_tool import __version__, architectures, files, onnx_io, plots
from citrus_tool.certification.uap import certify_uap
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import CertifySettings, TuneSettings
from citrus_tool.context import RunContext
from citrus_tool.data import Dataset
from citrus_tool.devices import resolved
from citrus_tool.errors import CheckFailedError, InputFileError, InterruptedRunError, UsageError
from citrus_tool.names import differing, meant
from citrus_tool.network import Network
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.progress import Progress, Staged
from citrus_tool.results.trial import Scalar, Trial
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.threat import Threat
from citrus_tool.training import checkpoint, recipes, trainer
from citrus_tool.workflow.recipe_choice import require_no_teacher
from citrus_tool.workflow.run_folder import save_settings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

RANDOM_TRIALS = 8
"""Trials before the sampler reads the results of earlier ones."""
COMPARED = 4
"""Finished trials that must have been judged at a share of the run before a trial is given up there."""
BEST = "best.toml"
_STUDY = "citrus"
_TRIALS = "trials"
_SQLITE = b"SQLite format 3\x00"


@dataclass(frozen=True, kw_only=True)
class Range:
    """Every number from `low` to `high`, drawn by its logarithm when `log`; whole numbers only when `whole`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Values:
    """Any of these values."""

    values: tuple[Scalar, ...]


Space = Mapping[str, Range | Values]
"""What is searched, by field of the recipe."""

_FIXED = ("method", "eps", "train_on", "seed")
_WITH_TAU = ("sabr", "staps", "citrus", "citrus-si", "kcp", "citrus-plus")
_MIXED = ("mtl-ibp", "cc-ibp", "exp-ibp", "citrus-plus")


def default_space(recipe: Recipe) -> Space:
    """What is searched for the recipe's method: the numbers that published work tunes, in the ranges that it reports.

    The learning rate up to three times either way; L1 from 1e-7 to 1e-4; the ramp from half to twice as long; tau / eps
    where boxes have their own radius, alpha and the attack's radius where an attack's loss is mixed in, ReLU shrinking
    for SABR and the number of boxes for citrus-plus.
    """
    space: dict[str, Range | Values] = {
        "lr": Range(low=recipe.lr / 3, high=recipe.lr * 3, log=True),
        "l1": Range(low=1e-7, high=1e-4, log=True),
    }
    if recipe.ramp_epochs > 0:
        most = min(2 * recipe.ramp_epochs, recipe.epochs - recipe.warmup_epochs - 1)
        space["ramp_epochs"] = Range(low=max(1, recipe.ramp_epochs // 2), high=most, whole=True)
    if recipe.method in _WITH_TAU:
        space["tau_ratio"] = Range(low=0.05, high=1.0)
    if recipe.method in _MIXED:
        space |= {"alpha": Range(low=0.005, high=1.0, log=True), "attack_ratio": Range(low=0.5, high=2.5)}
    if recipe.method == "sabr":
        space["relu_shrink"] = Range(low=0.4, high=1.0)
    if recipe.method == "citrus-plus":
        space["worst"] = Values(values=(0, 1, 2))
    return space


def dimension(text: str) -> tuple[str, Range | Values]:
    """A field and its values from `FIELD=LOW:HIGH`, `FIELD=LOW:HIGH:log` or `FIELD=A,B,C`.

    Raises UsageError: no such field, one that is not a single number or word, or values that are none.
    """
    name, equals, given = text.partition("=")
    example = "write FIELD=LOW:HIGH, FIELD=LOW:HIGH:log or FIELD=A,B,C"
    if not equals or not given:
        raise UsageError(f"--search {text!r} says no values; {example}.")
    kinds = {
        field.name: type(value)
        for field in dataclasses.fields(Recipe)
        if isinstance(value := field.default, Scalar) and field.name not in _FIXED
    } | {"tau_ratio": float, "epochs": int}
    if name not in kinds:
        hint = meant(name, kinds, "did you mean {}?", f"fields are {', '.join(kinds)}.")
        raise UsageError(f"--search {text!r}: {name!r} is no field that can be searched; {hint}")
    kind = kinds[name]
    try:
        if ":" not in given:
            return name, Values(values=tuple(_scalar(part, kind) for part in given.split(",")))
        low, high, *rest = given.split(":")
        found = Range(low=float(low), high=float(high), log=rest == ["log"], whole=kind is int)
    except ValueError:
        raise UsageError(f"--search {text!r}: {given!r} is not what {name} takes; {example}.") from None
    ordered = math.isfinite(found.low) and math.isfinite(found.high) and found.low < found.high
    if kind not in (int, float) or rest not in ([], ["log"]) or not ordered or (found.log and found.low <= 0):
        raise UsageError(f"--search {text!r}: {given!r} is no range of {name}; {example}, and a log range above 0.")
    return name, found


def _scalar(text: str, kind: type) -> Scalar:
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError
        return text == "true"
    value: Scalar = kind(text)
    return value


@dataclass(frozen=True, kw_only=True)
class TuneReport:
    """The result of a search.

    Attributes:
        trials: all, by number; front: numbers of those that no other one beats, by falling standard accuracy.
        best: the chosen number; recipe: its recipe; file: that recipe as TOML; base: the recipe that was tuned.
    """

    base: Recipe
    settings: TuneSettings
    space: Space
    data: str
    trials: Sequence[Trial]
    front: Sequence[int]
    best: int
    recipe: Recipe
    file: Path

    def to_json(self) -> dict[str, Any]:
        """Every field, plain."""
        return {
            "method": self.base.method,
            "eps": self.base.eps,
            "data": self.data,
            "split": "validation",
            "settings": dataclasses.asdict(self.settings),
            "space": _plain(self.space),
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
            "front": list(self.front),
            "best": self.best,
            "recipe": self.recipe.to_json(),
            "recipe_file": str(self.file),
            "version": __version__,
        }


def front(trials: Sequence[Trial]) -> list[int]:
    """Numbers of the complete trials that no other one beats in one figure and equals in the other."""
    complete = [trial for trial in trials if trial.state == "complete"]
    kept = [t for t in complete if not any(_beats(other.figures(), t.figures()) for other in complete)]
    return [trial.number for trial in sorted(kept, key=lambda t: (-t.figures()[0], -t.figures()[1], t.number))]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other


def hopeless(at: tuple[float, float, float], finished: Sequence[Trial]) -> bool:
    """Whether more than half of the finished trials beat a validation in both figures at the same share of the epochs.

    A trial is read at its last validation up to that share; at least COMPARED of them must have one.
    """
    earlier = [[each for each in trial.validations if each[0] <= at[0] + 1e-9] for trial in finished]
    latest = [each[-1] for each in earlier if each]
    better = sum(each[1] > at[1] and each[2] > at[2] for each in latest)
    return len(latest) >= COMPARED and 2 * better > len(latest)


def tune_file(
    source: ModelChoice | str,
    choice: DataChoice,
    recipe: Recipe,
    settings: TuneSettings,
    context: RunContext,
    *,
    space: Space | None = None,
    storage: Path | None = None,
    plot: Path | None = None,
) -> TuneReport:
    """Searches recipes for an ONNX file, or for a named architecture from scratch, and writes the best ones.

    The run folder receives `best.toml` and one such recipe for every trial of the front (`front/`), `report.json`, the
    study (unless `storage` names its file) and a folder for every trial with its result and its network.

    Args:
        recipe: what is tuned; it is the first trial, its values moved into the space.
        space: default: `default_space(recipe)`.
        plot: a file for the front.

    Raises:
        UsageError: the space makes no recipe or the recipe trains on all data, a used folder without `resume`, or
            `resume` of another search.
        InputFileError: a file cannot be read or written.
        InterruptedRunError: Ctrl-C; `resume` goes on in the middle of the trial.
        CheckFailedError: every trial failed.
    """
    context, run_dir = resolved(context), context.folder
    if recipe.train_on != "train":
        raise UsageError(
            'train_on is "all", which leaves no validation split to tune by; tune with "train", set "all" afterwards.'
        )
    if plot is not None:
        plots.require(plot)
    train, validation = choice.load("train"), choice.load("validation")
    if isinstance(source, str):
        require_no_teacher(recipe)
        network = architectures.build(source, train.shape, train.num_classes, seed=recipe.seed)
    else:
        model = source.read(validation)
        network = model.network

    def save(trained: Network, path: Path, metadata: Mapping[str, str]) -> OnnxModel:
        if isinstance(source, str):
            return onnx_io.export(onnx_io.fold_batch_norm(trained), path, metadata=metadata)
        return onnx_io.write(dataclasses.replace(model, network=trained), path, metadata=metadata)

    space = default_space(recipe) if space is None else space
    if isinstance(source, str) and "distil" in space:
        raise UsageError("--search distil: an architecture from scratch has no trained network to learn from.")
    _require_recipes(recipe, space)
    files.require_writable_folder(run_dir)
    search = _Search(
        network=network,
        train=train,
        validation=validation,
        recipe=recipe,
        settings=settings,
        space=space,
        run_dir=run_dir,
        storage=storage or run_dir / "study.db",
        device=context.device,
        save=save,
        progress=context.progress,
    )
    search.open(context.resume)
    save_settings(run_dir, context.effective)
    trials = search.run()
    report = _report(recipe, settings, space, choice.name, trials, run_dir)
    files.write_json(run_dir / "report.json", report.to_json())
    if plot is not None:
        draw(report, plot)
    return report


def _require_recipes(recipe: Recipe, space: Space) -> None:
    """Raises UsageError when an end of a dimension makes no recipe, all others being as they stand."""
    if not space:
        raise UsageError("nothing is searched; name a field with --search.")
    for name, values in space.items():
        for value in _ends(values):
            try:
                _with(recipe, {name: value})
            except UsageError as error:
                raise UsageError(f"--search {name}: {value} makes no recipe: {error}") from None


def _ends(values: Range | Values) -> tuple[Scalar, ...]:
    if isinstance(values, Values):
        return values.values
    return (int(values.low), int(values.high)) if values.whole else (values.low, values.high)


def _moved(value: Scalar, values: Range | Values) -> Scalar:
    """The value of the space that is nearest to a recipe's; the first one where there is no order."""
    if isinstance(values, Values):
        return value if value in values.values else values.values[0]
    low, high = _ends(values)
    return min(max(value, low), high)


def _plain(space: Space) -> dict[str, Any]:
    return {name: json.loads(json.dumps(dataclasses.asdict(values))) for name, values in space.items()}


@dataclass(frozen=True, kw_only=True)
class _Search:
    """One search: what it is about and where it lives. `open` checks the study, `run` takes it to its end."""

    network: Network
    train: Dataset
    validation: Dataset
    recipe: Recipe
    settings: TuneSettings
    space: Space
    run_dir: Path
    storage: Path
    device: str
    save: Callable[[Network, Path, Mapping[str, str]], OnnxModel]
    progress: Progress

    def open(self, resume: bool) -> None:
        """Raises UsageError unless the study is new, or the same one and to be resumed."""
        if self.storage.exists() and not resume:
            raise UsageError(f"{self.storage} already holds a search; add --resume or choose another --run-dir.")
        if not self.storage.exists():
            if resume:
                raise UsageError(
                    f"{self.storage} does not exist, so there is no search to continue; leave out --resume."
                )
            if (self.run_dir / _TRIALS).exists():
                raise UsageError(f"{self.run_dir} already holds another search's trials; choose another --run-dir.")
            files.require_writable_folder(self.storage.parent)
            self.storage.parent.mkdir(parents=True, exist_ok=True)
            return
        with self.storage.open("rb") as file:
            if file.read(len(_SQLITE)) not in (_SQLITE, b""):
                raise InputFileError(f"{self.storage}: is no study; name another --storage.")

    def _study(self) -> Study:
        """The study, made when there is none; raises UsageError naming what first differs from this search."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=f"sqlite:///{self.storage.absolute()}",
            study_name=_STUDY,
            directions=["maximize", "maximize"],
            load_if_exists=True,
        )
        settings = {k: v for k, v in dataclasses.asdict(self.settings).items() if k not in ("trials", "weight")}
        origin = {
            **{f"recipe field {name}": value for name, value in self.recipe.to_json().items()},
            **{f"space of {name}": value for name, value in _plain(self.space).items()},
            **settings,
            "train data": self.train.sha256(),
            "validation data": self.validation.sha256(),
            "network": trainer.fingerprint(self.network),
        }
        before = study.user_attrs.get("origin")
        if before is None:
            study.set_user_attr("origin", origin)
            study.enqueue_trial({n: _moved(getattr(self.recipe, n), v) for n, v in self.space.items()})
        if (name := differing(before or origin, dict(sorted(origin.items())))) is not None:
            raise UsageError(f"{self.storage} holds another search: {name} differs; start a new --run-dir instead.")
        return study

    def run(self) -> list[Trial]:
        """All trials up to the wanted number; those that are there are not done again."""
        from optuna.trial import TrialState

        study = self._study()
        distributions = {name: _distribution(values) for name, values in self.space.items()}
        finished: list[Trial] = []
        while len(finished) < self.settings.trials:
            known = study.get_trials(deepcopy=False)
            finished = [self._read(trial) for trial in known if trial.state.is_finished()]
            if len(finished) >= self.settings.trials:
                break
            begun = next((trial for trial in known if trial.state == TrialState.RUNNING), None)
            if begun is None:
                study.sampler = self._sampler(len(finished))
                number = study.ask(distributions).number
                begun = study.get_trials(deepcopy=False)[number]
            found = self._trial(begun, finished)
            values = None if found.standard is None else list(found.figures())
            states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
            study.tell(found.number, values, state=states[found.state])
        self.progress.finish()
        return finished[: self.settings.trials]

    def _sampler(self, number: int) -> Any:
        from optuna.samplers import TPESampler

        digest = hashlib.sha256(f"{self.settings.seed} {number}".encode()).digest()
        return TPESampler(seed=int.from_bytes(digest[:4], "big"), n_startup_trials=RANDOM_TRIALS)

    def _folder(self, number: int) -> Path:
        return self.run_dir / _TRIALS / f"{number}"

    def _read(self, trial: FrozenTrial) -> Trial:
        """The result of a finished trial, from its folder."""
        path = self._folder(trial.number) / "result.json"
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            found = Trial(**{**plain, "validations": tuple((*each,) for each in plain["validations"])})
            if (found.number, dict(found.parameters)) != (trial.number, dict(trial.params)):
                raise ValueError("the study has other parameters")
            return found
        except OSError as error:
            raise InputFileError(
                f"{path}: cannot be read ({error.strerror}); the study and its run folder belong together."
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise InputFileError(f"{path}: is no trial's result ({error}); start a new --run-dir.") from None

    def _trial(self, trial: FrozenTrial, finished: Sequence[Trial]) -> Trial:
        """Trains and judges one recipe, from wherever its folder stands."""
        folder, parameters = self._folder(trial.number), dict(trial.params)
        if (folder / "result.json").is_file():
            return self._read(trial)
        found = Trial(
            number=trial.number,
            state="failed",
            parameters=parameters,
            standard=None,
            certified=None,
            best_epoch=0,
            epochs=0,
            seconds=0.0,
            validations=(),
        )
        recipe = _made(self.recipe, parameters)
        try:
            if isinstance(recipe, Recipe):
                found = self._judged(found, recipe, folder, finished)
            else:
                found = dataclasses.replace(found, reason=recipe)
        except trainer.DivergedError as error:
            found = dataclasses.replace(found, reason=str(error))
        except (InterruptedRunError, KeyboardInterrupt):
            raise InterruptedRunError(
                f"tuning stopped in trial {trial.number + 1} of {self.settings.trials}; its state is in {self.run_dir}:"
                " run the same command again with --resume."
            ) from None
        files.require_writable_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "result.json", dataclasses.asdict(found))
        (folder / checkpoint.FILE_NAME).unlink(missing_ok=True)
        return found

    def _judged(self, begun: Trial, recipe: Recipe, folder: Path, finished: Sequence[Trial]) -> Trial:
        comparable = [trial for trial in finished if trial.state != "failed"]

        def enough(entry: Mapping[str, Any]) -> bool:
            if not self.settings.prune or entry["epoch"] == recipe.epochs:
                return False
            return hopeless(_validation(entry, recipe), comparable)

        stage = f"trial {begun.number + 1}/{self.settings.trials}: "
        result = trainer.fit(
            self.network,
            self.train,
            self.validation,
            recipe,
            run_dir=folder,
            resume=checkpoint.exists(folder),
            device=self.device,
            progress=Staged(self.progress, stage),
            enough=enough,
        )
        judged = [e for e in result.history if e["phase"] == "full" and e["validation_standard_accuracy"] is not None]
        begun = dataclasses.replace(
            begun,
            state="pruned",
            best_epoch=result.best_epoch,
            epochs=len(result.history),
            seconds=result.seconds,
            validations=tuple(_validation(entry, recipe) for entry in judged),
        )
        if len(result.history) < recipe.epochs:
            return begun
        metadata = {"method": recipe.method, "eps": f"{recipe.eps:g}", "trial": str(begun.number)}
        model = self.save(result.network, folder / "model.onnx", metadata)
        settings = CertifySettings(
            group_size=self.settings.group_size,
            bounds=self.settings.bounds,
            limit=self.settings.inputs,
            attack_steps=0,
            attack_restarts=0,
        )
        threat = Threat(eps=recipe.eps)
        certificate = certify_uap(
            model, self.validation, threat, settings, device=self.device, progress=Staged(self.progress, stage)
        ).to_json()
        best = result.history[result.best_epoch - 1]
        return dataclasses.replace(
            begun,
            state="complete",
            standard=best["validation_standard_accuracy"],
            certified=100 * certificate["certified"] / certificate["inputs"],
        )


def _with(base: Recipe, parameters: Mapping[str, Any]) -> Recipe:
    """The recipe with these fields; raises UsageError where they make none."""
    return dataclasses.replace(base, **parameters)


def _made(base: Recipe, parameters: Mapping[str, Scalar]) -> Recipe | str:
    """The recipe with these parameters, or why there is none: ends of two ranges may exclude each other."""
    try:
        return _with(base, parameters)
    except UsageError as error:
        return str(error)


def _validation(entry: Mapping[str, Any], recipe: Recipe) -> tuple[float, float, float]:
    """A validated epoch: its share of the epochs, standard accuracy, certified accuracy of single inputs."""
    certified = entry["validation_certified_accuracy"]
    return entry["epoch"] / recipe.epochs, entry["validation_standard_accuracy"], certified or 0.0


def _distribution(values: Range | Values) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, Values):
        return CategoricalDistribution(values.values)
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _report(
    base: Recipe, settings: TuneSettings, space: Space, data: str, trials: Sequence[Trial], run_dir: Path
) -> TuneReport:
    """Chooses among the trials and writes the recipes of the front."""
    numbers = front(trials)
    if not numbers:
        reasons = sorted({trial.reason for trial in trials if trial.reason})
        raise CheckFailedError(f"no trial was completed; {reasons[0] if reasons else 'all were given up'}")
    by_number = {trial.number: trial for trial in trials}

    def score(number: int) -> float:
        standard, certified = by_number[number].figures()
        return (1 - settings.weight) * standard + settings.weight * certified

    best = max(numbers, key=score)
    chosen = {n: _with(base, by_number[n].parameters) for n in numbers}
    folder = run_dir / "front"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("trial_*.toml"):
        old.unlink()
    for number, recipe in chosen.items():
        files.write_text(folder / f"trial_{number}.toml", recipes.to_toml(recipe))
    files.write_text(run_dir / BEST, recipes.to_toml(chosen[best]))
    return TuneReport(
        base=base,
        settings=settings,
        space=space,
        data=data,
        trials=trials,
        front=numbers,
        best=best,
        recipe=chosen[best],
        file=run_dir / BEST,
    )


def draw(report: TuneReport, path: Path) -> None:
    """Plots standard against certified accuracy of every complete trial, with the front. Raises as `plots.save`."""
    figure = plots.new()
    axes = figure.subplots()
    complete = [trial for trial in report.trials if trial.state == "complete"]
    axes.scatter(*zip(*(t.figures() for t in complete), strict=True), color="0.6", label="trials")
    points = [next(t for t in complete if t.number == number).figures() for number in report.front]
    axes.plot(*zip(*points, strict=True), color="tab:blue", marker="o", drawstyle="steps-post", label="front")
    first = [trial.figures() for trial in complete if trial.number == 0]
    if first:
        axes.scatter(*first[0], color="black", marker="x", zorder=3, label="the recipe as it stands")
    best = next(trial for trial in complete if trial.number == report.best)
    axes.scatter(*best.figures(), s=140, facecolors="none", edgecolors="tab:red", zorder=3, label="chosen")
    axes.set_xlabel("standard accuracy, validation split (%)")
    axes.set_ylabel(f"certified UAP accuracy, {report.settings.inputs} inputs (%)")
    axes.set_title(f"{report.base.method}, {report.data}, eps {report.base.eps:.4g}")
    axes.legend()
    plots.save(figure, path)
