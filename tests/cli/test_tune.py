"""`citrus tune`: what it prints, writes and refuses; the search itself is tested in tests/workflow/test_tune.py."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from citrus_tool.training import recipes, trainer
from tests.cli.toys import Run

TINY = (
    "--eps",
    "0.03",
    "--recipe",
    "r.toml",
    "--search",
    "lr=1e-3:1e-2:log",
    "--trials",
    "2",
    "--limit",
    "10",
    "--bounds",
    "ibp",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--quiet",
)


@pytest.fixture
def recipe(run: Run) -> None:
    Path("r.toml").write_text(
        'base = "mnist-cpu"\nmethod = "sabr"\nepochs = 2\nwarmup_epochs = 0\nramp_epochs = 1\nmilestones = []\n'
        "groups_per_batch = 50\npgd_steps = 1\ncertified_inputs = 10\n"
    )


@pytest.mark.usefixtures("recipe")
def test_table_json_plot_and_recipe(run: Run, network: Path) -> None:
    outcome = run("tune", network, *TINY, "--json", "t.json", "--plot", "front.svg")
    assert outcome.code == 0, outcome.err
    header, *rows = outcome.out.splitlines()
    assert header.split() == ["trial", "standard", "%", "certified", "%", "epoch", "lr"]
    found = json.loads(Path("t.json").read_text())
    assert [found["method"], found["eps"], found["split"]] == ["sabr", 0.03, "validation"]
    assert len(found["trials"]) == 2
    assert sum(row.startswith("*") for row in rows) == 1
    best = Path("runs") / "digits_toy_sabr_tune" / "best.toml"
    assert rows[-1].endswith(f"validation split, 10 inputs certified; * is written to {best}")
    assert recipes.read(best).to_json() == {**found["recipe"], "eps": 0.03}
    assert Path("front.svg").read_text().startswith("<?xml")
    again = run("tune", network, *TINY)
    assert again.code == 2
    assert "study.db already holds a search; add --resume" in again.err


@pytest.mark.usefixtures("recipe")
def test_ctrl_c_is_exit_code_5_and_resumable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("tune", "--architecture", "mlp", *TINY)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "estimate", lambda *rest: signal.raise_signal(signal.SIGINT))
        stopped = run(*arguments)
    assert stopped.code == 5
    assert "tuning stopped in trial 1 of 2" in stopped.err
    outcome = run(*arguments, "--resume", "--json", "-")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["recipe"]["init"] == "shi"


@pytest.mark.usefixtures("recipe")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "tune takes one network: a file M.onnx, or --architecture NAME"),
        (("M.onnx", "--architecture", "mlp"), "tune takes one network"),
        (("--architecture", "mpl"), "'mpl'"),
        (("--architecture", "mlp", "--search", "lrr=1:2"), "did you mean lr?"),
        (("--architecture", "mlp", "--plot", "front.pdf"), "plots are written as .svg or .png"),
    ],
)
def test_errors(run: Run, arguments: tuple[str, ...], message: str) -> None:
    outcome = run("tune", *arguments, *TINY)
    assert outcome.code == 2
    assert message in outcome.err
    assert not Path("runs").exists()
