"""Runs in, one HTML file out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from citrus_tool.files import require_writable_file, write_text
from citrus_tool.progress import Progress, Silent
from citrus_tool.reports import citations, data, render
from citrus_tool.reports.data import Certified, Reported
from citrus_tool.reports.replay import replay
from citrus_tool.results.attack import AttackReport
from citrus_tool.results.certificate import Certificate
from citrus_tool.results.evaluation import Evaluation
from citrus_tool.results.harden import HardenReport
from citrus_tool.results.instance import Word
from citrus_tool.results.record import plain
from citrus_tool.results.sweep import Sweep
from citrus_tool.results.train import TrainReport


def write_report(
    runs: Sequence[Reported | Path],
    out: Path,
    *,
    models: Sequence[Path] = (),
    root: Path | None = None,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Writes a self-contained HTML page about `runs`; returns what is missing in it, one sentence each.

    Args:
        runs: runs, or run folders and result files (data.read).
        models: ONNX files that stand in for those that are no longer where they were; found by sha256.
        root: where named data sets lie, in place of the run's own --data-root.

    Raises:
        InputFileError: `out` cannot be written, or a run cannot be read.
        CheckFailedError: a replay on onnxruntime contradicts a certificate.
    """
    require_writable_file(out)
    progress = progress or Silent()
    records = [data.read(run) if isinstance(run, Path) else run for run in runs]
    album = render.Album(render.PICTURE_BYTES)
    missing: list[str] = []
    progress.start("report", len(records), "runs")

    def seen(key: str, run: Certified) -> render.CertifiedView:
        found = replay(run, models=models, root=root)
        missing.extend(found.missing)
        return render.view(key, run, found, album)

    sections: list[Mapping[str, Any]] = []
    for number, run in enumerate(records, start=1):
        sections.append(_section(f"r{number}", run, seen))
        progress.advance()
    sections = [*_curves(records), *sections]
    names = [Path(name).name for name in dict.fromkeys(map(_name, records))]
    write_text(out, render.page(", ".join(names[:3]) + (" and others" if len(names) > 3 else ""), sections))
    progress.finish()
    return tuple(dict.fromkeys(missing))


def _name(run: Reported) -> str:
    if isinstance(run.result, Sweep):
        return run.result.certificates[0].model
    if isinstance(run.result, HardenReport | TrainReport):
        return str(run.result.out)
    return run.source if isinstance(run.result, tuple) else str(run.result.model)


def _section(key: str, run: Reported, seen: Callable[[str, Certified], render.CertifiedView]) -> Mapping[str, Any]:
    found: dict[str, Any] = {"key": key, "source": run.source, "run": run.result}
    views = {name: seen(_key(key, name), one) for name, one in run.certificates.items()}
    if isinstance(run.result, Certificate):
        return {**found, "kind": "certified", "view": views[""]}
    if isinstance(run.result, Sweep):
        curve = render.sweep(list(run.certificates.values()), f"{key}-eps")
        return {**found, "kind": "swept", "views": views, "curve": curve}
    if isinstance(run.result, HardenReport | TrainReport):
        recipe = plain(run.result.recipe)
        return {
            **found,
            "kind": "trained",
            "hardened": isinstance(run.result, HardenReport),
            "recipe": recipe,
            "views": views,
            "charts": render.training(run.result, key),
            "citations": citations.of_method(run.result.method, recipe),
        }
    if isinstance(run.result, Evaluation):
        return {**found, "kind": "evaluated", "view": views.get("certificate.")}
    if isinstance(run.result, AttackReport):
        return {**found, "kind": "attacked"}
    verdicts = {word: sum(one.verdict == word for one in run.result) for word in get_args(Word)}
    return {**found, "kind": "benchmarked", "curve": render.cactus(run.result, f"{key}-cactus"), "verdicts": verdicts}


def _key(key: str, name: str) -> str:
    """What a certificate of a run is called on the page."""
    return key + {"": "", "certificate.": "c"}.get(name, f"e{name[:-1]}" if name.endswith(".") else name)


def _curves(runs: Sequence[Reported]) -> list[Mapping[str, Any]]:
    """A curve over eps for certificates given as runs of their own that differ in eps only."""
    alike: dict[tuple[object, ...], list[Certified]] = {}
    for run in runs:
        if isinstance(run.result, Certificate):
            alike.setdefault(render.question(run.certificates[""]), []).append(run.certificates[""])
    return [
        {
            "kind": "curve",
            "key": f"curve{number}",
            "runs": sorted(several, key=lambda one: one.certificate.threat.eps),
            "curve": render.sweep(several, f"curve{number}-eps"),
        }
        for number, several in enumerate(alike.values())
        if len(several) > 1
    ]
