"""Records -> one HTML page. Numbers come from the records as they are; a template only formats them.

Every number that a result file holds stands in a <data> element with its path in that file, so that a page can be
checked against the JSON by a program.
"""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from citrus_tool import __version__
from citrus_tool.reports import citations, figures, pictures
from citrus_tool.reports.data import Certified
from citrus_tool.reports.replay import Replayed, Seen
from citrus_tool.results.certificate import GroupResult, Status
from citrus_tool.results.evidence import InputVerdict
from citrus_tool.results.harden import HardenReport
from citrus_tool.results.instance import Record
from citrus_tool.results.train import TrainReport

TEMPLATES: Final = Path(__file__).parent / "templates"
PICTURE_BYTES: Final = 4 * 2**20
"""What pictures may take of a page; inputs beyond it are listed without one. So a page can still be mailed."""
GALLERY: Final = 24
"""Images in one row of pictures, at most: two lines of it on a wide screen."""
FIGURES: Final[Mapping[str, str]] = {
    "standard_accuracy": "Standard",
    "ibp_certified_accuracy": "IBP certified",
    "certified_uap_accuracy": "Certified UAP",
    "attacked_uap_accuracy": "Attacked UAP",
}
"""The accuracies (percent) that `harden` and `evaluate` give, with their names."""
STAGES: Final[Mapping[str, str]] = {
    "clean": "Clean predictions",
    "ibp": "Interval bounds",
    "crown": "CROWN",
    "branch": "alpha-CROWN, branch and bound",
    "attack": "Attack",
    "replay": "Replay of perturbations",
    "joint": "Cross-execution search",
    "milp": "Group MILP",
    "dataset": "Search across groups",
    "all": "All stages",
}
NOT_LOSSES: Final = frozenset(
    {"epoch", "phase", "eps", "tau", "lr", "seconds", "gradient_norm"}
    | {"validation_standard_accuracy", "validation_certified_accuracy"}
)
"""Fields of the history that are no part of the loss."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One input in pictures (data URIs; None where there is no room) and words."""

    index: int
    label: int
    verdict: InputVerdict
    image: str | None
    shifted: str | None
    before: int | None
    after: int | None


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """One group of the map: its result, its inputs and its perturbation, one picture a channel."""

    result: GroupResult
    inputs: tuple[Picture, ...]
    perturbation: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """Inputs with one label, by verdict."""

    label: int
    inputs: int
    verdicts: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The perturbation that fools most inputs of its group, or in scope dataset of all.

    Attributes:
        channels: pictures of it.
        group: number of the group; None in scope dataset.
        size: inputs that it is added to.
        fooled: how many of them it fools; `inputs` are the first of these.
        saturated: percent of its entries at +-eps.
        mean: of its entries' absolute values, in pixel space.
    """

    channels: tuple[str, ...]
    group: int | None
    size: int
    fooled: int
    inputs: tuple[Picture, ...]
    saturated: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class CertifiedView:
    """A certificate on the page; `key` is unique there, `prefix` leads the paths of its numbers."""

    key: str
    run: Certified
    replay: Replayed
    groups: tuple[GroupView, ...]
    classes: tuple[ClassRow, ...]
    worst: Worst | None
    safe: tuple[Picture, ...]
    safe_count: int
    wrong: tuple[Picture, ...]
    wrong_count: int
    citations: tuple[str, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.run.certificate.settings

    @property
    def names(self) -> Mapping[int, str]:
        """Names of the classes that have one beside their number."""
        return {label: name for label, name in enumerate(self.replay.class_names) if name != str(label)}

    @property
    def kept(self) -> bool:
        """Whether the record holds what was found: no input fell, or there are perturbations that made some fall."""
        kept = [g.result.evidence for g in self.groups if g.result.evidence is not None]
        fallen = any(InputVerdict.FOOLED in one.verdicts for one in kept)
        return not fallen or any(one.perturbation is not None for one in kept)


class Album:
    """Makes pictures until their budget is spent."""

    def __init__(self, size: int) -> None:
        self._left = size

    def add(self, uri: str) -> str | None:
        """The picture, or None where there is no room left."""
        if len(uri) > self._left:
            return None
        self._left -= len(uri)
        return uri

    def photo(self, image: NDArray[np.float32]) -> str | None:
        return self.add(pictures.photo(image)) if self._left > 0 else None


def spelled(eps: float) -> str:
    """`eps` as people write it: 2/255 where it is that, else 0.1."""
    whole = round(eps * 255)
    return f"{whole}/255" if whole and eps == whole / 255 and len(repr(eps)) > 6 else f"{eps:g}"


def plain(value: object) -> str:
    """A setting in words: fields and lists without brackets, yes and no for flags."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(name).replace('_', ' ')} {plain(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(plain, value)) or "none"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def view(key: str, run: Certified, seen: Replayed, album: Album) -> CertifiedView:
    """The certificate with its pictures."""
    results = run.certificate.groups
    order = sorted(range(len(results)), key=lambda n: (results[n].attacked - len(results[n].indices), n))
    made = {
        n: _group(results[n], seen.groups[n] if seen.groups else (), run.certificate.threat.eps, album) for n in order
    }
    groups = tuple(made[n] for n in range(len(results)))
    worst = _worst_of_all(run, seen, album) if run.certificate.together is not None else _worst(groups, run)
    proven = [p for g in groups for p in g.inputs if p.verdict in (InputVerdict.IBP, InputVerdict.PROVEN)]
    wrong = [p for g in groups for p in g.inputs if p.verdict is InputVerdict.LOST]
    return CertifiedView(
        key=key,
        run=run,
        replay=seen,
        groups=groups,
        classes=_classes(results),
        worst=worst,
        safe=tuple(p for p in proven if p.image is not None)[:GALLERY],
        safe_count=len(proven),
        wrong=tuple(p for p in wrong if p.image is not None)[:GALLERY],
        wrong_count=len(wrong),
        citations=tuple(citations.of_certificate(run.certificate)),
    )


