"""Mutation testing: `make mutation`, or python -m tests.mutation --room R --module M --sample N --seed S --minutes M.

Small changes to the source (tests/mutants.py) are made one at a time, a sample of each module's drawn with a fixed
seed, and the tests run that reach the changed line, until one fails. Each change has a process of its own, forked from
one that has imported torch and nothing of citrus. Counted are:

- found: a test's assertion fails, or the changed code raises an error;
- out of time: the tests take three times as long as without the change, and half a minute;
- crashed: the process ends by a signal;
- unnoticed: every test passes.

The score is found / all, so that changes that run out of time or crash count against it, and so do those that change
nothing or only make bounds looser: docs/contributing.md lists what is left. Never changed are texts, annotations,
decorators, assertions, and the arguments `strict=` and `device=`. A test counts as reaching a line if coverage saw it
there; where only a fixture did, all tests of its file are taken. Tests that take longer than `--longest` seconds (with
coverage) are left out, and tests that share what a cache holds may be missed: both can only lower the score.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import math
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.mutants import Change, changes

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "citrus_tool"
HEAVY = ("torch", "numpy", "scipy.sparse", "scipy.optimize", "onnx", "onnxruntime")
"""What every test imports, and a changed module cannot change."""
SLACK, SLOWER = 30.0, 3.0
"""Seconds and factor beyond the time without a change: imports take about 3 s, on a busy machine 10."""
MEMORY = 6 * 2**30
"""Bytes: four times what the tests take; beyond it a change raises MemoryError, and the machine lives."""
OUTCOMES = ("found", "out of time", "crashed", "unnoticed")


@dataclass(frozen=True, kw_only=True)
class Room:
    """Modules (paths below citrus_tool), tests that are about them (paths), changes tried in each module.

    `slow`: names of tests that need not run once to be known to take too long.
    """

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    sample: int
    slow: tuple[str, ...] = ()


BOUNDS_TESTS = (
    *("rounding", "interval", "relaxation", "linear", "error_terms", "crown"),
    *("float32", "products", "pools", "varied"),
)
ROOMS = {
    "bounds": Room(
        modules=tuple(f"bounds/{name}.py" for name in ("rounding", "interval", "linear", "relaxation", "float32")),
        tests=tuple(f"tests/bounds/test_{name}.py" for name in BOUNDS_TESTS),
        sample=40,
    ),
    "checker": Room(
        modules=("checker/*.py",),
        tests=("tests/checker",),
        sample=14,
        slow=("single_corruptions", "stopped_run", "fuzzing", "with_planes", "every_forgery"),
    ),
}


@dataclass(kw_only=True)
class Reached:
    """What the tests do without a change: seconds of each, and the lines of each module that they reach."""

    seconds: dict[str, float] = field(default_factory=dict)
    tests: dict[str, dict[int, set[str]]] = field(default_factory=dict)

    def quick(self, longest: float) -> Reached:
        """Without the tests that take longer."""
        return Reached(seconds={name: one for name, one in self.seconds.items() if one <= longest}, tests=self.tests)

    def at(self, path: Path, lines: range) -> list[str]:
        """The tests that reach any of the lines; all, for lines that run while the module is imported."""
        seen = self.tests.get(str(path), {})
        named = set().union(*(seen.get(line, set()) for line in lines))
        if "" in named:
            return list(self.seconds)
        found = {name.rsplit("|", 1)[0] for name in named if name.endswith("|run")}
        files = {name.split("::")[0] for name in named if not name.endswith("|run")}
        return [name for name in self.seconds if name in found or name.split("::")[0] in files]


class _Only:
    """A plugin of pytest: only these tests, file after file, quick ones first."""

    def __init__(self, names: Sequence[str], seconds: dict[str, float]) -> None:
        files: Counter[str] = Counter()
        for name in names:
            files[name.split("::")[0]] += seconds[name]  # type: ignore[assignment]
        self.order = sorted(names, key=lambda name: (files[name.split("::")[0]], name.split("::")[0], seconds[name]))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Selects and sorts."""
        by_name = {item.nodeid: item for item in items}
        items[:] = [by_name[name] for name in self.order if name in by_name]


class _Watch:
    """A plugin of pytest: how long every test takes, and that all pass."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds up set-up, test and the rest."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An importer of one module: runs its changed syntax tree."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = _module(path), path, tree

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        """The changed module's own, and nobody else's."""
        return importlib.util.spec_from_loader(name, self, origin=str(self.path)) if name == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        """Runs the changed source."""
        module.__file__ = str(self.path)
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def say(words: str) -> None:
    """A line on stdout, at once."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _tell(words: str) -> None:
    """The line of progress, on stderr."""
    sys.stderr.write(f"\r\x1b[K{words}")
    sys.stderr.flush()


