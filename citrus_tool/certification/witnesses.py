"""What perturbations do to open inputs, by float32 arithmetic: a guide for searches, not a proof."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from citrus_tool.certification.conflicts import Atom
from citrus_tool.network import Network
from citrus_tool.threat import Threat


@dataclass(kw_only=True)
class Witnesses:
    """What perturbations do to the group's open inputs, by float32 arithmetic: a guide, not a proof.

    `x` (n, C, H, W), `reference` (n,), `best` (C, H, W) fools `count` inputs.
    """

    network: Network
    x: Tensor  # (n, C, H, W)
    reference: Tensor
    threat: Threat
    best: Tensor
    count: int = 0
    seen: set[frozenset[Atom]] = field(default_factory=set)

    def judge(self, u: Tensor) -> None:
        """Notes what each of the perturbations u (p, C, H, W) fools."""
        rows = (self.x[:, None] + u[None]).flatten(0, 1)
        logits = self.network(rows).reshape(len(self.x), len(u), -1)
        true = self.reference[:, None, None].expand(-1, len(u), 1)
        lost = (logits >= logits.gather(2, true)).scatter_(2, true, value=False)
        if self.threat.target is not None:
            wins = logits[..., self.threat.target] >= logits.amax(2)
            lost = torch.zeros_like(lost).index_copy_(
                2, self.reference.new_tensor([self.threat.target]), wins[..., None]
            )
        counts = lost.any(2).sum(0)
        for place in torch.nonzero(counts > 0).flatten().tolist():
            happening = frozenset((int(i), int(rival)) for i, rival in torch.nonzero(lost[:, place]).tolist())
            if not self.happened(happening):
                self.seen = {old for old in self.seen if not old <= happening} | {happening}
            if int(counts[place]) > self.count:
                self.count, self.best = int(counts[place]), u[place].clone()

    def happened(self, combination: frozenset[Atom]) -> bool:
        """Whether some perturbation made all these atoms happen."""
        return any(combination <= happening for happening in self.seen)
