"""The proof of one group: what it claims of each input alone, and the views of its execution."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from citrus_tool.checker.archive import JSON_BYTES, Archive, parse_array, parse_json
from citrus_tool.checker.bounds import AffineForms, Execution, NeuronLines
from citrus_tool.checker.graph import Floats, Graph, Index
from citrus_tool.checker.proof_format import GRID, Member, refuse, require
from citrus_tool.checker.schema import GroupArrays, check_facts

Images = Callable[[Sequence[int]], tuple[NDArray[np.float32], Sequence[int]]]
"""Pixels (n, *shape) and labels of inputs of the data set, to compare with."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a certificate is about: the facts of its run, the network, eps in pixel space, and the data set's images."""

    run: Mapping[str, Any]
    graph: Graph
    eps: float
    images: Images | None


@dataclass(frozen=True, kw_only=True)
class ProofView:
    """An execution with the lines of one view; `listed` (V,) are the neurons with slopes of their own."""

    execution: Execution
    lines: NeuronLines
    listed: Index


class Group:
    """The proof of one group: `facts` (JSON) and `arrays`, of the schema; what it claims of each input alone.

    Attributes:
        x: (n, d) pixels.  radius: of the box, in pixel space.
        intervals: by position, margins over the box by intervals; filled by the reader of the file.
        views, margins: of the inputs that `individual` has looked at: views by member; margins.
    """

    def __init__(self, subject: Subject, content: bytes, number: int) -> None:
        self.where = where = f"group {number}"
        self.intervals: dict[int, Floats] = {}
        self.graph, self.target = subject.graph, subject.run["target"]
        self.arithmetic = subject.run.get("arithmetic", "real")
        self.radius = math.nextafter(subject.eps, math.inf) if subject.eps else 0.0
        self.views: dict[Member, ProofView] = {}
        self.margins: dict[int, AffineForms] = {}
        try:
            archive = Archive(io.BytesIO(content), where, compressed=True)
        except zipfile.BadZipFile:
            refuse(where, "is no zip file")
        self.facts = facts = parse_json(
            parse_array(archive.read("facts.npy", JSON_BYTES), "|u1", f"{where}, facts").tobytes(), f"{where}, facts"
        )
        check_facts(facts, f"{where}, facts", subject.run, self.graph)
        require(facts["index"] == number, where, "belongs to another place")
        self.arrays = GroupArrays(archive, facts, subject.run, self.graph).found
        x = self.arrays["images"]
        self.x = x.astype(np.float64).reshape(len(x), self.graph.sizes[0])
        if subject.images is not None:
            pixels, labels = subject.images(facts["indices"])
            same = bool(np.array_equal(pixels, x)) and list(labels) == facts["labels"]
            require(same, where, "its images or labels are not those of the data set")

    def individual(self, position: int) -> set[int] | None:
        """The labels of an input that bounds over the whole box leave open; None for one that counts as lost."""
        facts, where = self.facts, f"{self.where}, input {self.facts['indices'][position]}"
        kind, rival, label = (facts[name][position] for name in ("kinds", "rivals", "labels"))
        if kind == "lost":
            return None
        labels = set(range(self.graph.sizes[-1])) - {rival} if self.target is None else {self.target}
        fits = rival == label if self.target is None else self.target not in (rival, label)
        require(fits, where, "has another rival than it can have")
        excluded = set(facts["excluded"][position])
        least = self.intervals[position] if kind == "interval" else self._bounds(position, rival)
        for other in excluded:
            proven = other in labels and bool(least[other] > 0)
            require(proven, where, f"bounds over the whole box do not exclude label {other}")
        return labels - excluded

    def _bounds(self, position: int, rival: int) -> Floats:
        """The input's margins over the box; prepares the views of its execution."""
        listings = {view: self._listings(view) for view in self.facts["views"][position]}
        every = [(number, entry) for pair in listings.values() for part in pair for number, entry in part.items()]
        forced = {n: np.unique(np.concatenate([e for m, e in every if m == n])) for n in {n for n, _ in every}}
        execution = Execution(self.graph, self.x[position], self.radius, forced, self.arithmetic)
        rows = self.margins[position] = execution.margins(rival)
        for view, (base, final) in listings.items():
            self.views[position, view] = self._view(execution, view, base, final)
        least: Floats = np.maximum(execution.interval_margins(rival)[:, 0], execution.least(rows, execution.lines))
        return least

    def _listings(self, view: int) -> tuple[dict[int, Index], dict[int, Index]]:
        """By ReLU, the entries with slopes of their own: before and after hidden bounds are improved."""
        given = self.facts["listed"][view]
        final = {number: self._entries(f"view{view}/final{number}") for number in given["final"]}
        steps = {number: self._entries(f"view{view}/base{number}") for number in given["steps"]}
        return {**final, **steps}, final

    def _entries(self, name: str) -> Index:
        return self.arrays[name].astype(np.int64)

    def _view(self, execution: Execution, view: int, base: dict[int, Index], final: dict[int, Index]) -> ProofView:
        """The view's lines: hidden bounds improved ReLU by ReLU with the slopes that are given."""
        lines, stages = execution.lines, execution.stages
        listed = np.zeros(0, dtype=np.int64)
        for number, stage in stages.items():
            part = slice(stage.start, stage.stop)
            lower, upper, chord = lines.lower.copy(), lines.upper.copy(), lines.chord.copy()
            if number in self.facts["listed"][view]["steps"]:
                neurons = stage.start + np.searchsorted(stage.entry, base[number])
                low = self.slopes(lines, execution, listed, self.arrays[f"view{view}/alpha{number}"])
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
            lines = replace(lines, above=execution.planes_above(own, share / GRID))
        return ProofView(execution=execution, lines=lines, listed=listed)

    def slopes(self, lines: NeuronLines, execution: Execution, listed: Index, alpha: NDArray[np.uint8]) -> Floats:
        """(n, U) slopes of the lines below: `alpha` (n, V) for the neurons `listed`, else CROWN's."""
        low = np.tile(lines.low, (len(alpha), 1))
        low[:, listed] = np.maximum(alpha / GRID, execution.floor[listed])
        return low
