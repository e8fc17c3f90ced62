"""The result of `attack-uap`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from citrus_tool import __version__
from citrus_tool.results.certificate import clean_name
from citrus_tool.results.record import JsonRecord, about
from citrus_tool.tables import Table, Tabular, percent
from citrus_tool.threat import Threat


@dataclass(frozen=True, kw_only=True, repr=False)
class AttackReport(JsonRecord, Tabular):
    """The result of `attack-uap`: the strongest perturbations found and what the network does under them.

    `perturbations` is (g, C, H, W) in pixel space; `correct` and `attacked` count inputs that are classified correctly
    (with a target class: not driven there) without and with their group's perturbation: by the file on onnxruntime, or
    with `arithmetic` real by the exact network; a tie counts as fooled. A report that was read from a file has none.
    """

    model: Path
    data: str
    split: str
    threat: Threat = about(stated=("eps",))
    group_size: int
    inputs: int
    groups: int
    correct: int = about(key="clean_correct")
    attacked: int
    arithmetic: str = about(default_factory=lambda: "float32")
    version: str = about(default=__version__, stated=("attacked_uap_accuracy",))
    perturbations: Tensor = about(default_factory=lambda: torch.zeros(0), written=False, compare=False)

    @property
    def eps(self) -> float:
        """The threat's radius, in pixel space."""
        return self.threat.eps

    @property
    def attacked_uap_accuracy(self) -> float:
        """`attacked` in percent of the inputs."""
        return 100 * self.attacked / self.inputs

    def table(self) -> Table:
        """Inputs that hold without and with the perturbations."""
        counts = {clean_name(self.threat.target): self.correct, "attacked UAP": self.attacked}
        rows = [[name, str(count), percent(100 * count / self.inputs)] for name, count in counts.items()]
        about = f"{self.threat.words}; {self.data} ({self.split}), groups of {self.group_size}"
        return Table(title=about, columns=[f"of {self.inputs} inputs ({self.arithmetic})", "count", "%"], rows=rows)
