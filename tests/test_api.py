"""The Python API: the same answers as the command line, on files, torch modules and arrays; tables; names."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import inspect
import typing
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import citrus_tool as citrus
from citrus_tool import api, onnx_io
from citrus_tool.cli import main
from citrus_tool.errors import DataError, InputFileError, UnsupportedNetworkError, UsageError
from citrus_tool.queries import Spec, parse
from citrus_tool.queries.verify import Verdict
from citrus_tool.tables import Table
from tests.cli.toys import classifier

# the toy network is not trained, and says so
pytestmark = pytest.mark.filterwarnings("ignore::citrus_tool.errors.AccuracyWarning")

QUICK = citrus.CertifySettings(limit=10, attack_steps=2, attack_restarts=1)


class Residual(nn.Module):
    """What users bring: normalisation inside, batch norm, dropout, a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first((x - 0.5) / 0.25))
        x = torch.relu(x + self.norm(self.second(x)))
        logits: torch.Tensor = self.last(self.drop(x.flatten(1)))
        return logits


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("models") / "toy.onnx")


@pytest.fixture(scope="module")
def model(toy: Path) -> citrus.Model:
    return citrus.load(toy, input_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    data = citrus.load_data("digits", split="test")
    return data.images.numpy(), data.labels.numpy()


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(None, None), ((0.3,), (0.5,))])
def test_a_module_is_read_as_it_computes(mean: tuple[float] | None, std: tuple[float] | None) -> None:
    torch.manual_seed(0)
    module = Residual().train()
    module.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    loaded = citrus.load(module, input_shape=(1, 8, 8), mean=mean, std=std)
    assert module.training
    x = torch.rand(7, 1, 8, 8)
    with torch.no_grad():
        expected = module.eval()(x if mean is None or std is None else (x - mean[0]) / std[0])
        inside = loaded.network(x)
    np.testing.assert_allclose(loaded.logits(x), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(inside.numpy(), expected.numpy(), atol=1e-5)
    assert (loaded.input_shape, loaded.num_classes, str(loaded.path)) == ((1, 8, 8), 10, "<Residual>")


def test_loading_a_module_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Torch's words about its exporters are not the user's concern (onnx_io/torch_module.py)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        citrus.load(Residual(), input_shape=(1, 8, 8))
    assert capfd.readouterr() == ("", "")


def test_uint8_is_scaled(model: citrus.Model) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    np.testing.assert_allclose(model.logits(x), model.logits((x / 255).astype(np.float32)), atol=1e-6)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(1), x.flatten(1)


@pytest.mark.parametrize(
    ("network", "shape", "error", "message"),
    [
        (nn.Flatten(), None, UsageError, r"does not know its input; give input_shape=\(C, H, W\)"),
        (nn.Flatten(), (1, 0, 8), UsageError, r"input_shape is \(1, 0, 8\); give the sizes of one input"),
        (nn.Linear(5, 2), (7,), UnsupportedNetworkError, r"module Linear: cannot be exported .* check input_shape"),
        (nn.ReLU(), (1, 8, 8), UnsupportedNetworkError, r"module ReLU: gives \(2, 1, 8, 8\) for 2 inputs"),
        (Pair(), (1, 8, 8), UnsupportedNetworkError, r"module Pair: gives tuple for 2 inputs"),
        ("absent.onnx", None, InputFileError, r"absent.onnx: no such file"),
    ],
)
def test_what_cannot_be_loaded(
    network: nn.Module | str, shape: tuple[int, ...] | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        citrus.load(network, input_shape=shape)


def test_data_settles_a_flat_input(toy: Path, tmp_path: Path, digits: tuple[Any, Any]) -> None:
    flat = citrus.load(nn.Sequential(nn.Linear(64, 10)), input_shape=(64,))
    assert flat.certify(digits, eps=0.01, limit=5).inputs == 5


# --- the same answers as the command line -----------------------------------------------------------------------------


def plain(certificate: Mapping[str, Any]) -> dict[str, Any]:
    groups = [{k: v for k, v in group.items() if k != "seconds"} for group in certificate["groups"]]
    return {k: v for k, v in certificate.items() if k not in ("seconds", "stages")} | {"groups": groups}


def test_certify_is_certify_uap(toy: Path, model: citrus.Model, tmp_path: Path) -> None:
    import json

    out = tmp_path / "c.json"
    line = f"certify-uap {toy} --eps 0.02 --limit 20 --group-size 4 --attack-steps 3 --quiet --json {out}"
    assert main([*line.split(), "--run-dir", str(tmp_path / "run")]) == 0
    found = citrus.certify(model, "digits", eps=0.02, limit=20, group_size=4, attack_steps=3)
    assert plain(found.to_json()) == plain(json.loads(out.read_text()))


def test_parts_are_joined(model: citrus.Model, tmp_path: Path) -> None:
    certify = partial(model.certify, "digits", eps=0.02, bounds="alpha", limit=150, attack_steps=2, attack_restarts=1)
    whole, part = certify(), certify(part=(1, 2), run_dir=tmp_path / "part")
    assert (part.inputs, whole.inputs) == (100, 150)
    joined = certify(run_dir=tmp_path / "joined", join=[tmp_path / "part"])
    assert plain(joined.to_json()) == plain(whole.to_json())


def test_arrays_tensors_and_data_sets_are_one(model: citrus.Model, digits: tuple[Any, Any]) -> None:
    x, y = digits
    kinds: list[Any] = [(x, y), (torch.from_numpy(x), torch.from_numpy(y)), citrus.Dataset.from_arrays(x, y)]
    found = [plain(model.certify(kind, eps=0.02, limit=10, attack_steps=2).to_json()) for kind in (*kinds, "digits")]
    for other in found[1:]:
        assert {**other, "data": "arrays"} == found[0]


def test_attack_and_evaluate(model: citrus.Model, digits: tuple[Any, Any]) -> None:
    report = model.attack(digits, eps=0.3, group_size=4, limit=10, steps=3, restarts=1)
    assert report.perturbations.shape == (3, 1, 8, 8)
    assert float(report.perturbations.abs().max()) <= 0.3 + 1e-7
    assert report.attacked <= report.correct <= report.inputs == 10
    figures = model.evaluate(digits, eps=0.3, limit=10, pgd_steps=2).figures
    assert figures.certified_uap_accuracy <= figures.attacked_uap_accuracy


@pytest.mark.parametrize("data", [3, ("digits",), None])
def test_what_is_no_data(model: citrus.Model, data: Any) -> None:
    with pytest.raises(UsageError, match=r"data is a \w+.*; give a Dataset, a name such as 'digits'"):
        model.certify(data, eps=0.1)


def test_arrays_of_another_network(model: citrus.Model) -> None:
    with pytest.raises(InputFileError, match=r"takes inputs of shape \(1, 8, 8\), the data has \(3, 4, 4\)"):
        model.certify((np.zeros((2, 3, 4, 4), np.uint8), [0, 1]), eps=0.1)


def test_progress_is_told(model: citrus.Model) -> None:
    steps: list[citrus.Step] = []
    model.certify("digits", eps=0.02, limit=10, attack_steps=2, on_progress=steps.append)
    groups = [step for step in steps if step.stage == "groups"]
    assert (groups[0].done, groups[-1].done, groups[-1].total, groups[-1].unit) == (0, 2, 2, "groups")


def test_certify_options_are_the_settings() -> None:
    assert typing.get_type_hints(api.CertifyOptions) == typing.get_type_hints(citrus.CertifySettings)


# --- hardening --------------------------------------------------------------------------------------------------------


def test_harden_in_memory(model: citrus.Model, digits: tuple[Any, Any], tmp_path: Path) -> None:
    entries: list[Mapping[str, Any]] = []
    steps: list[citrus.Step] = []
    hardened = model.harden(
        digits, eps=0.02, epochs=2, recipe="digits", certify=QUICK, on_epoch=entries.append, on_progress=steps.append
    )
    assert [entry["epoch"] for entry in entries] == [1, 2]
    assert [dict(e) for e in entries] == [dict(e) for e in hardened.history]
    assert {"groups", "standard accuracy"} <= {step.stage for step in steps}
    assert hardened.report.to_json()["out"] == "toy_citrus.onnx"
    assert not any(Path.cwd().glob("toy_citrus*"))
    new, old = hardened.model.source.proto.graph, model.source.proto.graph
    assert [node.op_type for node in new.node] == [node.op_type for node in old.node]
    assert hardened.model.sha256 != model.sha256
    path = hardened.model.save(tmp_path / "h.onnx")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == hardened.model.sha256
    np.testing.assert_array_equal(citrus.load(path).logits(digits[0]), hardened.model.logits(digits[0]))
    assert (hardened.before, hardened.after) == (hardened.report.before, hardened.report.after)


def test_harden_for_properties(tmp_path: Path) -> None:
    """As `harden --spec`, of a network that lies in no file; PGD from its own weights is enough here."""
    folder = Path(__file__).resolve().parents[1]
    files = [folder / "vnnlib" / f"digits_test_170_eps_{eps}.vnnlib" for eps in ("0.02", "0.05")]
    known = citrus.load(folder / "models" / "digits_convtiny.onnx", input_shape=(1, 8, 8))
    loose = dataclasses.replace(known, source=dataclasses.replace(known.source, path=Path("<memory>")))
    hardened = loose.harden("digits", spec=files, method="pgd", epochs=6, certify=QUICK)
    assert hardened.report.recipe.eps == pytest.approx(0.05)
    assert [(entry.file, entry.before, entry.after) for entry in hardened.report.spec] == [
        (file, "sat", "unsat") for file in files
    ]
    one = known.harden("digits", eps=0.01, spec=files[0], spec_timeout=5, method="pgd", epochs=1, certify=QUICK)
    assert (one.report.recipe.eps, len(one.report.spec)) == (0.01, 1)


def test_harden_a_module_with_splits_into_a_folder(tmp_path: Path) -> None:
    data = citrus.Splits(
        train=citrus.load_data("digits", split="train", limit=50),
        validation=citrus.load_data("digits", split="validation", limit=20),
        test=citrus.load_data("digits", split="test", limit=20),
    )
    recipe = citrus.Recipe(eps=0.5, tau_ratio=0.5, epochs=4, warmup_epochs=0, ramp_epochs=1, pgd_steps=1, method="ibp")
    net = citrus.load(Residual(), input_shape=(1, 8, 8))
    hardened = citrus.harden(
        net, data, eps=0.01, recipe=recipe, epochs=2, certify=QUICK, out=tmp_path / "h.onnx", run_dir=tmp_path / "run"
    )
    used = hardened.report.recipe
    assert (used.eps, used.epochs, used.method, used.tau_ratio) == (0.01, 2, "ibp", 0.5)
    assert {"report.json", "before.jsonl", "after.jsonl"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert citrus.load(tmp_path / "h.onnx").sha256 == hardened.model.sha256


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.harden(citrus.load_data("digits", split="test"), eps=0.1), "needs training, validation and test"),
        (lambda m: m.harden("digits"), "give eps, e.g. eps=0.1, or spec"),
        (lambda m: m.harden("digits", eps=0.1, resume=True), "resume needs the run_dir"),
        (lambda m: m.certify("digits", eps=0.1, resume=True), "resume needs the run_dir"),
        (lambda m: m.certify("digits", eps=0.1, join=["run"]), "join needs the run_dir"),
        (lambda m: m.harden("digits", eps=0.1, method="citrsu"), "Did you mean 'citrus'"),
        (lambda m: m.certify("digits", eps=1.5), r"eps is 1.5; it must lie in \[0, 1\]"),
    ],
)
def test_senseless_calls(model: citrus.Model, call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(model)


def test_splits_of_two_data_sets(digits: tuple[Any, Any]) -> None:
    whole = citrus.Splits.of(citrus.Dataset.from_arrays(*digits))
    assert sum(len(whole.load(split)) for split in ("train", "validation", "test")) == len(digits[0])
    other = citrus.Dataset.from_arrays(np.zeros((2, 3, 4, 4), np.uint8), [0, 9])
    with pytest.raises(DataError, match="give splits of one data set"):
        citrus.Splits(train=whole.train, validation=other, test=whole.test)


# --- saving -----------------------------------------------------------------------------------------------------------


def test_save_keeps_the_bytes_and_packs_on_request(model: citrus.Model, toy: Path, tmp_path: Path) -> None:
    assert model.save(tmp_path / "same.onnx").read_bytes() == toy.read_bytes()
    packed = citrus.load(model.save(tmp_path / "packed.onnx.gz"))
    assert packed.path.read_bytes()[:2] == b"\x1f\x8b"
    x = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(packed.logits(x), model.logits(x))
    assert citrus.load(packed.save(tmp_path / "again.onnx")).path.read_bytes()[:2] != b"\x1f\x8b"
    with pytest.raises(InputFileError, match="cannot be written"):
        model.save(tmp_path / "absent" / "m.onnx")


def test_save_embeds_weights_that_lay_beside_the_file(model: citrus.Model, toy: Path, tmp_path: Path) -> None:
    import onnx

    folder = tmp_path / "two"
    folder.mkdir()
    onnx.save(onnx.load(toy), folder / "m.onnx", save_as_external_data=True, size_threshold=0)
    loaded = citrus.load(folder / "m.onnx")
    alone = citrus.load(loaded.save(tmp_path / "one.onnx"))
    x = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(alone.logits(x), model.logits(x))


# --- queries ----------------------------------------------------------------------------------------------------------


def test_exported_queries_are_answered(model: citrus.Model, tmp_path: Path) -> None:
    data = citrus.load_data("digits", split="test")
    correct = np.flatnonzero(model.logits(data.images).argmax(1) == data.labels.numpy())[:2]
    pair = data.select(torch.from_numpy(correct))
    for eps, verdict in ((1e-5, Verdict.UNSAT), (1.0, Verdict.SAT)):
        files = model.export_query(pair, eps=eps, folder=tmp_path / str(eps))
        for answer in (
            citrus.verify(files.query, model),
            citrus.verify(files.query, {"f1": model}),
            citrus.verify(files.property, citrus.load(files.product), seconds=60),
        ):
            assert answer.verdict is verdict
            assert verdict.value in repr(answer)
            assert (answer.witness is not None) == (verdict is Verdict.SAT)


def test_names_of_a_query(model: citrus.Model) -> None:
    query: Spec = parse(
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= Y_0 0))"
    )
    with pytest.raises(UsageError, match="the query declares no network 'g'"):
        citrus.verify(query, {"g": model})


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_of_results_in_memory(model: citrus.Model, digits: tuple[Any, Any], tmp_path: Path) -> None:
    certificate = model.certify("digits", eps=0.02, limit=5, attack_steps=2)
    page = tmp_path / "report.html"
    assert citrus.report(certificate, out=page, models=[model]) == ()
    assert certificate.sha256[:12] in page.read_text()
    arrays = model.certify(digits, eps=0.02, limit=5, attack_steps=2)
    missing = citrus.report(arrays, out=page, models=[model])
    assert any("arrays" in reason for reason in missing)


