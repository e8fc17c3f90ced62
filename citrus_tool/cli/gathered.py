"""The options of a command, together: a command gets objects, not the words of its flags one by one."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from citrus_tool.checker.expected import Expected
from citrus_tool.choices import Tracker, fields
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import AttackSettings, CertifySettings, TuneSettings
from citrus_tool.cli import terminal
from citrus_tool.cli.config import effective, given
from citrus_tool.context import RunContext
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.threat import Threat
from citrus_tool.workflow.recipe_choice import choose_recipe

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where a command's result goes beside its run folder: the files of --json, --csv, --latex, --report and --plot,
    and the --tracker of its training curves.
    """

    json: Path | None = None
    csv: Path | None = None
    latex: Path | None = None
    report: Path | None = None
    plot: Path | None = None
    tracker: Tracker | None = None

    @property
    def on_stdout(self) -> bool:
        """Whether `--json -` puts JSON on stdout, and nothing else."""
        return terminal.is_stdout(self.json)


@dataclass(frozen=True, kw_only=True)
class RecipeChoice:
    """Which recipe: --recipe, --epochs, the fields that are set there, and the command's own for others."""

    name: str | None
    epochs: int | None
    changes: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def at(self, eps: float, data: str, **defaults: Any) -> Recipe:
        """The recipe for this radius (pixel space) and data set; raises as `choose_recipe`."""
        return choose_recipe(
            data,
            name=self.name,
            eps=eps,
            epochs=self.epochs,
            changes=self.changes,
            defaults={**self.defaults, **defaults},
        )


@dataclass(frozen=True, kw_only=True)
class SpecChoice:
    """Which VNN-LIB properties are trained for, and the seconds that the verdict on one may take."""

    specs: tuple[Path, ...]
    spec_timeout: float


@dataclass(frozen=True, kw_only=True)
class ContestChoice:
    """Which runs of a table: on this data set, at this eps, of these methods, at most so many seeds of each."""

    data_name: str | None
    eps: str | None
    methods: str | None
    seeds: int | None


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the benchmark's journal, runs, published networks and data sets lie."""

    journal: Path
    runs: Path
    models: Path | None
    data_root: Path | None


def gathered(function: F) -> F:
    """Hands a command its options together, those of these that it has a parameter for:

    `source`: MODEL, --mean and --std as a ModelChoice.  `choice`: --data, --data-root and --seed as a DataChoice.
    `threats`: a Threat for each --eps; `threat`: of the only one.  `certify`, `attack`, `tuning`: the settings.
    `recipe`: a RecipeChoice.  `spec`: a SpecChoice.  `contest`, `places`: of the benchmark.  `context`: a RunContext.
    `outputs`: Outputs, whose files can be written.

    Options that the command has no parameter for go no further. Raises as these classes do.
    """
    wanted = inspect.signature(function).parameters

    @functools.wraps(function)
    def command(**options: Any) -> Any:
        made = {name: make(options) for name, make in _MAKERS.items() if name in wanted}
        return function(**{**{name: value for name, value in options.items() if name in wanted}, **made})

    return command  # type: ignore[return-value]


def _settings(settings: type[S], options: Mapping[str, Any]) -> S:
    """The settings that the options hold, as far as the command line has options for them."""
    known = [field for field in dataclasses.fields(settings) if fields.about(field).help]  # type: ignore[arg-type]
    names = {field.name: fields.parameter(field) for field in known}
    return settings(**{name: options[option] for name, option in names.items() if option in options})


def _same(record: type[S], options: Mapping[str, Any]) -> S:
    """A record whose fields are called as the options are."""
    names = [field.name for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    return record(**{name: options[name] for name in names if name in options})


def _source(options: Mapping[str, Any]) -> ModelChoice | None:
    path = options["model"]
    return None if path is None else ModelChoice(path=path, mean=options["mean"], std=options["std"])


def _choice(options: Mapping[str, Any]) -> DataChoice | None:
    name, root, seed = options["data_name"], options["data_root"], options.get("seed", 0)
    return None if name is None else DataChoice(name=name, root=root, seed=seed)


def _threats(options: Mapping[str, Any]) -> list[Threat]:
    radii = options["eps"] if isinstance(options["eps"], tuple) else (options["eps"],)
    forms = {name: options[name] for name in ("clip", "target") if name in options}
    return [Threat(eps=eps, **forms) for eps in radii]


def _attack(options: Mapping[str, Any]) -> AttackSettings:
    alone = {"group_size": None} if options["scope"] == "dataset" else {}
    return _settings(AttackSettings, {**options, **alone})


def _recipe(options: Mapping[str, Any]) -> RecipeChoice:
    names = [field.name for field in dataclasses.fields(Recipe) if field.name in options]
    kept = ("method", "init", "group_size", "seed")
    return RecipeChoice(
        name=options["recipe"],
        epochs=options["epochs"],
        changes=given(*(name for name in names if name not in ("eps", "epochs"))),
        defaults={name: options[name] for name in kept if name in options},
    )


def _context(options: Mapping[str, Any]) -> RunContext:
    progress = terminal.progress(options["quiet"])
    names = [name for name in ("device", "run_dir", "resume", "workers", "threads") if name in options]
    return RunContext(**{name: options[name] for name in names}, progress=progress, effective=effective())


def _outputs(options: Mapping[str, Any]) -> Outputs:
    files = {name: options.get(f"{name}_path") for name in ("json", "csv", "latex", "report")}
    terminal.require_output(*files.values())
    return Outputs(**files, plot=options.get("plot"), tracker=options.get("tracker"))


_MAKERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "outputs": _outputs,
    "source": _source,
    "choice": _choice,
    "expected": functools.partial(_same, Expected),
    "threats": _threats,
    "threat": lambda options: _threats(options)[0],
    "certify": functools.partial(_settings, CertifySettings),
    "attack": _attack,
    "tuning": functools.partial(_settings, TuneSettings),
    "recipe": _recipe,
    "spec": functools.partial(_same, SpecChoice),
    "contest": functools.partial(_same, ContestChoice),
    "places": functools.partial(_same, Places),
    "context": _context,
}
