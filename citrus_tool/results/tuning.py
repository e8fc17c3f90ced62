"""The result of `tune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from citrus_tool import __version__
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import TuneSettings
from citrus_tool.choices.space import Space, plain
from citrus_tool.results.trial import Trial


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
            "settings": asdict(self.settings),
            "space": plain(self.space),
            "trials": [asdict(trial) for trial in self.trials],
            "front": list(self.front),
            "best": self.best,
            "recipe": self.recipe.to_json(),
            "recipe_file": str(self.file),
            "version": __version__,
        }
