"""The journal of a certification: JSON lines, one per finished group, so that a stopped run can go on.

First line: {"journal": FORMAT, "run": {...}}, what the run is made of; then one line per group (GroupResult with its
`index`, `stages` and perturbation); then, when all groups are done, {"finished": true}. A torn last
line is dropped (results/lines.py); anything else that is not as written is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from citrus_tool.errors import InputFileError, UsageError
from citrus_tool.files import require_writable_file
from citrus_tool.names import differing
from citrus_tool.results import lines
from citrus_tool.results.certificate import Certificate, GroupResult
from citrus_tool.results.record import Place, from_json, value_of
from citrus_tool.threat import Threat

FORMAT: Final = 1
"""Version of the lines; another one is refused."""
_NOT_SETTINGS: Final = (
    *("model sha256", "mean", "std", "data sha256", "split", "eps", "clip", "target", "version", "prover"),
)
"""What a run is made of beside the settings."""
DAMAGED: Final = "is damaged ({reason}); remove the file to start again."
"""What is said of a line that no run can have written, in front of the torn end."""
FINISHED: Final = {"finished": True}
"""The last line of a run whose groups are all there."""

TOLD_ONLY: Final = frozenset({"version"})
"""Fields of a run that may differ: citrus's version says who wrote the groups; whether they may be mixed, `prover`."""


class Journal:
    """An open journal; use as a context manager.

    `done`: the groups that were read from it, by index; `notes`: what was written with them.
    """

    def __init__(
        self, file: lines.Writer, done: Mapping[int, GroupResult], notes: Mapping[int, Any], *, finished: bool
    ) -> None:
        self._file = file
        self.done, self.notes = dict(done), dict(notes)
        self._finished = finished

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__()

    def write(self, group: GroupResult, note: Any = None) -> None:
        """Appends one finished group, with a JSON value to go with it."""
        line = group.to_line()
        self._file.write(line if note is None else {**line, "note": note})

    def finish(self) -> None:
        """Marks the run as complete."""
        if not self._finished:
            self._file.write(FINISHED)
            self._finished = True


def open_journal(
    path: Path,
    run: Mapping[str, Any],
    groups: Sequence[tuple[int, ...]],
    *,
    resume: bool,
    join: Sequence[Path] = (),
) -> Journal:
    """Opens the journal of a run that is made of `run` (JSON values) and judges `groups` (indices of inputs).

    resume=False starts a new one, and replaces an old one only if that is finished: an unfinished run is not thrown
    away by a forgotten flag. resume=True goes on with an old one, or starts one where there is none. Groups that the
    journals `join` hold are written to this one.

    Raises: UsageError for an unfinished journal without `resume`, or when the journal's run differs (names the field);
    InputFileError when the file is no journal, is damaged before its last line, or cannot be written.
    """
    require_writable_file(path)
    run = json.loads(json.dumps(run, allow_nan=False))
    known = _lines(path)
    if known and not resume:
        if count := _unfinished(known):
            raise UsageError(
                f"{path} holds an unfinished run of {count} groups; continue it with --resume,"
                " or remove the file to start again."
            )
        known = []
    done: dict[int, GroupResult] = {}
    notes: dict[int, Any] = {}
    finished = _read(path, known, run, groups, done, notes) if known else False
    others: dict[int, GroupResult] = {}
    for other in join:
        if not (found := _lines(other)):
            raise InputFileError(f"{other}: is not there, or empty; name the run folder of a part.")
        _read(other, found, run, groups, others, notes)
    try:
        file = lines.Writer(path, keep=bool(known))
    except OSError as error:
        raise InputFileError(f"{path}: cannot be written ({error.strerror}); name another folder.") from None
    journal = Journal(file, done, notes, finished=finished)
    if not known:
        file.write({"journal": FORMAT, "run": run})
    for index in sorted(others.keys() - done.keys()):
        journal.write(others[index], notes.get(index))
        journal.done[index] = others[index]
    return journal


