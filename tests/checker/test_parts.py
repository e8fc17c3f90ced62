"""Parts of the checker on values worked out by hand: neither too narrow, nor much wider than they have to be."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from citrus_tool.checker import archive, schema, windows
from citrus_tool.checker.archive import Archive, parse_array, parse_json
from citrus_tool.checker.counting import choosable
from citrus_tool.checker.expected import Expected
from citrus_tool.checker.graph import AffineMap, Graph, Relu
from citrus_tool.checker.group import Group, Subject
from citrus_tool.checker.intervals import FLOOR, HOPELESS, LARGEST, SPARE, Intervals, gamma, gamma32
from citrus_tool.checker.leaves import Leaves
from citrus_tool.checker.operators import attributes_of
from citrus_tool.checker.windows import Windows, places_of
from citrus_tool.errors import CheckFailedError, UnsupportedNetworkError

# --- intervals


def affine(
    matrix: list[list[float]], bias: list[float], *, source: int = 0, terms: tuple[int, int] | None
) -> AffineMap:
    weight, shift = np.array(matrix), np.array(bias)
    return AffineMap(
        sources=(source,),
        matrices=(weight,),
        sizes=(np.abs(weight),),
        bias=shift,
        bias_size=np.abs(shift),
        terms=terms,
    )


def graph(*layers: AffineMap | Relu) -> Graph:
    first = layers[0]
    assert isinstance(first, AffineMap)
    sizes = [first.matrices[0].shape[1]]
    for layer in layers:
        sizes.append(len(layer.bias) if isinstance(layer, AffineMap) else sizes[layer.source])
    return Graph(layers=layers, sizes=tuple(sizes), largest=1.0)


LAYER = affine([[2.0, -1.0], [0.0, 0.5]], [3.0, -1.0], terms=(2, 5))
X = np.array([[1.0], [-0.5]])


@pytest.mark.parametrize("terms", [1, 7, 1000, 2**23])
def test_gammas_are_the_textbooks(terms: int) -> None:
    share = Fraction(terms, 2**24)
    assert gamma32(terms) == pytest.approx(float(share / (1 - share)), rel=1e-12, abs=0)
    assert gamma(terms) == 2 * terms * 2.0**-53


def test_gamma_ends() -> None:
    assert gamma32(2**24) == gamma32(2**25) == np.inf
    assert gamma32(2**24 - 1) < np.inf
    assert gamma32(0) == 0.0


def test_boxes_of_an_affine_layer_in_real_arithmetic() -> None:
    """2 (1 +- .25) - (-.5 +- .25) + 3 = 5.5 +- .75, .5 (-.5 +- .25) - 1 = -1.25 +- .125; outward by some 2^-45."""
    found = Intervals(graph(LAYER), X, 0.25, "real")
    for bounds, exact, sign in ((found.lower, [4.75, -1.375], -1), (found.upper, [6.25, -1.125], 1)):
        outward = sign * (bounds[1][:, 0] - exact)
        assert (outward > 0).all()
        assert (outward < 1e-12).all()
        outward = sign * (bounds[0][:, 0] - (X[:, 0] + sign * 0.25))
        assert (outward > 0).all()
        assert (outward < 1e-15).all()
    assert all((error == 0).all() for error in found.errors)


def test_errors_of_runs_by_hand() -> None:
    """Of the input 2^-24 |x|; of a layer gamma32 of its sums' sizes; both move the bounds by just that."""
    found = Intervals(graph(LAYER, Relu(source=1, floor=0.0)), X, 0.25, "float32")
    real = Intervals(graph(LAYER, Relu(source=1, floor=0.0)), X, 0.25, "real")
    own = [
        sum(gamma32(n + SPARE) * size + (n + SPARE) * FLOOR for size, n in parts)
        for parts in (((2 * 1.25 + 0.75, 2), (3.0, 5)), ((0.5 * 0.75, 2), (1.0, 5)))
    ]
    of_input = np.array([1.25, 0.75]) * 2.0**-24
    np.testing.assert_allclose(real.lower[0][:, 0] - found.lower[0][:, 0], of_input, rtol=0.02)
    np.testing.assert_allclose(found.upper[0][:, 0] - real.upper[0][:, 0], of_input, rtol=0.02)
    through = [own[0] + 2 * of_input[0] + of_input[1], own[1] + 0.5 * of_input[1]]
    np.testing.assert_allclose(real.lower[1][:, 0] - found.lower[1][:, 0], through, rtol=0.02)
    np.testing.assert_allclose(found.upper[1][:, 0] - real.upper[1][:, 0], through, rtol=0.02)


