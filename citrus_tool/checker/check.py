"""`citrus check`: verifies a proof that `citrus certify-uap` wrote, with numpy, scipy and onnx alone.

A certificate (docs/certificate.md) claims for each of its groups of inputs that every u with |u|_inf <= eps leaves at
least `certified` of them correct. The proof of a group is a list of combinations, sets of atoms (input, wrong label)
that no one u makes happen together: for each there are parts that cover the box of u, and on each part duals that show

    sum over members of share (margin - guard) > 0,    shares >= 0.

What is checked: the file's digests; that the parts cover the box; every bound, with the given duals and bounds of
hidden neurons that the checker computes itself; and that among the atoms that are left, at most one for each input, no
choice without a refuted combination is larger than the group's claim.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from citrus_tool.checker.bounds import Execution, Intervals, Lines, Rows, Shared, Signs, gamma, lowest
from citrus_tool.checker.graph import Floats, Graph, Index, read_graph
from citrus_tool.errors import CheckFailedError, InputFileError

FORMAT: Final = 1
GUARD: Final = 2.0**-18
"""Margins count above this fraction of the input's largest clean |logit|: half of what the prover asks for."""
GRID: Final = 255
"""Slopes are stored as multiples of 1 / GRID."""
LEAVES: Final = 256
"""Leaves that are bounded together."""
INPUTS: Final = 64
"""Inputs whose intervals are computed together."""
STEPS: Final = 10_000_000
"""Choices that the counting argument may try."""

