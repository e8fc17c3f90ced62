"""Runs a folder of VNN-COMP instances with `citrus verify`, one process each, and scores the answers.

An instance is a line `onnx,vnnlib,timeout` of instances.csv, relative to that file; where a query has several networks
the first field is a Python list of (name, file) pairs. A process that overruns its time is killed. Records go to a
JSON-lines file as they come, so that an interrupted run can be resumed; sat answers are replayed before they count.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from citrus_tool.errors import CitrusError, InputFileError, UsageError
from citrus_tool.files import write_text
from citrus_tool.progress import Progress
from citrus_tool.results import lines
from citrus_tool.results.instance import Record, Word, read_records
from citrus_tool.results.record import to_json

POINTS = 10
"""For a right sat or unsat."""
PENALTY = -150
"""For a wrong one, and for sat without a valid witness."""
RECORDS, TABLE, WITNESSES = "results.jsonl", "results.csv", "witnesses"
"""What a run leaves in its folder."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkInstance:
    """One line of instances.csv: the fields as written (timeout in seconds), and what they stand for."""

    onnx: str
    vnnlib: str
    timeout: float
    networks: Mapping[str, Path]
    query: Path

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the others of its file."""
        return self.onnx, self.vnnlib


def network_pairs(field: str) -> dict[str, str]:
    """Network name -> file of an instance's first field; a plain file has the name "".

    Raises UsageError for a list that is not one of (name, file) pairs.
    """
    if not field.lstrip().startswith("["):
        return {"": field}
    try:
        pairs = ast.literal_eval(field.strip())
        found = {str(name): str(file) for name, file in pairs}
    except (ValueError, SyntaxError, TypeError):
        raise UsageError(f"{field[:60]!r} is not a list of pairs; write [('f', 'F.onnx'), ('g', 'G.onnx')].") from None
    if len(found) != len(pairs):
        raise UsageError(f"{field[:60]!r} names a network twice.")
    return found


def read_instances(path: Path) -> list[BenchmarkInstance]:
    """Reads instances.csv. Raises InputFileError with the line for what is missing or malformed."""
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")), skipinitialspace=True))
    except OSError as error:
        raise InputFileError(f"{path}: cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputFileError(f"{path}: is not a csv file ({error}).") from None
    found = []
    for line, row in enumerate(rows, start=1):
        if not row:
            continue
        try:
            onnx, vnnlib, timeout = row
            seconds = float(timeout)
            if not seconds > 0:
                raise ValueError
            networks = {name: path.parent / file for name, file in network_pairs(onnx).items()}
        except (ValueError, UsageError) as error:
            why = f" ({error})" if isinstance(error, UsageError) else ""
            raise InputFileError(
                f"{path}:{line}: a line is onnx,vnnlib,timeout with a number of seconds{why}."
            ) from None
        found.append(
            BenchmarkInstance(onnx=onnx, vnnlib=vnnlib, timeout=seconds, networks=networks, query=path.parent / vnnlib)
        )
    if not found:
        raise InputFileError(f"{path}: holds no instance; a line is onnx,vnnlib,timeout.")
    return found


def read_answers(path: Path) -> dict[tuple[str, str], Word]:
    """Known answers: lines `onnx,vnnlib,verdict`, fields as in instances.csv. Raises InputFileError."""
    try:
        rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"))) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path}: cannot be read ({error}).") from None
    for row in rows:
        if len(row) != 3 or row[2] not in get_args(Word):
            raise InputFileError(f"{path}: {','.join(row)[:80]!r} is not onnx,vnnlib,verdict.")
    return {(onnx, vnnlib): verdict for onnx, vnnlib, verdict in rows}  # type: ignore[misc]


def points(record: Record, known: Word | None) -> int:
    """VNN-COMP's score of one answer, given the known one: 10, 0, or -150."""
    if record.verdict not in ("sat", "unsat"):
        return 0
    if record.verdict == "sat" and not record.witness:
        return PENALTY
    wrong = known in ("sat", "unsat") and known != record.verdict
    return PENALTY if wrong else POINTS


