"""`tune_file`: a search from its inputs to the recipes that come out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from citrus_tool import architectures, files, onnx_io, plots
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import TuneSettings
from citrus_tool.choices.space import Space, default_space, require_recipes, with_fields
from citrus_tool.context import RunContext
from citrus_tool.devices import resolved
from citrus_tool.errors import CheckFailedError, UsageError
from citrus_tool.network import Network
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.results.trial import Trial
from citrus_tool.results.tuning import TuneReport
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.training import recipes
from citrus_tool.workflow.recipe_choice import require_no_teacher
from citrus_tool.workflow.run_folder import save_settings
from citrus_tool.workflow.tune.front import front
from citrus_tool.workflow.tune.search import Tuning
from citrus_tool.workflow.tune.study import require_place

BEST: Final = "best.toml"
"""The file of the chosen recipe in the run folder."""


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
    require_recipes(recipe, space)
    files.require_writable_folder(run_dir)
    search = Tuning(
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
    require_place(search.storage, search.trials, resume=context.resume)
    save_settings(run_dir, context.effective)
    trials = search.run()
    report = _report(recipe, settings, space, choice.name, trials, run_dir)
    files.write_json(run_dir / "report.json", report.to_json())
    if plot is not None:
        draw(report, plot)
    return report


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
    chosen = {n: with_fields(base, by_number[n].parameters) for n in numbers}
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
