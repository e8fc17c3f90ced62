"""Every command on the embedded digits, with tiny budgets: what it prints, writes and leaves alone."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from citrus_tool import __version__
from citrus_tool.certification import chunks
from tests.checker.corruption import Content
from tests.cli.toys import Run, classifier

CERTIFICATE = {
    "model",
    "sha256",
    "data",
    "split",
    "eps",
    "group_size",
    "protocol",
    "arithmetic",
    "inputs",
    "clean_correct",
    "ibp_certified",
    "individually_certified",
    "certified",
    "attacked",
    "certified_uap_accuracy",
    "attacked_uap_accuracy",
    "standard_accuracy",
    "seconds",
    "version",
    "settings",
    "groups",
}
FIGURES = {"standard_accuracy", "ibp_certified_accuracy", "certified_uap_accuracy", "attacked_uap_accuracy"}
TRAINING = ("--epochs", 2, "--groups-per-batch", 40, "--quiet")


def loaded(path: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_version_and_help(run: Run) -> None:
    assert run("--version").out == f"citrus {__version__}\n"
    as_module = [sys.executable, "-m", "citrus_tool", "--version"]
    assert subprocess.run(as_module, capture_output=True, text=True, check=True).stdout == f"citrus {__version__}\n"
    outcome = run("--help")
    assert outcome.code == 0
    order = re.findall(r"^  ([a-z][a-z-]*)  ", outcome.out, re.MULTILINE)
    expected = [
        "demo",
        "inspect",
        "harden",
        "certify-uap",
        "check",
        "attack-uap",
        "evaluate",
        "verify",
        "supports",
        "train",
        "bench",
        "data",
    ]
    assert [name for name in order if name in expected] == expected
    assert run().code == 2


def test_inspect(run: Run, network: Path) -> None:
    outcome = run("inspect", network, "--data", "digits", "--json", "i.json")
    assert outcome.code == 0
    assert "dense1" in outcome.out
    assert "difference from onnxruntime" in outcome.out
    inspection = loaded("i.json")
    assert inspection["supported"]
    assert inspection["trainable_parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert json.loads(run("inspect", network, "--json", "-").out)["operators"]["Gemm"] == 2


def test_certify(run: Run, network: Path) -> None:
    arguments = ("certify-uap", network, "--eps", "1/255", "--limit", 12, "--quiet")
    outcome = run(*arguments, "--json", "c.json")
    assert outcome.code == 0
    assert outcome.err == ""
    certificate = loaded("c.json")
    assert certificate.keys() >= CERTIFICATE
    assert certificate["eps"] == 1 / 255
    assert [len(group["indices"]) for group in certificate["groups"]] == [5, 5, 2]
    assert re.search(rf"certified UAP +{certificate['certified']} ", outcome.out)
    assert certificate == loaded("runs/toy_certify/certificate.json")
    written = ["certificate.json", "journal.jsonl", "settings.toml"]
    assert files() == ["c.json", *(f"runs/toy_certify/{name}" for name in written)]
    resumed = json.loads(run(*arguments, "--resume", "--json", "-").out)
    assert {**resumed, "seconds": 0, "stages": {}} == {**certificate, "seconds": 0, "stages": {}}


def test_settings_of_a_run_repeat_it_and_flags_win(run: Run, network: Path) -> None:
    run("certify-uap", network, "--eps", 0.03, "--limit", 6, "--group-size", 3, "--run-dir", "a", "--quiet")
    settings = tomllib.loads(Path("a/settings.toml").read_text())
    assert settings["eps"] == 0.03
    assert settings["group-size"] == 3
    again = run(
        "certify-uap", network, "--config", "a/settings.toml", "--run-dir", "b", "--limit", 4, "--json", "-", "--quiet"
    )
    certificate = json.loads(again.out)
    assert (certificate["eps"], certificate["group_size"], certificate["inputs"]) == (0.03, 3, 4)


def test_protocol_correct(run: Run, network: Path) -> None:
    arguments = ("--eps", 0, "--limit", 5, "--protocol", "correct", "--bounds", "ibp", "--quiet", "--json", "-")
    certificate = json.loads(run("certify-uap", network, *arguments).out)
    assert certificate["inputs"] == certificate["clean_correct"] <= 5


def test_attack(run: Run, network: Path) -> None:
    arguments = ("attack-uap", network, "--eps", 0.1, "--limit", 7, "--attack-steps", 5, "--quiet")
    outcome = run(*arguments, "--save", "u.npy", "--json", "a.json")
    assert outcome.code == 0
    report = loaded("a.json")
    assert 0 <= report["attacked"] <= report["clean_correct"] <= report["inputs"] == 7
    u = np.load("u.npy")
    assert (u.shape, u.dtype) == ((2, 1, 8, 8), np.float32)
    assert np.abs(u).max() <= 0.1
    whole = json.loads(run(*arguments, "--scope", "dataset", "--save", "all.npy", "--json", "-").out)
    assert whole["groups"] == 1
    assert whole["group_size"] == 7
    assert np.load("all.npy").shape == (1, 1, 8, 8)


def test_attack_counts_what_the_file_says(run: Run, network: Path) -> None:
    """Replays the saved perturbations on onnxruntime with nothing but numpy in between."""
    import onnxruntime

    from citrus_tool.data import load

    outcome = run("attack-uap", network, "--eps", 0.2, "--limit", 7, "--save", "u.npy", "--json", "-", "--quiet")
    data = load("digits", split="test", limit=7)
    x = data.images.numpy() + np.load("u.npy").repeat(5, axis=0)[:7]
    logits = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    assert json.loads(outcome.out)["attacked"] == (logits.argmax(axis=1) == data.labels.numpy()).sum()


def test_certificate_and_check(run: Run, network: Path) -> None:
    limits = ("--limit", 6, "--attack-steps", 5, "--time-limit", 2)
    arguments = ("certify-uap", network, "--eps", "1/255", *limits, "--quiet")
    outcome = run(*arguments, "--bounds", "full", "--certificate", "proof", "--json", "c.json")
    assert outcome.code == 0, outcome.err
    outcome = run("check", "proof", network, "--data", "digits", "--quiet", "--json", "k.json")
    assert outcome.code == 0, outcome.err
    assert "the proof holds" in outcome.out
    checked = loaded("k.json")
    assert checked["holds"]
    assert (checked["certified"], checked["inputs"]) == (loaded("c.json")["certified"], 6)
    about = {"eps": 1 / 255, "arithmetic": "float32", "indices": "0-5", "protocol": "all", "scope": "groups"}
    assert about.items() <= checked.items()
    assert run("check", "proof", network, "--quiet").code == 0
    meant = ("--eps", "1/255", "--mean", "0", "--std", "1", "--inputs", "0-2,3-5", "--arithmetic", "float32")
    assert run("check", "proof", network, *meant, "--quiet").code == 0
    for option, value, words in (
        ("--eps", "2/255", "eps is 0.00392156862745098, not 0.00784313725490196"),
        ("--mean", "0.5", r"mean is (0.0,), not (0.5,)"),
        ("--std", "2", r"std is (1.0,), not (2.0,)"),
        ("--inputs", "0-6", "its inputs are 0-5, not 0-6"),
        ("--arithmetic", "real", "arithmetic is float32, not real"),
    ):
        other = run("check", "proof", network, option, value, "--quiet")
        assert (other.code, words in other.err) == (4, True), other.err
    assert run("check", "proof", network, "--inputs", "3-1", "--quiet").code == 2
    other = run("check", "proof", network, "--data", "digits", "--split", "train", "--quiet")
    assert other.code == 4
    assert "its images or labels are not those of the data set" in other.err
    refused = run(*arguments, "--certificate", "proof2", "--run-dir", "r2")
    assert refused.code == 2
    assert "leave --certificate out" in refused.err
    assert run("check", "missing", network).code == 3


def test_names_in_a_proof_forge_no_rows(run: Run, network: Path) -> None:
    limits = ("--limit", 2, "--attack-steps", 5, "--time-limit", 2)
    assert (
        run("certify-uap", network, "--eps", "0", *limits, "--bounds", "full", "--certificate", "p", "--quiet").code
        == 0
    )
    content = Content.of(Path("p"))
    content.head["data"] = "mnist\n\x1b[2Kinputs    10000\u202e"
    content.write(Path("q"))
    outcome = run("check", "q", network, "--quiet")
    assert outcome.code == 0
    (line,) = (line for line in outcome.out.splitlines() if line.startswith("data"))
    assert line.endswith(r"mnist\n\x1b[2Kinputs    10000\u202e")


def test_clip_and_target(run: Run, network: Path) -> None:
    """Both commands judge the same threat: the clipped input, inputs of other labels than the target."""
    import onnxruntime

    from citrus_tool.data import load

    threat = (network, "--eps", 0.3, "--clip", "--target", 3, "--limit", 7, "--quiet", "--json", "-")
    attacked = json.loads(run("attack-uap", *threat, "--save", "u.npy").out)
    certified = json.loads(run("certify-uap", *threat).out)
    assert attacked["threat"] == certified["threat"] == {"eps": 0.3, "clip": True, "target": 3}
    assert attacked["inputs"] == certified["inputs"] == 7
    assert certified["certified"] <= attacked["attacked"] <= attacked["clean_correct"]
    whole = load("digits", split="test")
    data = whole.select((whole.labels != 3).nonzero().flatten()[:7])
    x = np.clip(data.images.numpy() + np.load("u.npy").repeat(5, axis=0)[:7], 0, 1)
    logits = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    others = np.delete(logits, 3, axis=1).max(axis=1)
    assert attacked["attacked"] == (logits[:, 3] < others).sum()  # a tie is driven
    outcome = run("attack-uap", network, "--eps", 0.3, "--target", 10)
    assert outcome.code == 2
    assert "target is 10; the network has 10 classes, choose one of 0 to 9" in outcome.err


def test_certify_in_parts(run: Run, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_INPUTS", 10)
    line = ("certify-uap", network, "--eps", 0.02, "--limit", 30, "--attack-steps", 2, "--quiet")
    assert run(*line, "--json", "whole.json", "--run-dir", "W").code == 0
    assert run(*line, "--part", "1/2", "--json", "one.json").code == 0
    assert run(*line, "--part", "2/2", "--run-dir", "two").code == 0
    assert "part = [2, 2]" in Path("two/settings.toml").read_text()
    outcome = run(
        *line, "--join", "runs/toy_certify_1_of_2", "--join", "two", "--json", "all.json", "--report", "r.html"
    )
    assert (outcome.code, outcome.err) == (0, "")
    counts = ("inputs", "clean_correct", "ibp_certified", "individually_certified", "certified", "attacked", "examined")
    whole, joined = loaded("whole.json"), loaded("all.json")
    assert {name: joined[name] for name in counts} == {name: whole[name] for name in counts}
    assert loaded("one.json")["inputs"] == 20
    assert run("report", "two", "--quiet").code == 0
    assert "'3/2' is no part; write I/N" in run(*line, "--part", "3/2").err
    assert run(*line[:3], "0.01,0.02", "--part", "1/2").code == 2
    assert run(*line, "--part", "1/9", "--run-dir", "P").code == 2


@pytest.mark.parametrize("arithmetic", ["float32", "real"])
@pytest.mark.parametrize("command", ["certify-uap", "attack-uap", "evaluate", "harden"])
def test_results_name_their_arithmetic(command: str, arithmetic: str, run: Run, network: Path) -> None:
    more = {"attack-uap": ("--attack-steps", 2), "harden": TRAINING, "evaluate": ("--pgd-steps", 2)}.get(command, ())
    chosen = () if arithmetic == "float32" else ("--arithmetic", arithmetic)
    outcome = run(
        command, network, "--data", "digits", "--eps", 0.01, "--limit", 10, *more, *chosen, "--json", "r.json"
    )
    assert outcome.code == 0
    assert f"({arithmetic})" in outcome.out.splitlines()[0]
    found = loaded("r.json")
    assert found["arithmetic"] == arithmetic
    kept = found if command == "certify-uap" else found.get("certificate", {"settings": {"arithmetic": arithmetic}})
    assert kept["settings"]["arithmetic"] == arithmetic


def test_evaluate(run: Run, network: Path) -> None:
    outcome = run("evaluate", network, "--eps", 0.02, "--limit", 10, "--pgd-steps", 3, "--quiet", "--json", "e.json")
    assert outcome.code == 0
    found = loaded("e.json")
    assert found.keys() >= FIGURES | {"pgd_accuracy"}
    assert found["inputs"] == 10
    assert found["ibp_certified_accuracy"] <= found["certified_uap_accuracy"] <= found["attacked_uap_accuracy"]
    assert "PGD (one input each)" in outcome.out
    assert not Path("runs").exists()


def test_harden(run: Run, tmp_path: Path) -> None:
    model = classifier(tmp_path / "M.onnx")
    before = model.read_bytes()
    arguments = ("harden", "M.onnx", "--eps", 0.05, "--limit", 10, *TRAINING, "--seed", 3)
    outcome = run(*arguments, "--json", "h.json")
    assert outcome.code == 0, outcome.err
    report = loaded("h.json")
    assert {"model", "out", "method", "eps", "epochs", "seconds", "history", "before", "after"} <= report.keys()
    assert report["before"].keys() == report["after"].keys() == FIGURES
    assert report["before"] != report["after"]
    assert [entry["epoch"] for entry in report["history"]] == [1, 2]
    assert report["recipe"]["seed"] == 3
    assert re.search(r"standard +\d+\.\d\d +\d+\.\d\d", outcome.out)
    assert report == loaded("runs/M_citrus/report.json")
    assert model.read_bytes() == before
    written = onnx.load(report["out"])
    assert [node.op_type for node in written.graph.node] == ["Flatten", "Gemm", "Relu", "Gemm"]
    assert {entry.key: entry.value for entry in written.metadata_props} == {
        "citrus_version": __version__,
        "method": "citrus",
        "eps": "0.05",
        "tau": repr(report["recipe"]["tau_ratio"] * 0.05),
        "group_size": "5",
        "epochs": "2",
        "seed": "3",
        "data": "digits",
    }
    again = run(*arguments)
    assert again.code == 2
    assert "already holds a run; add --resume" in again.err
    resumed = run(*arguments, "--resume", "--json", "-")
    assert json.loads(resumed.out)["after"] == report["after"]


def test_train(run: Run) -> None:
    outcome = run("train", "mlp", *TRAINING, "--out", "M.onnx", "--json", "t.json")
    assert outcome.code == 0, outcome.err
    report = loaded("t.json")
    assert report["method"] == "standard"
    assert report["epochs"] == 2
    assert run("inspect", "M.onnx", "--data", "digits").code == 0
    same = json.loads(run("train", "mlp", *TRAINING, "--run-dir", "r", "--json", "-").out)
    assert same["standard_accuracy"] == report["standard_accuracy"]
    assert Path(same["out"]).read_bytes() == Path("M.onnx").read_bytes()


def test_training_on_the_validation_split_too(run: Run, network: Path) -> None:
    arguments = ("harden", network, "--eps", 0.05, "--limit", 10, *TRAINING, "--train-on", "all")
    outcome = run(*arguments, "--report", "h.html", "--json", "h.json")
    assert outcome.code == 0, outcome.err
    report = loaded("h.json")
    assert (report["recipe"]["train_on"], report["best_epoch"]) == ("all", 2)
    assert all(entry["validation_standard_accuracy"] is None for entry in report["history"])
    written = onnx.load(report["out"])
    assert {entry.key: entry.value for entry in written.metadata_props}["train_on"] == "all"
    page = Path("h.html").read_text()
    assert "the last one, since training had the validation split too" in page
    assert "chosen on a validation split" not in page
    assert "Accuracies on the validation split" not in page
    assert run("train", "mlp", *TRAINING, "--train-on", "all", "--json", "t.json").code == 0
    assert loaded("t.json")["best_epoch"] == 2
    refused = run(*arguments[:-1], "most", "--run-dir", "r")
    assert refused.code == 2
    assert "'most' is not one of 'train', 'all'" in refused.err


def test_an_interrupted_run_is_resumed(run: Run, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from citrus_tool.errors import InterruptedRunError
    from citrus_tool.training import trainer

    def stop(*_: object, **__: object) -> None:
        raise InterruptedRunError("stopped in epoch 1; continue with --resume.")

    arguments = ("harden", network, "--eps", 0.05, "--limit", 5, *TRAINING)
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "fit", stop)
        outcome = run(*arguments)
    assert outcome.code == 5
    assert outcome.err == "citrus: error: stopped in epoch 1; continue with --resume.\n"
    assert files() == ["runs/toy_citrus/before.jsonl", "runs/toy_citrus/settings.toml"]
    assert run(*arguments, "--resume").code == 0


@pytest.mark.parametrize("ignored", [False, True])
def test_sigterm_saves_the_state_as_ctrl_c_does(
    run: Run, network: Path, monkeypatch: pytest.MonkeyPatch, ignored: bool
) -> None:
    """Also in a process that a shell has put into the background, where SIGINT is ignored."""
    from citrus_tool.training import trainer

    arguments = ("harden", network, "--eps", 0.05, "--limit", 5, *TRAINING)
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "estimate", lambda *_: signal.raise_signal(signal.SIGTERM))
        try:
            if ignored:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            outcome = run(*arguments)
        finally:
            signal.signal(signal.SIGINT, before)
    assert outcome.code == 5
    assert "training stopped in epoch" in outcome.err
    assert "--resume" in outcome.err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert run(*arguments, "--resume").code == 0


def test_sigterm_between_stages_is_one_sentence(run: Run, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "citrus_tool.workflow.certify.certify_uap", lambda *_, **__: signal.raise_signal(signal.SIGTERM)
    )
    outcome = run("certify-uap", network, "--eps", 0.1)
    assert outcome.code == 5
    assert outcome.err.endswith("citrus: error: interrupted.\n")
    assert "Traceback" not in outcome.err


def test_a_check_that_fails_exits_4(run: Run, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from citrus_tool.errors import SoundnessError

    def fail(*_: object, **__: object) -> None:
        raise SoundnessError("group 0: certified count 3 lies above attacked count 2.")

    monkeypatch.setattr("citrus_tool.workflow.certify.certify_uap", fail)
    assert run("certify-uap", network, "--eps", 0.1).code == 4


def test_npz_and_folder(run: Run, network: Path, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (40, 1, 8, 8), dtype=np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "toy.npz", x=x, y=y)
    for image, label in zip(x, y, strict=True):
        folder = tmp_path / "images" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / f"{len(list(folder.iterdir()))}.png")
    found = [
        json.loads(run("certify-uap", network, "--data", data, "--eps", 0.01, "--quiet", "--json", "-").out)
        for data in ("toy.npz", "images")
    ]
    assert found[0]["inputs"] == found[1]["inputs"] == 10


def test_data_list(run: Run) -> None:
    outcome = run("data", "list", "--data-root", "nowhere", "--json", "d.json")
    assert outcome.code == 0
    assert re.search(r"^digits +embedded$", outcome.out, re.MULTILINE)
    assert re.search(r"^mnist +missing: on a machine with internet run", outcome.out, re.MULTILINE)
    entries = {entry["name"]: entry for entry in loaded("d.json")["data"]}
    assert entries["digits"]["there"]
    assert entries["mnist"] == {**entries["mnist"], "there": False, "found": None, "searched": ["nowhere"]}


def test_data_prepare(run: Run) -> None:
    outcome = run("data", "prepare", "digits")
    assert [line.split()[:4] for line in outcome.out.splitlines()[1:]] == [
        ["train", "1078", "1x8x8", "10"],
        ["validation", "360", "1x8x8", "10"],
        ["test", "359", "1x8x8", "10"],
    ]


@pytest.mark.parametrize("seconds", [0.0, 25.0])
def test_progress_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Without a terminal: a line about every ten seconds with rate and time left, none for what is quick."""
    from citrus_tool.cli import terminal

    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    lines = terminal.PlainLines()
    lines.start("groups", 50, "groups")
    for _ in range(25):
        now += seconds / 25
        lines.advance(1, "certified 90.0 %")
    lines.finish()
    printed = capsys.readouterr().err.splitlines()
    if seconds == 0.0:
        assert printed == []
    else:
        assert len(printed) == 3
        assert printed[0] == "groups: 10/50 groups in 0:10, 1/s, 0:40 left, certified 90.0 %"


