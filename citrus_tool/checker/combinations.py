"""The combinations of a group's proof: sets of atoms that no one perturbation makes happen together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from citrus_tool.checker.bounds import SharedNeurons, Signs, lowest
from citrus_tool.checker.graph import Floats
from citrus_tool.checker.group import Group
from citrus_tool.checker.intervals import dense, gamma
from citrus_tool.checker.leaves import Leaves, covers
from citrus_tool.checker.proof_format import LEAVES, Atom, Member, Splits, require

PRODUCTS: Final = 2**24
"""Products of open parts that a combination may have, so that a check ends: over 100 times what a proof starts from."""


@dataclass(frozen=True, kw_only=True)
class OpenParts:
    """The open parts of an atom's search: `part` numbers them; planes a (n, d), offset (n,) below the margin."""

    atom: Atom
    view: int
    part: Mapping[Splits, int]
    a: Floats
    offset: Floats


class Combinations:
    """Verifies the combinations of `group`, whose inputs have been looked at; `leaves`: how many were bounded."""

    def __init__(self, group: Group) -> None:
        self.group, self.leaves = group, 0
        self._fronts: list[OpenParts] = []
        self._known: dict[tuple[Member, ...], SharedNeurons] = {}

    def refuted(self) -> set[frozenset[Atom]]:
        """The combinations, all of which are verified."""
        self._fronts = [self._front(number) for number in range(len(self.group.facts["fronts"]))]
        together: dict[tuple[Member, ...], list[Leaves]] = {}
        refuted = set()
        for number, proof in enumerate(self.group.facts["proofs"]):
            where, atoms = f"{self.group.where}, combination {number}", [tuple(atom) for atom in proof["atoms"]]
            members = tuple((position, view) for (position, _), view in zip(atoms, proof["views"], strict=True))
            leaves, paths = self._leaves(f"proof{number}", number, atoms)
            together.setdefault(members, []).append(leaves)
            fronts = [self._fronts[front] for front in proof["fronts"]]
            whole = self._products(number, fronts, members, paths, where) if fronts else covers(paths)
            require(whole, where, "its leaves do not cover the box")
            refuted.add(frozenset(atoms))
        for members, parts in together.items():
            self._require_positive(members, Leaves.joined(parts))
        return refuted

    def _require_positive(self, members: Sequence[Member], leaves: Leaves) -> None:
        self.leaves += len(leaves.owner)
        for first in range(0, len(leaves.owner), LEAVES):
            some = leaves.pick(first, first + LEAVES)
            for place in np.flatnonzero(~(lowest(*self._planes(members, some)) > 0)):
                number = int(some.owner[place])
                leaf = first + int(place) - int(np.flatnonzero(leaves.owner == number)[0])
                atoms = self.group.facts["proofs"][number]["atoms"]
                words = ", ".join(f"input {self.group.facts['indices'][p]} as {label}" for p, label in atoms)
                require(False, f"{self.group.where}, combination {number} ({words}), leaf {leaf}", "is not above 0")

    def _front(self, number: int) -> OpenParts:
        """A front whose parts cover the box, and of which the first `closed` are closed."""
        where, given = f"{self.group.where}, front {number}", self.group.facts["fronts"][number]
        atom, closed = tuple(given["atom"]), given["closed"]
        members = ((atom[0], given["view"]),)
        leaves, paths = self._leaves(f"front{number}", number, [atom])
        require(covers(paths), where, "its parts do not cover the box")
        parts = range(0, len(paths), LEAVES)
        planes = [self._planes(members, leaves.pick(first, first + LEAVES)) for first in parts]
        a, offset = (np.concatenate(some) for some in zip(*planes, strict=True))
        require(bool((lowest(a[:closed], offset[:closed]) > 0).all()), where, "has a closed part that is not above 0")
        self.leaves += closed
        open_ = {tuple(path): place for place, path in enumerate(paths[closed:])}
        return OpenParts(atom=atom, view=given["view"], part=open_, a=a[closed:], offset=offset[closed:])

    def _products(
        self,
        number: int,
        fronts: Sequence[OpenParts],
        members: Sequence[Member],
        paths: Sequence[Splits],
        where: str,
    ) -> bool:
        """Whether products that are closed, and leaves, cover all products of the fronts' open parts.

        A u at which all atoms happen lies in an open part of every front. A product is closed by a sum of its planes
        that is above 0.
        """
        left: list[tuple[int, ...]] = [(part,) for part in range(len(fronts[0].offset))]
        for width in range(2, len(fronts) + 1):
            part, mix = self.group.arrays[f"proof{number}/part{width}"], self.group.arrays[f"proof{number}/mix{width}"]
            for first in range(0, len(part), LEAVES):
                some = slice(first, first + LEAVES)
                planes = [
                    (f.a[i] * m[:, None], f.offset[i] * m)
                    for f, i, m in zip(fronts, part[some].T, mix[some].T, strict=False)
                ]
                require(bool((lowest(*_sum(planes)) > 0).all()), where, "has a closed product that is not above 0")
            closed = {tuple(row) for row in part.tolist()}
            new = range(len(fronts[width - 1].offset))
            require(len(left) * len(new) <= PRODUCTS, where, f"has more than {PRODUCTS} products of open parts")
            left = [(*head, last) for head in left for last in new if (*head, last) not in closed]
        starts = np.cumsum([0, *(len(self.group.views[member].listed) for member in members)])
        of: dict[tuple[int, ...], list[Splits]] = {some: [] for some in left}
        for path in paths:
            product, rest = [], path
            for front, start in zip(fronts, starts, strict=False):
                heads = (tuple((k - start, side) for k, side in rest[:n]) for n in range(len(rest) + 1))
                head = next((h for h in heads if h in front.part), None)
                if head is None:
                    return False
                product.append(front.part[head])
                rest = rest[len(head) :]
            if tuple(product) not in of:  # it is closed
                return False
            of[tuple(product)].append(rest)
        return all(covers(rests) for rests in of.values())

    def _leaves(self, name: str, number: int, atoms: Sequence[Atom]) -> tuple[Leaves, list[Splits]]:
        """The leaves of combination or front `number`, and their paths of splits."""
        names = ("alpha", "share", "depth", "split", "side", "beta")
        alpha, share, depth, split, side, beta = (self.group.arrays[f"{name}/{part}"] for part in names)
        count = len(depth)
        steps = list(zip(split.tolist(), side.tolist(), strict=True))
        paths = [tuple(steps[end - d : end]) for d, end in zip(depth.tolist(), np.cumsum(depth).tolist(), strict=True)]
        return Leaves(
            owner=np.full(count, number),
            label=np.tile([label for _, label in atoms], (count, 1)),
            row=np.repeat(np.arange(count), depth),
            alpha=alpha,
            share=share.astype(np.float64),
            split=split.astype(np.int64),
            side=side.astype(np.float64),
            beta=beta.astype(np.float64),
        ), paths

    def _planes(self, members: Sequence[Member], leaves: Leaves) -> tuple[Floats, Floats]:
        """(a, o) with sum of share margin >= a v + o on the leaves."""
        shared = self._shared(members)
        planes, left, given = [], [], []
        first = 0
        for place, (position, number) in enumerate(members):
            view, rows = self.group.views[position, number], self.group.margins[position]
            last = first + len(view.listed)
            low = self.group.slopes(view.lines, view.execution, view.listed, leaves.alpha[:, first:last])
            own = (leaves.split >= first) & (leaves.split < last)
            signs = Signs(
                row=leaves.row[own],
                neuron=view.listed[leaves.split[own] - first],
                side=leaves.side[own],
                beta=leaves.beta[own],
            )
            some = rows.pick(leaves.label[:, place]).times(leaves.share[:, place])
            a, offset, w, nu = view.execution.plane_apart(some, view.lines, low, signs, shared.apart[place])
            planes.append((dense(a), offset))
            left.append((w, nu))
            given.append(signs)
            first = last
        above, empty = shared.least(left, given)
        a, offset = _sum([*planes, (np.zeros_like(planes[0][0]), above)])
        return np.where(empty[:, None], 0.0, a), np.where(empty, 1.0, offset)

    def _shared(self, members: Sequence[Member]) -> SharedNeurons:
        """What these executions share."""
        key, views = tuple(members), [self.group.views[member] for member in members]
        if key not in self._known:
            self._known[key] = SharedNeurons([view.execution for view in views], [view.lines for view in views])
        return self._known[key]


def _sum(planes: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """The sum of planes, outward; each may have been scaled with one rounding."""
    a, offset = (np.stack(some) for some in zip(*planes, strict=True))
    size = np.abs(a).sum((0, 2)) + np.abs(offset).sum(0)
    return a.sum(0), offset.sum(0) - gamma(len(planes) + a.shape[2] + 64) * size
