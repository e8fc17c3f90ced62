"""Which trials are worth it: those that no other one beats, the chosen one of them, and those to give up early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from citrus_tool.results.trial import Trial

COMPARED: Final = 4
"""Finished trials that must have been judged at a share of the run before a trial is given up there.

More than half of fewer would be one trial or two.
"""


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
