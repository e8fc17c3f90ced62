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
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from citrus_tool.checker.counting import certified
from citrus_tool.checker.graph import read_graph
from citrus_tool.checker.group import Group, Images, Subject
from citrus_tool.checker.intervals import Intervals
from citrus_tool.checker.proof_format import FORMAT, digest_of, require
from citrus_tool.errors import CheckFailedError, InputFileError

INPUTS: Final = 64
"""Inputs whose intervals are computed together: bounds the memory of their values in every layer."""


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
            return _CertificateFile(archive, model, digest, images).run(progress)
        except (KeyError, IndexError, TypeError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise CheckFailedError(
                f"{certificate}: is damaged or not as it should be ({error!r}); make it again with `citrus certify-uap"
                " --certificate`."
            ) from None


class _CertificateFile:
    def __init__(self, archive: zipfile.ZipFile, model: Path, digest: str, images: Images | None) -> None:
        self.archive = archive
        self.head = json.loads(archive.read("certificate.json"))
        stated = self.head.pop("digest")
        require(self.head["format"] == FORMAT, "certificate.json", f"format {self.head['format']} is not {FORMAT}")
        require(stated == digest_of(self.head), "certificate.json", "was changed: its digest is another")
        run = self.head["run"]
        require(run["model_sha256"] == digest, "the model", "is another one than the certificate is about")
        eps = float.fromhex(run["eps"])
        require(0 <= eps <= 1, "certificate.json", f"eps {eps} is no radius")
        contract = {name: run[name] for name in ("mean", "std", "layout", "clip")}
        graph, target = read_graph(model, run["shape"], **contract), run["target"]
        require(target is None or 0 <= target < graph.sizes[-1], "certificate.json", f"no class {target}")
        self.subject = Subject(run=run, graph=graph, eps=eps, images=images)

    def run(self, progress: Callable[[], None] | None) -> Checked:
        inputs = held = combinations = leaves = 0
        seen: set[int] = set()
        groups = enumerate(self.head["groups"])
        while batch := [self._group(number, entry) for number, entry in islice(groups, self._together)]:
            self._intervals(batch)
            for entry, group in batch:
                indices, (found, bounded) = group.facts["indices"], certified(group)
                require(not seen.intersection(indices), group.where, "has inputs of an earlier group")
                seen.update(indices)
                stated = (entry["inputs"], entry["certified"])
                require(stated == (len(indices), found), group.where, "is summed up wrongly")
                inputs, held = inputs + len(indices), held + found
                combinations, leaves = combinations + len(group.facts["proofs"]), leaves + bounded
                if progress is not None:
                    progress()
        totals = (self.head["inputs"], self.head["certified"])
        require(totals == (inputs, held), "the totals", f"{totals} are not those of the groups {inputs, held}")
        return Checked(
            inputs=inputs,
            certified=held,
            groups=len(self.head["groups"]),
            combinations=combinations,
            leaves=leaves,
            model_sha256=self.subject.run["model_sha256"],
            eps=self.subject.eps,
            clip=self.subject.run["clip"],
            target=self.subject.run["target"],
            data=self.head["data"],
            split=self.head["split"],
        )

    @property
    def _together(self) -> int:
        """Groups that are read together."""
        first = self.head["groups"][0]["inputs"] if self.head["groups"] else 1
        return max(1, INPUTS // max(1, int(first)))

    def _group(self, number: int, entry: Mapping[str, Any]) -> tuple[Mapping[str, Any], Group]:
        content = self.archive.read(entry["file"])
        require(hashlib.sha256(content).hexdigest() == entry["sha256"], f"group {number}", "its file was changed")
        return entry, Group(self.subject, np.load(io.BytesIO(content), allow_pickle=False), number)

    def _intervals(self, batch: Sequence[tuple[Mapping[str, Any], Group]]) -> None:
        """Computes what intervals say about the inputs that need nothing else."""
        wanted = [(g, p) for _, g in batch for p, kind in enumerate(g.facts["kinds"]) if kind == "interval"]
        if not wanted:
            return
        first, centres = batch[0][1], np.stack([g.x[p] for g, p in wanted], axis=1)
        found = Intervals(self.subject.graph, centres, first.radius, first.arithmetic)
        rivals = np.array([group.facts["rivals"][position] for group, position in wanted])
        for rival in np.unique(rivals):
            least = found.interval_margins(int(rival))
            for column in np.flatnonzero(rivals == rival):
                group, position = wanted[column]
                group.intervals[position] = least[:, column], found.values[-1][:, column]
