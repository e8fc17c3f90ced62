"""The folder in which a group's command lines run: shipped networks, queries, old files and wrong ones."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import citrus_tool

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OLD = HERE / "old"
OLD_VERSION = "0.2.0"
"""The version that wrote the journals in old/."""


def prepare(folder: Path) -> None:
    """Fills the working folder; everything in it is addressed by relative paths."""
    shutil.copytree(ROOT / "models", folder / "models")
    shutil.copytree(ROOT / "vnnlib", folder / "vnnlib", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    few = ["digits_test_170_eps_0.02", "digits_test_341_eps_0.05"]
    lines = [f"../models/digits_convtiny.onnx,{name}.vnnlib,600\n" for name in few]
    (folder / "vnnlib" / "few.csv").write_text("".join(lines))
    (folder / "home").mkdir()
    for script in ("public.py", "surface.py"):
        shutil.copy(HERE / script, folder / script)
    wrong(folder / "files")
    if (OLD / "digits.proof").is_file():
        shutil.copytree(OLD, folder / "old")
        proofs(folder / "old" / "digits.proof", folder / "files")
        journals(folder)


def wrong(folder: Path) -> None:
    """Files that commands must refuse, and a recipe that they take."""
    folder.mkdir()
    texts = {
        "text.onnx": "no network at all",
        "text.npz": "no arrays at all",
        "bad.toml": "eps = ",
        "unknown.toml": "esp = 0.1",
        "range.toml": "eps = -0.1",
        "type.toml": 'eps = 0.1\nlimit = "many"',
        "recipe.toml": 'base = "digits"\nmethod = "sabr"\ntau_ratio = 0.4',
        "recipe_unknown.toml": 'base = "digits"\nlearning_rate = 0.1',
        "recipe_method.toml": 'base = "digits"\nmethod = "citros"',
        "recipe_value.toml": 'base = "digits"\nlr = "fast"',
        "bad.vnnlib": "(declare-const X_0 Real)\n(assert (<= X_0 0.5)",
        "empty.vnnlib": "",
        "other.vnnlib": "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n(assert (>= X_0 0.1))\n"
        "(assert (<= X_0 0.2))\n(assert (>= Y_0 0.0))\n",
        "bad.csv": "a,b\n",
        "bad.jsonl": "not json\n",
        "bad.json": "{}",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    x, y = np.random.default_rng(0).random((60, 1, 8, 8)), np.arange(60) % 10
    outside = x.copy()
    outside[3, 0, 1, 2] = 1.5
    np.savez(folder / "empty.npz", x=x[:0], y=y[:0])
    np.savez(folder / "range.npz", x=outside, y=y)
    np.savez(folder / "labels.npz", x=x, y=np.arange(60) % 12)
    np.savez(folder / "negative.npz", x=x, y=y - 1)
    np.savez(folder / "keys.npz", images=x, labels=y)
    network(folder / "erf.onnx", operator="Erf")
    network(folder / "wide.onnx", channels=3)
    network(folder / "seven.onnx", classes=7)
    network(folder / "nan.onnx", fill=float("nan"))
    network(folder / "two_inputs.onnx", inputs=2)


def network(
    path: Path, *, operator: str = "Relu", channels: int = 1, classes: int = 10, fill: float = 0.01, inputs: int = 1
) -> None:
    """Writes Flatten, Gemm, `operator`, Gemm for digits."""
    size = channels * 64
    weights = [np.full((size, 8), fill, np.float32), np.full((8, classes), 0.01, np.float32)]
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "w1"], ["hidden"], name="first"),
        helper.make_node(operator, ["hidden"], ["active"], name="act"),
        helper.make_node("MatMul", ["active", "w2"], ["y"], name="last"),
    ]
    names = ["x", "second"][:inputs]
    graph = helper.make_graph(
        nodes,
        "wrong",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, 8, 8]) for name in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(array, f"w{place}") for place, array in enumerate(weights, start=1)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def proofs(source: Path, folder: Path) -> None:
    """Proofs that do not hold: a changed byte in a group, a page that claims more, a group that is gone."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    group = next(name for name in members if name.startswith("groups/"))
    damaged = bytearray(members[group])
    damaged[len(damaged) // 2] ^= 255
    page = json.loads(members["certificate.json"])
    page["certified"] += 1
    _zip(folder / "damaged.proof", {**members, group: bytes(damaged)})
    _zip(folder / "claims.proof", {**members, "certificate.json": json.dumps(page).encode()})
    _zip(folder / "missing.proof", {name: content for name, content in members.items() if name != group})


def _zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def old_journal(name: str) -> list[str]:
    """The lines of an old journal, as if this version had begun it."""
    text = (OLD / name).read_text()
    return text.replace(f'"version": "{OLD_VERSION}"', f'"version": "{citrus_tool.__version__}"').splitlines(True)


def journals(folder: Path) -> None:
    """Run folders that hold an old journal, whole, cut after half of its groups, or damaged."""
    lines = old_journal("journal.jsonl")
    half, short = lines[:3], old_journal("journal_dataset.jsonl")[:3]
    header = json.loads(lines[0])
    aged = json.dumps({**header, "run": {**header["run"], "version": "0.0.1"}}) + "\n"
    proven = json.dumps({**header, "run": {**header["run"], "prover": 2}}) + "\n"
    moved = json.dumps({**json.loads(lines[1]), "indices": [1, 2, 3, 4, 5]}) + "\n"
    contents = {
        "resumed": half,
        "resumed_dataset": short,
        "finished": lines,
        "unfinished": half,
        "other_seed": half,
        "other_version": [aged, *half[1:]],
        "other_prover": [proven, *half[1:]],
        "damaged": [*half[:1], '{"index": 0}\n', *half[2:]],
        "torn": [*half, lines[3][:40]],
        "no_journal": ["[1, 2]\n"],
        "other_groups": [half[0], moved],
    }
    for name, content in contents.items():
        (folder / name).mkdir()
        (folder / name / "journal.jsonl").write_text("".join(content))