# --- what objects show ------------------------------------------------------------------------------------------------


def test_objects_show_themselves_as_tables(model: citrus.Model, digits: tuple[Any, Any]) -> None:
    certificate = model.certify(digits, eps=0.02, limit=10, attack_steps=2)
    counts = {
        "clean correct": certificate.clean_correct,
        "IBP certified": certificate.ibp_certified,
        "individually certified": certificate.individually_certified,
        "certified UAP": certificate.certified,
        "attacked UAP": certificate.attacked,
    }
    shown = repr(certificate).splitlines()
    assert shown[0] == "x + u, |u| <= 0.02; arrays (test), groups of 5"
    for line, (name, count) in zip(shown[2:], counts.items(), strict=True):
        assert line.split()[-2:] == [str(count), f"{10 * count:.2f}"]
        assert line.startswith(name)
    page = certificate._repr_html_()
    assert page.count("<tr>") == 6
    assert "|u| &lt;= 0.02" in page
    assert "1 x 8 x 8" in repr(model)
    assert "359" in repr(citrus.load_data("digits", split="test"))


def test_a_table_escapes_and_aligns() -> None:
    table = Table(title="<t>", columns=["name", "value"], rows=[["<b>", "1"], ["longer", "10.5"]])
    assert table.lines() == ["name    value", "<b>         1", "longer   10.5"]
    assert "<b>" not in table.html()
    assert "&lt;b&gt;" in table.html()
    assert table.html().count("text-align:right") == 3