Atom = tuple[int, int]
"""(position of the input in its group, wrong label)."""
Splits = tuple[tuple[int, int], ...]
"""The splits of a part of the box: (neuron, sign), in the order in which they were made."""
Images = Callable[[Sequence[int]], tuple[NDArray[np.float32], Sequence[int]]]
"""Pixels (n, *shape) and labels of inputs of the data set, to compare with."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a proof shows: of `inputs` in `groups` groups, `certified` stay correct under |u|_inf <= `eps` (pixel
    space); and how large the proof is.
    """

    inputs: int
    certified: int
    groups: int
    combinations: int
    leaves: int
    model_sha256: str
    eps: float
    clip: bool
    target: int | None
    data: str
    split: str

    def to_json(self) -> dict[str, Any]:
        """Every field, and that the proof holds."""
        return {"holds": True, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class _View:
    """An execution with the lines of one view; `listed` (V,) are the neurons with slopes of their own."""

    execution: Execution
    lines: Lines
    listed: Index


def check(
    certificate: Path, model: Path, *, images: Images | None = None, progress: Callable[[], None] | None = None
) -> Checked:
    """Verifies every claim of the certificate against the ONNX file.

    Args:
        images: of the data set, to compare the certificate's own with; None: they are taken as they are.
        progress: called after every group.

    Raises: CheckFailedError that names group, combination and leaf where something does not hold; InputFileError where
    a file cannot be read; UnsupportedNetworkError for a network that the checker does not read.
    """
    try:
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        archive = zipfile.ZipFile(certificate)
    except OSError as error:
        raise InputFileError(f"{error.filename}: cannot be read ({error.strerror}); name another file.") from None
    except zipfile.BadZipFile:
        raise InputFileError(
            f"{certificate}: is no certificate; `citrus certify-uap --certificate` writes one."
        ) from None
    with archive:
        try:
            return _Checker(archive, model, digest, images).run(progress)
        except (KeyError, IndexError, TypeError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise CheckFailedError(
                f"{certificate}: is damaged or not as it should be ({error!r}); make it again with `citrus certify-uap"
                " --certificate`."
            ) from None


def digest_of(content: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def require(condition: bool, where: str, what: str) -> None:
    """Raises CheckFailedError unless the condition holds."""
    if not condition:
        raise CheckFailedError(f"the certificate does not hold: {where}: {what}.")


class _Checker:
    def __init__(self, archive: zipfile.ZipFile, model: Path, digest: str, images: Images | None) -> None:
        self.archive, self.images = archive, images
        self.head = json.loads(archive.read("certificate.json"))
        stated = self.head.pop("digest")
        require(self.head["format"] == FORMAT, "certificate.json", f"format {self.head['format']} is not {FORMAT}")
        require(stated == digest_of(self.head), "certificate.json", "was changed: its digest is another")
        self.run_ = self.head["run"]
        require(self.run_["model_sha256"] == digest, "the model", "is another one than the certificate is about")
        self.eps = float.fromhex(self.run_["eps"])
        require(0 <= self.eps <= 1, "certificate.json", f"eps {self.eps} is no radius")
        contract = {name: self.run_[name] for name in ("mean", "std", "layout", "clip")}
        self.graph: Graph = read_graph(model, self.run_["shape"], **contract)
        target = self.run_["target"]
        require(target is None or 0 <= target < self.graph.sizes[-1], "certificate.json", f"no class {target}")

    def run(self, progress: Callable[[], None] | None) -> Checked:
        inputs = certified = combinations = leaves = 0
        seen: set[int] = set()
        groups = enumerate(self.head["groups"])
        while batch := [self._group(number, entry) for number, entry in islice(groups, self._together)]:
            self._intervals(batch)
            for entry, group in batch:
                indices, found = group.facts["indices"], group.certified()
                require(not seen.intersection(indices), group.where, "has inputs of an earlier group")
                seen.update(indices)
                stated = (entry["inputs"], entry["certified"])
                require(stated == (len(indices), found), group.where, "is summed up wrongly")
                inputs, certified = inputs + len(indices), certified + found
                combinations, leaves = combinations + len(group.facts["proofs"]), leaves + group.leaves
                if progress is not None:
                    progress()
        totals = (self.head["inputs"], self.head["certified"])
        require(
            totals == (inputs, certified), "the totals", f"{totals} are not those of the groups {inputs, certified}"
        )
        return Checked(
            inputs=inputs,
            certified=certified,
            groups=len(self.head["groups"]),
            combinations=combinations,
            leaves=leaves,
            model_sha256=self.run_["model_sha256"],
            eps=self.eps,
            clip=self.run_["clip"],
            target=self.run_["target"],
            data=self.head["data"],
            split=self.head["split"],
        )

    @property
    def _together(self) -> int:
        """Groups that are read together."""
        first = self.head["groups"][0]["inputs"] if self.head["groups"] else 1
        return max(1, INPUTS // max(1, int(first)))

    def _group(self, number: int, entry: Mapping[str, Any]) -> tuple[Mapping[str, Any], _Group]:
        content = self.archive.read(entry["file"])
        require(hashlib.sha256(content).hexdigest() == entry["sha256"], f"group {number}", "its file was changed")
        return entry, _Group(self, np.load(io.BytesIO(content), allow_pickle=False), number)

    def _intervals(self, batch: Sequence[tuple[Mapping[str, Any], _Group]]) -> None:
        """Computes what intervals say about the inputs that need nothing else."""
        wanted = [(g, p) for _, g in batch for p, kind in enumerate(g.facts["kinds"]) if kind == "interval"]
        if not wanted:
            return
        found = Intervals(self.graph, np.stack([g.x[p] for g, p in wanted], axis=1), batch[0][1].radius)
        rivals = np.array([group.facts["rivals"][position] for group, position in wanted])
        for rival in np.unique(rivals):
            least = found.interval_margins(int(rival))
            for column in np.flatnonzero(rivals == rival):
                group, position = wanted[column]
                group.intervals[position] = least[:, column], found.values[-1][:, column]


class _Group:
    """The proof of one group: `facts` (JSON) and `arrays`.

    `intervals`: by position, margins over the box by intervals, and clean logits.
    """

    def __init__(self, checker: _Checker, arrays: Mapping[str, NDArray[Any]], number: int) -> None:
        self.arrays, self.where = arrays, (where := f"group {number}")
        self.intervals: dict[int, tuple[Floats, Floats]] = {}
        self.facts = facts = json.loads(arrays["facts"].tobytes())
        self.graph, self.target = checker.graph, checker.run_["target"]
        self.radius = math.nextafter(checker.eps, math.inf) if checker.eps else 0.0
        self.views: dict[tuple[int, int], _View] = {}  # by position and number
        self.rows: dict[int, Rows] = {}  # by position: margins less the guard
        self.fronts: list[_Front] = []
        self.shared: dict[tuple[tuple[int, int], ...], Shared] = {}
        self.leaves = 0
        x, count = arrays["images"], len(facts["indices"])
        require(facts["run"] == checker.run_ and facts["index"] == number, where, "belongs to another run or place")
        require(x.dtype == np.float32 and bool(np.isfinite(x).all()), where, "its images are no float32 numbers")
        self.x = x.astype(np.float64).reshape(count, self.graph.sizes[0])
        lists = [facts[name] for name in ("labels", "rivals", "kinds", "excluded", "views")]
        require({count} == {*map(len, lists)} and len(set(facts["indices"])) == count, where, "has odd lists")
        if checker.images is not None:
            pixels, labels = checker.images(facts["indices"])
            same = bool(np.array_equal(pixels, x)) and list(labels) == facts["labels"]
            require(same, where, "its images or labels are not those of the data set")

    def certified(self) -> int:
        """How many inputs the proof certifies, which must be what it claims."""
        facts = self.facts
        left = [self._individual(position) for position in range(len(facts["kinds"]))]
        refuted = self._refuted()
        held, claim = sum(labels is not None for labels in left), facts["fooled"]
        require(type(claim) is int and 0 <= claim <= held, self.where, f"claims that {claim} of {held} can be fooled")
        options = [[(place, label) for label in sorted(labels or ())] for place, labels in enumerate(left)]
        require(
            not choosable(options, refuted, claim + 1),
            self.where,
            f"its combinations allow that more than the claimed {claim} inputs are fooled together",
        )
        require(facts["certified"] == held - claim, self.where, "its certified count does not follow")
        return held - int(claim)

    def _individual(self, position: int) -> set[int] | None:
        """The labels of an input that bounds over the whole box leave open; None for one that counts as lost."""
        facts, where = self.facts, f"{self.where}, input {self.facts['indices'][position]}"
        kind, rival, label = (facts[name][position] for name in ("kinds", "rivals", "labels"))
        classes = range(self.graph.sizes[-1])
        require(label in classes and rival in classes, where, "has no such class")
        if kind == "lost":
            return None
        labels = set(classes) - {rival} if self.target is None else {self.target}
        fits = rival == label if self.target is None else self.target not in (rival, label)
        require(fits and kind in ("interval", "bounds"), where, "has another rival or kind than it can have")
        excluded = set(facts["excluded"][position])
        if kind == "interval":
            least, logits = self.intervals[position]
            guard = GUARD * float(np.abs(logits).max())
        else:
            least, guard = self._bounds(position, rival)
        for other in excluded:
            proven = other in labels and bool(least[other] > guard)
            require(proven, where, f"bounds over the whole box do not exclude label {other}")
        return labels - excluded

    def _bounds(self, position: int, rival: int) -> tuple[Floats, float]:
        """The input's margins over the box, and its guard; prepares the views of its execution."""
        listings = {view: self._listings(view) for view in self.facts["views"][position]}
        every = [(number, entry) for pair in listings.values() for part in pair for number, entry in part.items()]
        forced = {n: np.unique(np.concatenate([e for m, e in every if m == n])) for n in {n for n, _ in every}}
        execution = Execution(self.graph, self.x[position], self.radius, forced)
        guard = GUARD * float(np.abs(execution.values[-1]).max())
        rows = execution.margins(rival)
        self.rows[position] = replace(rows, offset=rows.offset - guard)
        for view, (base, final) in listings.items():
            self.views[position, view] = self._view(execution, view, base, final)
        least = np.maximum(execution.interval_margins(rival)[:, 0], execution.least(rows, execution.lines))
        return least, guard

    def _listings(self, view: int) -> tuple[dict[int, Index], dict[int, Index]]:
        """By ReLU, the entries with slopes of their own: before and after hidden bounds are improved."""
        given = self.facts["listed"][view]
        final = {number: self._entries(f"view{view}/final{number}") for number in given["final"]}
        steps = {number: self._entries(f"view{view}/base{number}") for number in given["steps"]}
        return {**final, **steps}, final

    def _entries(self, name: str) -> Index:
        entries = self.arrays[name].astype(np.int64)
        require(entries.ndim == 1 and bool((np.diff(entries) > 0).all()), self.where, f"{name} is not in order")
        return entries

    def _view(self, execution: Execution, view: int, base: dict[int, Index], final: dict[int, Index]) -> _View:
        """The view's lines: hidden bounds improved ReLU by ReLU with the slopes that are given."""
        lines, stages = execution.lines, execution.stages
        listed = np.zeros(0, dtype=np.int64)
        for number, stage in stages.items():
            part = slice(stage.start, stage.stop)
            lower, upper, chord = lines.lower.copy(), lines.upper.copy(), lines.chord.copy()
            if number in self.facts["listed"][view]["steps"]:
                neurons = stage.start + np.searchsorted(stage.entry, base[number])
                low = self._slopes(lines, execution, listed, self.arrays[f"view{view}/alpha{number}"], 2 * len(neurons))
                lower, upper = execution.tightened(lines, number, neurons, low)
            own = stage.start + np.searchsorted(stage.entry, final.get(number, np.zeros(0, dtype=np.int64)))
            if len(own):  # without any, all are as in CROWN
                chord[part] = False
                chord[own] = True
            lines = execution.lines_of(lower, upper, chord)
            listed = np.concatenate([listed, own])
        name = f"view{view}/hull"
        if name in self.arrays:
            share, own = self.arrays[name], np.searchsorted(stages[0].entry, final[0])
            require(
                share.dtype == np.uint8 and share.shape == (len(own), execution.x.size),
                self.where,
                f"{name} does not fit",
            )
            lines = replace(lines, above=execution.planes_above(own, share / GRID))
        return _View(execution=execution, lines=lines, listed=listed)

    def _slopes(self, lines: Lines, execution: Execution, listed: Index, alpha: NDArray[Any], count: int) -> Floats:
        """(count, U) slopes of the lines below: those given (count, V) for the neurons `listed`, else CROWN's."""
        require(
            alpha.dtype == np.uint8 and alpha.shape == (count, len(listed)), self.where, "has slopes that do not fit"
        )
        low = np.tile(lines.low, (count, 1))
        low[:, listed] = np.maximum(alpha / GRID, execution.floor[listed])
        return low

    def _refuted(self) -> set[frozenset[Atom]]:
        """The combinations, all of which are verified."""
        self.fronts = [self._front(number) for number in range(len(self.facts["fronts"]))]
        together: dict[tuple[tuple[int, int], ...], list[_Leaves]] = {}
        refuted = set()
        for number, proof in enumerate(self.facts["proofs"]):
            where, atoms = f"{self.where}, combination {number}", [tuple(atom) for atom in proof["atoms"]]
            members = tuple((position, view) for (position, _), view in zip(atoms, proof["views"], strict=True))
            require(len({position for position, _ in atoms}) == len(atoms), where, "has an input twice")
            leaves, paths = self._leaves(f"proof{number}", number, members, atoms, where)
            together.setdefault(members, []).append(leaves)
            fronts = [self.fronts[front] for front in proof["fronts"]]
            whole = self._products(number, fronts, atoms, members, paths, where) if fronts else covers(paths)
            require(whole, where, "its leaves do not cover the box")
            refuted.add(frozenset(atoms))
        for members, parts in together.items():
            self._require_positive(members, _Leaves.joined(parts))
        return refuted

    def _require_positive(self, members: Sequence[tuple[int, int]], leaves: _Leaves) -> None:
        self.leaves += len(leaves.owner)
        for first in range(0, len(leaves.owner), LEAVES):
            some = leaves.pick(first, first + LEAVES)
            for place in np.flatnonzero(~(lowest(*self._planes(members, some)) > 0)):
                number = int(some.owner[place])
                leaf = first + int(place) - int(np.flatnonzero(leaves.owner == number)[0])
                atoms = self.facts["proofs"][number]["atoms"]
                words = ", ".join(f"input {self.facts['indices'][p]} as {label}" for p, label in atoms)
                require(False, f"{self.where}, combination {number} ({words}), leaf {leaf}", "is not above 0")

    def _front(self, number: int) -> _Front:
        """A front whose parts cover the box, and of which the first `closed` are closed."""
        where, given = f"{self.where}, front {number}", self.facts["fronts"][number]
        atom, closed = tuple(given["atom"]), given["closed"]
        members = ((atom[0], given["view"]),)
        leaves, paths = self._leaves(f"front{number}", number, members, [atom], where)
        require(covers(paths), where, "its parts do not cover the box")
        parts = range(0, len(paths), LEAVES)
        planes = [self._planes(members, leaves.pick(first, first + LEAVES)) for first in parts]
        a, offset = (np.concatenate(some) for some in zip(*planes, strict=True))
        require(bool((lowest(a[:closed], offset[:closed]) > 0).all()), where, "has a closed part that is not above 0")
        self.leaves += closed
        open_ = {tuple(path): place for place, path in enumerate(paths[closed:])}
        return _Front(atom=atom, view=given["view"], part=open_, a=a[closed:], offset=offset[closed:])

    def _products(
        self,
        number: int,
        fronts: Sequence[_Front],
        atoms: Sequence[Atom],
        members: Sequence[tuple[int, int]],
        paths: Sequence[Splits],
        where: str,
    ) -> bool:
        """Whether products that are closed, and leaves, cover all products of the fronts' open parts.

        A u at which all atoms happen lies in an open part of every front. A product is closed by a sum of its planes
        that is above 0.
        """
        fits = [(front.atom, front.view) for front in fronts] == [
            (a, v) for a, (_, v) in zip(atoms, members, strict=True)
        ]
        require(fits, where, "has fronts of other atoms or views")
        left: list[tuple[int, ...]] = [(part,) for part in range(len(fronts[0].offset))]
        for width in range(2, len(fronts) + 1):
            part, mix = self.arrays[f"proof{number}/part{width}"], self.arrays[f"proof{number}/mix{width}"]
            sizes = [len(front.offset) for front in fronts[:width]]
            right = part.shape == mix.shape == (len(part), width) and bool(((part >= 0) & (part < sizes)).all())
            require(right and bool((mix >= 0).all() and np.isfinite(mix).all()), where, "has products that do not fit")
            for first in range(0, len(part), LEAVES):
                some = slice(first, first + LEAVES)
                planes = [
                    (f.a[i] * m[:, None], f.offset[i] * m)
                    for f, i, m in zip(fronts, part[some].T, mix[some].T, strict=False)
                ]
                require(bool((lowest(*_sum(planes)) > 0).all()), where, "has a closed product that is not above 0")
            closed = {tuple(row) for row in part.tolist()}
            left = [(*head, last) for head in left for last in range(sizes[-1]) if (*head, last) not in closed]
        starts = np.cumsum([0, *(len(self.views[member].listed) for member in members)])
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
            of[tuple(product)].append(rest)
        return all(covers(rests) for rests in of.values())

    def _leaves(
        self, name: str, number: int, members: Sequence[tuple[int, int]], atoms: Sequence[Atom], where: str
    ) -> tuple[_Leaves, list[Splits]]:
        """The leaves of combination or front `number`, whose duals must be feasible, and their paths of splits."""
        neurons = sum(len(self.views[member].listed) for member in members)
        names = ("alpha", "share", "depth", "split", "side", "beta")
        alpha, share, depth, split, side, beta = (self.arrays[f"{name}/{part}"] for part in names)
        count, total = len(depth), int(depth.sum())
        shapes = alpha.shape == (count, neurons) and share.shape == (count, len(atoms)) and bool((depth >= 0).all())
        require(shapes and {len(split), len(side), len(beta)} == {total}, where, "its arrays do not fit")
        feasible = bool((beta >= 0).all() and (share >= 0).all())
        require(
            feasible and bool(np.isfinite(beta).all() and np.isfinite(share).all()),
            where,
            "a multiplier or share is no number >= 0",
        )
        require(bool((np.abs(side) == 1).all() and ((split >= 0) & (split < neurons)).all()), where, "a split is none")
        steps = list(zip(split.tolist(), side.tolist(), strict=True))
        paths = [tuple(steps[end - d : end]) for d, end in zip(depth.tolist(), np.cumsum(depth).tolist(), strict=True)]
        return _Leaves(
            owner=np.full(count, number),
            label=np.tile([label for _, label in atoms], (count, 1)),
            row=np.repeat(np.arange(count), depth),
            alpha=alpha,
            share=share.astype(np.float64),
            split=split.astype(np.int64),
            side=side.astype(np.float64),
            beta=beta.astype(np.float64),
        ), paths

    def _planes(self, members: Sequence[tuple[int, int]], leaves: _Leaves) -> tuple[Floats, Floats]:
        """(a, o) with sum of share (margin - guard) >= a v + o on the leaves."""
        shared = self._shared(members)
        planes, left, given = [], [], []
        first = 0
        for place, (position, number) in enumerate(members):
            view, rows = self.views[position, number], self.rows[position]
            last = first + len(view.listed)
            low = self._slopes(view.lines, view.execution, view.listed, leaves.alpha[:, first:last], len(leaves.owner))
            own = (leaves.split >= first) & (leaves.split < last)
            signs = Signs(
                row=leaves.row[own],
                neuron=view.listed[leaves.split[own] - first],
                side=leaves.side[own],
                beta=leaves.beta[own],
            )
            some = rows.pick(leaves.label[:, place]).times(leaves.share[:, place])
            a, offset, w, nu = view.execution.plane_apart(some, view.lines, low, signs, shared.apart[place])
            planes.append((a, offset))
            left.append((w, nu))
            given.append(signs)
            first = last
        above, empty = shared.least(left, given)
        a, offset = _sum([*planes, (np.zeros_like(planes[0][0]), above)])
        return np.where(empty[:, None], 0.0, a), np.where(empty, 1.0, offset)

    def _shared(self, members: Sequence[tuple[int, int]]) -> Shared:
        """What these executions share."""
        key, views = tuple(members), [self.views[member] for member in members]
        if key not in self.shared:
            self.shared[key] = Shared([view.execution for view in views], [view.lines for view in views])
        return self.shared[key]


@dataclass(frozen=True, kw_only=True)
class _Front:
    """The open parts of an atom's search: `part` numbers them; planes a (n, d), offset (n,) below margin - guard."""

    atom: Atom
    view: int
    part: Mapping[Splits, int]
    a: Floats
    offset: Floats


def _sum(planes: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """The sum of planes, outward; each may have been scaled with one rounding."""
    a, offset = (np.stack(some) for some in zip(*planes, strict=True))
    size = np.abs(a).sum((0, 2)) + np.abs(offset).sum(0)
    return a.sum(0), offset.sum(0) - gamma(len(planes) + a.shape[2] + 64) * size


@dataclass(frozen=True, kw_only=True)
class _Leaves:
    """L leaves: owner (L,) their combination; label, share (L, M); alpha (L, V); `row` (S,) the leaf of each split."""

    owner: Index
    label: Index
    alpha: NDArray[np.uint8]
    share: Floats
    row: Index
    split: Index
    side: Floats
    beta: Floats

    @staticmethod
    def joined(parts: Sequence[_Leaves]) -> _Leaves:
        starts = np.cumsum([0, *(len(part.owner) for part in parts)])
        names = ("owner", "label", "alpha", "share", "split", "side", "beta")
        row = np.concatenate([part.row + start for part, start in zip(parts, starts[:-1], strict=True)])
        return _Leaves(row=row, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def pick(self, first: int, last: int) -> _Leaves:
        here = slice(*np.searchsorted(self.row, (first, last)))
        return _Leaves(
            owner=self.owner[first:last],
            label=self.label[first:last],
            alpha=self.alpha[first:last],
            share=self.share[first:last],
            row=self.row[here] - first,
            split=self.split[here],
            side=self.side[here],
            beta=self.beta[here],
        )


def covers(paths: Sequence[Splits]) -> bool:
    """Whether the parts of a box, each given by (neuron, sign) in the order of splits, are the leaves of one tree."""
    todo = [(0, list(paths))]
    while todo:
        depth, some = todo.pop()
        if len(some) == 1 and len(some[0]) == depth:
            continue
        if not some or any(len(path) == depth for path in some) or len({path[depth][0] for path in some}) != 1:
            return False
        todo += [(depth + 1, [path for path in some if path[depth][1] == side]) for side in (1, -1)]
    return True


def choosable(options: Sequence[Sequence[Atom]], refuted: Iterable[frozenset[Atom]], wanted: int) -> bool:
    """Whether `wanted` atoms, at most one of each option, can be chosen so that they contain no refuted combination.

    Raises CheckFailedError when that takes more than STEPS choices.
    """
    sets, steps = [set(old) for old in refuted], 0

    def of(atom: Atom) -> list[frozenset[Atom]]:
        return [frozenset(old - {atom}) for old in sets if atom in old]

    containing = {atom: of(atom) for option in options for atom in option}

    def freer(one: Atom, other: Atom) -> bool:
        """Whether `one` can always take the place of `other`."""
        return all(any(theirs <= mine for theirs in containing[other]) for mine in containing[one])

    useful = []
    for option in options:
        kept: list[Atom] = []
        for atom in option:
            if not any(freer(old, atom) for old in kept):
                kept = [old for old in kept if not freer(atom, old)] + [atom]
        useful.append(kept)

    def allowed(atom: Atom, chosen: frozenset[Atom]) -> bool:
        return not any(rest <= chosen for rest in containing[atom])

    def search(left: list[list[Atom]], chosen: frozenset[Atom]) -> bool:
        nonlocal steps
        steps += 1
        require(steps <= STEPS, "the counting argument", f"takes more than {STEPS} steps")
        left = [open_ for option in left if (open_ := [atom for atom in option if allowed(atom, chosen)])]
        if len(chosen) >= wanted:
            return True
        if len(chosen) + len(left) < wanted:
            return False
        left.sort(key=len)
        if any(search(left[1:], chosen | {atom}) for atom in left[0]):
            return True
        return search(left[1:], chosen)

    return search(useful, frozenset())
