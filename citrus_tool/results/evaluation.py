"""The result of `evaluate`, and the accuracies that it shares with `harden`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from citrus_tool import __version__
from citrus_tool.results.certificate import Certificate
from citrus_tool.tables import Table, Tabular, percent


@dataclass(frozen=True, kw_only=True, repr=False)
class Figures(Tabular):
    """What a network is worth on the test split, in percent.

    `standard_accuracy` is of the whole split, by the ONNX file on onnxruntime; the others are of the certificate's
    inputs. All but the standard accuracy refer to the certificate's eps and group size.
    """

    standard_accuracy: float
    ibp_certified_accuracy: float
    certified_uap_accuracy: float
    attacked_uap_accuracy: float

    def to_json(self) -> dict[str, float]:
        """The fields by name."""
        return dataclasses.asdict(self)

    def table(self) -> Table:
        """The four accuracies."""
        return Table(title="accuracy", columns=["accuracy", "%"], rows=figure_rows(self))


def figure_rows(*figures: Figures) -> list[list[str]]:
    """One row for each accuracy, one column for each of `figures`."""
    names = {
        "standard_accuracy": "standard",
        "ibp_certified_accuracy": "IBP certified",
        "certified_uap_accuracy": "certified UAP",
        "attacked_uap_accuracy": "attacked UAP",
    }
    plain = [entry.to_json() for entry in figures]
    return [[name, *(percent(entry[key]) for entry in plain)] for key, name in names.items()]


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation(Tabular):
    """The result of `evaluate` at `eps` (pixel space): figures, and the accuracy (percent) under one PGD perturbation
    an input. `certificate` is what the UAP and IBP figures come from.
    """

    model: Path
    data: str
    split: str
    eps: float
    group_size: int
    inputs: int
    pgd_accuracy: float
    figures: Figures
    certificate: Certificate

    def to_json(self, *, perturbations: bool = False) -> dict[str, Any]:
        """Every field, the figures among them by name; the certificate as `Certificate.to_json` gives it."""
        return {
            "model": str(self.model),
            "data": self.data,
            "split": self.split,
            "eps": self.eps,
            "group_size": self.group_size,
            "inputs": self.inputs,
            "pgd_accuracy": self.pgd_accuracy,
            **self.figures.to_json(),
            "version": __version__,
            "certificate": self.certificate.to_json(perturbations=perturbations),
        }

    def table(self) -> Table:
        """All accuracies, in percent."""
        rows = [*figure_rows(self.figures), ["PGD (one input each)", percent(self.pgd_accuracy)]]
        about = f"{self.data} ({self.split}), eps {self.eps:g}, groups of {self.group_size}, {self.inputs} inputs"
        return Table(title=about, columns=["accuracy in %", self.model.name], rows=rows)
