"""The result of `attack-uap`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from citrus_tool import __version__
from citrus_tool.results.certificate import clean_name
from citrus_tool.tables import Table, Tabular, percent
from citrus_tool.threat import Threat


@dataclass(frozen=True, kw_only=True, repr=False)
class AttackReport(Tabular):
    """The result of `attack-uap`: the strongest perturbations found and what the ONNX file does under them.

    `perturbations` is (g, C, H, W) in pixel space; `correct` and `attacked` count inputs that onnxruntime classifies
    correctly (with a target class: that it does not drive there) without and with their group's perturbation; a tie
    counts as fooled.
    """

    model: Path
    data: str
    split: str
    threat: Threat
    group_size: int
    inputs: int
    correct: int
    attacked: int
    perturbations: Tensor

    def to_json(self) -> dict[str, Any]:
        """Every field but the perturbations, and accuracies in percent."""
        return {
            "model": str(self.model),
            "data": self.data,
            "split": self.split,
            "eps": self.threat.eps,
            "threat": self.threat.to_json(),
            "group_size": self.group_size,
            "inputs": self.inputs,
            "groups": len(self.perturbations),
            "clean_correct": self.correct,
            "attacked": self.attacked,
            "attacked_uap_accuracy": 100 * self.attacked / self.inputs,
            "version": __version__,
        }

    def table(self) -> Table:
        """Inputs that hold without and with the perturbations."""
        counts = {clean_name(self.threat.target): self.correct, "attacked UAP": self.attacked}
        rows = [[name, str(count), percent(100 * count / self.inputs)] for name, count in counts.items()]
        about = f"{self.threat.words}; {self.data} ({self.split}), groups of {self.group_size}"
        return Table(title=about, columns=[f"of {self.inputs} inputs", "count", "%"], rows=rows)
