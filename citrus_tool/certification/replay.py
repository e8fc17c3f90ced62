"""Runs a shared perturbation on the file and on the exact network, and holds every proof against what happens there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool.certification.conflicts import Atom, Conflicts
from citrus_tool.certification.group import OpenGroup
from citrus_tool.certification.individual import held
from citrus_tool.errors import SoundnessError
from citrus_tool.network import Network
from citrus_tool.onnx_io import OnnxRunner
from citrus_tool.threat import Threat

Allows = Callable[[int, NDArray[np.int64], NDArray[np.float64]], bool]
"""(place of an input in its group, rivals (r,), u (d,)): whether its bounds leave open that all of these win at u."""


@dataclass(frozen=True, kw_only=True)
class Replayer:
    """Judges perturbations of one network: `network` in float64 on `device`, the file in float32 on onnxruntime.

    `stage` names the strongest bounds in use, for messages.
    """

    network: Network
    runner: OnnxRunner
    threat: Threat
    device: torch.device
    stage: str

    def replayed(self, group: OpenGroup, u: Tensor, allows: Allows, *, conflicts: Conflicts | None = None) -> OpenGroup:
        """The group with `u` (C, H, W) as its witness if it fools more inputs than the old one.

        An input is fooled if the file on onnxruntime (float32) and the float64 network at the exact x + u agree that it
        is. Every proof is held against the latter, for proofs are about real arithmetic and float32 may round a small
        true margin away: a class at or above the reference must have been left open, and its plane must allow it at u;
        and what happens at u must not contain a combination of the open inputs that is refuted in `conflicts`.

        Raises SoundnessError where a proof is contradicted.
        """
        if not bool(group.open.any()):
            return group
        places = torch.nonzero(group.held).flatten()
        x, reference, target = group.x[places], group.reference[places].numpy(), self.threat.target
        with torch.no_grad():
            exact = self.network((x.double() + u.double()).to(self.device)).cpu().numpy()
        lost = ~held(exact, reference, target)
        point = u.flatten().double().numpy()
        happening: set[Atom] = set()
        number_of = {place: number for number, place in enumerate(torch.nonzero(group.open).flatten().tolist())}
        for place, row, own in zip(places[lost].tolist(), exact[lost], reference[lost], strict=True):
            winners = np.flatnonzero(row >= row[own]) if target is None else np.array([target])
            rivals = winners[winners != own]
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
        seen = self.runner.logits(self.threat.inputs(x, u))
        fallen = torch.zeros_like(group.held)
        fallen[group.held] = torch.from_numpy(lost & ~held(seen, reference, target))
        return group.witnessed(u, fallen)
