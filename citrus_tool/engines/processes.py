"""Independent tasks on several processes of this machine.

Small problems gain little from threads inside PyTorch; processes with a thread each use all cores. A process is started
afresh (`spawn`), builds what it works with once, and then takes one task after the other.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from citrus_tool.errors import InterruptedRunError

Task = TypeVar("Task")
Result = TypeVar("Result")

_work: Callable[[Any], Any] | None = None  # of this process, if it is a worker


@dataclass(frozen=True, kw_only=True)
class More:
    """In place of a task's result: tasks that are to be done first of those that wait."""

    tasks: tuple[Any, ...]


def spread(
    build: Callable[[], Callable[[Task], Result | More]], tasks: Sequence[Task], workers: int, *, threads: int = 1
) -> Iterator[Result]:
    """The results of the tasks, in the order in which they are done.

    Tasks and results travel as bytes of `pickle`: tensors shared between processes need a file descriptor each.

    Args:
        build: makes the function that does a task; called once in each process, so it must be picklable.
        workers: processes, at least 2.
        threads: PyTorch's, in each of them.

    Raises: what a task raises; InterruptedRunError when a process dies. In both cases, and when the caller stops
    asking, the processes are ended and tasks that are not done are dropped.
    """
    context = multiprocessing.get_context("spawn")
    before = {process.pid for process in multiprocessing.active_children()}
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(build, threads))
    waiting, running = deque(tasks), set[Future[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.add(pool.submit(_do, pickle.dumps(waiting.popleft())))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = pickle.loads(future.result())
                if isinstance(result, More):
                    waiting.extendleft(reversed(result.tasks))
                else:
                    yield result
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


def _do(task: bytes) -> bytes:
    assert _work is not None
    return pickle.dumps(_work(pickle.loads(task)))
