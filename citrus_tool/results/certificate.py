"""The result of certification: one group's bracket, and the certificate that sums them (docs/certificate.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from citrus_tool.errors import SoundnessError
from citrus_tool.results.evidence import Evidence, InputVerdict, pack, unpacked
from citrus_tool.results.record import Place, about, from_json, to_json, value_of
from citrus_tool.tables import Table, Tabular, percent
from citrus_tool.threat import Threat

COUNTS: Final = ("clean_correct", "ibp_certified", "individually_certified", "certified", "attacked")
"""Totals of a certificate, each the sum of its groups' (but `attacked` in scope dataset)."""
ACCURACIES: Final = ("certified_uap_accuracy", "attacked_uap_accuracy", "standard_accuracy")
"""Percentages of a certificate."""


class Status(Enum):
    """How good a group's bracket is, each status with its sentence for the user."""

    EXACT = "exact"
    BOUNDED = "bounded"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def sentence(self) -> str:
        """What the status means, for the user."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.EXACT: "certified and attacked counts meet: this is the group's true minimum",
    Status.BOUNDED: "the true minimum lies between certified and attacked count; stronger bounds may close the gap",
    Status.TIMEOUT: "the solver ran out of time; its bound at that moment is used, and more time may improve it",
    Status.ERROR: "the solver gave no bound that can be trusted; inputs without an individual proof count as lost",
}


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """The bracket of one group of inputs that share one perturbation; all counts are numbers of inputs.

    Attributes:
        index: position of the group; `indices`: its inputs, as indices into the data split.
        clean_correct: inputs classified correctly without a perturbation (with a target class: not driven to it).
        ibp_certified: inputs that interval bounds prove one by one.
        individually_certified: inputs proven one by one by any bound.
        certified: inputs that stay correct under every shared perturbation (a lower bound).
        attacked: inputs that stayed correct under the worst shared perturbation found (an upper bound).
        detail: what the MILP said, or why there was none.
        stages: seconds by stage; work done on many groups at once is shared out evenly.
        evidence: each input's label and verdict, and the worst perturbation found; None in journals that have none.

    Raises: SoundnessError unless 0 <= IBP <= individual <= certified <= attacked <= clean <= number of inputs.
    """

    index: int = about(written=False)
    indices: tuple[int, ...] = about(read=lambda value, name, place: _indices(value, name, place))
    clean_correct: int
    ibp_certified: int
    individually_certified: int
    certified: int
    attacked: int
    status: Status
    detail: str
    stages: Mapping[str, float] = about(written=False)
    evidence: Evidence | None = about(default=None, flat=True, sign="verdicts", stated=("seconds",))

    def __post_init__(self) -> None:
        chain = [
            ("none", 0),
            ("IBP", self.ibp_certified),
            ("individual", self.individually_certified),
            ("certified", self.certified),
            ("attacked", self.attacked),
            ("clean", self.clean_correct),
            ("inputs", len(self.indices)),
        ]
        for (lower, low), (upper, high) in pairwise(chain):
            if low > high:
                values = ", ".join(f"{name} {value}" for name, value in chain[1:])
                raise SoundnessError(
                    f"group {self.index} (inputs {_span(self.indices)}): {lower} count {low} lies above {upper} count"
                    f" {high} ({values}); the certificate is void, please report the network and the settings."
                )

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(self.stages.values())

    def without(self, count: int, indices: tuple[int, ...], *, index: int) -> GroupResult:
        """The group less its `count` open inputs: what is left, `indices`, is lost or proven one by one."""
        clean = self.clean_correct - count
        return replace(
            self,
            index=index,
            indices=indices,
            clean_correct=clean,
            individually_certified=clean,
            certified=clean,
            attacked=clean,
            status=Status.EXACT,
            detail="every correct input is proven by itself",
            evidence=None
            if self.evidence is None
            else self.evidence.without_perturbation([self.indices.index(one) for one in indices]),
        )

    def to_json(self, *, perturbation: bool = False) -> dict[str, Any]:
        """The group's entry in the certificate; on demand with its perturbation, as the journal has it."""
        packed = self.evidence.packed() if perturbation and self.evidence is not None else {}
        return {**to_json(self), **packed}

    def to_line(self) -> dict[str, Any]:
        """The group's line in the journal: its entry with index, stages and perturbation."""
        packed = {} if self.evidence is None else self.evidence.packed()
        return {"index": self.index, **self.to_json(), "stages": dict(self.stages), **packed}

    @staticmethod
    def from_json(content: Mapping[str, Any], place: Place, **given: Any) -> GroupResult:
        """What `to_json` (`given` its index and stages) or `to_line` wrote.

        Raises InputFileError, also where counts and verdicts say different things (a sweep may have narrowed the counts
        further), and SoundnessError for counts that are not in order.
        """
        group = from_json(GroupResult, content, place, **given)
        if (kept := group.evidence) is not None:
            said = {verdict: kept.verdicts.count(verdict) for verdict in InputVerdict}
            size, proven = len(group.indices), said[InputVerdict.IBP] + said[InputVerdict.PROVEN]
            fits = (
                len(kept.labels) == len(kept.verdicts) == size
                and size - said[InputVerdict.LOST] == group.clean_correct
                and said[InputVerdict.IBP] == group.ibp_certified
                and proven <= group.individually_certified
                and group.attacked <= group.clean_correct - said[InputVerdict.FOOLED]
            )
            if not fits:
                raise place.wrong(f"the verdicts of its inputs do not give its counts{place.remedy}")
        return group


