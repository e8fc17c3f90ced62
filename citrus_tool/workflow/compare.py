"""Several networks on the same data and eps in one table (`citrus compare`), and what one certifies beyond another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from scipy.stats import binomtest

from citrus_tool import __version__
from citrus_tool.certification.certificate import Certificate
from citrus_tool.certification.settings import CertifySettings
from citrus_tool.data import Dataset, Split
from citrus_tool.errors import CheckFailedError, CitrusError, InputFileError, SoundnessError, UnsupportedNetworkError
from citrus_tool.files import require_writable_folder, write_text
from citrus_tool.progress import Progress, Silent, Staged
from citrus_tool.tables import Cell
from citrus_tool.threat import Threat
from citrus_tool.workflow import DataChoice, ModelChoice, resolve_device, standard_accuracy
from citrus_tool.workflow.sweep import Sweep, csv_rows, percents, spelled, sweep_file


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One network: its certificates and its standard accuracy on the whole split in percent, or why there are none."""

    name: str
    path: Path
    standard_accuracy: float | None = None
    sweep: Sweep | None = None
    error: CitrusError | None = None

    def to_json(self) -> dict[str, Any]:
        """Every field, None where absent; `sweep` is the list of certificates, `error` the text."""
        return {
            "name": self.name,
            "model": str(self.path),
            "standard_accuracy": self.standard_accuracy,
            "sweep": None if self.sweep is None else self.sweep.to_json()["sweep"],
            "error": None if self.error is None else str(self.error),
        }


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
class Comparison:
    """The result of `compare_files`; `pairs` holds those of all networks that were judged, for each eps."""

    networks: tuple[Judged, ...]
    pairs: tuple[Pair, ...]

    @property
    def failed(self) -> tuple[Judged, ...]:
        return tuple(entry for entry in self.networks if entry.error is not None)

    def to_json(self) -> dict[str, Any]:
        """{"networks": [...], "pairs": [...], "version"}."""
        return {
            "networks": [entry.to_json() for entry in self.networks],
            "pairs": [asdict(pair) for pair in self.pairs],
            "version": __version__,
        }

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


def compare_files(
    sources: Sequence[ModelChoice],
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
) -> Comparison:
    """Certifies each network at each eps (`sweep.sweep_file`), each in its own folder below `run_dir`.

    A network that cannot be read or judged becomes an entry with its error, and the others are still judged. The result
    also goes to `run_dir`/comparison.json.

    Raises:
        UsageError: options that make no sense, or an unfinished run without `resume`.
        DataError: the data cannot be read.
        SoundnessError: a certificate contradicts itself or another one.
        InterruptedRunError: stopped by the user; `resume=True` continues.
    """
    progress = progress or Silent()
    resolve_device(device)
    dataset = choice.load(split)
    require_writable_folder(run_dir)
    names = distinct([source.path for source in sources])
    found = []
    for name, source in zip(names, sources, strict=True):
        staged = Staged(progress, f"{name}, ")
        try:
            accuracy = _accuracy(source, dataset, staged)
            sweep = sweep_file(
                source,
                choice,
                threats,
                certify,
                run_dir=run_dir / name,
                split=split,
                device=device,
                resume=resume,
                workers=workers,
                settings=settings,
                progress=staged,
            )
        except SoundnessError:
            raise
        except (InputFileError, UnsupportedNetworkError, CheckFailedError) as error:
            found.append(Judged(name=name, path=source.path, error=error))
        else:
            found.append(Judged(name=name, path=source.path, standard_accuracy=accuracy, sweep=sweep))
    progress.finish()
    result = Comparison(networks=tuple(found), pairs=tuple(_pairs(found)))
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "comparison.json", json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")
    return result


def distinct(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its name without suffix, with a number where an earlier one has it."""
    names: list[str] = []
    for path in paths:
        stem = path.name.partition(".onnx")[0] or path.stem
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return names


def _accuracy(source: ModelChoice, dataset: Dataset, progress: Progress) -> float:
    accuracy = standard_accuracy(source.read(dataset), dataset, progress)
    progress.finish()
    return accuracy


def _pairs(networks: Sequence[Judged]) -> list[Pair]:
    pairs = []
    for a, b in combinations(networks, 2):
        if a.sweep is not None and b.sweep is not None:
            both = zip(a.sweep.certificates, b.sweep.certificates, strict=True)
            pairs += [pair for one, other in both if (pair := Pair.of(a.name, b.name, one, other)) is not None]
    return pairs
