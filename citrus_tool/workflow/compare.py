"""Several networks on the same data and eps in one table (`citrus compare`), and what one certifies beyond another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from citrus_tool.choices import Split
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.context import RunContext
from citrus_tool.data import Dataset
from citrus_tool.devices import resolved
from citrus_tool.errors import CheckFailedError, InputFileError, SoundnessError, UnsupportedNetworkError
from citrus_tool.files import require_writable_folder, write_json
from citrus_tool.progress import Staged
from citrus_tool.results.comparison import Comparison, Judged, Pair
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.threat import Threat
from citrus_tool.workflow.figures import standard_accuracy
from citrus_tool.workflow.sweep import sweep_file


def compare_files(
    sources: Sequence[ModelChoice],
    choice: DataChoice,
    threats: Sequence[Threat],
    certify: CertifySettings,
    context: RunContext,
    *,
    split: Split = "test",
) -> Comparison:
    """Certifies each network at each eps (`sweep.sweep_file`), each in its own folder below the run
    folder.

    A network that cannot be read or judged becomes an entry with its error, and the others are still judged. The result
    also goes to comparison.json in the run folder.

    Raises:
        UsageError: options that make no sense, or an unfinished run without `resume`.
        DataError: the data cannot be read.
        SoundnessError: a certificate contradicts itself or another one.
        InterruptedRunError: stopped by the user; `resume` continues.
    """
    context, run_dir = resolved(context), context.folder
    dataset = choice.load(split)
    require_writable_folder(run_dir)
    names = distinct([source.path for source in sources])
    found = []
    for name, source in zip(names, sources, strict=True):
        staged = replace(context, run_dir=run_dir / name, progress=Staged(context.progress, f"{name}, "))
        try:
            accuracy = _accuracy(source, dataset, staged)
            sweep = sweep_file(source, choice, threats, certify, staged, split=split)
        except SoundnessError:
            raise
        except (InputFileError, UnsupportedNetworkError, CheckFailedError) as error:
            found.append(Judged(name=name, path=source.path, error=error))
        else:
            found.append(Judged(name=name, path=source.path, standard_accuracy=accuracy, sweep=sweep))
    context.progress.finish()
    result = Comparison(networks=tuple(found), pairs=tuple(_pairs(found)))
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "comparison.json", result.to_json())
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


def _accuracy(source: ModelChoice, dataset: Dataset, context: RunContext) -> float:
    accuracy = standard_accuracy(source.read(dataset), dataset, context)
    context.progress.finish()
    return accuracy


def _pairs(networks: Sequence[Judged]) -> list[Pair]:
    pairs = []
    for a, b in combinations(networks, 2):
        if a.sweep is not None and b.sweep is not None:
            both = zip(a.sweep.certificates, b.sweep.certificates, strict=True)
            pairs += [pair for one, other in both if (pair := Pair.of(a.name, b.name, one, other)) is not None]
    return pairs
