"""Forged proofs of real networks, each refused with a sentence: types, structure, values, and files that are none."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from citrus_tool.certification.uap import certify_uap
from citrus_tool.checker import archive, combinations, counting, schema
from citrus_tool.checker import check as check_module
from citrus_tool.checker import group as group_module
from citrus_tool.checker.check import check
from citrus_tool.checker.expected import Expected, ranges
from citrus_tool.checker.proof_format import cut, escaped, shown
from citrus_tool.data import load
from citrus_tool.errors import CheckFailedError, InputFileError
from citrus_tool.onnx_io import read
from citrus_tool.threat import Threat
from tests.certification.toys import tiny_residual
from tests.checker.corruption import Content, corrupt, packed
from tests.checker.forgeries import FORGERIES, Forgery
from tests.checker.fuzz import Seed, fuzz
from tests.checker.test_check import SETTINGS, Proven, deep_chain, prove

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Mapping[str, tuple[Proven, Content]]:
    """Genuine proofs of a chain (with every kind of combination), a residual network and a shipped digits network."""
    folder = {name: tmp_path_factory.mktemp(name) for name in ("chain", "residual", "digits")}
    data = load("digits", split="test", limit=10)
    model = read(repository / "models" / "digits_convtiny.onnx", input_shape=data.shape)
    found = certify_uap(model, data, Threat(eps=0.05), SETTINGS, proof=folder["digits"] / "proof")
    every = {
        "chain": prove(deep_chain(2), folder["chain"], 0.08, count=24),
        "residual": prove(tiny_residual(1, channels=3), folder["residual"], 0.1, count=12),
        "digits": Proven(model=model, data=data, found=found, path=folder["digits"] / "proof"),
    }
    return {name: (one, Content.of(one.path)) for name, one in every.items()}


def test_genuine_proofs_hold(proofs: Mapping[str, tuple[Proven, Content]], tmp_path: Path) -> None:
    for proven, content in proofs.values():
        checked = proven.check(content.write(tmp_path / "p"))
        assert (checked.inputs, checked.certified) == (proven.found.inputs, proven.found.certified)
        assert checked.certified > 0


def test_there_are_two_hundred_forgeries() -> None:
    assert len({forgery.name for forgery in FORGERIES}) == len(FORGERIES) >= 200


def refused(forgery: Forgery, proven: Proven, genuine: Content, path: Path) -> bool:
    """Whether there was something to forge in the proof; then it was refused with the forgery's words."""
    content = deepcopy(genuine)
    if not forgery.change(content):
        return False
    with pytest.raises(CheckFailedError, match=forgery.words) as caught:
        check(content.write(path), proven.model.path)
    assert str(caught.value).isprintable()
    return True


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.name)
def test_forgery(forgery: Forgery, proofs: Mapping[str, tuple[Proven, Content]], tmp_path: Path) -> None:
    """Each of them on one proof, in turn; the chain's has all that can be forged."""
    turn = sum(map(ord, forgery.name)) % len(proofs)
    some = [*[*proofs.values()][turn:], proofs["chain"]]
    assert any(refused(forgery, *one, tmp_path / "forged") for one in some)


@pytest.mark.slow
def test_every_forgery_on_every_proof(proofs: Mapping[str, tuple[Proven, Content]], tmp_path: Path) -> None:
    for name, one in proofs.items():
        found = [refused(forgery, *one, tmp_path / "forged") for forgery in FORGERIES]
        assert sum(found) >= 200, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chain", "residual", "digits"])
def test_random_corruptions(name: str, proofs: Mapping[str, tuple[Proven, Content]], tmp_path: Path) -> None:
    """A thousand on the three proofs, each of one value, type or shape."""
    proven, genuine = proofs[name]
    rng = np.random.default_rng(1)
    for number in range(334):
        content = deepcopy(genuine)
        what = corrupt(content, rng, proven.data.num_classes)
        try:
            proven.check(content.write(tmp_path / "c"))
        except CheckFailedError:
            continue
        pytest.fail(f"corruption {number} of {what} was accepted")


