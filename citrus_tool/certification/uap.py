"""Certified worst-case UAP accuracy of a network on a data split (the `certify-uap` command).

Per group of inputs that share one perturbation: clean -> IBP -> CROWN -> branch and bound on each input alone, an
attack with a shared u on the inputs that stay open, then how many of them one u can fool: with bounds `full` the
counterexample-guided loop over joint proofs (settle.py), otherwise the MILP on their planes (master.py); and the replay
of every witness on onnxruntime. Summed over groups this bounds the worst-case UAP accuracy from below and above
(Theorem 3 of the paper).

The MILP is skipped where it cannot help: with at most one open input its value is known, since an open input has a
plane that reaches 0 in the box, so that the optimum is 1; and when the attack fooled all open inputs with one u.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from citrus_tool import __version__
from citrus_tool.certification.dataset_scope import Remainder
from citrus_tool.certification.milp import Solver, named
from citrus_tool.certification.proof import GroupProof
from citrus_tool.certification.run import Chunk, Finished, Prepared, Run
from citrus_tool.choices.settings import CertifySettings
from citrus_tool.data import Dataset
from citrus_tool.engines.processes import More, spread
from citrus_tool.errors import InputFileError, InterruptedRunError, UsageError
from citrus_tool.onnx_io import OnnxModel, OnnxRunner, require_parity
from citrus_tool.progress import Progress, Silent
from citrus_tool.results.certificate import Certificate, GroupResult
from citrus_tool.results.journal import Journal, open_journal
from citrus_tool.threat import Threat

PROVER: Final = 2
"""Raised when results of the procedure before are no longer to be mixed with those of today's, or were wrong."""