def test_floors_of_errors() -> None:
    """At 0 what underflow loses is left: of each of the layer's terms and of its bias."""
    layer = affine([[2.0, -1.0]], [0.0], terms=(2, 5))
    found = Intervals(graph(layer), np.zeros((2, 1)), 0.0, "float32")
    assert found.errors[1][0, 0] >= (2 + SPARE + 5 + SPARE) * FLOOR
    assert found.errors[1][0, 0] <= 1.01 * (2 + SPARE + 5 + SPARE + 3) * FLOOR
    assert 2.0**-66 <= found.upper[0][0, 0] <= 2.0**-65


@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_boxes_of_a_relu(floor: float) -> None:
    layer = affine([[1.0], [1.0], [1.0]], [0.0, 3.0, -3.0], terms=None)
    found = Intervals(graph(layer, Relu(source=1, floor=floor)), np.zeros((1, 1)), 2.0, "real")
    np.testing.assert_allclose(found.lower[2][:, 0], [-2 * floor, 1.0, -5 * floor], atol=1e-12)
    np.testing.assert_allclose(found.upper[2][:, 0], [2.0, 5.0, -1 * floor], atol=1e-12)
    assert (found.lower[2][:, 0] <= [-2 * floor, 1.0, -5 * floor]).all()
    assert (found.upper[2][:, 0] >= [2.0, 5.0, -1 * floor]).all()
    runs = Intervals(graph(layer, Relu(source=1, floor=floor)), np.zeros((1, 1)), 2.0, "float32")
    expected = gamma32(SPARE) * floor * np.array([2.0, 5.0, 5.0]) + SPARE * FLOOR * (floor > 0)
    np.testing.assert_allclose(runs.errors[2][:, 0], expected, rtol=1e-6)


def test_margins_go_through_the_last_layers() -> None:
    """Of (z, -z) with z in [-1, 1] + 3, the margin of the first is 2 z >= 4, not 2 - (-2); and so is its rounding."""
    layer = affine([[1.0], [-1.0]], [0.0, 0.5], terms=(1, 1))
    real, runs = (Intervals(graph(layer), np.full((1, 1), 3.0), 1.0, kind) for kind in ("real", "float32"))
    found = real.interval_margins(0)[:, 0]
    assert found[0] == pytest.approx(0.0, abs=1e-12)
    assert 3.5 - 1e-12 < found[1] < 3.5
    assert real.interval_margins(1)[0, 0] == pytest.approx(-7.5, abs=1e-12)
    lost = found[1] - runs.interval_margins(0)[1, 0]
    own = 2 * gamma32(1 + SPARE) * 4 + gamma32(1 + SPARE) * 0.5
    assert lost == pytest.approx(own + 2 * 4 * 2.0**-24, rel=0.02, abs=0)


@pytest.mark.parametrize(("size", "hopeless"), [(LARGEST / 2, False), (LARGEST * 2, True)])
def test_values_above_the_largest_leave_no_hope(size: float, hopeless: bool) -> None:
    """Of that input alone, and at the logits."""
    layers = (
        affine([[1.0]], [0.0], terms=(1, 1)),
        Relu(source=1, floor=0.0),
        affine([[0.0], [0.0]], [1.0, 0.0], source=2, terms=(1, 1)),
    )
    found = Intervals(graph(*layers), np.array([[size / 1.5, 1.0]]), 0.0, "float32")
    assert (found.interval_margins(0)[1] > 0).tolist() == [not hopeless, True]
    assert (found.errors[3] >= HOPELESS).any(axis=0).tolist() == [hopeless, False]


