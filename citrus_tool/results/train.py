"""The result of `train`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from citrus_tool import __version__
from citrus_tool.choices.recipe import Recipe
from citrus_tool.errors import CitrusError
from citrus_tool.results.record import JsonRecord, Place, about, from_json, value_of
from citrus_tool.tables import Table, Tabular, percent


def read_recipe(value: Any, name: str, place: Place) -> Recipe | Mapping[str, Any]:
    """The recipe of a result; one of a citrus with other fields stays the mapping that it is."""
    if not isinstance(value, Mapping):
        raise place.wrong(f"{name} is {json.dumps(value)[:40]}, not an object{place.remedy}")
    try:
        recipe = from_json(Recipe, value, place)
    except CitrusError:
        return value
    return recipe if recipe.to_json() == value else value


def read_history(value: Any, name: str, place: Place) -> list[Mapping[str, Any]]:
    """The epochs of a result: each has its number, its phase, and numbers (None where not measured)."""
    if not isinstance(value, list):
        raise place.wrong(f"{name} is {json.dumps(value)[:40]}, not a list{place.remedy}")
    found: list[Mapping[str, Any]] = []
    for number, entry in enumerate(value):
        at = place.inside(f"{name}[{number}]")
        if not isinstance(entry, Mapping):
            raise at.wrong(f"is {type(entry).__name__}, not an object{place.remedy}")
        read: dict[str, Any] = {"epoch": value_of(int, entry, "epoch", at), "phase": value_of(str, entry, "phase", at)}
        others = {
            key: None if one is None else value_of(float, entry, key, at)
            for key, one in entry.items()
            if key not in read
        }
        found.append(read | others)
    return found


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainReport(JsonRecord, Tabular):
    """The result of `train`: the file, how training went, and its standard accuracy on the test split (percent)."""

    architecture: str
    out: Path
    method: str
    eps: float
    epochs: int
    seconds: float
    best_epoch: int
    data: str
    standard_accuracy: float
    recipe: Recipe | Mapping[str, Any] = about(read=read_recipe)
    history: Sequence[Mapping[str, Any]] = about(read=read_history)
    version: str = __version__

    def table(self) -> Table:
        """Standard accuracy, best epoch and time."""
        row = [self.architecture, percent(self.standard_accuracy), str(self.best_epoch), f"{self.seconds:.1f}"]
        columns = ["network", "standard accuracy in %", "best epoch", "seconds"]
        return Table(title=f"{self.method} training on {self.data}", columns=columns, rows=[row])
