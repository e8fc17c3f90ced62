"""What a shared perturbation does to the file, or to the exact network; every proof is held against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool.bounds.rounding import enclosures, exact_products, widen
from citrus_tool.certification.conflicts import Atom, Conflicts
from citrus_tool.certification.group import OpenGroup
from citrus_tool.certification.individual import FORWARD_BATCH, held, smallest_margin
from citrus_tool.errors import SoundnessError
from citrus_tool.network import Network
from citrus_tool.onnx_io import OnnxRunner
from citrus_tool.threat import Box, Threat

Allows = Callable[[int, NDArray[np.int64], NDArray[np.float64]], bool]
"""(place of an input in its group, rivals (r,), u (d,)): whether its bounds leave open that all of these win at u."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happens to n inputs: `lost` (n,), and which of the classes are at or above the reference, `winners` (n, c).

    With a target class, that one alone wins, and only where the input is lost.
    """

    lost: NDArray[np.bool_]
    winners: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Replayer:
    """Judges perturbations of one network by the arithmetic that its bounds are about (`network.evaluation`).

    float32: an input is lost where the file on onnxruntime loses it, which runs one input after the other, so that a
    result does not depend on the others. real: where the exact network does, beyond the rounding of float64.

    Attributes:
        network: of x + u (threat/clip.py), in float64 on `device`.
        runner: the file.
        stage: names the strongest bounds in use, for messages.
    """

    network: Network
    runner: OnnxRunner
    threat: Threat
    device: torch.device
    stage: str

    def outcome(self, x: Float[Tensor, "n C H W"], u: Tensor, reference: Int[Tensor, " n"]) -> Outcome:
        """What u (C, H, W), or each input's own u (n, C, H, W), does to the inputs x (float32, on the CPU)."""
        classes, target = reference.numpy(), self.threat.target
        if self.network.evaluation.arithmetic == "float32":
            moved = self.threat.inputs(x, u)
            best = np.concatenate([self.runner.logits(one[None]) for one in moved])
            lost = ~held(best, classes, target)
        else:
            best = self._favourable(x, u, classes)
            lost = smallest_margin(best, classes, target) <= 0
        rows = np.arange(len(best))
        if target is None:
            winners = best >= best[rows, classes][:, None]
            winners[rows, classes] = False
        else:
            winners = lost[:, None] & (np.arange(best.shape[1]) == target)
        return Outcome(lost=lost, winners=winners)

    def _favourable(self, x: Tensor, u: Tensor, classes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Logits (n, c) at the exact x + u, of all that rounding leaves possible those that favour the inputs most."""
        lower, upper = [], []
        moved = x.double() + u.double()
        for some in torch.split(moved, FORWARD_BATCH):
            with torch.no_grad(), exact_products():
                point = widen(Box(centre=some.to(self.device), radius=torch.zeros_like(some, device=self.device)))
                found = widen(enclosures(self.network, point).boxes[self.network.output_name])
            lower.append(found.lower.cpu().numpy())
            upper.append(found.upper.cpu().numpy())
        low, high = np.concatenate(lower), np.concatenate(upper)
        one = classes if self.threat.target is None else np.full_like(classes, self.threat.target)
        chosen = np.arange(low.shape[1]) == one[:, None]
        return np.where(chosen == (self.threat.target is None), high, low)

    def replayed(self, group: OpenGroup, u: Tensor, allows: Allows, *, conflicts: Conflicts | None = None) -> OpenGroup:
        """The group with `u` (C, H, W) as its witness if it fools more inputs than the old one.

        Every proof is held against what happens at u: a class at or above the reference must have been left open, and
        its plane must allow it at u; and what happens must not contain a combination of the open inputs that is refuted
        in `conflicts`.

        Raises SoundnessError where a proof is contradicted.
        """
        if not bool(group.open.any()):
            return group
        places = torch.nonzero(group.held).flatten()
        found = self.outcome(group.x[places], u, group.reference[places])
        point = u.flatten().double().numpy()
        happening: set[Atom] = set()
        number_of = {place: number for number, place in enumerate(torch.nonzero(group.open).flatten().tolist())}
        for place, winners in zip(places[found.lost].tolist(), found.winners[found.lost], strict=True):
            rivals = np.flatnonzero(winners)
            if place in number_of:
                happening |= {(number_of[place], int(rival)) for rival in rivals}
            if bool(group.proven[place]) or not allows(place, rivals, point):
                raise SoundnessError(
                    f"group {group.index}: a perturbation within eps {self.threat.eps:g} fools input"
                    f" {group.indices[place]} although the {self.stage} stage"
                    " excludes it; the certificate is void, please report the network."
                )
        if conflicts is not None and conflicts.covers(happening):
            raise SoundnessError(
                f"group {group.index}: a perturbation within eps {self.threat.eps:g} fools inputs together although the"
                " cross-execution stage excludes it; the certificate is void, please report the network."
            )
        fallen = torch.zeros_like(group.held)
        fallen[places] = torch.from_numpy(found.lost)
        return group.witnessed(u, fallen)
