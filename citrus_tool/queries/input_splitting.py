"""Branch and bound over parts of the input box: CROWN on each, the worst ones halved.

For networks whose neurons certification/search.py does not split (sigmoid, tanh, max pooling), and few inputs: the
number of parts grows with the power of the inputs that matter. After Bunel et al. 2018, "A Unified View of Piecewise
Linear Neural Network Verification", section 4 (input splitting).
Differs from the paper in: (1) the input that is halved is the one that the worst functional's plane varies most along
on the part; (2) parts are bounded in batches, worst first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from citrus_tool.bounds.crown import crown
from citrus_tool.bounds.rounding import enclose_bounds, widen
from citrus_tool.network import Network
from citrus_tool.threat import Box

BATCH: Final = 64
"""Parts that are bounded together."""
MOST: Final = 100_000
"""Parts that are bounded, at most."""


class Bisection:
    """Proves that margins f_0 - f_c of a network are positive over a box, part by part.

    Args:
        network: in float64, evaluation mode.
        box: batch of 1.
        classes: the margins that have to exceed `guard`.
        look: takes points (n, *input_shape) where a bound is attained; True ends the search.

    Attributes:
        parts: how many have been bounded.
        worst: the least bound of an open part.
        proven, stuck: the result; both False: there is more to do.
    """

    def __init__(
        self, network: Network, box: Box, classes: Tensor, guard: float, look: Callable[[Tensor], bool]
    ) -> None:
        self._network, self._classes, self._guard, self._look = network, classes, guard, look
        self._lower, self._upper = widen(box).lower, widen(box).upper  # (open parts, *input_shape)
        self._bound = torch.full((1,), -torch.inf, dtype=torch.float64)
        self.parts = 0
        self.proven = self.stuck = False

    @property
    def worst(self) -> float:
        """The least bound of an open part; infinite where none is open."""
        return float(self._bound.amin()) if len(self._bound) else torch.inf

    def grow(self, deadline: float) -> None:
        """Bounds and halves parts until `deadline` (time.monotonic) or the end; one batch may overrun it."""
        while not (self.proven or self.stuck) and time.monotonic() < deadline:
            order = self._bound.argsort()
            chosen, rest = order[:BATCH], order[BATCH:]
            lower, upper = self._lower[chosen], self._upper[chosen]
            kept = self._lower[rest], self._upper[rest], self._bound[rest]
            new = self._halved(lower, upper)
            self._lower, self._upper, self._bound = (torch.cat([a, b]) for a, b in zip(kept, new, strict=True))
            self.proven = not self.stuck and not len(self._bound)
            self.stuck = self.stuck or self.parts >= MOST

    def _halved(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both halves of every part that is not proven, with the part's bound."""
        n = len(lower)
        box = enclose_bounds(lower, upper)
        self.parts += n
        margins = crown(self._network, box, torch.zeros(n, dtype=torch.long))
        bound, worst = margins.lower[:, self._classes].min(dim=1)
        left = torch.nonzero(~(bound > self._guard)).flatten()
        plane = margins.coefficient[left, self._classes[worst[left]]]
        lower, upper, bound = lower[left], upper[left], bound[left]
        if not len(left):
            return lower, upper, bound
        if self._look(torch.where(plane > 0, lower, upper)):
            self.stuck = True
        # a plane that interval bounds gave is flat: then the widest input; radius counts a little in any case
        width = (upper - lower).flatten(1)
        steep = (plane.flatten(1).abs() * width + 1e-9 * width).argmax(1, keepdim=True)
        low, high = (side.flatten(1).gather(1, steep) for side in (lower, upper))
        middle = low + (high - low) / 2
        if bool(((middle <= low) | (middle >= high)).any()):
            self.stuck = True
        first = upper.flatten(1).scatter(1, steep, middle).reshape(upper.shape)
        second = lower.flatten(1).scatter(1, steep, middle).reshape(lower.shape)
        return torch.cat([lower, second]), torch.cat([first, upper]), bound.repeat(2)
