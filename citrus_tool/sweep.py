"""Certificates of one network at several eps (`citrus certify-uap --eps 1/255,2/255,4/255`).

The worst-case count of a group can only fall as eps grows, because every u of a smaller box lies in a larger one. Two
things follow. What is certified at an eps holds at every smaller one, and what a witness does at an eps it does at
every larger one, so that `carried` narrows each bracket by the others. And a count that is certified at a larger eps
and lies above the attacked count at a smaller one refutes the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal

from citrus_tool.certify.certificate import Certificate, GroupResult, Status
from citrus_tool.certify.journal import unfinished
from citrus_tool.certify.uap import CertifySettings
from citrus_tool.data import Split
from citrus_tool.errors import SoundnessError, UsageError
from citrus_tool.files import write_text
from citrus_tool.progress import Progress, Silent
from citrus_tool.tables import Cell
from citrus_tool.threat import Threat
from citrus_tool.workflow import DataChoice, ModelChoice, certify_file

COLUMNS: Mapping[str, str] = {
    "clean_correct": "clean",
    "ibp_certified": "IBP",
    "individually_certified": "individually",
    "certified": "certified UAP",
    "attacked": "attacked UAP",
}
"""The counts of a certificate that tables show, with their headings."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Certificates of one network on the same groups, by ascending eps, each bracket narrowed by the others."""

    certificates: tuple[Certificate, ...]

    def to_json(self) -> dict[str, Any]:
        """{"sweep": [a certificate for each eps]}."""
        return {"sweep": [certificate.to_json() for certificate in self.certificates]}


