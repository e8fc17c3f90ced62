"""Training curves reach the trackers by their own libraries, and only the chosen one is loaded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from citrus_tool.cli import main
from citrus_tool.errors import UsageError
from citrus_tool.training.tracking import numbers, tracking
from tests.cli.toys import classifier

ENTRY = {"epoch": 3, "phase": "ramp", "eps": 0.1, "loss": 2, "validation_certified_accuracy": None}


def test_only_what_was_measured_is_a_number() -> None:
    assert numbers(ENTRY) == {"eps": 0.1, "loss": 2.0}


def test_no_tracker_is_no_callback(tmp_path: Path) -> None:
    with tracking(None, tmp_path, name="n", settings={}) as on_epoch:
        assert on_epoch is None


def test_an_unknown_tracker(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="tracker 'wandb' is unknown; choose one of tensorboard, mlflow"),
        tracking(
            "wandb",
            tmp_path,
            name="n",
            settings={},  # type: ignore[arg-type]
        ),
    ):
        pass


@pytest.mark.parametrize(("tracker", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")])
def test_a_missing_library_is_named_before_any_work(
    tracker: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    network = classifier(tmp_path / "toy.onnx")
    line = f"harden {network} --eps 0.1 --quiet --run-dir {tmp_path / 'run'} --tracker {tracker}"
    assert main(line.split()) == 2
    assert "pip install 'citrus-tool[track]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_mlflow_gets_settings_and_one_point_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    @contextmanager
    def start_run(run_name: str) -> Any:
        calls.append(("start", run_name))
        yield
        calls.append("end")

    def log_metrics(values: Mapping[str, float], step: int) -> None:
        calls.append((step, dict(values)))

    library = SimpleNamespace(start_run=start_run, log_params=calls.append, log_metrics=log_metrics)
    monkeypatch.setitem(sys.modules, "mlflow", library)
    with tracking("mlflow", tmp_path, name="run", settings={"eps": 0.1, "lr": None}) as on_epoch:
        assert calls == []
        assert on_epoch is not None
        on_epoch(ENTRY)
        on_epoch({**ENTRY, "epoch": 4})
    values = {"eps": 0.1, "loss": 2.0}
    assert calls == [("start", "run"), {"eps": 0.1}, (3, values), (4, values), "end"]


def test_tensorboard_reads_back_the_history(tmp_path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra `track`"
    )
    network = classifier(tmp_path / "toy.onnx")
    run = tmp_path / "run"
    line = f"harden {network} --eps 0.02 --epochs 2 --limit 5 --quiet --run-dir {run} --tracker tensorboard"
    assert main(line.split()) == 0
    import json

    history = json.loads((run / "report.json").read_text())["history"]
    found = reader.EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    loss = [(point.step, point.value) for point in found.Scalars("loss")]
    assert loss == [(entry["epoch"], pytest.approx(entry["loss"], rel=1e-6)) for entry in history]
