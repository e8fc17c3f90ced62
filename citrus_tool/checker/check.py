"""`citrus check`: verifies a proof that `citrus certify-uap` wrote, with numpy, scipy and onnx alone.

A certificate (docs/proof-format.md) claims for each of its groups of inputs that every u with |u|_inf <= eps leaves at
least `certified` of them correct. The proof of a group is a list of combinations, sets of atoms (input, wrong label)
that no one u makes happen together: for each there are parts that cover the box of u, and on each part duals that show

    sum over members of share * margin > 0,    shares >= 0.

What is checked: that every field and array is as the schema says (schema.py), before anything is used; the file's
digests; that the parts cover the box; every bound, with the given duals and bounds of hidden neurons that the checker
computes itself; and that among the atoms that are left, at most one for each input, no choice without a refuted
combination is larger than the group's claim.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from citrus_tool.checker.agreement import require_agreement
from citrus_tool.checker.archive import JSON_BYTES, Archive, parse_json
from citrus_tool.checker.counting import certified
from citrus_tool.checker.expected import Expected, ranges
from citrus_tool.checker.graph import read_graph
from citrus_tool.checker.group import Group, Images, Subject
from citrus_tool.checker.intervals import Intervals
from citrus_tool.checker.proof_format import digest_of, refuse, require
from citrus_tool.checker.schema import check_page
from citrus_tool.errors import InputFileError

INPUTS: Final = 64
"""Inputs whose intervals are computed together: bounds the memory of their values in every layer."""
PAGE: Final = "certificate.json"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a proof shows: of `inputs` in `groups` groups, `certified` stay correct under |u|_inf <= `eps` (pixel
    space); what it is about; and how large it is.

    Attributes:
        arithmetic: "float32": of every run of the file in float32; "real": of the network in real arithmetic.
        shape, mean, std, layout: of an input (C, H, W), and how it becomes the file's.
        indices: of the inputs, as ranges: "0-99,105".
        compared: the checker's reading of the file agrees with onnxruntime on images of the proof; False without
            onnxruntime.
        data, split, protocol, scope, version: what the proof says of its origin, which nothing verifies; None: nothing.
    """

    inputs: int
    certified: int
    groups: int
    combinations: int
    leaves: int
    model_sha256: str
    eps: float
    arithmetic: str
    clip: bool
    target: int | None
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str
    indices: str
    data: str
    split: str
    protocol: str | None
    scope: str | None
    version: str
    format: int
    compared: bool

    def to_json(self) -> dict[str, Any]:
        """Every field, and that the proof holds."""
        return {"holds": True, **asdict(self)}


def check(
    certificate: Path,
    model: Path,
    *,
    images: Images | None = None,
    expected: Expected | None = None,
    progress: Callable[[], None] | None = None,
) -> Checked:
    """Verifies every claim of the certificate against the ONNX file.

    Args:
        images: of the data set, to compare the certificate's own with; None: they are taken as they are.
        expected: what the certificate has to be about.
        progress: called after every group.

    Raises: CheckFailedError that names group and field, combination or leaf, where something is not as it should be or
    does not hold; InputFileError where a file cannot be read; UnsupportedNetworkError for a network that the checker
    does not read.
    """
    try:
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        with certificate.open("rb") as file, np.errstate(all="ignore"):  # what overflows is no margin above 0
            archive = Archive(file, "the file", compressed=False)
            return _CertificateFile(archive, model, digest, images, expected or Expected()).run(progress)
    except MemoryError:
        refuse(str(certificate), "takes more memory than there is")
    except OSError as error:
        raise InputFileError(f"{error.filename}: cannot be read ({error.strerror}); name another file.") from None
    except zipfile.BadZipFile:
        raise InputFileError(
            f"{certificate}: is no certificate; `citrus certify-uap --certificate` writes one."
        ) from None


class _CertificateFile:
    def __init__(self, archive: Archive, model: Path, digest: str, images: Images | None, expected: Expected) -> None:
        self.archive, self.expected, self.model = archive, expected, model
        self.head = head = parse_json(archive.read(PAGE, JSON_BYTES), PAGE)
        check_page(head, PAGE)
        rest = {name: value for name, value in head.items() if name != "digest"}
        require(head["digest"] == digest_of(rest), PAGE, "was changed: its digest is another")
        archive.require_names([PAGE, *(entry["file"] for entry in head["groups"])])
        self.run_facts = run = {"arithmetic": "real", **head["run"]}
        require(run["model_sha256"] == digest, "the model", "is another one than the certificate is about")
        eps = float.fromhex(run["eps"])
        expected.require_run(run, eps)
        contract = {name: run[name] for name in ("mean", "std", "layout", "clip")}
        graph, target = read_graph(model, run["shape"], **contract), run["target"]
        require(target is None or target < graph.sizes[-1], f"{PAGE}.run.target", f"is {target}, no class")
        self.subject = Subject(run=head["run"], graph=graph, eps=eps, images=images)

    def run(self, progress: Callable[[], None] | None) -> Checked:
        inputs = held = combinations = leaves = 0
        seen: set[int] = set()
        compared: bool | None = None
        groups = enumerate(self.head["groups"])
        while batch := [self._group(number, entry) for number, entry in islice(groups, self._together)]:
            if compared is None:
                x = np.concatenate([group.x for _, group in batch])
                compared = require_agreement(self.model, self.subject.graph, x, self.run_facts)
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
        self.expected.require_inputs(seen)
        run = self.run_facts
        return Checked(
            inputs=inputs,
            certified=held,
            groups=len(self.head["groups"]),
            combinations=combinations,
            leaves=leaves,
            model_sha256=run["model_sha256"],
            eps=self.subject.eps,
            arithmetic=run["arithmetic"],
            clip=run["clip"],
            target=run["target"],
            shape=tuple(run["shape"]),
            mean=tuple(run["mean"]),
            std=tuple(run["std"]),
            layout=run["layout"],
            indices=ranges(seen),
            data=self.head["data"],
            split=self.head["split"],
            protocol=self.head.get("protocol"),
            scope=self.head.get("scope"),
            version=self.head["version"],
            format=self.head["format"],
            compared=bool(compared),
        )

    @property
    def _together(self) -> int:
        """Groups that are read together."""
        return max(1, INPUTS // int(self.head["groups"][0]["inputs"]))

    def _group(self, number: int, entry: Mapping[str, Any]) -> tuple[Mapping[str, Any], Group]:
        content = self.archive.read(entry["file"])
        require(hashlib.sha256(content).hexdigest() == entry["sha256"], f"group {number}", "its file was changed")
        return entry, Group(self.subject, content, number)

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
                group.intervals[position] = least[:, column]