def _group(result: GroupResult, seen: Sequence[Seen], eps: float, album: Album) -> GroupView:
    kept, inputs = result.evidence, []
    u = None if kept is None else kept.perturbation
    if kept is not None:
        for place, (index, label, verdict) in enumerate(zip(result.indices, kept.labels, kept.verdicts, strict=True)):
            if seen:
                inputs.append(_picture(seen[place], album))
            else:
                inputs.append(
                    Picture(
                        index=index, label=label, verdict=verdict, image=None, shifted=None, before=None, after=None
                    )
                )
    channels = () if u is None else tuple(album.add(pictures.signed(channel, eps)) for channel in u)
    return GroupView(
        result=result, inputs=tuple(inputs), perturbation=tuple(uri for uri in channels if uri is not None)
    )


def _picture(one: Seen, album: Album) -> Picture:
    """An input in pictures; with its perturbation where that fools it."""
    shifted = one.shifted if one.verdict is InputVerdict.FOOLED else None
    return Picture(
        index=one.index,
        label=one.label,
        verdict=one.verdict,
        image=album.photo(one.image),
        shifted=None if shifted is None else album.photo(shifted),
        before=one.before,
        after=one.after,
    )


def _classes(groups: Sequence[GroupResult]) -> tuple[ClassRow, ...]:
    if any(group.evidence is None for group in groups):
        return ()
    found: dict[int, dict[str, int]] = {}
    for group in groups:
        if group.evidence is not None:
            for label, verdict in zip(group.evidence.labels, group.evidence.verdicts, strict=True):
                row = found.setdefault(label, {one.value: 0 for one in InputVerdict})
                row[verdict.value] += 1
    return tuple(ClassRow(label=label, inputs=sum(row.values()), verdicts=row) for label, row in sorted(found.items()))


def _worst(groups: Sequence[GroupView], run: Certified) -> Worst | None:
    """The group whose kept perturbation fools most inputs, the first of several."""
    best: Worst | None = None
    for group in groups:
        kept = group.result.evidence
        if kept is None or kept.perturbation is None or not group.perturbation:
            continue
        fooled = [one for one in group.inputs if one.verdict is InputVerdict.FOOLED]
        if best is None or len(fooled) > best.fooled:
            saturated, mean = _size(kept.perturbation, run.certificate.threat.eps)
            best = Worst(
                channels=group.perturbation,
                group=group.result.index,
                size=len(group.inputs),
                fooled=len(fooled),
                inputs=tuple(fooled[:GALLERY]),
                saturated=saturated,
                mean=mean,
            )
    return best


def _worst_of_all(run: Certified, seen: Replayed, album: Album) -> Worst | None:
    """The one perturbation of scope dataset; None where it is not kept or fools nothing."""
    one = run.certificate
    if one.perturbation is None:
        return None
    channels = tuple(album.add(pictures.signed(channel, one.threat.eps)) for channel in one.perturbation)
    fooled = [entry for entry in seen.together if entry.verdict is InputVerdict.FOOLED]
    saturated, mean = _size(one.perturbation, one.threat.eps)
    return Worst(
        channels=tuple(uri for uri in channels if uri is not None),
        group=None,
        size=one.inputs,
        fooled=one.clean_correct - one.attacked,
        inputs=tuple(_picture(entry, album) for entry in fooled[:GALLERY]),
        saturated=saturated,
        mean=mean,
    )