# --- files


def stored(members: Members, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


PART, PAGE = "groups/group000000.npz", "certificate.json"


def text(edit: Callable[[str], str]) -> Callable[[Members], bytes]:
    """A first page with another text."""
    return lambda members: stored({**members, PAGE: edit(members[PAGE].decode()).encode()})


def part(edit: Callable[[Members], Members]) -> Callable[[Content], bytes]:
    """A first group with other members."""

    def forged(content: Content) -> bytes:
        genuine = packed(content.groups[0].facts, content.groups[0].arrays)
        with zipfile.ZipFile(io.BytesIO(genuine)) as archive:
            members = edit({name: archive.read(name) for name in archive.namelist()})
        other, packing = deepcopy(content), stored(members)  # once: it holds the time of day
        other.head["groups"][0]["sha256"] = hashlib.sha256(packing).hexdigest()
        return stored({**other.members(), PART: packing})

    return forged


def twice(members: Members) -> bytes:
    file = io.BytesIO(stored(members))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(PART, members[PART])
    return file.getvalue()


def bomb(members: Members) -> bytes:
    """A part that says that it is small and decompresses to a gigabyte."""
    return stored({**members, PART: bytes(2**20)}, compression=zipfile.ZIP_DEFLATED)


def flagged(members: Members) -> bytes:
    """Members that say that they are encrypted."""
    content = bytearray(stored(members))
    start = content.rfind(b"PK\x01\x02")
    content[start + 8] |= 1
    return bytes(content)


def oversized(members: Members) -> bytes:
    """A directory that says that a member has 3 GiB."""
    content = bytearray(stored(members))
    start = content.rfind(b"PK\x01\x02")
    struct.pack_into("<I", content, start + 24, 3 * 2**30)
    return bytes(content)


FILES: Mapping[str, tuple[Callable[[Members], bytes], str]] = {
    "a member twice": (twice, "two members of one name"),
    "compressed members": (bomb, "not compressed as a proof's members are"),
    "encrypted": (flagged, "is encrypted"),
    "sizes that are none": (oversized, "larger than it can be"),
    "a member too many": (lambda members: stored({**members, "x": b""}), "a member 'x' that no proof has"),
    "a member too few": (
        lambda members: stored({name: one for name, one in members.items() if name != PART}),
        "has no member 'groups/group000000.npz'",
    ),
    "no first page": (lambda members: stored({PART: members[PART]}), "has no member 'certificate.json'"),
    "a changed part": (lambda members: stored({**members, PART: members[PART] + b"0"}), "its file was changed"),
    "a key twice": (text(lambda page: '{"certified": 99, ' + page[1:]), "has a key twice"),
    "deep nesting": (text(lambda page: "[" * 200_000), "is nested too deep"),
    "deep nesting in a text": (text(lambda page: page.replace('"toy"', f'"{"[" * 99}"')), "its digest is another"),
    "a huge number": (text(lambda page: '{"format": ' + "9" * 5000 + "}"), "has a huge number"),
    "not a number": (text(lambda page: page.replace("2,", "NaN,", 1)), "has the number 'NaN'"),
    "infinity": (text(lambda page: page.replace("2,", "1e999,", 1)), "has the number '1e999'"),
    "no JSON": (text(lambda page: page[:-1]), "is no JSON text"),
    "no object": (text(lambda page: "[1]"), "is no object with a format"),
    "a byte order mark": (text(lambda page: "\ufeff" + page), "is no JSON text"),
    "wide characters": (
        lambda members: stored({**members, PAGE: members[PAGE].decode().encode("utf-16")}),
        "is no JSON text",
    ),
    "another page": (text(lambda page: page.replace('"test"', '"train"')), "its digest is another"),
    "an empty page": (text(lambda page: ""), "is no JSON text"),
}


@pytest.mark.parametrize("name", FILES)
def test_forged_file(name: str, proofs: Mapping[str, tuple[Proven, Content]], tmp_path: Path) -> None:
    proven, content = proofs["chain"]
    make, words = FILES[name]
    (tmp_path / "forged").write_bytes(make(content.members()))
    with pytest.raises(CheckFailedError, match=words) as caught:
        check(tmp_path / "forged", proven.model.path)
    assert str(caught.value).isprintable()


def npy(header: str, body: bytes, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header.encode() + body


IMAGES = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 1, 2, 2), }\n"
PARTS: Mapping[str, tuple[Callable[[Members], Members], str]] = {
    "pickled": (
        lambda m: {**m, "images.npy": npy(IMAGES.replace("<f4", "|O"), b"cos\nsystem\n")},
        "as numpy writes it",
    ),
    "columns first": (
        lambda m: {**m, "images.npy": npy(IMAGES.replace("False", "True"), bytes(64))},
        "as numpy writes",
    ),
    "another version": (lambda m: {**m, "images.npy": npy(IMAGES, bytes(64), b"\x02\x00")}, "as numpy writes it"),
    "code in its header": (
        lambda m: {**m, "images.npy": npy(IMAGES.replace("(4,", "(__import__('os'),"), bytes(64))},
        "as numpy writes it",
    ),
    "too few bytes": (lambda m: {**m, "images.npy": npy(IMAGES, bytes(63))}, "has 63 bytes for the shape"),
    "too many bytes": (lambda m: {**m, "images.npy": npy(IMAGES, bytes(65))}, "has 65 bytes for the shape"),
    "a shape beyond memory": (
        lambda m: {**m, "images.npy": npy(IMAGES.replace("4,", "9999999999,"), b"")},
        "has 0 bytes for the shape",
    ),
    "an empty array": (lambda m: {**m, "images.npy": b""}, "as numpy writes it"),
    "no facts": (lambda m: {name: one for name, one in m.items() if name != "facts.npy"}, "has no member 'facts.npy'"),
    "facts of floats": (
        lambda m: {**m, "facts.npy": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }\n", bytes(8))},
        "facts: has the type '<f8', not |u1",
    ),
    "a member with a path": (lambda m: {**m, "../images.npy": m["images.npy"]}, "that no proof has there"),
}


