"""Whatever the text, the readers return a Spec or raise VnnlibError, quickly."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from citrus_tool.queries import Spec, VnnlibError, parse

ONE = """; a small robustness property
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(declare-const Y_2 Real)
(assert (<= X_0 0.679857769))
(assert (>= X_0 0.6))
(assert (<= X_1 0.5))
(assert (>= X_1 -0.5e-1))
(assert (or
    (and (>= Y_1 Y_0))
    (and (>= Y_2 Y_0) (<= (+ Y_0 (* -2.0 Y_1)) (/ X_0 4)))
))
(assert (<= (- Y_2 0.25) 3))
"""
TWO = """(vnnlib-version <2.0>)
(declare-network f1 (declare-input X1 real [1,2]) (declare-output Y1 real [1,3]))
(declare-network f2 (equal-to f1) (declare-input X2 real [1,2]) (declare-output Y2 real [1,3]))
(assert (>= X1[0,0] 0.4)) (assert (<= X1[0,0] 0.6)) ; a box
(assert (>= X1[0,1] 0.4)) (assert (<= X1[0,1] 0.6))
(assert (== (- X2[0,0] X1[0,0]) -0.25))
(assert (== (- X2[0,1] X1[0,1]) 0.125))
(assert (or (<= Y1[0,0] Y1[0,1]) (and (< Y1[0,0] (* 2.0 Y1[0,2])) (!= Y1[0,0] 1.5))))
(assert (or (<= Y2[0,1] Y2[0,0]) (<= Y2[0,1] Y2[0,2])))
"""
ACAS = "".join(f"(declare-const X_{i} Real)\n" for i in range(5)) + "".join(
    f"(declare-const Y_{i} Real)\n" for i in range(5)
)
ACAS += "".join(f"(assert (<= X_{i} 0.5))(assert (>= X_{i} -0.{i}))\n" for i in range(5))
ACAS += "".join(f"(assert (<= Y_{i} Y_0))\n" for i in range(1, 5))
CORPUS = (ONE, TWO, ACAS)

PIECES = [
    *("(", ")", "((", "))", ";", "\n", " ", "\0", "é", "\ufffd", '"', "|", "[", "]", ",", "[0,", "1e", "e5", "-", "--"),
    *("+", ".", "(and", "(or", "(assert", "(declare-const", "(declare-network", "X_0", "X_99999999999", "Y_1", "Int"),
    *("inf", "nan", "(* Y_0 Y_1)", "(/ 1 0)", "(<", "(>", "(=", "(not", "(- ", "(+)", "(declare-const X_7 Real)"),
    *("(and)", "(<= 1 0)", "-0", "<2.1>", "1e-400", "1e400", "0" * 300, "9" * 5000, "(and " * 300, "(- " * 300),
    "(assert (or (<= Y_0 0) (and " + "(or (<= Y_0 1) (<= Y_0 2)) " * 40 + ")))",
]


def mangled(rng: random.Random) -> str:
    text = rng.choice(CORPUS)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        kind = rng.randrange(7)
        if kind == 0:
            text = text[:a] + text[a + 1 :]
        elif kind == 1:
            text = text[:a] + rng.choice(PIECES) + text[a:]
        elif kind == 2:
            text = text[:a] + chr(rng.randrange(1, 256)) + text[a + 1 :]
        elif kind == 3:
            text = text[: a + rng.randrange(40)] + text[min(b, a + 80) :]
        elif kind == 4:
            text = text[:b] + text[a:b][:400] + text[b:]
        elif kind == 5:
            words = text.split(" ")
            i, j = rng.randrange(len(words)), rng.randrange(len(words))
            words[i], words[j] = words[j], words[i]
            text = " ".join(words)
        else:
            text = text[:a] if rng.random() < 0.2 else text
        text = text or "("
    return text


def outcome(text: str) -> Spec | VnnlibError:
    """What reading gives; any other exception passes."""
    start = time.process_time()
    try:
        return parse(text)
    except VnnlibError as error:
        return error
    finally:
        assert time.process_time() - start < 1.0, text


def survives(text: str) -> bool:
    """Checks the outcome; whether it is a Spec."""
    result = outcome(text)
    if isinstance(result, VnnlibError):
        assert str(result).startswith("<text>")
        assert 0 <= result.line <= text.count("\n") + 1
        return False
    assert result.unbounded_input() is None
    return True


def fuzz(count: int, seed: int) -> int:
    rng = random.Random(seed)
    return sum(survives(mangled(rng)) for _ in range(count))


def test_500_mangled_files() -> None:
    accepted = fuzz(500, 0)
    assert 10 < accepted < 400  # the fuzzer neither breaks everything nor nothing


@pytest.mark.slow
def test_10000_mangled_files() -> None:
    assert 200 < fuzz(10_000, 1) < 8_000


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from(PIECES[:33]), st.text(max_size=5), st.sampled_from(["(<= X_0 1)", "(assert "])),
        max_size=12,
    )
)
def test_arbitrary_text(pieces: list[str]) -> None:
    survives("".join(pieces))
    survives("(vnnlib-version <2.0>)" + "".join(pieces))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_after_a_valid_start(data: bytes) -> None:
    for text in (ONE, TWO):
        survives(text + data.decode("utf-8", errors="replace"))