# --- the names --------------------------------------------------------------------------------------------------------


def test_no_folder_or_module_has_the_name_of_a_public_function() -> None:
    functions = [name for name in citrus.__all__ if inspect.isfunction(getattr(citrus, name))]
    assert {"certify", "harden", "attack", "evaluate"} <= set(functions)
    assert [name for name in functions if importlib.util.find_spec(f"citrus_tool.{name}")] == []
    assert onnx_io.read is citrus.read


PUBLIC = [name for name in citrus.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented_and_typed(name: str) -> None:
    thing = getattr(citrus, name)
    assert inspect.getdoc(thing), name
    functions = [thing] if inspect.isfunction(thing) else []
    if inspect.isclass(thing):
        functions = [
            value.__func__ if isinstance(value, staticmethod) else value
            for key, value in vars(thing).items()
            if not key.startswith("_") and (inspect.isfunction(value) or isinstance(value, staticmethod))
        ]
    for function in functions:
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
        assert all(p.annotation is not inspect.Parameter.empty for p in parameters), function
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty, function


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isfunction(getattr(citrus, name))])
def test_every_public_function_says_what_it_raises(name: str) -> None:
    text = inspect.getdoc(getattr(citrus, name)) or ""
    assert "Raises" in text or "raises" in text.lower()


@pytest.mark.parametrize("name", sorted(n for n in vars(citrus.Model) if not n.startswith("_")))
def test_every_member_of_model_is_documented(name: str) -> None:
    member = vars(citrus.Model)[name]
    if callable(member) or isinstance(member, property):
        assert inspect.getdoc(member)