def certify_uap(
    model: OnnxModel,
    data: Dataset,
    threat: Threat,
    settings: CertifySettings,
    *,
    device: str = "cpu",
    journal: Path | None = None,
    resume: bool = False,
    proof: Path | None = None,
    progress: Progress | None = None,
    solver: Solver | None = None,
    workers: int = 1,
    part: tuple[int, int] | None = None,
    join: Sequence[Path] = (),
) -> Certificate:
    """The certificate of `model` on `data` under one shared perturbation per group.

    Args:
        device: where bounds and attacks are computed; clean accuracy and witnesses are judged on onnxruntime's CPU.
        journal: file that gets one line per finished group; `resume` goes on with it.
        proof: file that gets the proof, for `citrus check`.
        solver: another MILP solver in place of the one that `settings` names.
        workers: processes that groups are spread over, each with as many threads as this one; the result is the same.
        part: (i, n), i from 1 to n: only the groups of every n-th batch, from the i-th. The certificate is of their
            inputs alone, and the journal stays open for another run to `join`.
        join: journals of parts of this run, whose groups are taken over; what they lack is done here.

    Raises:
        DataError: shape or number of classes do not fit the network, or no input is left to judge.
        CheckFailedError: the network is not (any more) that of the file.
        UsageError: the target is no class of the network; a proof is wanted of bounds that have none; a part of no
            group, or of a run that is about all inputs together or writes a proof.
        UnsupportedNetworkError: a proof is wanted of a network that the checker cannot read.
        UsageError, InputFileError: the journal is of another run, or no journal (journal.open_journal).
        SoundnessError: a lower bound lies above an upper bound; names group, stage and values.
        InterruptedRunError: Ctrl-C, or a worker died; finished groups are in the journal.
    """
    progress = progress or Silent()
    data.require_classifier(model.network.input_shape, model.network.num_classes, str(model.path))
    threat.require_target(model.network.num_classes)
    require_parity(model.network, OnnxRunner(model), model.path)
    if part is not None and (settings.scope == "dataset" or proof is not None):
        raise UsageError(
            "a part of the groups has no certificate for one perturbation of all inputs (scope dataset) and no proof;"
            " make the parts without them."
        )
    solver = solver or named(settings.solver)
    build = partial(Run.of, model, data, threat, settings, solver, device, proof)
    run = build(resume=resume)
    results: dict[int, GroupResult] = {}
    remainders: dict[int, Remainder] = {}
    proofs: dict[int, GroupProof] = {}
    dataset = settings.scope == "dataset"
    groups: list[tuple[int, ...]] = []
    with ExitStack() as stack:
        log: Journal | None = None
        try:
            start = time.monotonic()
            candidates, clean = run.clean(progress)
            chosen = run.chosen(candidates, clean)
            k = settings.group_size
            groups = [tuple(part.tolist()) for part in torch.split(candidates[chosen], k)]
            clean_seconds = time.monotonic() - start
            if journal is not None:
                log = stack.enter_context(
                    open_journal(journal, _identity(model, data, threat, settings), groups, resume=resume, join=join)
                )
                results.update(run.recorded(log.done))
                if dataset:
                    remainders.update(_remainders(journal, {index: log.notes.get(index) for index in results}))
            size = run.chunk_groups()
            batches = range(0, len(groups), size)
            wanted: Sequence[int] = range(len(groups))
            if part is not None:
                batches = _share(batches, part, size)
                wanted = [index for first in batches for index in range(first, min(first + size, len(groups)))]
                results = {index: result for index, result in results.items() if index in set(wanted)}
            progress.start("groups", len(wanted), "groups")
            progress.advance(len(results))
            tasks = []
            for first in batches:
                members = range(first, min(first + size, len(groups)))
                some = chosen[first * k : (members[-1] + 1) * k]
                skip = frozenset(results).intersection(members)
                if len(skip) < len(members):
                    tasks.append(Chunk(first=first, indices=candidates[some], clean=clean.select(some), skip=skip))
            if tasks and not results:
                progress.advance(0, note=f"in batches of {min(size, len(groups))}")
            for one in _finished(run, partial(build, resume=True), tasks, min(workers, len(wanted) - len(results))):
                result, index = one.result, one.result.index
                results[index], remainders[index] = result, one.remainder
                if one.proof is not None:
                    proofs[index] = one.proof
                if log is not None:
                    log.write(result, one.remainder.to_json() if dataset else None)
                progress.advance(1, note=_note(results))
            ordered: tuple[GroupResult, ...] = tuple(results[index] for index in wanted)
            together, worst = None, None
            if dataset:
                row = dict(zip(candidates[chosen].tolist(), chosen.tolist(), strict=True))
                ordered, together, worst = run.together(ordered, remainders, proofs, clean, row, progress)
            if log is not None and part is None:
                log.finish()
        except KeyboardInterrupt:
            saved = f"continue with --resume ({journal})" if journal is not None else "nothing was saved (no journal)"
            raise InterruptedRunError(f"stopped after {len(results)} of {len(groups)} groups; {saved}.") from None
    if run.recorder is not None:
        run.recorder.pack(len(ordered), {"data": data.name, "split": data.split, "version": __version__})
    progress.finish()
    judged = torch.isin(_looked_at(chosen, len(candidates)) // k, torch.tensor(wanted))
    return Certificate(
        model=str(model.path),
        sha256=model.sha256,
        data=data.name,
        split=data.split,
        data_sha256=data.sha256(),
        threat=threat,
        settings=asdict(settings),
        examined=int(judged.sum()),
        examined_correct=int(clean.correct[judged].sum()),
        groups=ordered,
        stages={"clean": clean_seconds, **_total(group.stages for group in ordered)},
        version=__version__,
        together=together,
        perturbation=worst,
    )


def _share(batches: range, part: tuple[int, int], size: int) -> range:
    number, parts = part
    if not 1 <= number <= parts <= len(batches):
        raise UsageError(
            f"part {number}/{parts} of {len(batches)} batches of {size} groups; parts are 1/N to N/N, N at most"
            f" {len(batches)}."
        )
    return batches[number - 1 :: parts]


def _looked_at(chosen: Tensor, count: int) -> Tensor:
    """For which of the chosen inputs each of `count` candidates was looked at: the next one, or the last one of all."""
    return torch.searchsorted(chosen, torch.arange(count)).clamp(max=len(chosen) - 1)


def _finished(run: Run, build: Callable[[], Run], tasks: Sequence[Chunk], workers: int) -> Iterator[Finished]:
    """The groups of all chunks, here or by worker processes, each of which builds a run of its own."""
    if workers > 1:
        yield from spread(partial(_worker, build), tasks, workers, threads=torch.get_num_threads())
    else:
        for task in tasks:
            yield from map(run.finished, run.prepared(task))


def _worker(build: Callable[[], Run]) -> Callable[[Chunk | Prepared], Finished | More]:
    """What a worker process does: a chunk's batched stages, or one group."""
    run = build()
    return lambda task: run.finished(task) if isinstance(task, Prepared) else More(tasks=tuple(run.prepared(task)))


def _remainders(path: Path, notes: Mapping[int, Any]) -> dict[int, Remainder]:
    """The remainders that a journal holds."""
    try:
        return {index: Remainder.of(note) for index, note in notes.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise InputFileError(f"{path}: a note is damaged ({error!r}); remove the file to start again.") from None


def _identity(model: OnnxModel, data: Dataset, threat: Threat, settings: CertifySettings) -> dict[str, Any]:
    """Everything that a group's result depends on, as JSON values: the journal's first line."""
    contract = model.contract
    return {
        "model sha256": model.sha256,
        "mean": list(contract.mean),
        "std": list(contract.std),
        "data sha256": data.sha256(),
        "split": data.split,
        **threat.to_json(),
        "version": __version__,
        "prover": PROVER,
        **asdict(settings),
    }


def _note(results: Mapping[int, GroupResult]) -> str:
    inputs = sum(len(group.indices) for group in results.values())
    certified = 100 * sum(group.certified for group in results.values()) / inputs
    attacked = 100 * sum(group.attacked for group in results.values()) / inputs
    return f"certified {certified:.1f} %, attacked {attacked:.1f} %"


def _total(stages: Iterator[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for stage in stages:
        for name, seconds in stage.items():
            total[name] = total.get(name, 0.0) + seconds
    return total