def _size(perturbation: NDArray[np.float32], eps: float) -> tuple[float, float]:
    """Percent of the entries at +-eps, and the mean of their absolute values."""
    size = np.abs(perturbation.astype(np.float64))
    return 100 * float((size >= 0.999 * eps).mean()), float(size.mean())


def training(run: HardenReport | TrainReport, key: str) -> Mapping[str, Any]:
    """The curves of a training run, by name."""
    history = run.history
    if not history:
        return {}
    epochs = [entry["epoch"] for entry in history]
    parts = [name for name in history[0] if name not in NOT_LOSSES]
    paints = ("certified", "attacked", "extra1", "extra2", "extra3", "standard", "muted")
    dashes = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), "-")
    best = (run.best_epoch, "kept epoch")

    def column(name: str) -> list[float | None]:
        return [entry.get(name) for entry in history]

    def line(name: str, words: str, place: int) -> figures.Series:
        return figures.Series(
            name=words,
            x=epochs,
            y=column(name),
            paint=paints[place % 7],
            dash=dashes[place % 7],  # type: ignore[arg-type]
        )

    found = {
        "losses": figures.curves(
            f"{key}-losses",
            "Parts of the training loss by epoch; the numbers stand in the table below",
            [line(name, name.replace("_", " "), place) for place, name in enumerate(parts)],
            x="epoch",
            y="mean over the epoch",
            mark=best,
            whole=True,
        ),
        "ramp": figures.curves(
            f"{key}-ramp",
            "eps and tau at the end of each epoch; the numbers stand in the table below",
            [line("eps", "eps", 0), line("tau", "tau", 1)],
            x="epoch",
            y="radius in pixel space",
            whole=True,
        ),
    }
    accuracies = {"validation_standard_accuracy": "standard", "validation_certified_accuracy": "certified"}
    measured = {name: words for name, words in accuracies.items() if any(v is not None for v in column(name))}
    if measured:
        paint = {"standard": "standard", "certified": "certified"}
        found["accuracies"] = figures.curves(
            f"{key}-accuracies",
            "Accuracies on the validation split by epoch; the numbers stand in the table below",
            [
                figures.Series(
                    name=words, x=epochs, y=column(name), paint=paint[words], dash="-" if words == "certified" else "--"
                )
                for name, words in measured.items()
            ],
            x="epoch",
            y="validation accuracy in %",
            mark=best,
            percent=True,
            whole=True,
        )
    return {"parts": parts, **found}


def sweep(certificates: Sequence[Certified], key: str) -> Any:
    """Certified and attacked accuracy over eps."""
    ordered = sorted(certificates, key=lambda one: one.certificate.threat.eps)
    eps = [one.certificate.threat.eps for one in ordered]

    def share(count: str) -> list[float | None]:
        return [100 * getattr(one.certificate, count) / one.certificate.inputs for one in ordered]

    return figures.curves(
        key,
        "Certified and attacked accuracy over eps; the true worst case lies in the shaded area",
        [
            figures.Series(name="attacked", x=eps, y=share("attacked"), paint="attacked", dash="--", marker="s"),
            figures.Series(name="certified", x=eps, y=share("certified"), paint="certified", marker="o"),
            figures.Series(name="IBP", x=eps, y=share("ibp_certified"), paint="muted", dash=":", marker="^"),
        ],
        x="eps (pixel space)",
        y="UAP accuracy in %",
        shade=(1, 0),
        percent=True,
    )


def question(run: Certified) -> tuple[object, ...]:
    """What two certificates have in common when they differ in eps only."""
    one = run.certificate
    groups = tuple(group.indices for group in one.groups)
    return one.sha256, one.data_sha256, one.group_size, one.threat.clip, one.threat.target, groups


def cactus(records: Sequence[Record], key: str) -> Any:
    """How many instances were decided within a time each (the field's cactus plot)."""
    decided = sorted(one.seconds for one in records if one.verdict in ("sat", "unsat"))
    if not decided:
        return None
    return figures.curves(
        key,
        "Decided instances, in the order of their time",
        [
            figures.Series(
                name="decided",
                x=[float(n) for n in range(1, len(decided) + 1)],
                y=list(decided),
                paint="certified",
                marker="o",
            )
        ],
        x="instances decided",
        y="seconds each",
        whole=True,
    )


def page(title: str, sections: Sequence[Mapping[str, Any]]) -> str:
    """The page; each section is {"kind": the template's block, and what it needs}."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"eps": spelled, "plain": plain, "upper_first": lambda text: text[:1].upper() + text[1:]}
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        title=title,
        sections=sections,
        script=script,
        script_digest=digest,
        figure_names=FIGURES,
        stage_names=STAGES,
        verdicts=list(InputVerdict),
        statuses=list(Status),
        version=__version__,
        python=platform.python_version(),
        gallery=GALLERY,
    )
