"""How much work an attack may do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Numbers of gradient steps and starts; with the seed they decide what an attack finds.

    Attributes:
        steps: gradient steps from each start; 0 only judges the starts.
        restarts: how many starts, or further starts, an attack draws.
        sets: sets of a group's inputs that `attack_groups` tries for each restart, at most.
    """

    steps: int
    restarts: int
    sets: int = 20
