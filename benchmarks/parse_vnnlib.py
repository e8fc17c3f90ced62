"""How long reading a VNN-LIB file takes, and that it grows linearly: seconds, and the ratio to a file half the size.

    python benchmarks/parse_vnnlib.py [--repeats 3]

Processor seconds, the best of `repeats`; a ratio near 2 is linear time. Texts are made here: boxes over n inputs
(2 n assertions), one disjunction of n boxes, and nesting n deep.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from citrus_tool.queries import VnnlibError, parse


def assertions(count: int) -> str:
    """A VNN-LIB 1.0 box: `count` assertions over count / 2 inputs."""
    names = "".join(f"(declare-const X_{i} Real)\n" for i in range(count // 2))
    rows = "".join(f"(assert (<= X_{i} 0.{i}71238))\n(assert (>= X_{i} -1.{i}23215))\n" for i in range(count // 2))
    return f"{names}(declare-const Y_0 Real)\n{rows}"


def assertions2(count: int) -> str:
    """The same in VNN-LIB 2.0."""
    rows = "".join(
        f"(assert (<= X[0,{i}] 0.{i}71238))\n(assert (>= X[0,{i}] -1.{i}23215))\n" for i in range(count // 2)
    )
    network = f"(declare-network N (declare-input X real [1,{count // 2}]) (declare-output Y real [1,1]))"
    return f"(vnnlib-version <2.0>)\n{network}\n{rows}"


def boxes(count: int) -> str:
    """One disjunction of `count` boxes over five inputs."""
    names = "".join(f"(declare-const X_{i} Real)\n" for i in range(5)) + "(declare-const Y_0 Real)\n"
    rows = "\n".join(
        f"(and {' '.join(f'(>= X_{i} 0.{k}) (<= X_{i} 0.{k}7)' for i in range(5))} (<= Y_0 {k}))" for k in range(count)
    )
    return f"{names}(assert (or {rows}))"


def nested(count: int) -> str:
    """A sum and a disjunction that both nest `count` deep."""
    head = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1))(assert (>= X_0 0))"
    total = f"(assert (<= {'(- X_0 ' * count}Y_0{')' * count} 1))"
    return f"{head}{total}(assert {'(or (<= Y_0 1) ' * count}(<= Y_0 0){')' * count})"


CASES: dict[str, tuple[Callable[[int], str], tuple[int, ...]]] = {
    "1.0, assertions": (assertions, (7_500, 15_000, 30_000, 60_000)),
    "2.0, assertions": (assertions2, (7_500, 15_000, 30_000, 60_000)),
    "1.0, one disjunction of boxes": (boxes, (2_500, 5_000, 10_000, 20_000)),
    "1.0, nesting depth": (nested, (12_500, 25_000, 50_000, 100_000)),
}


def seconds(text: str, repeats: int) -> float:
    """Best processor time of `repeats` readings."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        try:
            parse(text)
        except VnnlibError as error:
            raise SystemExit(f"the benchmark's own text is refused: {error}") from None
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Prints one table for each kind of text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    for name, (make, sizes) in CASES.items():
        print(f"{name}\n{'count':>10} {'MB':>7} {'seconds':>9} {'ratio':>6}")
        before: float | None = None
        for size in sizes:
            text = make(size)
            now = seconds(text, repeats)
            ratio = "" if before is None else f"{now / before:.2f}"
            print(f"{size:>10} {len(text) / 1e6:>7.2f} {now:>9.3f} {ratio:>6}")
            before = now


if __name__ == "__main__":
    main()