def _fork(work: Callable[[Path], int], folder: Path) -> int:
    """A child in a process group of its own that ends with what `work` returns; what it prints goes to folder/log."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        code = work(folder)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _pytest(folder: Path, paths: Sequence[str], plugins: list[object], *more: str) -> int:
    quiet = ["-q", "-x", "-p", "no:cacheprovider", f"--basetemp={folder / 'pytest'}"]
    return int(pytest.main([*quiet, *more, *paths], plugins=plugins))


def reached(room: Room, folder: Path) -> Reached:
    """Runs the tests once with coverage; refuses to go on where one fails."""
    import coverage

    data, times = folder / "coverage", folder / "times"

    def work(folder: Path) -> int:
        watch = _Watch()
        os.environ["COVERAGE_FILE"] = str(data)
        settings = folder / "coveragerc"
        settings.write_text(f"[run]\nbranch = false\nsource = {PACKAGE}\n", encoding="utf-8")
        measure = ("--cov", f"--cov-config={settings}", "--cov-context=test", "--cov-report=")
        code = _pytest(folder, room.tests, [watch], *measure, "-k", f"not ({' or '.join(room.slow or ('none',))})")
        times.write_bytes(pickle.dumps(watch.seconds))
        return code

    code = os.waitstatus_to_exitcode(os.waitpid(_fork(work, folder), 0)[1])
    if code:
        log = (folder / "log").read_text(encoding="utf-8", errors="replace")
        raise SystemExit(f"the tests do not pass without a change (exit code {code}):\n{log[-3000:]}")
    found = Reached(seconds=pickle.loads(times.read_bytes()))
    seen = coverage.CoverageData(basename=str(data))
    seen.read()
    for path in seen.measured_files():
        found.tests[path] = {line: set(names) for line, names in seen.contexts_by_lineno(path).items()}
    return found


@dataclass(frozen=True, kw_only=True)
class Try:
    """One change of a module, and the tests that reach it."""

    path: Path
    number: int
    words: str
    tests: list[str]
    limit: float

    def work(self, seconds: dict[str, float]) -> Callable[[Path], int]:
        """What the child runs."""

        def run(folder: Path) -> int:
            tree = ast.parse(self.path.read_text(encoding="utf-8"))
            list(changes(tree))[self.number].apply()
            sys.meta_path.insert(0, _Changed(self.path, ast.fix_missing_locations(tree)))
            files = sorted({name.split("::")[0] for name in self.tests})
            return _pytest(folder, files, [_Only(self.tests, seconds)])

        return run


def drawn(path: Path, sample: int, seed: int, known: Reached) -> list[Try]:
    """Changes of a module that are tried."""
    found: list[Change] = list(changes(ast.parse(path.read_text(encoding="utf-8"))))
    chosen = sorted(random.Random(f"{seed} {_module(path)}").sample(range(len(found)), min(sample, len(found))))
    tries = []
    for number in chosen:
        tests = known.at(path, found[number].lines())
        limit = SLACK + SLOWER * sum(known.seconds[name] for name in tests)
        tries.append(Try(path=path, number=number, words=found[number].words(), tests=tests, limit=limit))
    return tries


def _outcome(status: int) -> str:
    """A child's outcome by its exit code: pytest's 1 is a failed test, 2 to 4 an error while tests are read."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0 or code == 70:
        return "crashed"
    return "unnoticed" if code in (0, 5) else "found"


def outcomes(tries: Sequence[Try], known: Reached, workers: int, seconds: float) -> Iterator[tuple[Try, str]]:
    """Runs each, `workers` at a time, and says how far it is; starts none after so many seconds."""
    running: dict[int, tuple[Try, Path, float]] = {}
    waiting, start, done = list(tries), time.monotonic(), 0
    while waiting or running:
        if time.monotonic() - start > seconds:
            waiting.clear()
        while waiting and len(running) < workers:
            one = waiting.pop(0)
            if not one.tests:
                done += 1
                yield one, "unnoticed"
                continue
            folder = Path(tempfile.mkdtemp(prefix="mutation"))
            running[_fork(one.work(known.seconds), folder)] = (one, folder, time.monotonic() + one.limit)
        for child, (one, folder, end) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            late = not ended and time.monotonic() > end
            if late:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            if ended or late:
                with contextlib.suppress(ProcessLookupError):  # processes that a test has left
                    os.killpg(child, signal.SIGKILL)
                shutil.rmtree(folder, ignore_errors=True)
                del running[child]
                done += 1
                left = (time.monotonic() - start) / done * (len(tries) - done)
                _tell(f"{done} of {len(tries)} changes, about {left / 60:.0f} min left")
                yield one, "out of time" if late else _outcome(status)
        time.sleep(0.02)
    _tell("")


def main() -> None:
    """Prints a table for each room, and the changes that no test noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="changes that are tried in each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--room", choices=sorted(ROOMS), help="only this one")
    parser.add_argument("--module", default="", help="only modules whose path ends so, such as checker/counting.py")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for the changes of a room, not all then")
    parser.add_argument("--longest", type=float, default=3.0, help="seconds that a test may take")
    parser.add_argument("--workers", type=int, default=2, help="processes beside the first")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in HEAVY:
        importlib.import_module(name)
    for name, room in ROOMS.items():
        if options.room in (None, name):
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                _tell("the tests without a change")
                known = reached(room, Path(folder)).quick(options.longest)
            paths = [path for pattern in room.modules for path in sorted((ROOT / PACKAGE).glob(pattern))]
            paths = [path for path in paths if str(path).endswith(options.module)]
            sample = options.sample or room.sample
            tries = [one for path in paths for one in drawn(path, sample, options.seed, known)]
            random.Random(options.seed).shuffle(tries)  # so that a part of them, too, is one of all modules
            found = list(outcomes(tries, known, options.workers, 60 * options.minutes))
            for path in paths:
                _report(str(path.relative_to(ROOT)), [outcome for one, outcome in found if one.path == path])
            _report(name, [outcome for _, outcome in found])
            say(f"{name}: {(time.monotonic() - start) / 60:.1f} minutes\n")
            for one, outcome in sorted(found, key=lambda pair: (str(pair[0].path), pair[0].number)):
                if outcome != "found":
                    say(f"{outcome}: {one.path.relative_to(ROOT)} {one.words} ({len(one.tests)} tests)")


def _report(name: str, found: list[str]) -> None:
    count = Counter(found)
    words = ", ".join(f"{count[outcome]} {outcome}" for outcome in OUTCOMES)
    if found:
        say(f"{name}: {100 * count['found'] / len(found):.0f} % of {len(found)} ({words})")


if __name__ == "__main__":
    main()