def test_constants_that_may_overflow_between_two_relus() -> None:
    """2^40 times 2^30 is above 2^60; with a ReLU in between, values are what may overflow."""
    first, second = (affine([[2.0**power]], [0.0], source=source, terms=(1, 1)) for power, source in ((40, 0), (30, 1)))
    with pytest.raises(UnsupportedNetworkError, match="constants above 2\\^60"):
        Intervals(graph(first, second), np.zeros((1, 1)), 0.0, "float32")
    Intervals(graph(first, second), np.zeros((1, 1)), 0.0, "real")
    apart = affine([[2.0**30]], [0.0], source=2, terms=(1, 1))
    Intervals(graph(first, Relu(source=1, floor=0.0), apart), np.zeros((1, 1)), 0.0, "float32")
    large = affine([[1.0]], [2.0**61], terms=(1, 1))
    with pytest.raises(UnsupportedNetworkError, match="constants above 2\\^60"):
        Intervals(graph(large), np.zeros((1, 1)), 0.0, "float32")


# --- windows


def test_places_of_windows() -> None:
    """Of a map (1, 2, 3), 0 1 2 over 3 4 5: kernel (2, 1), two columns a step, one row of padding below."""
    found = places_of((1, 1, 2, 3), (2, 1), {"strides": (1, 2), "pads": (0, 0, 1, 0)})
    assert found.shape == (1, 2, 1, 2, 2)
    assert found[0, :, 0].tolist() == [[[0, 2], [3, 5]], [[3, 5], [-1, -1]]]
    wide = places_of((1, 2, 1, 5), (1, 2), {"dilations": (1, 3), "pads": (0, 1, 0, 0)})
    assert wide[1, 0].tolist() == [[[-1, 5, 6]], [[7, 8, 9]]]


@pytest.mark.parametrize(
    "given",
    [
        {"pads": (2, 0, 0, 0)},
        {"pads": (0, 0, 0, 1)},
        {"pads": (0, -1, 0, 0)},
        {"pads": (0, 0)},
        {"strides": (0, 1)},
        {"kernel_shape": (1, 2)},
        {"ceil_mode": 1},
        {"auto_pad": b"SAME_UPPER"},
        {"auto_pad": b"VALID", "pads": (1, 0, 0, 0)},
    ],
)
def test_windows_that_are_not_read(given: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedNetworkError, match="windows"):
        places_of((1, 1, 4, 4), (2, 1), given)
    places_of((1, 1, 4, 4), (2, 1), {"auto_pad": b"VALID"})
    places_of((1, 1, 4, 4), (2, 1), {"pads": (1, 0, 1, 0)})


@pytest.mark.parametrize("gathered", [1, 8, 2**22])
def test_windows_multiply_in_pieces(gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "GATHERED", gathered)
    places = places_of((1, 2, 3, 2), (2, 2), {"pads": (1, 0, 0, 1)}).reshape(2, 4, -1)  # two groups of one channel
    weights = np.arange(-8.0, 8.0).reshape(2, 2, 4)
    z = np.random.default_rng(0).normal(size=(12, 5))
    expected = [
        sum(w * (z[p] if p >= 0 else 0 * z[0]) for w, p in zip(row, column, strict=True))
        for group, spots in zip(weights, places, strict=True)
        for row in group
        for column in spots.T
    ]
    made = Windows(weights=weights, places=places)
    np.testing.assert_allclose(made @ z, expected, atol=1e-12)
    assert (made.sizes().weights == np.abs(weights)).all()


# --- leaves and counts


def some_leaves(first: int, depths: list[int]) -> Leaves:
    count, splits = len(depths), sum(depths)
    return Leaves(
        owner=np.full(count, first),
        label=np.arange(count)[:, None] + first,
        alpha=np.full((count, 1), first, dtype=np.uint8),
        share=np.arange(0.5, count)[:, None],
        row=np.repeat(np.arange(count), depths),
        split=np.arange(splits) + 10 * first,
        side=np.ones(splits),
        beta=np.arange(0.0, splits) / 2,
    )


def test_leaves_keep_their_splits() -> None:
    whole = Leaves.joined([some_leaves(1, [2, 0, 1]), some_leaves(2, [1, 3])])
    assert whole.owner.tolist() == [1, 1, 1, 2, 2]
    assert whole.row.tolist() == [0, 0, 2, 3, 4, 4, 4]
    part = whole.pick(2, 4)
    assert part.owner.tolist() == [1, 2]
    assert part.label.tolist() == [[3], [2]]
    assert (part.row.tolist(), part.split.tolist()) == ([0, 1], [12, 20])
    assert (part.beta.tolist(), part.share.ravel().tolist()) == ([1.0, 0.0], [2.5, 0.5])
    assert whole.pick(1, 2).row.tolist() == []


