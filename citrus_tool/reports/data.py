"""What a report is about: a result, live or as citrus wrote it to a file, and where its network and data lie."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NoReturn

from citrus_tool.errors import CitrusError, InputFileError
from citrus_tool.results.attack import AttackReport
from citrus_tool.results.certificate import Certificate
from citrus_tool.results.evaluation import Evaluation
from citrus_tool.results.harden import HardenReport
from citrus_tool.results.instance import Record, read_records
from citrus_tool.results.journal import certificate_of
from citrus_tool.results.record import Place, from_json
from citrus_tool.results.sweep import Sweep
from citrus_tool.results.train import TrainReport

ACCEPTED: Final = (
    "give a run folder of certify-uap, harden, train or vnncomp, or the JSON of certify-uap, harden, train, evaluate"
    " or attack-uap"
)
OWN: Final = ("sweep.json", "certificate.json", "report.json")
"""Results in a run folder, whose journals are of the same run."""
COMPARISON: Final = "comparison.json"
"""The result of several runs, each in a folder beside it."""

JOURNALS: Final = ("journal.jsonl", "before.jsonl", "after.jsonl")
UNFINISHED: Final = ("settings.toml", "checkpoint.safetensors", *JOURNALS, "eps_*/journal.jsonl")
"""What a run leaves in its folder before it has a result."""

Result = Certificate | Sweep | HardenReport | TrainReport | Evaluation | AttackReport | tuple[Record, ...]


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
    """One certificate, and the file that it was read from."""

    source: str
    certificate: Certificate
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A result, the file that it was read from, and the certificates that it holds or has beside it.

    `certificates` are known by what leads the paths of their numbers in the file: "" for a certificate itself, "0."
    in a list, "certificate." in an evaluation, and "before" and "after" for the journals of `harden`.
    """

    source: str
    result: Result
    certificates: Mapping[str, Certified] = field(default_factory=dict)

    @staticmethod
    def of(result: Result, source: str, origin: Origin | None = None, folder: Path | None = None) -> Reported:
        """A result, with what the journals in `folder` hold of it.

        `origin` is needed where there is no such folder and the network takes normalised inputs or the data lie
        elsewhere. Raises InputFileError where a journal says something else than the result.
        """
        where = origin or _settings(folder)
        found: dict[str, Certified] = {}
        if isinstance(result, Certificate):
            found[""] = _joined(source, result, folder, where)
        elif isinstance(result, Sweep):
            found = {f"{n}.": _joined(source, one, folder, where) for n, one in enumerate(result.certificates)}
        elif isinstance(result, Evaluation) and result.certificate is not None:
            found["certificate."] = Certified(source=source, certificate=result.certificate, origin=where)
        elif isinstance(result, HardenReport) and folder is not None:
            parts = {"before": (result.model, result.before), "after": (result.out, result.after)}
            for name, (model, figures) in parts.items():
                kept = _journal(folder / f"{name}.jsonl", str(model), result.data, where)
                if kept is not None:
                    figures.require(kept.certificate, kept.source)
                    found[name] = kept
        return Reported(source=source, result=result, certificates=found)


def read(path: Path) -> Reported:
    """What `path` holds: a run folder, or a result file.

    Raises InputFileError: missing, not JSON, not a result of citrus, unfinished, or at odds with itself.
    """
    if path.is_dir():
        for name in OWN:
            if (path / name).is_file():
                return parse(_json(path / name), str(path / name), folder=path)
        if (path / "results.jsonl").is_file():
            return _benchmarked(path / "results.jsonl")
        raise InputFileError(f"{path}: {_without_result(path)}")
    if path.name == "results.jsonl":
        return _benchmarked(path)
    if path.name in JOURNALS and path.is_file():
        raise InputFileError(f"{path}: is the journal of a run, not its result; give its folder, {path.parent}.")
    if path.name == COMPARISON and path.is_file():
        raise InputFileError(f"{path}: {_several(path.parent)}")
    return parse(_json(path), str(path), folder=path.parent if path.name in OWN else None)


