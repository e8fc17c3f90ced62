"""Run folders and result files, as citrus wrote them, read into frozen records: all that a report knows.

A number that a file holds twice (a total and its parts, a count and its percentage) must agree with itself, so that a
report of an edited file does not exist.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from citrus_tool.errors import CitrusError, InputFileError
from citrus_tool.results.certificate import Certificate, GroupResult, Status
from citrus_tool.results.evidence import Evidence, Verdict, unpack
from citrus_tool.results.lines import read as read_lines
from citrus_tool.threat import Threat

FIGURES: Final[Mapping[str, str]] = {
    "standard_accuracy": "Standard",
    "ibp_certified_accuracy": "IBP certified",
    "certified_uap_accuracy": "Certified UAP",
    "attacked_uap_accuracy": "Attacked UAP",
}
"""The accuracies (percent) that `harden` and `evaluate` give, with their names."""
COUNTS: Final = ("inputs", "clean_correct", "ibp_certified", "individually_certified", "certified", "attacked")
"""Totals of a certificate, each the sum of its groups'."""
ACCEPTED: Final = (
    "give a run folder of certify-uap, harden, train or vnncomp, or the JSON of certify-uap, harden, train, evaluate"
    " or attack-uap"
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What it takes to read a run's network and data again; a normalisation of None is none.

    `root` is where named data sets lay.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    root: Path | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Certified:
    """One certificate. `source`: the file it was read from; `standard_accuracy` (percent) is of the examined inputs."""

    source: str
    certificate: Certificate
    standard_accuracy: float
    origin: Origin

    @property
    def group_size(self) -> int:
        return int(self.certificate.settings["group_size"])


@dataclass(frozen=True, kw_only=True)
class Swept:
    """Certificates at several eps, in the order of `source`, the file that lists them."""

    source: str
    certificates: tuple[Certified, ...]


@dataclass(frozen=True, kw_only=True)
class Property:
    """A VNN-LIB file that was trained for: its images, radius in pixel space, and verdicts before and after."""

    file: str
    images: int
    eps: float
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run of `harden` or `train`.

    Attributes:
        model: path of the network before, or the architecture's name.
        out: path of the file written.
        figures: accuracies in percent, by name of FIGURES, of `before` and `after`; `train` has only the latter.
        history: one entry an epoch (training/trainer.py).
        before, after: what the journals of the two certifications hold; None where they are not there.
    """

    source: str
    model: str
    out: str
    method: str
    eps: float
    epochs: int
    best_epoch: int
    seconds: float
    data: str
    group_size: int | None
    inputs: int | None
    figures: Mapping[str, Mapping[str, float]]
    recipe: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    version: str
    spec: tuple[Property, ...] = ()
    before: Certified | None = None
    after: Certified | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The result of `evaluate`; accuracies in percent, `pgd_accuracy` under one perturbation an input.

    `certified`: where the UAP and IBP figures come from; None in results of a citrus that did not keep it.
    """

    source: str
    model: str
    data: str
    split: str
    eps: float
    group_size: int
    inputs: int
    pgd_accuracy: float
    figures: Mapping[str, float]
    version: str
    certified: Certified | None = None


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """The result of `attack-uap`: counts of inputs that stay correct without and with the perturbations."""

    source: str
    model: str
    data: str
    split: str
    threat: Threat
    group_size: int
    inputs: int
    groups: int
    clean_correct: int
    attacked: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One instance of a VNN-COMP run, as queries.benchmark records it."""

    onnx: str
    vnnlib: str
    timeout: float
    verdict: str
    seconds: float
    witness: bool | None
    note: str


@dataclass(frozen=True, kw_only=True)
class Benchmarked:
    """A VNN-COMP run folder."""

    source: str
    instances: tuple[Instance, ...]


Run = Certified | Swept | Trained | Evaluated | Attacked | Benchmarked


def read(path: Path) -> Run:
    """What `path` holds: a run folder, or a result file.

    Raises InputFileError: missing, not JSON, not a result of citrus, unfinished, or at odds with itself.
    """
    if path.is_dir():
        for name in ("sweep.json", "certificate.json", "report.json"):
            if (path / name).is_file():
                return parse(_json(path / name), str(path / name), folder=path)
        if (path / "results.jsonl").is_file():
            return _benchmarked(path / "results.jsonl")
        if (path / "journal.jsonl").is_file():
            raise InputFileError(f"{path}: the run is not finished; run the same command again with --resume.")
        raise InputFileError(f"{path}: holds no finished run; {ACCEPTED}.")
    if path.name == "results.jsonl":
        return _benchmarked(path)
    own = path.name in ("certificate.json", "sweep.json", "report.json")  # else the folder's journals are not known to
    return parse(_json(path), str(path), folder=path.parent if own else None)  # be of the same run


def parse(content: object, source: str, *, folder: Path | None = None, origin: Origin | None = None) -> Run:
    """The record of a result in JSON values, as `to_json` gives it; `folder` holds its journals and settings.

    `origin` is needed where there is no such folder and the network takes normalised inputs or the data lie elsewhere.

    Raises InputFileError, with `source` in front.
    """
    if isinstance(content, Mapping) and "sweep" in content:
        content = content["sweep"]
    if isinstance(content, list):
        if not content:
            raise InputFileError(f"{source}: the list of certificates is empty.")
        fields = [_Fields(entry, f"{source}: certificate {n}") for n, entry in enumerate(content)]
        several = tuple(_certified(entry, source, folder, origin) for entry in fields)
        return Swept(source=source, certificates=several)
    fields_ = _Fields(content, source)
    if fields_.has("groups", "certified_uap_accuracy"):
        return _certified(fields_, source, folder, origin)
    if fields_.has("history", "recipe"):
        return _trained(fields_, source, folder)
    if fields_.has("pgd_accuracy"):
        return _evaluated(fields_, source, origin)
    if fields_.has("attacked", "clean_correct", "threat"):
        return _attacked(fields_, source)
    raise InputFileError(f"{source}: is not a result of citrus that a report can show; {ACCEPTED}.")


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise InputFileError(f"{path}: cannot be read ({error.strerror}); {ACCEPTED}.") from None
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{path}: is not JSON ({error}); {ACCEPTED}.") from None


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not a number")


@final
class _Fields:
    """A JSON object that names file and field in its errors."""

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, Mapping):
            raise InputFileError(f"{where}: is {type(content).__name__}, not an object; {ACCEPTED}.")
        self.content, self.where = content, where

    def has(self, *names: str) -> bool:
        return all(name in self.content for name in names)

    def _of(self, name: str, kinds: tuple[type, ...], words: str) -> Any:
        value = self.content.get(name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            what = "is missing" if name not in self.content else f"is {json.dumps(value)[:40]}, not {words}"
            raise InputFileError(f"{self.where}: {name} {what}; make the result again.")
        return value

    def text(self, name: str) -> str:
        return str(self._of(name, (str,), "text"))

    def count(self, name: str) -> int:
        value = self._of(name, (int,), "a whole number")
        if value < 0:
            raise InputFileError(f"{self.where}: {name} is {value}; it must be at least 0.")
        return int(value)

    def number(self, name: str) -> float:
        value = float(self._of(name, (int, float), "a number"))
        if not math.isfinite(value):
            raise InputFileError(f"{self.where}: {name} is {value}; it must be finite.")
        return value

    def object(self, name: str) -> _Fields:
        return _Fields(self._of(name, (Mapping,), "an object"), f"{self.where}: {name}")

    def objects(self, name: str) -> Iterator[_Fields]:
        for number, entry in enumerate(self._of(name, (list,), "a list")):
            yield _Fields(entry, f"{self.where}: {name}[{number}]")

    def indices(self, name: str) -> tuple[int, ...]:
        values = self._of(name, (list,), "a list")
        if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            raise InputFileError(f"{self.where}: {name} is not a list of input numbers; make the result again.")
        return tuple(values)

    def numbers(self) -> dict[str, float]:
        return {str(name): self.number(name) for name in self.content}


def _certified(fields: _Fields, source: str, folder: Path | None, origin: Origin | None) -> Certified:
    groups = tuple(_group(entry, number, None) for number, entry in enumerate(fields.objects("groups")))
    threat = fields.object("threat") if fields.has("threat") else fields
    certificate = _made(
        fields.where,
        model=fields.text("model"),
        sha256=fields.text("sha256"),
        data=fields.text("data"),
        split=fields.text("split"),
        data_sha256=fields.text("data_sha256"),
        threat=_threat(threat),
        settings=dict(fields.object("settings").content),
        examined=fields.count("examined"),
        examined_correct=round(fields.number("standard_accuracy") * fields.count("examined") / 100),
        groups=groups,
        stages=fields.object("stages").numbers(),
        version=fields.text("version"),
        together=fields.count("attacked") if fields.content.get("scope") == "dataset" else None,
        perturbation=_perturbation(fields),
    )
    _agree(fields, certificate)
    origin = origin or _settings(folder)
    if folder is not None and certificate.together is None:  # a journal of scope dataset has another partition
        for journal in (folder / "journal.jsonl", *sorted(folder.glob("eps_*/journal.jsonl"))):
            if journal.is_file():
                kept = _journal(journal, certificate.model, certificate.data, origin)
                if kept is not None and _same_run(kept.certificate, certificate):
                    certificate = replace(certificate, groups=_joined(groups, kept.certificate.groups, journal))
                    origin = kept.origin
                    break
    return Certified(
        source=source, certificate=certificate, standard_accuracy=fields.number("standard_accuracy"), origin=origin
    )


def _perturbation(fields: _Fields) -> NDArray[np.float32] | None:
    if not fields.has("perturbation"):
        return None
    try:
        return unpack(fields.text("perturbation"))
    except ValueError as error:
        raise InputFileError(f"{fields.where}: {error}; make the result again.") from None


def _made(where: str, **fields: Any) -> Certificate:
    try:
        return Certificate(**fields)
    except CitrusError as error:
        raise InputFileError(f"{where}: {error}") from None


def _same_run(one: Certificate, other: Certificate) -> bool:
    return (one.threat, one.sha256, one.data_sha256) == (other.threat, other.sha256, other.data_sha256)


def _threat(fields: _Fields) -> Threat:
    target = fields.content.get("target")
    try:
        return Threat(
            eps=fields.number("eps"),
            clip=bool(fields.content.get("clip", False)),
            target=None if target is None else fields.count("target"),
        )
    except CitrusError as error:
        raise InputFileError(f"{fields.where}: {error}") from None


def _group(fields: _Fields, number: int, stages: Mapping[str, float] | None) -> GroupResult:
    try:
        group = GroupResult(
            index=number,
            indices=fields.indices("indices"),
            clean_correct=fields.count("clean_correct"),
            ibp_certified=fields.count("ibp_certified"),
            individually_certified=fields.count("individually_certified"),
            certified=fields.count("certified"),
            attacked=fields.count("attacked"),
            status=Status(fields.text("status")),
            detail=fields.text("detail"),
            stages={"all": fields.number("seconds")} if stages is None else stages,
            evidence=Evidence.from_json(fields.content),
        )
    except InputFileError:
        raise
    except (CitrusError, KeyError, TypeError, ValueError) as error:
        raise InputFileError(f"{fields.where}: {error}") from None
    _verdicts_agree(group, fields.where)
    return group


def _verdicts_agree(group: GroupResult, where: str) -> None:
    """Counts and verdicts of a group say the same; a sweep may have narrowed the counts further."""
    kept = group.evidence
    if kept is None:
        return
    said = {verdict: kept.verdicts.count(verdict) for verdict in Verdict}
    size, proven = len(group.indices), said[Verdict.IBP] + said[Verdict.PROVEN]
    fits = (
        len(kept.labels) == len(kept.verdicts) == size
        and size - said[Verdict.LOST] == group.clean_correct
        and said[Verdict.IBP] == group.ibp_certified
        and proven <= group.individually_certified
        and group.attacked <= group.clean_correct - said[Verdict.FOOLED]
    )
    if not fits:
        raise InputFileError(f"{where}: the verdicts of its inputs do not give its counts; make the result again.")


def _agree(fields: _Fields, certificate: Certificate) -> None:
    """The totals and percentages that the file states are those of its groups."""
    for name in COUNTS:
        if fields.count(name) != (total := getattr(certificate, name)):
            raise InputFileError(
                f"{fields.where}: {name} is {fields.count(name)}, but its groups add up to {total};"
                " make the result again."
            )
    percent = {
        "certified_uap_accuracy": 100 * certificate.certified / certificate.inputs,
        "attacked_uap_accuracy": 100 * certificate.attacked / certificate.inputs,
        "standard_accuracy": 100 * certificate.examined_correct / max(certificate.examined, 1),
    }
    for name, value in percent.items():
        if not math.isclose(fields.number(name), value, rel_tol=1e-9, abs_tol=1e-9):
            raise InputFileError(
                f"{fields.where}: {name} is {fields.number(name)}, but the counts give {value}; make the result again."
            )


def _joined(groups: tuple[GroupResult, ...], kept: tuple[GroupResult, ...], journal: Path) -> tuple[GroupResult, ...]:
    """The certificate's groups with the journal's evidence and stages."""
    if [group.indices for group in groups] != [group.indices for group in kept]:
        raise InputFileError(f"{journal}: is not the journal of the certificate beside it; make the result again.")
    return tuple(
        replace(one, stages=other.stages, evidence=other.evidence) for one, other in zip(groups, kept, strict=True)
    )


def _journal(path: Path, model: str, data: str, origin: Origin) -> Certified | None:
    """The certificate that a finished journal amounts to; None for an unfinished one."""
    found_lines = read_lines(path, damaged="is damaged ({reason}); make the result again.")
    lines = [_Fields(content, f"{path}, line {number}") for number, content in enumerate(found_lines, start=1)]
    if not lines or not lines[0].has("journal", "run"):
        raise InputFileError(f"{path}: is not a journal of citrus; make the result again.")
    if not lines[-1].content.get("finished"):
        return None
    run = lines[0].object("run")
    found = {line.count("index"): line for line in lines[1:-1]}
    if sorted(found) != list(range(len(found))):
        raise InputFileError(f"{path}: groups are missing; make the result again.")
    groups = tuple(_group(found[n], n, found[n].object("stages").numbers()) for n in range(len(found)))
    stages: dict[str, float] = {}
    for group in groups:
        for stage, seconds in group.stages.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    named = ("model sha256", "mean", "std", "data sha256", "split", "eps", "clip", "target", "version", "prover")
    certificate = Certificate(
        model=model,
        sha256=run.text("model sha256"),
        data=data,
        split=run.text("split"),
        data_sha256=run.text("data sha256"),
        threat=_threat(run),
        settings={name: value for name, value in run.content.items() if name not in named},
        examined=sum(len(group.indices) for group in groups),
        examined_correct=sum(group.clean_correct for group in groups),
        groups=groups,
        stages=stages,
        version=run.text("version"),
    )
    return Certified(
        source=str(path),
        certificate=certificate,
        standard_accuracy=100 * certificate.examined_correct / max(certificate.examined, 1),
        origin=replace(origin, mean=_floats(run.content.get("mean")), std=_floats(run.content.get("std"))),
    )


def _floats(value: object) -> tuple[float, ...] | None:
    return tuple(float(entry) for entry in value) if isinstance(value, list) else None


def _settings(folder: Path | None) -> Origin:
    """Where the run in `folder` had its data from, by its settings.toml; Origin() where there is none."""
    path = None if folder is None else folder / "settings.toml"
    if path is None or not path.is_file():
        return Origin()
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputFileError(f"{path}: is not TOML ({error}); restore it, or remove it.") from None
    root, seed = settings.get("data-root"), settings.get("seed", 0)
    return Origin(
        mean=_floats(settings.get("mean")),
        std=_floats(settings.get("std")),
        root=Path(root) if isinstance(root, str) else None,
        seed=seed if isinstance(seed, int) else 0,
    )


def _trained(fields: _Fields, source: str, folder: Path | None) -> Trained:
    hardened = fields.has("before", "after")
    if hardened:
        figures = {name: {key: fields.object(name).number(key) for key in FIGURES} for name in ("before", "after")}
    else:
        figures = {"after": {"standard_accuracy": fields.number("standard_accuracy")}}
    model, out, data = fields.text("model" if hardened else "architecture"), fields.text("out"), fields.text("data")
    journals: dict[str, Certified | None] = {"before": None, "after": None}
    if hardened and folder is not None:
        origin = _settings(folder)
        for name, path in (("before", model), ("after", out)):
            if (folder / f"{name}.jsonl").is_file():
                kept = _journal(folder / f"{name}.jsonl", path, data, origin)
                if kept is not None:
                    _same_figures(kept, figures[name])
                journals[name] = kept
    return Trained(
        source=source,
        model=model,
        out=out,
        method=fields.text("method"),
        eps=fields.number("eps"),
        epochs=fields.count("epochs"),
        best_epoch=fields.count("best_epoch"),
        seconds=fields.number("seconds"),
        data=data,
        group_size=fields.count("group_size") if hardened else None,
        inputs=fields.count("inputs") if hardened else None,
        figures=figures,
        recipe=dict(fields.object("recipe").content),
        history=tuple(_epoch(entry) for entry in fields.objects("history")),
        version=fields.text("version"),
        spec=tuple(
            Property(
                file=one.text("file"),
                images=one.count("images"),
                eps=one.number("eps"),
                before=one.text("before"),
                after=one.text("after"),
            )
            for one in (fields.objects("spec") if fields.has("spec") else ())
        ),
        **journals,
    )


def _same_figures(kept: Certified, figures: Mapping[str, float]) -> None:
    one = kept.certificate
    counts = {
        "ibp_certified_accuracy": one.ibp_certified,
        "certified_uap_accuracy": one.certified,
        "attacked_uap_accuracy": one.attacked,
    }
    for name, count in counts.items():
        if not math.isclose(100 * count / one.inputs, figures[name], rel_tol=1e-9, abs_tol=1e-9):
            raise InputFileError(
                f"{kept.source}: its groups give {name} {100 * count / one.inputs:g}, the report beside it says"
                f" {figures[name]:g}; make the result again."
            )


def _epoch(fields: _Fields) -> Mapping[str, Any]:
    """One entry of the history: an epoch, its phase, and numbers (None where not measured)."""
    found: dict[str, Any] = {"epoch": fields.count("epoch"), "phase": fields.text("phase")}
    for name, value in fields.content.items():
        if name not in found:
            found[str(name)] = None if value is None else fields.number(str(name))
    return found


def _evaluated(fields: _Fields, source: str, origin: Origin | None) -> Evaluated:
    figures, certified = {name: fields.number(name) for name in FIGURES}, None
    if fields.has("certificate"):
        certified = _certified(fields.object("certificate"), source, None, origin)
        _same_figures(certified, figures)
    return Evaluated(
        source=source,
        model=fields.text("model"),
        data=fields.text("data"),
        split=fields.text("split"),
        eps=fields.number("eps"),
        group_size=fields.count("group_size"),
        inputs=fields.count("inputs"),
        pgd_accuracy=fields.number("pgd_accuracy"),
        figures=figures,
        version=fields.text("version"),
        certified=certified,
    )


def _attacked(fields: _Fields, source: str) -> Attacked:
    return Attacked(
        source=source,
        model=fields.text("model"),
        data=fields.text("data"),
        split=fields.text("split"),
        threat=_threat(fields.object("threat")),
        group_size=fields.count("group_size"),
        inputs=fields.count("inputs"),
        groups=fields.count("groups"),
        clean_correct=fields.count("clean_correct"),
        attacked=fields.count("attacked"),
        version=fields.text("version"),
    )


def _benchmarked(path: Path) -> Benchmarked:
    found = []
    for number, content in enumerate(read_lines(path, damaged="is damaged ({reason})."), start=1):
        fields = _Fields(content, f"{path}, line {number}")
        witness = fields.content.get("witness")
        found.append(
            Instance(
                onnx=fields.text("onnx"),
                vnnlib=fields.text("vnnlib"),
                timeout=fields.number("timeout"),
                verdict=fields.text("verdict"),
                seconds=fields.number("seconds"),
                witness=None if witness is None else bool(witness),
                note=fields.text("note"),
            )
        )
    if not found:
        raise InputFileError(f"{path}: holds no result yet; run the same command again with --resume.")
    return Benchmarked(source=str(path), instances=tuple(found))
