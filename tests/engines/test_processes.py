"""Tasks on several processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from citrus_tool.engines.processes import More, spread
from citrus_tool.errors import InterruptedRunError, UsageError


def squares(offset: int) -> Callable[[int], tuple[int, int]]:
    return lambda number: (number * number + offset, os.getpid())


def troubled(folder: Path) -> Callable[[int], int]:
    def work(number: int) -> int:
        if number == 1:
            raise UsageError("number 1 makes no sense.")
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 3:
            time.sleep(60)
        (folder / str(number)).touch()
        return number

    return work


def test_every_task_is_done_by_another_process() -> None:
    found = list(spread(partial(squares, 7), range(6), 2))
    assert sorted(value for value, _ in found) == [7, 8, 11, 16, 23, 32]
    assert os.getpid() not in {process for _, process in found}


def halves() -> Callable[[int | tuple[int]], float | More]:
    """A number makes two tasks."""
    return lambda task: task[0] / 2 if isinstance(task, tuple) else More(tasks=((task,), (task + 1,)))


def test_tasks_make_tasks() -> None:
    assert sorted(spread(halves, [10, 20], 2)) == [5.0, 5.5, 10.0, 10.5]


def test_further_tasks_come_first() -> None:
    found = list(spread(halves, [10, 20, 30, 40, 50], 2))
    assert found.index(5.0) < found.index(25.0)


def test_errors_come_through_and_end_the_others(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(UsageError, match="number 1 makes no sense"):
        list(spread(partial(troubled, tmp_path), [3, 1], 2))
    assert time.monotonic() - start < 50


def test_a_process_that_dies_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError, match="a worker process died"):
        list(spread(partial(troubled, tmp_path), [0, 2], 2))


def test_a_caller_that_stops_asking_ends_the_processes(tmp_path: Path) -> None:
    start = time.monotonic()
    results = spread(partial(troubled, tmp_path), [0, 3, 3], 2)
    assert next(results) == 0
    results.close()
    assert time.monotonic() - start < 50
