"""Independent tasks on several processes of this machine.

Small problems gain little from threads inside PyTorch; processes with a thread each use all cores. A process is started
afresh (`spawn`), builds what it works with once, and then takes one task after the other.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from citrus_tool.errors import InterruptedRunError

Task = TypeVar("Task")
Result = TypeVar("Result")

_work: Callable[[Any], Any] | None = None  # of this process, if it is a worker


def spread(
    build: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task], workers: int, *, threads: int = 1
) -> Iterator[Result]:
    """The results of the tasks, in the order in which they are done.

    Args:
        build: makes the function that does a task; called once in each process, so it must be picklable.
        workers: processes, at least 2; there are never more than tasks.
        threads: PyTorch's, in each of them.

    Raises: what a task raises; InterruptedRunError when a process dies. In both cases, and when the caller stops
    asking, the processes are ended and tasks that are not done are dropped.
    """
    context = multiprocessing.get_context("spawn")
    before = {process.pid for process in multiprocessing.active_children()}
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=_start, initargs=(build, threads))
    try:
        for future in as_completed([pool.submit(_do, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool:
        raise InterruptedRunError(
            "a worker process died, perhaps for want of memory; what is finished is kept: use fewer --workers, and"
            " --resume."
        ) from None
    finally:
        mine = [process for process in multiprocessing.active_children() if process.pid not in before]
        pool.shutdown(wait=False, cancel_futures=True)
        for process in mine:
            process.terminate()


def _start(build: Callable[[], Callable[[Any], Any]], threads: int) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal: the first one decides
    import torch

    torch.set_num_threads(threads)
    _work = build()


def _do(task: Any) -> Any:
    assert _work is not None
    return _work(task)
