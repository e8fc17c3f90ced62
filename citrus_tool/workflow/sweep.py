"""Certificates of one network at several eps (`citrus certify-uap --eps 1/255,2/255,4/255`).

The worst-case count of a group can only fall as eps grows, because every u of a smaller box lies in a larger one. Two
things follow. What is certified at an eps holds at every smaller one, and what a witness does at an eps it does at
every larger one, so that `carried` narrows each bracket by the others. And a count that is certified at a larger eps
and lies above the attacked count at a smaller one refutes the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

from citrus_tool.choices import Split
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.errors import SoundnessError, UsageError
from citrus_tool.files import write_json
from citrus_tool.progress import Staged
from citrus_tool.results.certificate import Certificate, GroupResult, Status
from citrus_tool.results.evidence import Evidence, InputVerdict
from citrus_tool.results.journal import unfinished
from citrus_tool.results.sweep import Sweep
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.threat import Threat, spelled
from citrus_tool.workflow.certify import JOURNAL, certify_file

PROVEN: Final = (InputVerdict.IBP, InputVerdict.PROVEN)
SETTLED: Final = (InputVerdict.LOST, *PROVEN)
VOID: Final = "the certificates are void, please report the network and the settings."


def sweep_file(
    source: ModelChoice,
    choice: DataChoice,
    threats: Sequence[Threat],
    certify: CertifySettings,
    context: RunContext,
    *,
    split: Split = "test",
) -> Sweep:
    """Certifies a file at the eps of each threat, smallest first; the other arguments are `certify.certify_file`'s.

    Each eps has its own folder below the run folder (see `folder`), with the certificate that it gives by itself; the
    narrowed ones go to sweep.json in the run folder.

    Raises:
        UsageError: an eps is given twice, or without `resume` a run folder holds an unfinished run.
        SoundnessError: the certificates contradict each other.
        CitrusError: as `certify.certify_file`.
    """
    run_dir, effective = context.folder, context.effective
    ordered = sorted(threats, key=lambda threat: threat.eps)
    for one, other in pairwise(ordered):
        if one.eps == other.eps:
            raise UsageError(f"eps {spelled(one.eps)} is given twice; give each eps once.")
    folders = [run_dir / folder(threat.eps) for threat in ordered]
    if not context.resume:
        for path in folders:
            if count := unfinished(path / JOURNAL):
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
            replace(
                context,
                run_dir=path,
                effective=None if effective is None else {**effective, "run-dir": path},
                progress=Staged(context.progress, f"eps {spelled(threat.eps)}: "),
            ),
            split=split,
        )
        for threat, path in zip(ordered, folders, strict=True)
    ]
    result = Sweep(certificates=carried(found))
    write_json(run_dir / "sweep.json", result.to_json())
    return result


def folder(eps: float) -> str:
    """The name of an eps' run folder: eps_0.1, eps_2_255."""
    return f"eps_{spelled(eps).replace('/', '_')}"


def carried(certificates: Sequence[Certificate]) -> tuple[Certificate, ...]:
    """The certificates, ascending in eps and of the same inputs, each bracket narrowed by the others.

    What is proven at a larger eps raises the counts of smaller ones, a witness of a smaller eps lowers those of larger
    ones. Each certificate holds without the others; `detail` says which counts come from which eps. In scope dataset
    the groups depend on eps, and only the attacked count of the whole is carried.

    Raises SoundnessError where a certified count lies above the attacked count at a smaller eps, where an input is
    proven although a witness of a smaller eps fools it, or where the certificates are not of the same groups with the
    same clean counts.
    """
    eps = [certificate.threat.eps for certificate in certificates]
    if certificates[0].together is not None:
        return _together(eps, certificates)
    for certificate in certificates[1:]:
        for one, other in zip(certificates[0].groups, certificate.groups, strict=True):
            if one.indices != other.indices or one.clean_correct != other.clean_correct:
                raise SoundnessError(
                    f"group {one.index}: its inputs or its clean count {one.clean_correct} at eps {spelled(eps[0])} are"
                    f" not those at eps {spelled(certificate.threat.eps)} ({other.clean_correct}); {VOID}"
                )
    columns = zip(*(certificate.groups for certificate in certificates), strict=True)
    narrowed = list(zip(*(_narrowed(eps, groups) for groups in columns), strict=True))
    return tuple(
        replace(certificate, groups=groups) for certificate, groups in zip(certificates, narrowed, strict=True)
    )