def _indices(value: Any, name: str, place: Place) -> tuple[int, ...]:
    numbers = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)
    if not numbers or not value:
        raise place.wrong(f"{name} is not a list of input numbers{place.remedy}")
    return tuple(value)


def _groups(value: Any, name: str, place: Place) -> tuple[GroupResult, ...]:
    """The groups of a certificate, which keeps their seconds in all only."""
    if not isinstance(value, list):
        raise place.wrong(f"{name} is {json.dumps(value)[:40]}, not a list{place.remedy}")
    found = []
    for number, entry in enumerate(value):
        at = place.inside(f"{name}[{number}]")
        stages = {"all": value_of(float, entry, "seconds", at)} if isinstance(entry, Mapping) else {}
        found.append(GroupResult.from_json(entry, at, index=number, stages=stages))
    return tuple(found)


def _span(indices: Sequence[int]) -> str:
    return str(indices[0]) if len(indices) == 1 else f"{indices[0]} to {indices[-1]}"


def clean_name(target: int | None) -> str:
    """What tables call the inputs that hold without a perturbation."""
    return "clean correct" if target is None else f"clean, not class {target}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Certificate(Tabular):
    """Bounds on the worst-case UAP accuracy of a network on a data split, summed over groups (Theorem 3 of the paper).

    With `together` (scope dataset) the claim is about one perturbation for all inputs, and the groups are a partition
    chosen for its proof; their `attacked` counts are each group's own.

    Attributes:
        model: path of the ONNX file; `sha256` its digest.
        data, split, data_sha256: which inputs.
        threat: what the perturbation may do; with a target class, all counts are of inputs that are not driven to it.
        settings: the effective settings.
        examined, examined_correct: inputs looked at to fill the groups, and how many of them were correct. They differ
            from `inputs` and `clean_correct` in protocol `correct`, which drops misclassified inputs.
        stages: seconds by stage, over all groups and over interrupted runs too.
        version: of citrus.
        together: inputs that stayed correct under the worst perturbation of all inputs found; None in scope groups.
        rounding: by node of the file, inputs that only float32 rounding keeps from being proven, most of which arises
            there; among the first that are not proven (certification/rounding_loss.py); None where there are none.
        perturbation: that perturbation (C, H, W) float32, pixel space; None in scope groups and where it fools nothing.

    Raises: SoundnessError when more is certified than stayed correct under that perturbation.
    """

    model: str
    sha256: str
    data: str
    split: str
    data_sha256: str
    threat: Threat = about(stated=("eps",))
    examined: int = about(stated=("scope", "group_size", "protocol", "arithmetic", "inputs", *COUNTS, *ACCURACIES))
    examined_correct: int = about(written=False)
    stages: Mapping[str, float] = about(stated=("seconds",))
    version: str = about(stated=("statuses",))
    settings: Mapping[str, Any]
    together: int | None = about(default=None, written=False)
    rounding: Mapping[str, int] | None = about(default=None, absent=True)
    perturbation: NDArray[np.float32] | None = about(
        default=None,
        absent=True,
        write=pack,
        read=unpacked,
        compare=False,
        repr=False,
    )
    groups: tuple[GroupResult, ...] = about(read=_groups)

    def __post_init__(self) -> None:
        if self.together is not None and not self.certified <= self.together <= self.clean_correct:
            raise SoundnessError(
                f"data set: certified {self.certified}, attacked {self.together} and clean {self.clean_correct} counts"
                " are not in order; the certificate is void, please report the network and the settings."
            )

    @property
    def inputs(self) -> int:
        """Number of judged inputs."""
        return sum(len(group.indices) for group in self.groups)

    @property
    def clean_correct(self) -> int:
        """How many are classified correctly without a perturbation."""
        return sum(group.clean_correct for group in self.groups)

    @property
    def ibp_certified(self) -> int:
        """How many IBP proves one by one."""
        return sum(group.ibp_certified for group in self.groups)

    @property
    def individually_certified(self) -> int:
        """How many are proven one by one, by any bound."""
        return sum(group.individually_certified for group in self.groups)

    @property
    def certified(self) -> int:
        """How many stay correct under every shared perturbation, at least: the sum of the groups' lower bounds."""
        return sum(group.certified for group in self.groups)

    @property
    def attacked(self) -> int:
        """How many stay correct at most: those that the perturbations found leave correct."""
        return sum(group.attacked for group in self.groups) if self.together is None else self.together

    @property
    def certified_uap_accuracy(self) -> float:
        """`certified` in percent of the inputs."""
        return 100 * self.certified / self.inputs

    @property
    def attacked_uap_accuracy(self) -> float:
        """`attacked` in percent of the inputs."""
        return 100 * self.attacked / self.inputs

    @property
    def standard_accuracy(self) -> float:
        """Percent of the examined inputs that are classified correctly."""
        return 100 * self.examined_correct / max(self.examined, 1)

    @property
    def eps(self) -> float:
        """The threat's radius, in pixel space."""
        return self.threat.eps

    @property
    def scope(self) -> str:
        """What shares one perturbation: `groups` or the `dataset`."""
        return str(self.settings["scope"])

    @property
    def group_size(self) -> int:
        """How many inputs share one perturbation."""
        return int(self.settings["group_size"])

    @property
    def protocol(self) -> str:
        """Which inputs are judged: `all` or the `correct` ones."""
        return str(self.settings["protocol"])

    @property
    def arithmetic(self) -> str:
        """What is certified: every run of the file in `float32`, or `real` arithmetic, as by a citrus that knew no
        other.
        """
        return str(self.settings.get("arithmetic", "real"))

    @property
    def statuses(self) -> dict[Status, int]:
        """How many groups have each status."""
        return {status: sum(group.status is status for group in self.groups) for status in Status}

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(self.stages.values())

    @property
    def remark(self) -> str | None:
        """What rounding alone costs, in a sentence."""
        if not self.rounding:
            return None
        places = ", ".join(f"{name!r} ({count})" for name, count in self.rounding.items())
        return (
            f"{sum(self.rounding.values())} inputs that real arithmetic would prove are lost to the file's float32"
            f" rounding (of the unproven ones that were looked at); most of it arises at node {places}."
        )

    def table(self) -> Table:
        """The five counts, and their percentages of the inputs."""
        counts = {
            clean_name(self.threat.target): self.clean_correct,
            "IBP certified": self.ibp_certified,
            "individually certified": self.individually_certified,
            "certified UAP": self.certified,
            "attacked UAP": self.attacked,
        }
        rows = [[name, str(count), percent(100 * count / self.inputs)] for name, count in counts.items()]
        about = f"{self.threat.words}; {self.data} ({self.split}), groups of {self.settings['group_size']}"
        return Table(title=about, columns=[f"of {self.inputs} inputs ({self.arithmetic})", "count", "%"], rows=rows)

    def to_json(self, *, perturbations: bool = False) -> dict[str, Any]:
        """The fields of docs/certificate.md: counts of inputs, accuracies in percent; on demand with perturbations."""
        packed = {"groups": [group.to_json(perturbation=True) for group in self.groups]} if perturbations else {}
        return {**to_json(self), **packed}

    @staticmethod
    def from_json(content: Mapping[str, Any], place: Place) -> Certificate:
        """What `to_json` wrote.

        Raises InputFileError, also where a total or percentage is not that of its groups; SoundnessError for counts
        that are not in order.
        """
        examined, accuracy = (
            value_of(kind, content, name, place) for kind, name in ((int, "examined"), (float, "standard_accuracy"))
        )
        together = value_of(int, content, "attacked", place) if content.get("scope") == "dataset" else None
        given: dict[str, Any] = {"examined_correct": round(accuracy * examined / 100), "together": together}
        if "threat" not in content:  # results of a citrus that knew one kind of threat
            given["threat"] = from_json(Threat, content, place)
        found = from_json(Certificate, content, place, **given)
        for name in ("inputs", *COUNTS):
            if (said := value_of(int, content, name, place)) != (total := getattr(found, name)):
                raise place.wrong(f"{name} is {said}, but its groups add up to {total}{place.remedy}")
        for name in ACCURACIES:
            stated = value_of(float, content, name, place)
            if not math.isclose(stated, value := getattr(found, name), rel_tol=1e-9, abs_tol=1e-9):
                raise place.wrong(f"{name} is {stated}, but the counts give {value}{place.remedy}")
        return found
