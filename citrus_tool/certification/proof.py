"""Writes the proof behind a certification, group by group, for `citrus check` (format: docs/proof-format.md).

While groups are certified, each one's part stands in a folder beside the certificate, so that a stopped run can go on;
`Recorder.pack` makes them one file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool.bounds.execution import ExecutionView
from citrus_tool.certification.part_products import Factor, Products
from citrus_tool.certification.partition import Block
from citrus_tool.certification.parts import Leaf, PartDuals
from citrus_tool.errors import InputFileError
from citrus_tool.files import require_writable_file, write_bytes

FORMAT: Final = 2
"""Version of the certificate's format, which the checker reads; raised when old checkers would misread new proofs."""


@dataclass(frozen=True, kw_only=True)
class Refutation:
    """A combination of atoms (position in the group, rival), the view of each atom's execution, and the leaves.

    Without shares (a combination of one atom) a leaf bounds the margin, with them the sum of share times margin.
    `factors`, `closed`: as in joint_loop.Grounds.
    """

    atoms: tuple[tuple[int, int], ...]
    views: tuple[ExecutionView, ...]
    leaves: tuple[Leaf, ...]
    factors: tuple[Factor, ...] = ()
    closed: tuple[Products, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GroupProof:
    """Why at most `fooled` of the group's inputs that count as held are fooled together.

    Attributes:
        images: (k, C, H, W) float32 pixels.
        labels, references: per input, the true class, and the class whose margins over its rivals are bounded.
        kinds: per input "lost" (nothing is claimed), "interval" or "bounds": what excludes the rivals in `excluded`.
    """

    index: int
    indices: tuple[int, ...]
    images: Float[Tensor, "k C H W"]
    labels: tuple[int, ...]
    references: tuple[int, ...]
    kinds: tuple[str, ...]
    excluded: tuple[tuple[int, ...], ...]
    refutations: tuple[Refutation, ...]
    fooled: int

    @property
    def certified(self) -> int:
        """Inputs that stay correct."""
        return sum(kind != "lost" for kind in self.kinds) - self.fooled


def regrouped(
    proofs: Mapping[int, GroupProof],
    still: Sequence[int],
    blocks: Sequence[Block],
    across: Sequence[Refutation],
) -> list[GroupProof]:
    """The proofs of a partition of the same inputs: the groups less their open inputs, then the blocks of those.

    Args:
        proofs: of the groups, by index.
        still: the open inputs (indices into the data), which the blocks number.
        across: refutations found across the groups, with the open inputs' numbers as positions.
    """
    number_of = {index: number for number, index in enumerate(still)}
    block_of = {member: place for place, block in enumerate(blocks) for member in block.members}
    home: dict[int, tuple[GroupProof, int]] = {}
    inside: list[list[Refutation]] = [[] for _ in blocks]

    def sort(one: Refutation, members: Sequence[int]) -> None:
        """Puts a refutation of these open inputs to their block, if they share one."""
        places = {block_of[member] for member in members}
        if len(places) == 1:
            (place,) = places
            position = blocks[place].members.index
            atoms = tuple((position(member), rival) for member, (_, rival) in zip(members, one.atoms, strict=True))
            inside[place].append(replace(one, atoms=atoms))

    found: list[GroupProof] = []
    for _, proof in sorted(proofs.items()):
        kept = [place for place, index in enumerate(proof.indices) if index not in number_of]
        new = {place: number for number, place in enumerate(kept)}
        mine = []
        for one in proof.refutations:
            if all(place in new for place, _ in one.atoms):
                mine.append(replace(one, atoms=tuple((new[place], rival) for place, rival in one.atoms)))
            else:
                sort(one, [number_of[proof.indices[place]] for place, _ in one.atoms])
        home |= {number_of[index]: (proof, p) for p, index in enumerate(proof.indices) if index in number_of}
        if kept:
            found.append(_gathered([(proof, place) for place in kept], len(found), mine, fooled=0))
    for one in across:
        sort(one, [member for member, _ in one.atoms])
    for place, block in enumerate(blocks):
        members = [home[member] for member in block.members]
        found.append(_gathered(members, len(found), inside[place], fooled=block.bound))
    return found


def _gathered(
    members: Sequence[tuple[GroupProof, int]], index: int, refutations: Sequence[Refutation], *, fooled: int
) -> GroupProof:
    """A group of inputs (proof, position) of other groups."""
    return GroupProof(
        index=index,
        indices=tuple(proof.indices[place] for proof, place in members),
        images=torch.stack([proof.images[place] for proof, place in members]),
        labels=tuple(proof.labels[place] for proof, place in members),
        references=tuple(proof.references[place] for proof, place in members),
        kinds=tuple(proof.kinds[place] for proof, place in members),
        excluded=tuple(proof.excluded[place] for proof, place in members),
        refutations=tuple(refutations),
        fooled=fooled,
    )


class _Arrays:
    """A group's arrays; executions and factors are stored once and then known by number."""

    def __init__(self, group: GroupProof) -> None:
        self.arrays: dict[str, NDArray[Any]] = {"images": _numpy(group.images, np.float32)}
        self.views: list[list[int]] = [[] for _ in group.indices]  # by position
        self.listed: list[dict[str, list[int]]] = []
        self.factors: list[dict[str, Any]] = []
        self.numbers: dict[int, int] = {}  # by id of the view
        self.factor_numbers: dict[int, int] = {}  # by id of the factor

    def view(self, position: int, view: ExecutionView) -> int:
        """The number of an execution of the input at `position`."""
        number = self.numbers.setdefault(id(view), len(self.listed))
        if number == len(self.listed):
            ordinal = {node: place for place, node in enumerate(view.nodes)}
            for node, entry in view.open.items():
                self.arrays[f"view{number}/final{ordinal[node]}"] = _numpy(entry, np.int32)
            if view.input_planes is not None:
                self.arrays[f"view{number}/hull"] = _numpy(view.input_planes, np.uint8)
            for step in view.steps:
                self.arrays[f"view{number}/base{ordinal[step.node]}"] = _numpy(step.entry, np.int32)
                self.arrays[f"view{number}/alpha{ordinal[step.node]}"] = _numpy(step.alpha, np.uint8)
            final = [ordinal[node] for node in view.open]
            self.listed.append({"final": final, "steps": [ordinal[step.node] for step in view.steps]})
            self.views[position].append(number)
        return number

    def factor(self, atom: tuple[int, int], view: ExecutionView, factor: Factor) -> int:
        """The number of a factor: an atom's closed parts, then its open ones."""
        number = self.factor_numbers.setdefault(id(factor), len(self.factors))
        if number == len(self.factors):
            parts = PartDuals.of(factor.duals.on_grid(), range(len(factor)))
            self.factors.append({"atom": list(atom), "view": self.view(atom[0], view), "closed": len(factor.closed)})
            self.leaves(f"front{number}", 1, view.neurons, [*(leaf.duals for leaf in factor.closed), *parts])
        return number

    def leaves(self, name: str, members: int, neurons: int, leaves: Sequence[PartDuals]) -> None:
        """The parts of a combination or a factor, whose duals have so many slopes."""
        one = torch.ones(members)
        alpha = torch.zeros(0, neurons, dtype=torch.uint8)
        shares = torch.zeros(0, members)
        none = torch.zeros(0)
        parts: dict[str, NDArray[Any]] = {
            "alpha": _numpy(torch.stack([leaf.alpha for leaf in leaves]) if leaves else alpha, np.uint8),
            "share": _numpy(
                torch.stack([one if s.share is None else s.share.cpu() for s in leaves]) if leaves else shares,
                np.float32,
            ),
            "depth": np.array([len(leaf.split) for leaf in leaves], dtype=np.int32),
            "split": _numpy(torch.cat([none, *(leaf.split.cpu() for leaf in leaves)]), np.int32),
            "side": _numpy(torch.cat([none, *(leaf.side.cpu() for leaf in leaves)]), np.int8),
            "beta": _numpy(torch.cat([none, *(leaf.beta.cpu() for leaf in leaves)]), np.float32),
        }
        self.arrays.update({f"{name}/{part}": array for part, array in parts.items()})


class Recorder:
    """The certificate of one run on its way: its parts, in the folder `PATH.parts`.

    run: what the proof is about (JSON values): `model_sha256`, `eps` (hexadecimal float), `clip`, `target`, `mean`,
    `std`, `layout`, `shape`, `arithmetic`.

    Raises InputFileError where the folder cannot be made.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], *, resume: bool) -> None:
        require_writable_file(path)
        self.path, self.run = path, json.loads(json.dumps(run))
        self.folder = path.with_name(f"{path.name}.parts")
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputFileError(f"{self.folder}: cannot be made ({error.strerror}); name another file.") from None

    def _part(self, index: int) -> Path:
        return self.folder / f"group{index:06d}.npz"

    def has(self, index: int, indices: Sequence[int], certified: int) -> bool:
        """Whether the part of this group, with this result, is there from an earlier run."""
        try:
            with np.load(self._part(index), allow_pickle=False) as file:
                facts = json.loads(file["facts"].tobytes())
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            return False
        stands = facts["index"], facts["indices"], facts["certified"], facts["run"]
        return bool(stands == (index, list(indices), certified, self.run))

    def write(self, group: GroupProof) -> None:
        """Stores one group's part."""
        store = _Arrays(group)
        proofs = []
        for number, one in enumerate(group.refutations):
            views = [store.view(p, view) for (p, _), view in zip(one.atoms, one.views, strict=True)]
            factors = [store.factor(*some) for some in zip(one.atoms, one.views, one.factors, strict=False)]
            proofs.append({"atoms": [list(atom) for atom in one.atoms], "views": views, "fronts": factors})
            store.leaves(
                f"proof{number}",
                len(one.atoms),
                sum(view.neurons for view in one.views),
                [leaf.duals for leaf in one.leaves],
            )
            for width, products in enumerate(one.closed, start=2):
                store.arrays[f"proof{number}/part{width}"] = _numpy(products.part, np.int32)
                store.arrays[f"proof{number}/mix{width}"] = _numpy(products.share, np.float64)
        facts = {
            "run": self.run,
            "index": group.index,
            "indices": list(group.indices),
            "labels": list(group.labels),
            "rivals": list(group.references),
            "kinds": list(group.kinds),
            "excluded": [list(rivals) for rivals in group.excluded],
            "views": store.views,
            "listed": store.listed,
            "fronts": store.factors,
            "proofs": proofs,
            "fooled": group.fooled,
            "certified": group.certified,
        }
        write_bytes(self._part(group.index), packed(facts, store.arrays))

    def pack(self, groups: int, about: Mapping[str, Any]) -> None:
        """Makes the certificate of the parts of all groups, and removes the parts.

        about: what else its first page says: `data`, `split`, `version`, `protocol`, `scope`; nothing of it is proven.

        Raises InputFileError where the file cannot be written.
        """
        temporary = self.path.with_name(f".{self.path.name}.part")
        try:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                entries = []
                for index in range(groups):
                    content = self._part(index).read_bytes()
                    with np.load(io.BytesIO(content), allow_pickle=False) as file:
                        facts = json.loads(file["facts"].tobytes())
                    name = f"groups/{self._part(index).name}"
                    archive.writestr(name, content)
                    digest = hashlib.sha256(content).hexdigest()
                    entries.append({"file": name, "sha256": digest, **_count(facts)})
                archive.writestr("certificate.json", front_page(self.run, entries, about))
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            reason = error.strerror or error
            raise InputFileError(f"{self.path}: cannot be written ({reason}); make room and use --resume.") from None
        shutil.rmtree(self.folder, ignore_errors=True)


def packed(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A group's part: an .npz file of its arrays (any shape), `facts` as bytes of JSON among them."""
    content = io.BytesIO()
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in {**arrays, "facts": text}.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")  # without a date: the same proof is the same file
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED)
    return content.getvalue()


def front_page(run: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The text of certificate.json."""
    page = {
        **about,
        "format": FORMAT,
        "run": run,
        "groups": entries,
        "inputs": sum(entry["inputs"] for entry in entries),
        "certified": sum(entry["certified"] for entry in entries),
    }
    digest = hashlib.sha256(json.dumps(page, sort_keys=True).encode()).hexdigest()
    return json.dumps({**page, "digest": digest}, indent=1)


def _count(facts: Mapping[str, Any]) -> dict[str, int]:
    return {"inputs": len(facts["indices"]), "certified": facts["certified"]}


def _numpy(values: Tensor, dtype: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy().astype(dtype)