def test_choices_by_hand() -> None:
    one, two, other, three = (0, 1), (1, 1), (1, 2), (2, 1)
    options = [[one], [two, other], [three]]
    assert choosable(options, [], 3)
    assert not choosable(options, [], 4)
    assert choosable(options, [frozenset({one, two})], 3)  # with the other label
    assert not choosable(options, [frozenset({one, two}), frozenset({one, other})], 3)
    assert choosable(options, [frozenset({one, two}), frozenset({one, other})], 2)
    assert not choosable(options, [frozenset({one}), frozenset({three})], 2)
    assert choosable([], [], 0)


# --- the schema's ranges, and the limits of what is read


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (schema.whole(2, 5), [2, 5], [1, 6, True, 2.0, "2", None]),
        (schema.number(-1.0, 2.0), [-1.0, 2.0], [-1.0001, 2.0001, 1, True, float("nan")]),
        (schema.flag, [True, False], [1, 0, "true", None]),
        (schema.word("a", "b"), ["a", "b"], ["c", "", 1, None]),
        (schema.text("x*"), ["", "x" * schema.TEXT], ["y", "x" * (schema.TEXT + 1), 1]),
        (schema.text(), ["a\nb"], [b"a"]),
        (schema.maybe(schema.flag), [None, True], [1]),
        (schema.listing(schema.flag, 1, 2), [[True], [True, False]], [[], [True] * 3, [1], (True,), None]),
        (schema.record({"a": schema.flag}), [{"a": True}], [{}, {"a": 1}, {"a": True, "b": 1}, [], None]),
        (
            schema.radius,
            [(0.0).hex(), (1.0).hex(), (0.1).hex()],
            [(1 + 2**-52).hex(), (-0.1).hex(), "0x1.0p-3", "0.1", 0.1],
        ),
    ],
)
def test_kinds_end_where_they_say(kind: Callable[[Any, str], None], good: list[Any], bad: list[Any]) -> None:
    for value in good:
        kind(value, "here")
    for value in bad:
        with pytest.raises(CheckFailedError, match="here"):
            kind(value, "here")


def test_json_ends_where_it_says() -> None:
    for depth, digits in ((archive.DEPTH, archive.DIGITS), (1, 1)):
        text = "[" * depth + "9" * digits + "]" * depth
        assert str(parse_json(text.encode(), "here")).strip("[]") == "9" * digits
    brackets = json.dumps({"a": "[" * 100 + '\\"{'}).encode()
    assert parse_json(brackets, "here") == {"a": "[" * 100 + '\\"{'}
    for text, words in (
        ("[" * (archive.DEPTH + 1) + "]" * (archive.DEPTH + 1), "nested too deep"),
        ("9" * (archive.DIGITS + 1), "a huge number"),
        ('{"a": 1, "a": 2}', "a key twice"),
        ("1e999", "has the number '1e999'"),
        ("NaN", "has the number 'NaN'"),
        ("[1", "is no JSON text"),
        ("", "is no JSON text"),
    ):
        with pytest.raises(CheckFailedError, match=words):
            parse_json(text.encode(), "here")