def run(
    instances: Sequence[BenchmarkInstance],
    folder: Path,
    *,
    workers: int,
    threads: int,
    limit: float | None,
    progress: Progress,
) -> Iterator[Record]:
    """Runs the instances that `folder` has no record of; yields every record, old ones first.

    Args:
        folder: gets results.jsonl (as results come), results.csv (at the end) and witnesses/.
        workers: processes at a time, each with `threads` threads.
        limit: caps every instance's time, in seconds.
    """
    done = {(record.onnx, record.vnnlib): record for record in read_records(folder / RECORDS)}
    (folder / WITNESSES).mkdir(parents=True, exist_ok=True)
    progress.start("instances", len(instances), "instances")
    records = []
    for instance in instances:
        if instance.key in done:
            records.append(done[instance.key])
            progress.advance()
            yield done[instance.key]
    waiting = [(number, i) for number, i in enumerate(instances) if i.key not in done]
    children = _Children()
    with ThreadPoolExecutor(workers) as pool, lines.Writer(folder / RECORDS, keep=True) as file:
        try:
            pending: set[Future[Record]] = {
                pool.submit(_run_one, instance, folder / WITNESSES / f"{number}.txt", threads, limit, children)
                for number, instance in waiting
            }
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    record = future.result()
                    records.append(record)
                    file.write(to_json(record))
                    progress.advance(note=f"{Path(record.vnnlib).name}: {record.verdict}")
                    yield record
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.kill()
            raise
    progress.finish()
    rows = [[Path(r.vnnlib).parent.name, r.onnx, r.vnnlib, "0", r.verdict, f"{r.seconds:.3f}"] for r in records]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_text(folder / TABLE, table.getvalue())


class _Children:
    """The verifiers that run now, each in a process group of its own; none starts after `kill`."""

    def __init__(self) -> None:
        self._all: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        if self._closed:
            raise InterruptedError
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )
        self._all.add(child)
        return child

    def end(self, child: subprocess.Popen[bytes]) -> None:
        """Kills the child's group, which may have ended by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        self._all.discard(child)

    def kill(self) -> None:
        self._closed = True
        for child in list(self._all):
            self.end(child)


def _run_one(
    instance: BenchmarkInstance, witness: Path, threads: int, limit: float | None, children: _Children
) -> Record:
    seconds = instance.timeout if limit is None else min(limit, instance.timeout)
    command = [sys.executable, "-c", "from citrus_tool.cli import main; raise SystemExit(main())", "verify"]
    command += [str(instance.query), "--timeout", str(seconds), "--threads", str(threads)]
    for name, path in instance.networks.items():
        command += ["--network", f"{name or 'N'}={path}"]
    start = time.monotonic()
    child = children.start(command, {**os.environ, "OMP_NUM_THREADS": str(threads)})
    try:
        out, err = child.communicate(timeout=seconds)
        killed = False
    except subprocess.TimeoutExpired:
        killed, out, err = True, b"", b""
    finally:
        children.end(child)
    took = time.monotonic() - start
    first, _, rest = out.decode(errors="replace").partition("\n")
    said = err.decode(errors="replace").strip().splitlines()
    verdict: Word = "timeout" if killed else _word(first)
    holds, note = None, "killed: it overran its time." if killed else said[-1].strip() if said else ""
    if verdict == "sat":
        witness.write_text(rest, encoding="utf-8")
        holds, why = check_witness(instance, rest)
        note = why or note
    return Record(
        onnx=instance.onnx,
        vnnlib=instance.vnnlib,
        timeout=instance.timeout,
        verdict=verdict,
        seconds=round(took, 3),
        witness=holds,
        note=note,
    )


def _word(first: str) -> Word:
    """VNN-COMP's word for the first line of the verifier's answer; anything unexpected is an error."""
    words: dict[str, Word] = {"sat": "sat", "unsat": "unsat", "unknown": "unknown", "timed-out": "timeout"}
    return words.get(first.strip(), "error")


def check_witness(instance: BenchmarkInstance, text: str) -> tuple[bool, str]:
    """Whether the witness below `sat` holds, by a replay of its inputs on onnxruntime; and if not, why not."""
    from citrus_tool.queries import parse_witness, read
    from citrus_tool.queries.question import Files, Replay
    from citrus_tool.queries.verify import read_models

    try:
        spec = read(instance.query)
        paths = {name or spec.networks[0].name: path for name, path in instance.networks.items()}
        replay = Replay.of(Files.of(spec, read_models(spec, paths)))
        given = parse_witness(spec, text)
        found = replay.judge(replay.run({name: given[name].astype("float32") for name in spec.inputs}))
    except CitrusError as error:
        return False, str(error)
    return found.holds, found.reason