def _read(
    path: Path,
    known: Sequence[Mapping[str, Any]],
    run: Mapping[str, Any],
    groups: Sequence[tuple[int, ...]],
    done: dict[int, GroupResult],
    notes: dict[int, Any],
) -> bool:
    """Adds a journal's groups to `done` and `notes`; whether its run is finished."""
    finished = False
    _require_same(path, known[0], run)
    for number, content in enumerate(known[1:], start=2):
        if content == FINISHED:
            finished = True
            continue
        result = _result(path, number, content)
        if not 0 <= result.index < len(groups) or result.indices != groups[result.index]:
            raise InputFileError(
                f"{path}, line {number}: group {result.index} has other inputs than this run; remove it."
            )
        done[result.index] = result
        if "note" in content:
            notes[result.index] = content["note"]
    return finished


def unfinished(path: Path) -> int:
    """How many groups of an unfinished run the file holds; 0 where there is no file, or its run is finished."""
    return _unfinished(_lines(path))


def _unfinished(known: Sequence[Mapping[str, Any]]) -> int:
    return 0 if FINISHED in known[-1:] else max(0, len(known) - 1)


def _lines(path: Path) -> list[dict[str, Any]]:
    return lines.read(
        path, damaged=DAMAGED, unreadable="cannot be read as a journal ({reason}); remove it to start again."
    )


def _require_same(path: Path, header: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    if header.get("journal") != FORMAT or not isinstance(header.get("run"), dict):
        raise InputFileError(f"{path}: is not a journal of this citrus version; remove it to start again.")
    old = header["run"]
    binding = ({key: value for key, value in one.items() if key not in TOLD_ONLY} for one in (old, run))
    if (field := differing(*binding)) is not None:
        raise UsageError(
            f"{path} is of a run with {field} {old.get(field)!r}, this run has {run.get(field)!r};"
            " give the same settings, or remove the file to start again."
        )


def _result(path: Path, number: int, content: Mapping[str, Any]) -> GroupResult:
    try:
        return GroupResult.from_json(content, Place(where="", remedy=""))
    except InputFileError as error:
        name, missing, _ = str(error).partition(" is missing")
        reason = repr(name) if missing else name
        raise InputFileError(f"{path}, line {number}: {DAMAGED.format(reason=reason)}") from None


def certificate_of(path: Path, model: str, data: str) -> tuple[Certificate, Mapping[str, Any]] | None:
    """The certificate that a finished journal amounts to, and what its run is made of; None for an unfinished one.

    Raises InputFileError for what is no journal, damaged or lacks groups; SoundnessError as `Certificate`.
    """
    place = Place(where=str(path))
    known = _lines(path)
    if not known or not {"journal", "run"} <= known[0].keys():
        raise place.wrong("is not a journal of citrus; make the result again.")
    if not known[-1].get("finished"):
        return None
    at, run = Place(where=f"{path}, line 1: run"), known[0]["run"]
    found: dict[int, GroupResult] = {}
    for number, line in enumerate(known[1:-1], start=2):
        group = _result(path, number, line)
        found[group.index] = group
    if sorted(found) != list(range(len(found))):
        raise place.wrong("groups are missing; make the result again.")
    groups = tuple(found[n] for n in range(len(found)))
    stages: dict[str, float] = {}
    for group in groups:
        for stage, seconds in group.stages.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    certificate = Certificate(
        model=model,
        sha256=value_of(str, run, "model sha256", at),
        data=data,
        split=value_of(str, run, "split", at),
        data_sha256=value_of(str, run, "data sha256", at),
        threat=from_json(Threat, run, at),
        settings={name: value for name, value in run.items() if name not in _NOT_SETTINGS},
        examined=sum(len(group.indices) for group in groups),
        examined_correct=sum(group.clean_correct for group in groups),
        groups=groups,
        stages=stages,
        version=value_of(str, run, "version", at),
    )
    return certificate, run