def _without_result(folder: Path) -> str:
    """What is wrong with a folder that holds no result, and what to do about it."""
    if not (folder / COMPARISON).is_file() and any(next(folder.glob(name), None) for name in UNFINISHED):
        return "the run is not finished; run the same command again with --resume."
    return _several(folder)


def _several(folder: Path) -> str:
    """What to give in place of a folder that is none of a single run, such as that of a comparison."""
    inside = sorted({str(file.parent) for name in OWN for file in folder.glob(f"*/{name}")})
    if inside:
        return f"holds no finished run itself, but the folders in it do; give these: {' '.join(inside)}."
    return f"holds no finished run; {ACCEPTED}."


def parse(content: object, source: str, *, folder: Path | None = None) -> Reported:
    """The run of a result in JSON values, as `to_json` gives it; `folder` as `Reported.of` takes it.

    Raises InputFileError, with `source` in front.
    """
    try:
        return Reported.of(_result(content, Place(where=source)), source, folder=folder)
    except InputFileError:
        raise
    except CitrusError as error:  # a count that lies above another one, an eps that is none
        raise InputFileError(str(error)) from None


def _result(content: object, place: Place) -> Result:
    if isinstance(content, Mapping) and "sweep" in content:
        content = content["sweep"]
    if isinstance(content, list):
        if not content:
            raise place.wrong("the list of certificates is empty.")
        places = [place.inside(f"certificate {n}") for n in range(len(content))]
        certificates = [Certificate.from_json(one, at) for one, at in zip(content, places, strict=True)]
        return Sweep(certificates=tuple(certificates))
    if not isinstance(content, Mapping):
        raise place.wrong(f"is {type(content).__name__}, not an object; {ACCEPTED}.")
    if {"groups", "certified_uap_accuracy"} <= content.keys():
        return Certificate.from_json(content, place)
    if {"history", "recipe"} <= content.keys():
        if {"before", "after"} <= content.keys():
            return from_json(HardenReport, content, place)
        return from_json(TrainReport, content, place)
    if "pgd_accuracy" in content:
        return Evaluation.from_json(content, place)
    if {"attacked", "clean_correct", "threat"} <= content.keys():
        return from_json(AttackReport, content, place)
    raise place.wrong(f"is not a result of citrus that a report can show; {ACCEPTED}.")


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise InputFileError(f"{path}: cannot be read ({error.strerror}); {ACCEPTED}.") from None
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{path}: is not JSON ({error}); {ACCEPTED}.") from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number")


def _joined(source: str, one: Certificate, folder: Path | None, origin: Origin) -> Certified:
    """A certificate with the evidence and stages of its groups' journal, where that is in `folder`."""
    journals = [] if folder is None else [folder / "journal.jsonl", *sorted(folder.glob("eps_*/journal.jsonl"))]
    for path in journals if one.together is None else []:  # a journal of scope dataset has another partition
        kept = _journal(path, one.model, one.data, origin)
        if kept is None or _question(kept.certificate) != _question(one):
            continue
        if [group.indices for group in one.groups] != [group.indices for group in kept.certificate.groups]:
            raise InputFileError(f"{path}: is not the journal of the certificate beside it; make the result again.")
        pairs = zip(one.groups, kept.certificate.groups, strict=True)
        groups = tuple(replace(group, stages=other.stages, evidence=other.evidence) for group, other in pairs)
        return Certified(source=source, certificate=replace(one, groups=groups), origin=kept.origin)
    return Certified(source=source, certificate=one, origin=origin)


def _question(one: Certificate) -> tuple[object, ...]:
    return one.threat, one.sha256, one.data_sha256


def _journal(path: Path, model: str, data: str, origin: Origin) -> Certified | None:
    """The certificate that a journal amounts to; None for one that is not there, or not finished."""
    found = certificate_of(path, model, data) if path.is_file() else None
    if found is None:
        return None
    certificate, run = found
    here = replace(origin, mean=_floats(run.get("mean")), std=_floats(run.get("std")))
    return Certified(source=str(path), certificate=certificate, origin=here)


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


def _benchmarked(path: Path) -> Reported:
    if not (records := read_records(path)):
        raise InputFileError(f"{path}: holds no result yet; run the same command again with --resume.")
    return Reported(source=str(path), result=tuple(records))