def test_progress_bars_write_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    from citrus_tool.cli import drawn

    bars = drawn.Bars()
    bars.advance(1)  # before any stage: nothing to draw
    bars.start("groups", 3, "groups")
    bars.advance(2, "certified 90.0 %")
    bars.start("attack", None, "groups")
    bars.advance(1)
    bars.finish()
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_demo(run: Run) -> None:
    """The promise of the demo: from near 0 to above 70 % certified, at most 5 points of standard accuracy lost."""
    outcome = run("demo", "--json", "d.json", "--quiet")
    assert outcome.code == 0
    report = loaded("d.json")
    before, after = report["before"], report["after"]
    assert before["certified_uap_accuracy"] < 5
    assert after["certified_uap_accuracy"] > 70
    assert before["standard_accuracy"] - after["standard_accuracy"] <= 5
    assert run("demo", "--help").code == 0


def test_harden_with_batch_norm_keeps_the_files_graph(run: Run, network: Path) -> None:
    outcome = run("harden", network, "--eps", 0.05, "--batch-norm", "--out", "h.onnx", "--limit", 5, *TRAINING)
    assert outcome.code == 0, outcome.err
    before, after = onnx.load(network).graph, onnx.load("h.onnx").graph
    assert [node.op_type for node in after.node] == [node.op_type for node in before.node]
    weights = [{tensor.name: tensor.raw_data for tensor in graph.initializer} for graph in (before, after)]
    assert weights[0].keys() == weights[1].keys()
    assert weights[0]["w1"] != weights[1]["w1"]