def sweep_file(
    source: ModelChoice,
    choice: DataChoice,
    threats: Sequence[Threat],
    certify: CertifySettings,
    *,
    run_dir: Path,
    split: Split = "test",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    resume: bool = False,
    workers: int = 1,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Certifies a file at the eps of each threat, smallest first; the other arguments are `workflow.certify_file`'s.

    Each eps has its own run folder below `run_dir` (see `folder`), with the certificate that it gives by itself; the
    narrowed ones go to `run_dir`/sweep.json.

    Raises:
        UsageError: an eps is given twice, or without `resume` a run folder holds an unfinished run.
        SoundnessError: the certificates contradict each other.
        CitrusError: as `workflow.certify_file`.
    """
    progress = progress or Silent()
    ordered = sorted(threats, key=lambda threat: threat.eps)
    for one, other in pairwise(ordered):
        if one.eps == other.eps:
            raise UsageError(f"eps {spelled(one.eps)} is given twice; give each eps once.")
    folders = [run_dir / folder(threat.eps) for threat in ordered]
    if not resume:
        for path in folders:
            if count := unfinished(path / "journal.jsonl"):
                raise UsageError(
                    f"{path / 'journal.jsonl'} holds an unfinished run of {count} groups; continue it with --resume,"
                    " or remove the file to start again."
                )
    found = [
        certify_file(
            source,
            choice,
            threat,
            certify,
            split=split,
            run_dir=path,
            device=device,
            resume=resume,
            workers=workers,
            settings=None if settings is None else {**settings, "eps": threat.eps, "run-dir": path},
            progress=Staged(progress, f"eps {spelled(threat.eps)}: "),
        )
        for threat, path in zip(ordered, folders, strict=True)
    ]
    result = Sweep(certificates=carried(found))
    write_text(run_dir / "sweep.json", json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")
    return result


def folder(eps: float) -> str:
    """The name of an eps' run folder: eps_0.1, eps_2_255."""
    return f"eps_{spelled(eps).replace('/', '_')}"


def spelled(eps: float) -> str:
    """`eps` as people write it, and so that it reads back equal: 2/255 where it is that, 0.1 otherwise."""
    whole = round(eps * 255)
    return f"{whole}/255" if whole and eps == whole / 255 and len(repr(eps)) > 6 else f"{eps!r}"


def carried(certificates: Sequence[Certificate]) -> tuple[Certificate, ...]:
    """The certificates, ascending in eps and of the same groups, each bracket narrowed by the others.

    Counts proven at a larger eps raise those of smaller ones, attacked counts at a smaller eps lower those of larger
    ones. Each certificate holds without the others; `detail` says which counts come from which eps.

    In scope dataset each certificate has a partition of its own: they are only compared, as a whole.

    Raises SoundnessError where a certified count lies above the attacked count at a smaller eps, or the certificates
    are not of the same groups with the same clean counts.
    """
    if any(certificate.together is not None for certificate in certificates):
        for low, high in combinations(certificates, 2):
            if high.certified > low.attacked:
                raise SoundnessError(
                    f"data set: {high.certified} inputs are certified at eps {spelled(high.threat.eps)}, but a"
                    f" perturbation of eps {spelled(low.threat.eps)} leaves only {low.attacked} correct; the"
                    " certificates are void, please report the network and the settings."
                )
        return tuple(certificates)
    for certificate in certificates[1:]:
        for one, other in zip(certificates[0].groups, certificate.groups, strict=True):
            if one.indices != other.indices or one.clean_correct != other.clean_correct:
                raise SoundnessError(
                    f"group {one.index}: its inputs or its clean count {one.clean_correct} at eps"
                    f" {spelled(certificates[0].threat.eps)} are not those at eps {spelled(certificate.threat.eps)}"
                    f" ({other.clean_correct}); the certificates are void, please report the network and the settings."
                )
    columns = zip(*(certificate.groups for certificate in certificates), strict=True)
    eps = [certificate.threat.eps for certificate in certificates]
    narrowed = list(zip(*(_narrowed(eps, groups) for groups in columns), strict=True))
    return tuple(
        replace(certificate, groups=groups) for certificate, groups in zip(certificates, narrowed, strict=True)
    )


def _narrowed(eps: Sequence[float], groups: Sequence[GroupResult]) -> list[GroupResult]:
    """One group's results at ascending `eps`, narrowed by each other."""
    for high in range(len(eps)):
        for low in range(high):
            if groups[high].certified > groups[low].attacked:
                raise SoundnessError(
                    f"group {groups[low].index}: {groups[high].certified} inputs are certified at eps"
                    f" {spelled(eps[high])}, but a perturbation of eps {spelled(eps[low])} leaves only"
                    f" {groups[low].attacked} correct; the certificates are void, please report the network and the"
                    " settings."
                )
    found = []
    for place, group in enumerate(groups):
        upward, downward = range(place, len(groups)), range(place + 1)
        proven = max(upward, key=lambda at: (groups[at].certified, -at))
        alone = max(groups[at].individually_certified for at in upward)
        fooled = min(downward, key=lambda at: (groups[at].attacked, -at))
        words = [group.detail]
        if proven != place:
            words.append(f"certified count from eps {spelled(eps[proven])}")
        if fooled != place:
            words.append(f"attacked count from eps {spelled(eps[fooled])}")
        certified, attacked = groups[proven].certified, groups[fooled].attacked
        found.append(
            replace(
                group,
                individually_certified=alone,
                certified=certified,
                attacked=attacked,
                status=Status.EXACT if certified == attacked else group.status,
                detail="; ".join(words),
            )
        )
    return found


class Staged(Progress):
    """Passes progress on with a word in front of each stage's name."""

    def __init__(self, inner: Progress, prefix: str) -> None:
        self._inner, self._prefix = inner, prefix

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self._inner.start(self._prefix + stage, total, unit)

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._inner.advance(amount, note)

    def finish(self) -> None:
        self._inner.finish()


def percents(certificate: Certificate) -> dict[str, float]:
    """The counts of COLUMNS in percent of the certificate's inputs, by field."""
    counts = (
        certificate.clean_correct,
        certificate.ibp_certified,
        certificate.individually_certified,
        certificate.certified,
        certificate.attacked,
    )
    return {name: 100 * count / certificate.inputs for name, count in zip(COLUMNS, counts, strict=True)}


def csv_rows(certificates: Sequence[Certificate]) -> tuple[list[str], list[list[Cell]]]:
    """Header and one row for each certificate: eps, counts, percentages with the suffix _percent, seconds."""
    columns = ["model", "data", "split", "eps", "group_size", "protocol", "inputs", *COLUMNS]
    columns += [f"{name}_percent" for name in COLUMNS] + ["seconds"]
    rows: list[list[Cell]] = []
    for certificate in certificates:
        entry = certificate.to_json() | {f"{k}_percent": v for k, v in percents(certificate).items()}
        rows.append([entry[name] for name in columns])
    return columns, rows
