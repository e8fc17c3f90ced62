"""UAP structure: the example of the notes, the inverse, what is no UAP query."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from citrus_tool.errors import UsageError
from citrus_tool.queries import NotUapError, Spec, parse, text2, uap_query, uap_structure
from citrus_tool.queries.constraint import Variable, ordered
from citrus_tool.queries.prefix_notation import decimal

EXAMPLE = (
    "(vnnlib-version <2.0>)\n"
    "(declare-network f1 (declare-input X1 real [1,4]) (declare-output Y1 real [1,3]))\n"
    "(declare-network f2 (equal-to f1) (declare-input X2 real [1,4]) (declare-output Y2 real [1,3]))\n"
    + "".join(f"(assert (>= X1[0,{i}] 0.4)) (assert (<= X1[0,{i}] 0.6))\n" for i in range(4))
    + "".join(f"(assert (== (- X2[0,{i}] X1[0,{i}]) -0.25))\n" for i in range(4))
    + "(assert (or (<= Y1[0,0] Y1[0,1]) (<= Y1[0,0] Y1[0,2])))\n"
    + "(assert (or (<= Y2[0,1] Y2[0,0]) (<= Y2[0,1] Y2[0,2])))\n"
)


def wrong(output: str, label: int, others: tuple[int, ...]) -> tuple[object, ...]:
    return tuple((ordered(Variable(output, label), Variable(output, other)),) for other in others)


def test_the_example_of_the_notes() -> None:
    found = uap_structure(parse(EXAMPLE))
    assert found.networks == ("f1", "f2")
    assert found.input_shape == (1, 4)
    assert np.array_equal(found.centres, np.array([[[0.5] * 4], [[0.25] * 4]]))
    assert found.centre_error == 0.0
    assert np.allclose(found.radius, 0.1)
    assert all(Fraction(r) >= Fraction(1, 10) for r in found.radius.flat)
    assert found.unsafe == ((wrong("Y1", 0, (1, 2)),), (wrong("Y2", 1, (0, 2)),))
    assert not found.empty


def random_query(k: int, classes: int, seed: int, **options: object) -> tuple[Spec, np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    images = rng.random((k, 1, 2, 3)).astype(np.float32)
    labels = [int(label) for label in rng.integers(classes, size=k)]
    return uap_query(images, labels, 0.1, classes), images, labels


@pytest.mark.parametrize(("k", "classes"), [(1, 2), (2, 3), (5, 10), (12, 4)])
def test_query_and_structure_are_inverse(k: int, classes: int) -> None:
    spec, images, labels = random_query(k, classes, k)
    assert parse(text2(spec)) == spec
    found = uap_structure(spec)
    assert len(found.networks) == k
    assert np.abs(found.centres - images).max() <= found.centre_error + 1e-16
    assert found.centre_error < 1e-15
    for i, label in enumerate(labels):
        alternatives = wrong(f"Y{i + 1}", label, tuple(c for c in range(classes) if c != label))
        assert found.unsafe[i] == (alternatives,)


@pytest.mark.parametrize("seed", range(5))
def test_points_of_the_query_are_shared_perturbations(seed: int) -> None:
    spec, images, labels = random_query(3, 4, seed)
    rng = np.random.default_rng(seed)
    centres = [[Fraction(v) for v in image.ravel().tolist()] for image in images]
    for _ in range(20):
        u = [Fraction(int(n), 100) for n in rng.integers(-11, 12, size=6)]
        logits = rng.integers(0, 3, size=(3, 4)).astype(float)  # ties are frequent
        values = {f"X{i + 1}": [c + d for c, d in zip(centres[i], u, strict=True)] for i in range(3)}
        values |= {f"Y{i + 1}": logits[i].tolist() for i in range(3)}
        fooled = all(max(np.delete(logits[i], label)) >= logits[i][label] for i, label in enumerate(labels))
        assert spec.evaluate(values) == (fooled and max(map(abs, u)) <= Fraction(1, 10))
        values["X2"] = [v + (Fraction(1, 10**9) if i == 0 else 0) for i, v in enumerate(values["X2"])]
        assert not spec.evaluate(values)  # no longer the same u


def test_boxes_of_all_copies_are_intersected_and_contained() -> None:
    text = EXAMPLE + "(assert (<= X2[0,0] 0.3))(assert (>= X2[0,1] 0.2))"
    found = uap_structure(parse(text))
    exact = [(Fraction(2, 5), Fraction(11, 20)), (Fraction(9, 20), Fraction(3, 5))]
    for entry, (low, high) in enumerate(exact):
        centre, radius = Fraction(found.centres[0, 0, entry]), Fraction(found.radius[0, entry])
        assert centre - radius <= low < high <= centre + radius
        assert radius <= (high - low) / 2 + Fraction(1, 10**15)


def test_chained_and_reversed_differences() -> None:
    spec, images, _ = random_query(4, 3, 7)
    lines = text2(spec).splitlines()
    rest = [line for line in lines if "== (-" not in line]
    exact = [[Fraction(v) for v in image.ravel().tolist()] for image in images]

    def entry(copy: int, flat: int) -> str:
        return f"X{copy + 1}[0,{flat // 3},{flat % 3}]"

    links = [
        f"(assert (== {decimal(exact[i][e] - exact[i + 1][e])} (- {entry(i, e)} {entry(i + 1, e)})))"
        for i in (2, 0, 1)
        for e in range(6)
    ]
    assert len(lines) - len(rest) == len(links)
    chained = parse("\n".join(rest + links))
    assert np.array_equal(uap_structure(chained).centres, uap_structure(spec).centres)


def test_per_channel_eps_and_exact_eps() -> None:
    images = np.zeros((2, 1, 2, 2), dtype=np.float32)
    eps = np.array([[[0.5], [0.25]]]) * np.ones((1, 2, 2))
    found = uap_structure(uap_query(images, [0, 1], eps, 2))
    assert found.radius.tolist() == [[[0.5, 0.5], [0.25, 0.25]]]
    spec = uap_query(images, [0, 1], Fraction(2, 255), 2)
    assert spec.common_bounds(Variable("X1", 0)) == (Fraction(-2, 255), Fraction(2, 255))
    assert parse(text2(spec)) == spec  # written as (* 255.0 X) <= 2.0


def test_contradicting_differences_are_empty() -> None:
    assert uap_structure(parse(EXAMPLE + "(assert (== (- X2[0,0] X1[0,0]) -0.5))")).empty
    assert uap_structure(parse(EXAMPLE + "(assert (== (- X2[0,0] X1[0,0]) -0.3))")).empty  # though the boxes meet
    assert uap_structure(parse(EXAMPLE + "(assert (<= 2.0 1.0))")).empty
    assert uap_structure(parse(EXAMPLE + "(assert (<= X2[0,0] 0.1))")).empty


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("(equal-to f1)", "(isomorphic-to f1)", "f2 is not equal-to the first network f1"),
        ("(== (- X2[0,1] X1[0,1]) -0.25)", "(<= X2[0,1] 1.0)", "between copies at input entry 1 are not all fixed"),
        ("(== (- X2[0,1] X1[0,1]) -0.25)", "(== (- X2[0,1] X1[0,0]) -0.25)", "neither a bound nor the difference"),
        ("(== (- X2[0,1] X1[0,1]) -0.25)", "(<= (- X2[0,1] X1[0,1]) -0.25)", "neither a bound nor the difference"),
        ("(<= Y2[0,1] Y2[0,2])", "(<= Y2[0,1] Y1[0,2])", "speaks of Y1, Y2, not of one copy's output"),
        ("(<= Y2[0,1] Y2[0,2])", "(<= X2[0,1] 0.2)", "speaks of X2, Y2"),
        ("(declare-input X1 real [1,4])", "(declare-input X1 real [1,4]) (declare-input Q real [1])", "several inputs"),
    ],
)
def test_what_is_no_uap_query(old: str, new: str, says: str) -> None:
    assert old in EXAMPLE
    text = EXAMPLE.replace(old, new)
    if "(declare-input Q" in text:
        text = text.replace("(equal-to f1)", "") + "(assert (<= Q[0] 1.0))(assert (>= Q[0] 0.0))"
    if "(<= X2[0,1] 1.0)" in text or "(<= (- X2" in text:  # keep the entry bounded
        text += "(assert (>= X2[0,1] 0.0))"
    with pytest.raises(NotUapError) as caught:
        uap_structure(parse(text))
    assert says in str(caught.value)


def test_bad_groups_are_refused() -> None:
    images = np.zeros((2, 1, 4), dtype=np.float32)
    for arguments, says in (
        ((images, [0], 0.1, 3), "2 images and 1 labels"),
        ((images, [0, 3], 0.1, 3), r"labels must lie in 0\.\.2"),
        ((images, [0, 1], -0.1, 3), "eps must not be negative"),
        ((images * np.nan, [0, 1], 0.1, 3), "images must be finite"),
    ):
        with pytest.raises(UsageError, match=says):
            uap_query(*arguments)


def test_networks_with_other_names_and_order() -> None:
    spec = parse(EXAMPLE)
    swapped = dataclasses.replace(spec, common=tuple(reversed(spec.common)), clauses=tuple(reversed(spec.clauses)))
    assert uap_structure(swapped).unsafe == uap_structure(spec).unsafe
