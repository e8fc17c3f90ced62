"""What a user requires a proof to be about, beside what it says itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from citrus_tool.checker.proof_format import cut, require


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a proof has to be about; None: anything.

    Attributes:
        eps: radius in pixel space.
        mean, std: of the normalisation in front of the file.
        arithmetic: "float32" or "real".
        inputs: the numbers of exactly its inputs.
    """

    eps: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    arithmetic: str | None = None
    inputs: Collection[int] | None = None

    def require_run(self, run: Mapping[str, Any], eps: float) -> None:
        """Raises CheckFailedError, with both values, where the run of a proof at `eps` is about another one."""
        found = {**run, "eps": eps}
        for name in ("eps", "mean", "std", "arithmetic"):
            wanted, there = getattr(self, name), found[name]
            there = tuple(there) if isinstance(there, list) else there
            require(wanted is None or wanted == there, "what is required", f"{name} is {there}, not {wanted}")

    def require_inputs(self, there: Collection[int]) -> None:
        """Raises CheckFailedError where these inputs of a proof are others."""
        wanted = there if self.inputs is None else self.inputs
        same = set(wanted) == set(there)
        require(same, "what is required", f"its inputs are {cut(ranges(there))}, not {cut(ranges(wanted))}")


def ranges(numbers: Collection[int]) -> str:
    """Whole numbers as ranges: "0-99,105"."""
    found = []
    for _, run in groupby(enumerate(sorted(set(numbers))), key=lambda pair: pair[1] - pair[0]):
        some = [number for _, number in run]
        found.append(str(some[0]) if len(some) == 1 else f"{some[0]}-{some[-1]}")
    return ",".join(found)
