"""The result of `evaluate`, and the accuracies that it shares with `harden`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from citrus_tool import __version__
from citrus_tool.errors import InputFileError
from citrus_tool.results.certificate import Certificate
from citrus_tool.results.record import JsonRecord, Place, about, from_json, to_json
from citrus_tool.tables import Table, Tabular, percent


@dataclass(frozen=True, kw_only=True, repr=False)
class Figures(JsonRecord, Tabular):
    """What a network is worth on the test split, in percent.

    `standard_accuracy` is of the whole split, by the ONNX file on onnxruntime; the others are of the certificate's
    inputs. All but the standard accuracy refer to the certificate's eps and group size.
    """

    standard_accuracy: float
    ibp_certified_accuracy: float
    certified_uap_accuracy: float
    attacked_uap_accuracy: float

    def require(self, certificate: Certificate, source: str) -> None:
        """Raises InputFileError unless these figures are the certificate's; `source` is where that stands."""
        counts = {
            "ibp_certified_accuracy": certificate.ibp_certified,
            "certified_uap_accuracy": certificate.certified,
            "attacked_uap_accuracy": certificate.attacked,
        }
        for name, count in counts.items():
            found, said = 100 * count / certificate.inputs, getattr(self, name)
            if not math.isclose(found, said, rel_tol=1e-9, abs_tol=1e-9):
                raise InputFileError(
                    f"{source}: its groups give {name} {found:g}, the report beside it says {said:g}; make the result"
                    " again."
                )

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
    an input.

    Attributes:
        arithmetic: what is certified, as in Certificate.
        certificate: what the UAP and IBP figures come from; None in files of a citrus that did not keep it.
    """

    model: Path
    data: str
    split: str
    eps: float
    group_size: int
    inputs: int
    pgd_accuracy: float
    figures: Figures = about(flat=True)
    arithmetic: str = about(default_factory=lambda: "real")
    version: str = __version__
    certificate: Certificate | None = about(
        default=None, read=lambda value, name, place: Certificate.from_json(value, place.inside(name))
    )

    def to_json(self, *, perturbations: bool = False) -> dict[str, Any]:
        """Every field, the figures among them by name; the certificate as `Certificate.to_json` gives it."""
        kept = self.certificate.to_json(perturbations=True) if perturbations and self.certificate is not None else None
        return to_json(self) | ({} if kept is None else {"certificate": kept})

    @staticmethod
    def from_json(content: Mapping[str, Any], place: Place) -> Evaluation:
        """What `to_json` wrote; raises InputFileError, also where the figures are not the certificate's."""
        found = from_json(Evaluation, content, place)
        if found.certificate is not None:
            found.figures.require(found.certificate, place.where)
        return found

    def table(self) -> Table:
        """All accuracies, in percent."""
        rows = [*figure_rows(self.figures), ["PGD (one input each)", percent(self.pgd_accuracy)]]
        about = f"{self.data} ({self.split}), eps {self.eps:g}, groups of {self.group_size}, {self.inputs} inputs"
        return Table(title=about, columns=[f"accuracy in % ({self.arithmetic})", self.model.name], rows=rows)