def _together(eps: Sequence[float], certificates: Sequence[Certificate]) -> tuple[Certificate, ...]:
    """Certificates in scope dataset: one perturbation for all inputs."""
    _require_falling(eps, certificates, "the data set")
    attacked = [certificate.attacked for certificate in certificates]
    return tuple(
        replace(certificate, together=min(attacked[: place + 1])) for place, certificate in enumerate(certificates)
    )


def _require_falling(eps: Sequence[float], results: Sequence[GroupResult | Certificate], what: str) -> None:
    for high in range(len(eps)):
        for low in range(high):
            if results[high].certified > results[low].attacked:
                raise SoundnessError(
                    f"{what}: {results[high].certified} inputs are certified at eps {spelled(eps[high])}, but a"
                    f" perturbation of eps {spelled(eps[low])} leaves only {results[low].attacked} correct; {VOID}"
                )


def _narrowed(eps: Sequence[float], groups: Sequence[GroupResult]) -> list[GroupResult]:
    """One group's results at ascending `eps`, narrowed by each other."""
    _require_falling(eps, groups, f"group {groups[0].index}")
    found = []
    for place, group in enumerate(groups):
        proven = max(range(place, len(groups)), key=lambda at: (groups[at].certified, -at))
        fooled = min(range(place + 1), key=lambda at: (groups[at].attacked, -at))
        evidence = _evidence(eps, groups, place, fooled)
        alone = max(result.individually_certified for result in groups[place:])
        if evidence is not None:
            alone = sum(verdict in PROVEN for verdict in evidence.verdicts)
        certified, attacked = max(groups[proven].certified, alone), groups[fooled].attacked
        words = [group.detail]
        if proven != place:
            words.append(f"certified count from eps {spelled(eps[proven])}")
        elif certified > group.certified:
            words.append("inputs proven at larger eps")
        if fooled != place:
            words.append(f"attacked count from eps {spelled(eps[fooled])}")
        found.append(
            replace(
                group,
                individually_certified=alone,
                certified=certified,
                attacked=attacked,
                status=Status.EXACT if certified == attacked else group.status,
                detail="; ".join(words),
                evidence=evidence,
            )
        )
    return found


def _evidence(eps: Sequence[float], groups: Sequence[GroupResult], place: int, witness: int) -> Evidence | None:
    """The evidence at `place` with the proofs of larger eps and the witness at `witness`; None where some has none."""
    kept = [group.evidence for group in groups]
    own, found = kept[place], kept[witness]
    if own is None or found is None:
        return None
    later = [evidence for evidence in kept[place + 1 :] if evidence is not None]
    verdicts = []
    for number, index in enumerate(groups[place].indices):
        verdict, seen = own.verdicts[number], found.verdicts[number]
        if verdict not in SETTLED:
            proven = any(evidence.verdicts[number] in PROVEN for evidence in later)
            verdict = (
                InputVerdict.PROVEN
                if proven
                else InputVerdict.FOOLED
                if seen is InputVerdict.FOOLED
                else InputVerdict.OPEN
            )
        if verdict in PROVEN and seen is InputVerdict.FOOLED:
            raise SoundnessError(
                f"group {groups[place].index}: input {index} is proven at eps {spelled(eps[place])} or above, but a"
                f" perturbation of eps {spelled(eps[witness])} fools it; {VOID}"
            )
        verdicts.append(verdict)
    return replace(own, verdicts=tuple(verdicts), perturbation=found.perturbation)
