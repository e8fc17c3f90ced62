"""Every way in which a user can be wrong: exit code, one sentence on stderr, no traceback, nothing half written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.toys import Run, classifier

LONG = ["certify-uap", "harden", "evaluate", "attack-uap"]


def refused(outcome: Any, code: int, *fragments: str) -> None:
    """One line on stderr that holds every fragment, nothing on stdout, the exit code."""
    assert outcome.code == code, outcome
    lines = [line for line in outcome.err.splitlines() if line]
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("citrus: error: ")
    for fragment in fragments:
        assert fragment in lines[0], lines[0]
    assert outcome.out == ""
    assert not Path("runs").exists()


def npz(path: Path, **entries: Any) -> Path:
    fields = {"x": np.random.default_rng(0).random((60, 1, 8, 8)), "y": np.arange(60) % 10}
    np.savez(path, **{**fields, **entries})
    return path


@pytest.mark.parametrize("command", LONG)
def test_not_onnx(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "M.onnx").write_text("no network at all")
    refused(run(command, "M.onnx", "--eps", 0.1, "--quiet"), 3, "M.onnx", "ONNX")


@pytest.mark.parametrize("command", [*LONG, "inspect"])
def test_missing_file(run: Run, command: str) -> None:
    eps = [] if command == "inspect" else ["--eps", "0.1"]
    refused(run(command, "none.onnx", *eps), 3, "none.onnx")


@pytest.mark.parametrize("command", LONG)
def test_unsupported_operator(run: Run, tmp_path: Path, command: str) -> None:
    model = classifier(tmp_path / "M.onnx", operator="Erf")
    refused(run(command, model, "--eps", 0.1, "--quiet"), 3, "M.onnx", "Erf", "act", "opset 13")


def test_inspect_of_an_unsupported_operator_shows_the_rest(run: Run, tmp_path: Path) -> None:
    outcome = run("inspect", classifier(tmp_path / "M.onnx", operator="Erf"))
    assert outcome.code == 3
    assert "Gemm" in outcome.out
    assert "Erf" in outcome.err


@pytest.mark.parametrize("command", LONG)
def test_wrong_input_shape(run: Run, tmp_path: Path, command: str) -> None:
    model = classifier(tmp_path / "M.onnx", shape=(3, 8, 8))
    refused(run(command, model, "--eps", 0.1, "--quiet"), 3, "M.onnx", "(3, 8, 8)", "(1, 8, 8)")


@pytest.mark.parametrize("command", LONG)
def test_wrong_number_of_classes(run: Run, tmp_path: Path, command: str) -> None:
    model = classifier(tmp_path / "M.onnx", classes=7)
    refused(run(command, model, "--eps", 0.1, "--quiet"), 3, "M.onnx has 7 outputs", "digits has 10 classes")


def test_labels_beyond_the_network_s_outputs(run: Run, network: Path, tmp_path: Path) -> None:
    data = npz(tmp_path / "toy.npz", y=np.arange(60) % 12)
    refused(run("certify-uap", network, "--data", data, "--eps", 0.1), 3, "has 10 outputs", "12 classes")


def test_labels_out_of_range(run: Run, network: Path, tmp_path: Path) -> None:
    data = npz(tmp_path / "toy.npz", y=np.arange(60) % 10 - 1)
    refused(run("certify-uap", network, "--data", data, "--eps", 0.1), 3, "toy.npz", "label -1 at index 0")


@pytest.mark.parametrize("command", LONG)
def test_nan_weights(run: Run, tmp_path: Path, command: str) -> None:
    model = classifier(tmp_path / "M.onnx", weight=float("nan"))
    refused(run(command, model, "--eps", 0.1, "--quiet"), 3, "M.onnx", "w1", "NaN")


@pytest.mark.parametrize(("value", "text"), [(1.5, "1.5"), (-0.25, "-0.25"), (np.nan, "nan")])
def test_pixels_outside_the_unit_interval(run: Run, network: Path, tmp_path: Path, value: float, text: str) -> None:
    x = np.zeros((60, 1, 8, 8))
    x[3, 0, 1, 2] = value
    data = npz(tmp_path / "toy.npz", x=x)
    refused(run("certify-uap", network, "--data", data, "--eps", 0.1), 3, "pixel (3, 0, 1, 2)", text, "outside [0, 1]")


@pytest.mark.parametrize("command", [*LONG, "train"])
@pytest.mark.parametrize("eps", ["-0.1", "1.5", "nan", "inf", "a lot", "1/0", "0.1.2"])
def test_eps_is_no_radius(run: Run, network: Path, command: str, eps: str) -> None:
    refused(run(command, network, f"--eps={eps}"), 2, f"eps '{eps}'", "write 0.1 or 2/255")


def test_empty_data(run: Run, network: Path, tmp_path: Path) -> None:
    data = npz(tmp_path / "toy.npz", x=np.zeros((0, 1, 8, 8)), y=np.zeros(0, dtype=int))
    refused(run("certify-uap", network, "--data", data, "--eps", 0.1), 3, "toy.npz: there are no images")


@pytest.mark.parametrize("command", [*LONG, "train"])
def test_missing_data_root(run: Run, network: Path, command: str) -> None:
    outcome = run(command, network, "--eps", 0.1, "--data", "mnist", "--data-root", "nowhere")
    refused(outcome, 3, "mnist was not found (looked in nowhere/MNIST/raw", "torchvision", "--data-root")


def test_unknown_data(run: Run, network: Path) -> None:
    refused(run("certify-uap", network, "--eps", 0.1, "--data", "cifr10"), 2, "'cifr10'", "did you mean cifar10?")


@pytest.mark.parametrize("command", ["harden", "train"])
def test_output_folder_is_not_writable(run: Run, network: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    subject = network if command == "harden" else "convtiny"
    common = [command, subject, "--eps", "0.1", "--epochs", "2", "--quiet"]
    refused(run(*common, "--run-dir", "file/run"), 3, "file/run", "is a file, not a folder")
    refused(run(*common, "--out", "none/H.onnx"), 3, "none/H.onnx", "does not exist")
    refused(run(*common, "--json", "none/H.json"), 3, "none/H.json", "does not exist")
    refused(run(*common, "--json", tmp_path), 3, "is a folder; name a file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("command", ["harden", "train"])
def test_output_folder_without_permission(run: Run, network: Path, tmp_path: Path, command: str) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    subject = network if command == "harden" else "convtiny"
    refused(run(command, subject, "--eps", "0.1", "--run-dir", locked), 3, "locked", "cannot be written to")


def test_certify_outputs_are_checked_first(run: Run, network: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run("certify-uap", network, "--eps", 0.1, "--run-dir", "file"), 3, "is a file, not a folder")
    refused(run("attack-uap", network, "--eps", 0.1, "--save", "none/u.npy"), 3, "none/u.npy", "does not exist")
    refused(run("inspect", network, "--json", "none/i.json"), 3, "none/i.json", "does not exist")


def test_harden_never_overwrites_what_it_reads(run: Run, tmp_path: Path) -> None:
    model = classifier(tmp_path / "M.onnx")
    before = model.read_bytes()
    refused(run("harden", model, "--eps", 0.1, "--out", model), 2, "give the result another name")
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["certfy-uap"], ["'certfy-uap'", "Did you mean 'certify-uap'?"]),
        (["certify-uap", "M.onnx", "--epz", "0.1"], ["--epz", "--eps"]),
        (["certify-uap", "M.onnx"], ["Missing option '--eps'", "citrus certify-uap --help"]),
        (["certify-uap", "M.onnx", "--eps", "0.1", "--solver", "gurobi"], ["'gurobi'", "cbc", "highs"]),
        (["certify-uap", "M.onnx", "--eps", "0.1", "--limit", "0"], ["--limit", "0"]),
        (["certify-uap", "M.onnx", "--eps", "0.1", "--mean", "a,b"], ["'a,b'", "write 0.49,0.48,0.45"]),
        (["train", "convtny"], ["'convtny'", "convtiny"]),
        (["train", "convtiny", "--method", "citrus"], ["method citrus needs", "--eps"]),
        (["harden", "M.onnx", "--eps", "0.1", "--recipe", "digit"], ["'digit'", "digits"]),
    ],
)
def test_usage(run: Run, arguments: list[str], fragments: list[str]) -> None:
    refused(run(*arguments), 2, *fragments)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--method", "citris"], ["'citris'", "'citrus'"]),
        (["--epochs", "2", "--tau-ratio", "0"], ["tau_ratio is 0"]),
        (["--std", "0"], ["std is 0"]),
        (["--mean", "0.1,0.2"], ["mean has 2 values"]),
    ],
)
def test_senseless_settings(run: Run, network: Path, arguments: list[str], fragments: list[str]) -> None:
    refused(run("harden", network, "--eps", 0.1, *arguments, "--limit", 5), 2, *fragments)


def test_config_errors(run: Run, network: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("esp = 0.1")
    refused(run("certify-uap", network, "--config", "c.toml"), 2, "'esp' is not an option", "did you mean eps?")
    (tmp_path / "c.toml").write_text("eps = ")
    refused(run("certify-uap", network, "--config", "c.toml"), 3, "c.toml: is not TOML")
    refused(run("certify-uap", network, "--config", "none.toml"), 3, "none.toml: cannot be read")
    (tmp_path / "c.toml").write_text("eps = -0.1")
    refused(run("certify-uap", network, "--config", "c.toml"), 2, "eps is -0.1", "[0, 1]")


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ('method = "citros"', ("r.toml: method: there is no training method 'citros'", "'citrus'?")),
        ('pretrain = "sobr"\npretrain_epochs = 2', ("r.toml: pretrain: there is no training method 'sobr'", "'sabr'?")),
    ],
)
def test_recipe_file_with_an_unknown_method(
    run: Run, network: Path, tmp_path: Path, line: str, fragments: tuple[str, str]
) -> None:
    (tmp_path / "r.toml").write_text(f'base = "digits"\n{line}')
    refused(run("harden", network, "--data", "digits", "--eps", 0.1, "--recipe", "r.toml"), 2, *fragments)


def test_cuda_that_is_not_there(run: Run, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(run("certify-uap", network, "--eps", 0.1, "--device", "cuda"), 2, "sees no GPU")


@pytest.mark.parametrize(
    ("error", "code", "fragment"),
    [
        (MemoryError(), 3, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), 3, "out of memory"),
        (OSError(28, "No space left on device", "runs/x"), 3, "runs/x: the disk is full"),
        (PermissionError(13, "Permission denied", "runs/x"), 3, "runs/x: Permission denied."),
        (KeyboardInterrupt(), 5, "interrupted"),
    ],
)
def test_the_machine_fails(
    run: Run, network: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, fragment: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("citrus_tool.workflow.certify.certify_file", fail)
    refused(run("certify-uap", network, "--eps", 0.1), code, fragment)


def test_a_bug_is_not_hidden(run: Run, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("citrus_tool.workflow.certify.certify_file", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run("certify-uap", network, "--eps", 0.1)