def written(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def test_arrays_are_as_numpy_writes_them() -> None:
    for array in (np.arange(6, dtype="<f4").reshape(2, 3), np.zeros(0, dtype="<f4"), np.array(1.5, dtype="<f4")):
        found = parse_array(written(array), "<f4", "here")
        assert found.dtype == np.float32
        assert np.array_equal(found, array)
        assert found.shape == array.shape
    good = written(np.arange(6, dtype="<f4"))
    for bad, words in (
        (good[:-1], "has 23 bytes"),
        (good + b"\0", "has 25 bytes"),
        (good[:20], "is no array"),
        (b"\x94" + good[1:], "is no array"),
        (written(np.arange(6, dtype="<f4"), version=(2, 0)), "is no array"),
        (written(np.arange(6, dtype="<f8")), "has the type '<f8', not <f4"),
        (written(np.asfortranarray(np.ones((2, 2), dtype="<f4") * [[1, 2]], dtype="<f4")), "is no array"),
    ):
        with pytest.raises(CheckFailedError, match=words):
            parse_array(bad, "<f4", "here")


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return file


def test_members_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"a": b"", "b": b"0123456789"}
    found = Archive(zipped(members), "here", compressed=False)
    assert found.names == {"a", "b"}
    assert [found.read(name, 10) for name in ("a", "b")] == [b"", b"0123456789"]
    with pytest.raises(CheckFailedError, match="member 'b': has 10 bytes, more than 9"):
        found.read("b", 9)
    with pytest.raises(CheckFailedError, match="has no member 'c'"):
        found.read("c")
    found.require_names(["b", "a"])
    for wanted, words in ((["a"], "has a member 'b' that"), (["a", "b", "c"], "has no member 'c'")):
        with pytest.raises(CheckFailedError, match=words):
            found.require_names(wanted)
    deflated = zipped(members, zipfile.ZIP_DEFLATED)
    assert Archive(deflated, "here", compressed=True).read("b") == b"0123456789"
    with pytest.raises(CheckFailedError, match="not compressed as"):
        Archive(deflated, "here", compressed=False)
    with pytest.raises(CheckFailedError, match="not compressed as"):
        Archive(zipped(members, zipfile.ZIP_BZIP2), "here", compressed=True)
    for name, limit in (("MEMBERS", 2), ("TOTAL_BYTES", 10)):
        monkeypatch.setattr(archive, name, limit)
        Archive(zipped(members), "here", compressed=False)
        monkeypatch.setattr(archive, name, limit - 1)
        with pytest.raises(CheckFailedError, match="more than"):
            Archive(zipped(members), "here", compressed=False)
        monkeypatch.setattr(archive, name, limit)


def test_what_is_required_is_compared_with_what_is_there() -> None:
    run = {"mean": [0.5], "std": [0.25], "arithmetic": "real"}
    Expected().require_run(run, 0.1)
    Expected().require_inputs([1, 2])
    Expected(eps=0.1, mean=(0.5,), std=(0.25,), arithmetic="real").require_run(run, 0.1)
    Expected(inputs=[2, 1]).require_inputs({1, 2})
    for other, words in (
        (Expected(eps=0.0), "eps is 0.1, not 0.0"),
        (Expected(mean=()), "mean is (0.5,), not ()"),
        (Expected(std=(0.5,)), "std is (0.25,), not (0.5,)"),
        (Expected(arithmetic="float32"), "arithmetic is real, not float32"),
    ):
        with pytest.raises(CheckFailedError, match=re.escape(words)):
            other.require_run(run, 0.1)
    for wanted in ([], [1], [1, 2, 3]):
        with pytest.raises(CheckFailedError, match="its inputs are 1-2, not"):
            Expected(inputs=wanted).require_inputs([1, 2])


def test_every_number_of_an_attribute_is_finite() -> None:
    for numbers in ([np.inf, 1.0], [1.0, np.nan]):
        with pytest.raises(UnsupportedNetworkError, match="'scales' is not finite"):
            attributes_of(helper.make_node("Resize", ["x"], ["y"], scales=numbers))
    assert attributes_of(helper.make_node("Resize", ["x"], ["y"], scales=[1.0, 2.0])) == {"scales": [1.0, 2.0]}


def test_a_group_that_is_no_zip_file() -> None:
    subject = Subject(run={"target": None}, graph=graph(LAYER), eps=0.1, images=None)
    with pytest.raises(CheckFailedError, match="group 3: is no zip file"):
        Group(subject, b"no zip file", 3)


def test_limits_are_those_that_the_page_states() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "proof-format.md").read_text(encoding="utf-8")
    sizes = "$2^{20}$ members, members of more than $2^{31}$ bytes (JSON: $2^{26}$) or $2^{33}$ together"
    assert sizes in page.replace("\n", " ")
    assert (archive.MEMBERS, archive.ARRAY_BYTES) == (2**20, 2**31)
    assert (archive.JSON_BYTES, archive.TOTAL_BYTES) == (2**26, 2**33)
    assert schema.MOST == 2**31 - 1
    assert schema.SCALE == 2.0**20