@pytest.mark.parametrize("name", PARTS)
def test_forged_part(name: str, proofs: Mapping[str, tuple[Proven, Content]], tmp_path: Path) -> None:
    proven, content = proofs["chain"]
    edit, words = PARTS[name]
    (tmp_path / "forged").write_bytes(part(edit)(content))
    with pytest.raises(CheckFailedError, match=words.replace("|", r"\|")):
        check(tmp_path / "forged", proven.model.path)


def test_a_small_file_that_decompresses_to_much(proofs: Mapping[str, tuple[Proven, Content]], tmp_path: Path) -> None:
    """A directory that says 64 bytes of a member of 64 MiB: no more than that is decompressed."""
    proven, content = proofs["chain"]
    genuine = io.BytesIO()
    with zipfile.ZipFile(genuine, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("facts.npy", bytes(2**26))
    inner = bytearray(genuine.getvalue())
    struct.pack_into("<I", inner, 22, 64)
    struct.pack_into("<I", inner, inner.find(b"PK\x01\x02") + 24, 64)
    other = deepcopy(content)
    other.head["groups"][0]["sha256"] = hashlib.sha256(inner).hexdigest()
    (tmp_path / "forged").write_bytes(stored({**other.members(), PART: bytes(inner)}))
    with pytest.raises(CheckFailedError, match=r"group 0, member 'facts.npy': is damaged"):
        check(tmp_path / "forged", proven.model.path)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"no zip file at all", bytes(100)])
