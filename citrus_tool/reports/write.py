"""Runs in, one HTML file out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from citrus_tool.files import require_writable_file, write_text
from citrus_tool.progress import Progress, Silent
from citrus_tool.reports import citations, data, render
from citrus_tool.reports.data import Attacked, Benchmarked, Certified, Evaluated, Run, Swept, Trained
from citrus_tool.reports.replay import replay


def write_report(
    runs: Sequence[Run | Path],
    out: Path,
    *,
    models: Sequence[Path] = (),
    root: Path | None = None,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Writes a self-contained HTML page about `runs`; returns what is missing in it, one sentence each.

    Args:
        runs: records, or run folders and result files (data.read).
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


def _name(run: Run) -> str:
    if isinstance(run, Certified):
        return run.certificate.model
    if isinstance(run, Swept):
        return run.certificates[0].certificate.model
    if isinstance(run, Trained):
        return run.out
    return run.source if isinstance(run, Benchmarked) else run.model


def _section(key: str, run: Run, seen: Callable[[str, Certified], render.CertifiedView]) -> Mapping[str, Any]:
    if isinstance(run, Certified):
        return {"kind": "certified", "key": key, "run": run, "view": seen(key, run)}
    if isinstance(run, Swept):
        several = [seen(f"{key}e{number}", one) for number, one in enumerate(run.certificates)]
        prefixes = [f"{number}." for number in range(len(several))]
        return {
            "kind": "swept",
            "key": key,
            "run": run,
            "views": several,
            "prefixes": prefixes,
            "curve": render.sweep(run.certificates, f"{key}-eps"),
        }
    if isinstance(run, Trained):
        parts = {"before": run.before, "after": run.after}
        views = {name: seen(f"{key}{name}", one) for name, one in parts.items() if one is not None}
        return {
            "kind": "trained",
            "key": key,
            "run": run,
            "views": views,
            "charts": render.training(run, key),
            "citations": citations.of_method(run.method, run.recipe),
        }
    if isinstance(run, Evaluated):
        one = None if run.certified is None else seen(f"{key}c", run.certified)
        return {"kind": "evaluated", "key": key, "run": run, "view": one}
    if isinstance(run, Attacked):
        return {"kind": "attacked", "key": key, "run": run}
    words = ("sat", "unsat", "unknown", "timeout", "error")
    return {
        "kind": "benchmarked",
        "key": key,
        "run": run,
        "curve": render.cactus(run, f"{key}-cactus"),
        "verdicts": {word: sum(one.verdict == word for one in run.instances) for word in words},
    }


def _curves(runs: Sequence[Run]) -> list[Mapping[str, Any]]:
    """A curve over eps for certificates given as runs of their own that differ in eps only."""
    alike: dict[tuple[object, ...], list[Certified]] = {}
    for run in runs:
        if isinstance(run, Certified):
            alike.setdefault(render.question(run), []).append(run)
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
