"""The soundness gate: `make soundness`, or python -m tests.soundness [--seconds S] [--points N] [--first SEED].

It certifies crafted backdoors and random networks and holds every certificate against onnxruntime at three levels of
graph optimisation, exact fractions, the worst case of a MILP, the checker (which has to refuse changed proofs) and
rules that certificates of changed problems keep; and it plants bugs, each of which has to be found by the same means.
Backdoors and bugs come first; random networks, one seed after the other, fill what is left of the time. What is found
stands on stdout, how far it is on stderr. Exit code 1 where something is violated or a bug is not found.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial

import torch

from tests.soundness.backdoors import BACKDOORS
from tests.soundness.bugs import CHECKER, PROVER
from tests.soundness.tasks import CHUNK, Outcome, backdoor, planted_bug, random_networks

Task = Callable[[], Outcome]


def say(words: str) -> None:
    """A line on stdout, at once, in place of the line of progress."""
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _progress(done: list[Outcome], fixed: int, cases: int, start: float, seconds: float) -> None:
    """How far it is, on stderr; what is left is random networks' time, or that of the rest where it takes longer."""
    passed, counted = time.monotonic() - start, min(len(done), fixed)
    left = max(seconds - passed, passed / max(counted, 1) * (fixed - counted))
    wrong = sum(one.violations + one.missed for one in done)
    sys.stderr.write(
        f"\r\x1b[K{counted} of {fixed} backdoors and bugs, {cases} random networks, {wrong} wrong; "
        f"{passed / 60:.0f} min, about {left / 60:.0f} min left"
    )
    sys.stderr.flush()


def run(tasks: list[Task], first: int, seconds: float, workers: int) -> list[Outcome]:
    """Does the tasks, then random networks from seed `first` on until so many seconds have passed in all."""
    start, done, cases = time.monotonic(), list[Outcome](), 0
    context = multiprocessing.get_context("spawn")  # torch and onnxruntime have threads, which a fork would lose
    with ProcessPoolExecutor(workers, mp_context=context, initializer=partial(torch.set_num_threads, 1)) as pool:
        waiting: set[Future[Outcome]] = {pool.submit(task) for task in tasks}
        while waiting:
            while len(waiting) < workers and time.monotonic() - start < seconds:
                waiting.add(pool.submit(random_networks, first + cases))
                cases += CHUNK
            ended, waiting = wait(waiting, timeout=5.0, return_when=FIRST_COMPLETED)
            for future in ended:
                done.append(future.result())
                for line in done[-1].lines:
                    say(line)
            if not waiting and time.monotonic() - start < seconds:
                waiting = {pool.submit(random_networks, first + cases)}
                cases += CHUNK
            _progress(done, len(tasks), cases, start, seconds)
    say(f"random networks: {cases}; backdoors and bugs: {len(tasks)}; {(time.monotonic() - start) / 60:.1f} minutes")
    return done


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900.0, help="in all")
    parser.add_argument("--points", type=int, default=1_000_000, help="perturbations on each backdoor")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    tasks: list[Task] = [partial(planted_bug, name, options.first) for name in (*PROVER, *CHECKER)]
    tasks += [partial(backdoor, name, options.points) for name in BACKDOORS]
    done = run(tasks, options.first, options.seconds, options.workers)
    wrong, missed = sum(one.violations for one in done), sum(one.missed for one in done)
    say(f"{sum(one.cases for one in done)} certificates, {wrong} violations, {missed} planted bugs not found")
    sys.exit(1 if wrong or missed else 0)


if __name__ == "__main__":
    main()
