"""The result of certification: one group's bracket, and the certificate that sums them (docs/certificate.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from citrus_tool.errors import SoundnessError
from citrus_tool.results.evidence import Evidence, pack
from citrus_tool.tables import Table, Tabular, percent
from citrus_tool.threat import Threat


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

    index: int
    indices: tuple[int, ...]
    clean_correct: int
    ibp_certified: int
    individually_certified: int
    certified: int
    attacked: int
    status: Status
    detail: str
    stages: Mapping[str, float]
    evidence: Evidence | None = None

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
        kept = {} if self.evidence is None else self.evidence.packed() if perturbation else self.evidence.to_json()
        return {
            "indices": list(self.indices),
            "clean_correct": self.clean_correct,
            "ibp_certified": self.ibp_certified,
            "individually_certified": self.individually_certified,
            "certified": self.certified,
            "attacked": self.attacked,
            "status": self.status.value,
            "detail": self.detail,
            "seconds": self.seconds,
            **kept,
        }


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
        perturbation: that perturbation (C, H, W) float32, pixel space; None in scope groups and where it fools nothing.

    Raises: SoundnessError when more is certified than stayed correct under that perturbation.
    """

    model: str
    sha256: str
    data: str
    split: str
    data_sha256: str
    threat: Threat
    settings: Mapping[str, Any]
    examined: int
    examined_correct: int
    groups: tuple[GroupResult, ...]
    stages: Mapping[str, float]
    version: str
    together: int | None = None
    perturbation: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

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
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(self.stages.values())

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
        return Table(title=about, columns=[f"of {self.inputs} inputs", "count", "%"], rows=rows)

    def to_json(self, *, perturbations: bool = False) -> dict[str, Any]:
        """DESIGN's fields: counts are numbers of inputs, accuracies percent; on demand with perturbations."""
        inputs = self.inputs
        worst = {} if self.perturbation is None else {"perturbation": pack(self.perturbation)}
        return {
            "model": self.model,
            "sha256": self.sha256,
            "data": self.data,
            "split": self.split,
            "data_sha256": self.data_sha256,
            "eps": self.threat.eps,
            "threat": self.threat.to_json(),
            "scope": self.settings["scope"],
            "group_size": self.settings["group_size"],
            "protocol": self.settings["protocol"],
            "inputs": inputs,
            "clean_correct": self.clean_correct,
            "ibp_certified": self.ibp_certified,
            "individually_certified": self.individually_certified,
            "certified": self.certified,
            "attacked": self.attacked,
            "certified_uap_accuracy": 100 * self.certified / inputs,
            "attacked_uap_accuracy": 100 * self.attacked / inputs,
            "standard_accuracy": 100 * self.examined_correct / self.examined,
            "examined": self.examined,
            "seconds": self.seconds,
            "stages": dict(self.stages),
            "statuses": {status.value: sum(g.status is status for g in self.groups) for status in Status},
            "version": self.version,
            "settings": dict(self.settings),
            **worst,
            "groups": [group.to_json(perturbation=perturbations) for group in self.groups],
        }
