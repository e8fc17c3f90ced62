"""The result of `certify-uap` at several eps, and certificates as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from citrus_tool.results.certificate import Certificate
from citrus_tool.results.record import JsonRecord, about
from citrus_tool.tables import Cell

COLUMNS: Mapping[str, str] = {
    "clean_correct": "clean",
    "ibp_certified": "IBP",
    "individually_certified": "individually",
    "certified": "certified UAP",
    "attacked": "attacked UAP",
}
"""The counts of a certificate that tables show, with their headings."""


@dataclass(frozen=True, kw_only=True)
class Sweep(JsonRecord):
    """Certificates of one network on the same groups, by ascending eps, each bracket narrowed by the others."""

    certificates: tuple[Certificate, ...] = about(key="sweep")


def percents(certificate: Certificate) -> dict[str, float]:
    """The counts of COLUMNS in percent of the certificate's inputs, by field."""
    return {name: 100 * getattr(certificate, name) / certificate.inputs for name in COLUMNS}


def judged(certificate: Certificate) -> str:
    """What the percentages of a table are of: "200 inputs (digits, test) in groups of 5, float32 arithmetic"."""
    shared = f"in groups of {certificate.settings['group_size']}"
    if certificate.together is not None:
        shared = "under one perturbation for all"
    inputs = f"{certificate.inputs} inputs ({certificate.data}, {certificate.split})"
    return f"{inputs} {shared}, {certificate.arithmetic} arithmetic"


def csv_rows(certificates: Sequence[Certificate]) -> tuple[list[str], list[list[Cell]]]:
    """Header and one row for each certificate: eps, counts, percentages with the suffix _percent, seconds."""
    columns = ["model", "data", "split", "eps", "group_size", "protocol", "arithmetic", "inputs", *COLUMNS]
    columns += [f"{name}_percent" for name in COLUMNS] + ["seconds"]
    rows: list[list[Cell]] = []
    for certificate in certificates:
        entry = certificate.to_json() | {f"{k}_percent": v for k, v in percents(certificate).items()}
        rows.append([entry[name] for name in columns])
    return columns, rows
