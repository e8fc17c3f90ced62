"""The result of `compare`: several networks on the same data, and what one certifies beyond another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest

from citrus_tool import __version__
from citrus_tool.errors import CitrusError
from citrus_tool.results.certificate import Certificate
from citrus_tool.results.record import JsonRecord, about
from citrus_tool.results.sweep import Sweep, csv_rows, percents
from citrus_tool.tables import Cell
from citrus_tool.threat import spelled


@dataclass(frozen=True, kw_only=True)
class Judged(JsonRecord):
    """One network: its certificates and its standard accuracy on the whole split in percent, or why there are none."""

    name: str
    path: Path = about(key="model")
    standard_accuracy: float | None = None
    sweep: Sweep | None = about(default=None, write=lambda value: None if value is None else value.to_json()["sweep"])
    error: CitrusError | None = about(default=None, write=lambda value: None if value is None else str(value))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What network `a` certifies on the same groups beyond `b` at one eps, and the reverse.

    Attributes:
        groups: how many they share.
        groups_a, groups_b: in how many of them a (b) certifies more inputs than the other.
        inputs_a, inputs_b: by how many inputs, summed over those groups. With groups of 1 these are the inputs that one
            certifies and the other does not; in larger groups it is not known which inputs a count means.
        p_value: two-sided sign test over the groups that differ: how likely so uneven a split is if neither is better.
    """

    a: str
    b: str
    eps: float
    groups: int
    groups_a: int
    groups_b: int
    inputs_a: int
    inputs_b: int
    p_value: float

    @staticmethod
    def of(a: str, b: str, one: Certificate, other: Certificate) -> Pair | None:
        """None unless both are of the same groups.

        Protocol `correct` drops different inputs for each network; in scope dataset there are no groups to compare.
        """
        if one.together is not None or [group.indices for group in one.groups] != [
            group.indices for group in other.groups
        ]:
            return None
        ahead = [left.certified - right.certified for left, right in zip(one.groups, other.groups, strict=True)]
        more, fewer = sum(d > 0 for d in ahead), sum(d < 0 for d in ahead)
        return Pair(
            a=a,
            b=b,
            eps=one.threat.eps,
            groups=len(ahead),
            groups_a=more,
            groups_b=fewer,
            inputs_a=sum(d for d in ahead if d > 0),
            inputs_b=-sum(d for d in ahead if d < 0),
            p_value=float(binomtest(more, more + fewer).pvalue) if more + fewer else 1.0,
        )


@dataclass(frozen=True, kw_only=True)
class Comparison(JsonRecord):
    """The result of `compare_files`; `pairs` holds those of all networks that were judged, for each eps."""

    networks: tuple[Judged, ...]
    pairs: tuple[Pair, ...]
    version: str = __version__

    @property
    def failed(self) -> tuple[Judged, ...]:
        return tuple(entry for entry in self.networks if entry.error is not None)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and one row for each network and eps, in percent; a network that failed has one row that says so."""
        rows = []
        for entry in self.networks:
            if entry.sweep is None or entry.standard_accuracy is None:
                rows.append([entry.name, "failed", *["-"] * 6])
                continue
            for certificate in entry.sweep.certificates:
                share = percents(certificate)
                share["clean_correct"] = entry.standard_accuracy
                cells = [f"{value:.2f}" for value in share.values()]
                rows.append([entry.name, spelled(certificate.threat.eps), *cells, f"{certificate.seconds:.1f}"])
        headings = ["network", "eps", "standard", "IBP", "individually", "certified UAP", "attacked UAP", "seconds"]
        return headings, rows

    def pair_table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and one row for each pair and eps."""
        return ["eps", "A", "B", "groups A > B", "groups B > A", "inputs A > B", "inputs B > A", "p (sign test)"], [
            [
                spelled(pair.eps),
                pair.a,
                pair.b,
                str(pair.groups_a),
                str(pair.groups_b),
                str(pair.inputs_a),
                str(pair.inputs_b),
                f"{pair.p_value:.2g}",
            ]
            for pair in self.pairs
        ]

    def csv(self) -> tuple[list[str], list[list[Cell]]]:
        """Header and one row for each network and eps as `sweep.csv_rows`; failed ones fill `model` and `error`."""
        header: list[str] = []
        rows: list[list[Cell]] = []
        for entry in self.networks:
            if entry.sweep is not None:
                header, found = csv_rows(entry.sweep.certificates)
                rows += [[*row, entry.standard_accuracy, None] for row in found]
        if not header:
            header = ["model"]
        for entry in self.failed:
            rows.append([str(entry.path), *[None] * len(header), str(entry.error)])
        return [*header, "standard_accuracy", "error"], rows
