"""The result of `tune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from citrus_tool import __version__
from citrus_tool.choices.recipe import Recipe
from citrus_tool.choices.settings import TuneSettings
from citrus_tool.choices.space import Space, plain
from citrus_tool.results.record import JsonRecord, about
from citrus_tool.results.trial import Trial


@dataclass(frozen=True, kw_only=True)
class TuneReport(JsonRecord):
    """The result of a search.

    Attributes:
        trials: all, by number; front: numbers of those that no other one beats, by falling standard accuracy.
        best: the chosen number; recipe: its recipe; file: that recipe as TOML; base: the recipe that was tuned.
    """

    base: Recipe = about(written=False)
    data: str = about(stated=("method", "eps"))
    settings: TuneSettings = about(stated=("split",))
    space: Space = about(write=plain)
    trials: Sequence[Trial]
    front: Sequence[int]
    best: int
    recipe: Recipe
    file: Path = about(key="recipe_file")
    version: str = __version__

    @property
    def method(self) -> str:
        """That the recipes train by."""
        return self.base.method

    @property
    def eps(self) -> float:
        """That the recipes train for, in pixel space."""
        return self.base.eps

    @property
    def split(self) -> str:
        """Whose inputs judge the trials."""
        return "validation"
