"""What the API's arguments may be, and what they become: data, options, recipes, progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, cast, final

from numpy.typing import NDArray
from torch import Tensor

from citrus_tool.choices import Arithmetic, BoundsName, Init, Intermediate, Protocol, Scope, SolverName, Split, TrainOn
from citrus_tool.choices.recipe import Recipe
from citrus_tool.data import Dataset, Splits
from citrus_tool.errors import UsageError
from citrus_tool.progress import Progress, Silent
from citrus_tool.sources import DataChoice, DataSource
from citrus_tool.workflow.recipe_choice import choose_recipe

Array = NDArray[Any] | Tensor
Data = Dataset | str | Path | tuple[Array, Array]
"""Data to judge on: a Dataset, what --data takes (`digits`, `mnist`, FILE.npz, FOLDER), or arrays (images, labels).

Images are (n, C, H, W), uint8 or floating point in [0, 1]; labels are (n,) whole numbers from 0.
"""


class CertifyOptions(TypedDict, total=False):
    """The fields of CertifySettings, which has their defaults and meaning; times are in seconds."""

    group_size: int
    protocol: Protocol
    scope: Scope
    bounds: BoundsName
    arithmetic: Arithmetic
    intermediate: Intermediate
    branch_nodes: int
    branch_seconds: float
    solver: SolverName
    time_limit: float
    threads: int
    attack_steps: int
    attack_restarts: int
    seed: int
    limit: int | None


class AttackOptions(TypedDict, total=False):
    """The fields of AttackSettings, which has their defaults and meaning."""

    group_size: int | None
    steps: int
    restarts: int
    arithmetic: Arithmetic
    seed: int
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far a long call has come: `done` of `total` units (None: unknown) of a stage, and a short status."""

    stage: str
    done: int
    total: int | None
    unit: str
    note: str


OnProgress = Callable[[Step], None]
"""Is called some times a second at most a hundred; must be quick."""


@final
class Calls(Progress):
    """Turns the library's progress into calls of a function."""

    def __init__(self, function: OnProgress) -> None:
        self._function = function
        self._step = Step(stage="", done=0, total=None, unit="", note="")

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self._step = Step(stage=stage, done=0, total=total, unit=unit, note="")
        self._function(self._step)

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._step = replace(self._step, done=self._step.done + amount, note=note or self._step.note)
        self._function(self._step)

    def finish(self) -> None:
        return None


def progress_of(function: OnProgress | None) -> Progress:
    """The library's progress as calls of `function`, or none."""
    return Silent() if function is None else Calls(function)


@dataclass(frozen=True, kw_only=True)
class _One:
    """A single data set as a sources.DataSource: it has the split that it is."""

    dataset: Dataset

    @property
    def name(self) -> str:
        return self.dataset.name

    def load(self, split: Split, limit: int | None = None) -> Dataset:
        return self.dataset if limit is None else self.dataset.take(limit)


def judged_data(data: Data, split: Split, root: Path | None) -> tuple[DataSource, Split]:
    """Where to load from, and which split; raises UsageError for what is no data."""
    if isinstance(data, str | Path):
        return DataChoice(name=str(data), root=root), split
    if isinstance(data, tuple) and len(data) == 2:
        data = Dataset.from_arrays(*data, split=split)
    if not isinstance(data, Dataset):
        raise UsageError(
            f"data is {_kind(data)}; give a Dataset, a name such as 'digits', an .npz file, or (images, labels)."
        )
    return _One(dataset=data), cast(Split, data.split)


def training_data(data: Splits | str | Path | tuple[Array, Array], seed: int, root: Path | None) -> DataSource:
    """Where all splits come from; arrays are images (N, C, H, W) and labels (N,). Raises UsageError for others."""
    if isinstance(data, Splits):
        return data
    if isinstance(data, str | Path):
        return DataChoice(name=str(data), root=root, seed=seed)
    if isinstance(data, tuple) and len(data) == 2:
        return Splits.of(Dataset.from_arrays(*data), seed=seed)
    raise UsageError(
        f"data is {_kind(data)}; harden needs training, validation and test data: give a name such as 'digits', an"
        " .npz file, (images, labels), or Splits."
    )


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple) else "")


def chosen_recipe(
    recipe: str | Recipe | None,
    data: str,
    *,
    eps: float,
    method: str | None,
    epochs: int | None,
    init: Init | None,
    train_on: TrainOn | None,
    seed: int,
) -> Recipe:
    """The recipe that `harden` is asked for, at eps in pixel space: what is None stays as the recipe has it."""
    if not isinstance(recipe, Recipe):
        changes, defaults = {"method": method, "init": init, "train_on": train_on, "seed": seed}, {"method": "citrus"}
        return choose_recipe(data, name=recipe, eps=eps, epochs=epochs, changes=changes, defaults=defaults)
    changed = recipe.with_epochs(epochs) if epochs is not None else recipe
    return replace(
        changed,
        eps=eps,
        seed=seed,
        method=method or changed.method,
        init=init or changed.init,
        train_on=train_on or changed.train_on,
    )
