"""One group of inputs on its way through the stages."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from citrus_tool.certification.conflicts import Atom
from citrus_tool.certification.dataset_scope import Remainder
from citrus_tool.certification.individual import IndividualBounds
from citrus_tool.certification.joint_loop import Grounds
from citrus_tool.certification.proof import Refutation
from citrus_tool.results.certificate import GroupResult, Status
from citrus_tool.results.evidence import Evidence, InputVerdict
from citrus_tool.threat import Threat


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the wall time of what is done inside to a stage."""
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - start


@dataclass(frozen=True, kw_only=True)
class OpenGroup:
    """One group of k inputs that share a perturbation, on its way through the stages.

    Attributes:
        index: number of the group; `indices`: its inputs, in the data split; `labels`: their true classes.
        x: (k, C, H, W) float32 pixels.
        reference: (k,) the class whose logit must stay above (individual.Clean).
        held, ibp, proven: (k,) not lost without a perturbation; and proven, by IBP or by any bound.
        u: (C, H, W) float32, the worst perturbation found.
        fallen: (k,) fooled by `u`, replayed.
        seconds: by stage; updated in place.
    """

    index: int
    indices: tuple[int, ...]
    labels: tuple[int, ...]
    x: Tensor
    reference: Tensor
    held: Tensor
    ibp: Tensor
    proven: Tensor
    u: Tensor
    fallen: Tensor
    seconds: dict[str, float]

    @property
    def fooled(self) -> int:
        """How many inputs `u` fools, replayed."""
        return int(self.fallen.sum())

    @property
    def open(self) -> Tensor:
        """(k,) the inputs that are held and not proven."""
        return self.held & ~self.proven

    def of(self, members: Sequence[int], index: int) -> OpenGroup:
        """Some of the inputs as a group of their own, without a witness."""
        some = list(members)
        return OpenGroup(
            index=index,
            indices=tuple(self.indices[member] for member in some),
            labels=tuple(self.labels[member] for member in some),
            x=self.x[some],
            reference=self.reference[some],
            held=self.held[some],
            ibp=self.ibp[some],
            proven=self.proven[some],
            u=torch.zeros_like(self.u),
            fallen=torch.zeros(len(some), dtype=torch.bool),
            seconds={},
        )

    def witnessed(self, u: Tensor, fallen: Tensor) -> OpenGroup:
        """The group with `u` as its witness, which fools the inputs `fallen` (k,), if these are more than before."""
        return replace(self, u=u, fallen=fallen) if int(fallen.sum()) > self.fooled else self

    def result(self, fooled_upper: int, status: Status, detail: str) -> GroupResult:
        """The group's result where at most `fooled_upper` of its held inputs can be fooled."""
        held = int(self.held.sum())
        certified, attacked = held - fooled_upper, held - self.fooled
        return GroupResult(
            index=self.index,
            indices=self.indices,
            clean_correct=held,
            ibp_certified=int(self.ibp.sum()),
            individually_certified=int(self.proven.sum()),
            certified=certified,
            attacked=attacked,
            status=Status.EXACT if certified == attacked else status,
            detail=detail,
            stages=dict(self.seconds),
            evidence=Evidence(
                labels=self.labels,
                verdicts=tuple(map(self._verdict, range(len(self.indices)))),
                perturbation=self.u.numpy() if self.fooled else None,
            ),
        )

    def _verdict(self, place: int) -> InputVerdict:
        if not self.held[place]:
            return InputVerdict.LOST
        if self.proven[place]:
            return InputVerdict.IBP if self.ibp[place] else InputVerdict.PROVEN
        return InputVerdict.FOOLED if self.fallen[place] else InputVerdict.OPEN


def remainder_of(
    group: OpenGroup, individual: IndividualBounds, u: Tensor, refuted: Collection[frozenset[Atom]], threat: Threat
) -> Remainder:
    """What the group's stages left open; `u` (C, H, W) is the worst perturbation found."""
    places = [p for p, is_open in enumerate(group.open.tolist()) if is_open]
    entries = [individual.planes.get(place) for place in places]
    gaps = [
        math.inf
        if entry is None
        else float((threat.eps * np.abs(entry.coefficient).sum(1) - entry.offset).max(initial=0.0))
        for entry in entries
    ]
    return Remainder(
        inputs=tuple(group.indices[place] for place in places),
        rivals=tuple(() if entry is None else tuple(entry.rivals.tolist()) for entry in entries),
        gaps=tuple(gap if math.isfinite(gap) else 0.0 for gap in gaps),
        refuted=tuple(tuple(sorted(some)) for some in sorted(refuted, key=sorted)),
        u=u,
    )


def refutation_of(grounds: Grounds, places: Sequence[int]) -> Refutation:
    """The proof of a combination of inputs that are at `places` in the group."""
    return Refutation(
        atoms=tuple((places[member], rival) for member, rival in grounds.combination),
        views=grounds.views,
        leaves=grounds.leaves,
        factors=grounds.factors,
        closed=grounds.closed,
    )
