"""Shared perturbations at which the file's own float32 rounding may decide: margins within the error bound there.

Gradients of a margin do not lead to them: where large hidden numbers cancel in real arithmetic, float32 keeps what it
rounded away. So points of the box are ranked by margin less error bound (bounds/float32.py, at that point alone), the
best of them are lowered by signed steps on that difference, and they and their neighbours are run on the file.
"""

from __future__ import annotations

import copy
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from citrus_tool.bounds.crown import only
from citrus_tool.bounds.rounding import enclosures, exact_products, outward_margins, widen
from citrus_tool.certification.individual import held, interval_margins
from citrus_tool.certification.replay import Replayer
from citrus_tool.network import REAL, size
from citrus_tool.threat import Box

VALUES: Final = 2**24
"""Values of the network's nodes that are computed for one group's drawn points: about a second of work at most."""
DRAWN: Final = (8, 4096)
"""Points of the box that are drawn for a group, whatever its size: at least, and at most."""
ROWS: Final = 512
"""Images in one pass over the network."""
DESCENDED: Final = 4
"""Best points that are lowered, together."""
STEPS: Final = 10
"""Signed steps of these."""
RUN: Final = 48
"""Points that are run on the file, at most, where float32 may decide; their neighbours once more."""
NEAR: Final = (1e-7, 1e-5, 1e-3, 1e-2, 1e-1)
"""Distances of a point's neighbours, in units of eps: from the spacing of float32 numbers on."""


def rounding_witness(
    replayer: Replayer,
    x: Float[Tensor, "n C H W"],
    reference: Int[Tensor, " n"],
    fallen: Bool[Tensor, " n"],
    starts: Float[Tensor, "s C H W"],
    generator: torch.Generator,
) -> Float[Tensor, "C H W"] | None:
    """A perturbation that fools some of the inputs x (float32) on the file, the most of those tried.

    Args:
        fallen: inputs that a perturbation fools which is known; the others are why to look.

    Returns: None where arithmetic is real, where float32 is far from deciding on the others at the starts, or where no
    point fools any.
    """
    if replayer.network.evaluation.arithmetic == "real" or bool(fallen.all()):
        return None
    if not _Search(replayer, x[~fallen], reference[~fallen], generator).promising(starts):
        return None
    search = _Search(replayer, x, reference, generator)
    points = search.points(starts)
    best, most = None, 0
    for _ in range(2):
        if not len(points):
            break
        counts = search.fooled(points)
        if int(counts.max()) > most:
            most = int(counts.max())
            best = points[int(counts.argmax())]
        points = search.neighbours(points[torch.from_numpy(np.argsort(-counts, kind="stable")[:DESCENDED].copy())])
    return best


class _Search:
    """One group's search; perturbations (p, C, H, W) float32 on the CPU, as the file gets them."""

    def __init__(self, replayer: Replayer, x: Tensor, reference: Tensor, generator: torch.Generator) -> None:
        self.replayer, self.x, self.reference, self.generator = replayer, x, reference, generator
        self.threat, self.network, self.device = replayer.threat, replayer.network, replayer.device

    def promising(self, starts: Tensor) -> bool:
        """Whether an input's margin at a start is within what rounding can do to interval bounds over the box."""
        exact = copy.copy(self.network)
        exact.evaluation = REAL
        x, reference = self.x.to(self.device), self.reference.to(self.device)
        real, file = (interval_margins(one, x, reference, self.threat) for one in (exact, self.network))
        return bool((self.lowest(starts).amin(0) <= real - file).any())

    def lowest(self, u: Tensor) -> Tensor:
        """(p, n) the least margin at x + u less its error bound: at or below 0 float32 may fool the input."""
        device, found = self.device, []
        for some in torch.split(u, max(1, ROWS // len(self.x))):
            rows = (self.x.double()[None] + some.double()[:, None]).flatten(0, 1).to(device)
            with exact_products():
                point = widen(Box(centre=rows, radius=torch.zeros_like(rows)))
                margins = outward_margins(
                    self.network, *enclosures(self.network, point), self.reference.repeat(len(some)).to(device)
                )
            found.append(only(margins, self.threat.target).amin(1).reshape(len(some), -1).cpu())
        return torch.cat(found)

    def points(self, starts: Tensor) -> Tensor:
        """The points to run: starts, drawn and lowered ones where float32 may decide, best first."""
        width = sum(size(node.shape) for node in self.network.nodes)
        count = min(max(VALUES // (width * len(self.x)), DRAWN[0]), DRAWN[1])
        shape, inner = self.x.shape[1:], self.threat.inner
        sides = torch.rand(count, *shape, generator=self.generator) * 2 - 1
        sides[::4] = sides[::4].sign()
        share = torch.rand(count, *[1] * len(shape), generator=self.generator)
        kept = torch.rand(count, *shape, generator=self.generator) < share
        kept[torch.arange(count) % 4 < 3] = False
        drawn = torch.where(kept, starts[torch.arange(count) % len(starts)], sides * inner)
        pool = self.threat.projected(torch.cat([starts, drawn]))
        low = self.lowest(pool)
        unit = low.abs().amax(0).clamp_min(1e-12)
        chosen = self._order(low / unit)[:DESCENDED]
        pool = torch.cat([pool, self._lowered(pool[chosen], unit)])
        low = self.lowest(pool)
        order = self._order(low / unit)
        return pool[order[(low[order] <= 0).any(1)]][:RUN]

    def _order(self, low: Tensor) -> Tensor:
        """Points by how many inputs float32 may fool there, then by how clearly."""
        return ((low > 0).sum(1) + low.clamp(-1, 1).sum(1) / (4 * low.shape[1])).argsort()

    def _lowered(self, u: Tensor, unit: Tensor) -> Tensor:
        for step in range(STEPS):
            at = u.detach().requires_grad_(True)
            with torch.enable_grad():
                loss = (self.lowest(at) / unit).clamp_min(-0.1).sum()
                (gradient,) = torch.autograd.grad(loss, at)
            u = self.threat.stepped(u.detach(), gradient, self.threat.inner * 0.5 * (1 - step / STEPS))
        return u.detach()

    def neighbours(self, u: Tensor) -> Tensor:
        """Float32 points around each of u (p, C, H, W), at all distances NEAR."""
        reach = torch.tensor(NEAR).repeat_interleave(2).reshape(-1, 1, *[1] * (u.dim() - 1)) * self.threat.inner
        noise = torch.randn(len(reach), *u.shape, generator=self.generator)
        return self.threat.projected((u[None] + reach * noise).flatten(0, 1))

    def fooled(self, u: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """(p,) how many inputs each perturbation fools on the file."""
        moved = self.threat.inputs(self.x[None], u[:, None]).flatten(0, 1)
        logits = self.replayer.runner.logits(moved)
        kept = held(logits, self.reference.repeat(len(u)).numpy(), self.threat.target)
        counts: np.ndarray[tuple[int], np.dtype[np.int64]] = (~kept).reshape(len(u), -1).sum(1)
        return counts