def test_no_zip_file(content: bytes, proofs: Mapping[str, tuple[Proven, Content]], tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(InputFileError, match="is no certificate"):
        check(tmp_path / "c", proofs["chain"][0].model.path)


def test_a_proof_of_format_1_is_about_real_arithmetic(
    proofs: Mapping[str, tuple[Proven, Content]], tmp_path: Path
) -> None:
    for proven, genuine in proofs.values():
        content = deepcopy(genuine)
        content.head["format"] = 1
        for run in (content.head["run"], *(group.facts["run"] for group in content.groups)):
            del run["arithmetic"]
        del content.head["protocol"], content.head["scope"]
        checked = proven.check(content.write(tmp_path / "c"))
        assert (checked.arithmetic, checked.protocol, checked.format) == ("real", None, 1)
        assert checked.certified == proven.found.certified
        assert json.loads(json.dumps(checked.to_json()))["scope"] is None


def test_images_are_numbers(proofs: Mapping[str, tuple[Proven, Content]], tmp_path: Path) -> None:
    """Pixels beyond all that float32 can compute with prove nothing, without a warning."""
    proven, genuine = proofs["residual"]
    content = deepcopy(genuine)
    content.groups[0].arrays["images"][...] = np.finfo(np.float32).max
    with pytest.raises(CheckFailedError):
        check(content.write(tmp_path / "c"), proven.model.path)


def test_fuzzing_raises_nothing_but_the_checkers_errors(
    proofs: Mapping[str, tuple[Proven, Content]], tmp_path: Path
) -> None:
    """A few seconds of what `python -m tests.checker.fuzz` does for as long as one likes."""
    seeds = [Seed.of(proven.path, proven.model.path) for proven, _ in proofs.values()]
    counts, failures = fuzz(seeds, tmp_path, 4.0, 0)
    assert failures == []
    assert sum(counts.values()) > 20


@pytest.mark.parametrize(
    ("module", "name", "limit", "words"),
    [
        (archive, "MEMBERS", 3, "has 7 members, more than 3"),
        (archive, "TOTAL_BYTES", 1000, "bytes, more than 1000"),
        (check_module, "JSON_BYTES", 100, "member 'certificate.json': has .* bytes, more than 100"),
        (group_module, "JSON_BYTES", 100, "group 0, member 'facts.npy': has .* bytes, more than 100"),
        (schema, "ARRAY_BYTES", 100, "member 'images.npy': has 192 bytes, more than 100"),
        (archive, "DEPTH", 2, "certificate.json: is nested too deep"),
        (archive, "DIGITS", 1, "certificate.json: has a huge number"),
        (combinations, "PRODUCTS", 0, "has more than 0 products of open parts"),
        (counting, "STEPS", 1, "the counting argument: takes more than 1 steps"),
    ],
)
def test_limits(
    module: ModuleType,
    name: str,
    limit: int,
    words: str,
    proofs: Mapping[str, tuple[Proven, Content]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proven, _ = proofs["chain"]
    monkeypatch.setattr(module, name, limit)
    with pytest.raises(CheckFailedError, match=words):
        proven.check()


def test_words() -> None:
    assert ranges([]) == ""
    assert ranges([7]) == "7"
    assert ranges([3, 0, 1, 2, 9, 11, 12, 2]) == "0-3,9,11-12"
    assert escaped("a é\n\x1b[2K\u202e\ud800") == r"a é\n\x1b[2K\u202e\ud800"
    assert cut("x" * 72) == "x" * 72
    assert cut("x" * 73) == "x" * 72 + "..."
    assert shown(2**70) == "a huge number"
    assert shown("\n") == r"'\n'"


def test_what_is_required(proofs: Mapping[str, tuple[Proven, Content]]) -> None:
    proven, _ = proofs["digits"]
    whole = Expected(eps=0.05, mean=(0.0,), std=(1.0,), arithmetic="float32", inputs=range(10))
    assert check(proven.path, proven.model.path, expected=whole).indices == "0-9"
    for other in (
        Expected(eps=0.1),
        Expected(mean=(0.1,)),
        Expected(std=(1.0, 1.0)),
        Expected(arithmetic="real"),
        Expected(inputs=range(9)),
        Expected(inputs=range(11)),
        Expected(inputs=()),
    ):
        with pytest.raises(CheckFailedError, match=r"what is required: .* (is|are) .*, not"):
            check(proven.path, proven.model.path, expected=other)
