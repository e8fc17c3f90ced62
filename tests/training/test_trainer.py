"""The training loop: it learns, continues bit for bit, stops cleanly, and says what is wrong."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from citrus_tool import architectures
from citrus_tool.choices.recipe import Recipe
from citrus_tool.context import RunContext
from citrus_tool.data import Dataset, load
from citrus_tool.errors import CheckFailedError, DataError, InputFileError, InterruptedRunError, UsageError
from citrus_tool.network import Network, Reshape, chain
from citrus_tool.progress import Progress
from citrus_tool.training import checkpoint, trainer
from citrus_tool.training.method import LossParts, Method
from citrus_tool.training.methods import METHODS
from citrus_tool.training.trainer import accuracy, certified_accuracy

RECIPE = Recipe(
    eps=0.05,
    tau_ratio=0.5,
    epochs=3,
    warmup_epochs=1,
    ramp_epochs=1,
    milestones=(2,),
    lr=1e-3,
    l1=1e-5,
    group_size=3,
    groups_per_batch=4,
    pgd_steps=2,
    certified_inputs=10,
    flip=True,
    crop_padding=1,
)


def _data(n: int, seed: int = 0, split: str = "train") -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8, generator=generator)
    labels = (images[:, 0, :3].double().mean((1, 2)) > images[:, 0, 3:].double().mean((1, 2))).long()
    return Dataset(name="halves", split=split, images=images, labels=labels, num_classes=2)


def _network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), Reshape((16,)), nn.Linear(16, 2)]
    return chain(layers, (1, 6, 6))


TRAIN, VALIDATION = _data(47), _data(20, seed=1, split="validation")
BATCHES = 4  # 45 of 47 inputs make groups of 3; 12 a batch


def fit(
    network: Network,
    train: Dataset,
    validation: Dataset,
    recipe: Recipe,
    enough: Callable[[Mapping[str, Any]], bool] | None = None,
    **run: Any,
) -> trainer.TrainResult:
    """A run on the CPU; `run` are fields of its context."""
    context = RunContext(**{"device": "cpu", **run})
    return trainer.fit(network, train, validation, recipe, context, enough=enough)


class _Recorder(Progress):
    """Keeps what it is told, and sends SIGINT after `stop_after` batches."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.total, self.notes, self.batches, self.stop_after = 0, [], 0, stop_after

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.total, self.stage = total or 0, stage

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.batches += amount
        self.notes.append(note)
        if self.batches == self.stop_after:
            signal.raise_signal(signal.SIGINT)

    def finish(self) -> None:
        self.notes.append("finished")


def _state(network: Network) -> dict[str, Tensor]:
    return network.state_dict()


def _same(a: Network, b: Network) -> bool:
    return all(torch.equal(value, _state(b)[name]) for name, value in _state(a).items())


def _timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


@pytest.fixture(scope="module")
def uninterrupted() -> trainer.TrainResult:
    return fit(_network(), TRAIN, VALIDATION, RECIPE)


@pytest.mark.parametrize("stop_after", [1, 3, BATCHES, BATCHES + 2, 3 * BATCHES - 1, 3 * BATCHES])
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, uninterrupted: trainer.TrainResult, stop_after: int
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRunError, match=r"its state is in .*: run the same command again with --resume"):
        fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=tmp_path, progress=_Recorder(stop_after))
    assert signal.getsignal(signal.SIGINT) is before
    progress = _Recorder()
    resumed = fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=tmp_path, resume=True, progress=progress)
    assert _same(resumed.network, uninterrupted.network)
    assert _timeless(resumed.history) == _timeless(uninterrupted.history)
    assert resumed.best_epoch == uninterrupted.best_epoch
    assert progress.batches == progress.total == 3 * BATCHES


def test_stopped_twice_and_during_validation(
    tmp_path: Path, uninterrupted: trainer.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InterruptedRunError):
        fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=tmp_path, progress=_Recorder(2))

    def stopped(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        assert arguments[-1]()

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "certified_accuracy", stopped)
        with pytest.raises(InterruptedRunError, match="in epoch 3 of 3"):
            fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=tmp_path, resume=True)
    resumed = fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=tmp_path, resume=True)
    assert _same(resumed.network, uninterrupted.network)
    assert _timeless(resumed.history) == _timeless(uninterrupted.history)


def test_a_finished_run_resumes_to_its_result(tmp_path: Path, uninterrupted: trainer.TrainResult) -> None:
    first = fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=tmp_path)
    again = fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=tmp_path, resume=True)
    assert _same(first.network, again.network)
    assert _same(first.network, uninterrupted.network)
    assert first.seconds == again.seconds


def test_ctrl_c_without_a_run_folder_says_that_nothing_is_kept() -> None:
    with pytest.raises(
        InterruptedRunError, match="stopped in epoch 1 of 3; nothing is kept, since there was no --run-dir"
    ):
        fit(_network(), TRAIN, VALIDATION, RECIPE, progress=_Recorder(1))


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.raises(InterruptedRunError):
        fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=folder, progress=_Recorder(1))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": dataclasses.replace(RECIPE, eps=0.06)}, "recipe field eps differs: 0.05 there, 0.06 now"),
        (
            {"recipe": dataclasses.replace(RECIPE, milestones=())},
            r"recipe field milestones differs: \[2\] there, \[\] now",
        ),
        ({"train": _data(47, seed=9)}, "train data differs; start a new --run-dir"),
        ({"validation": _data(20, seed=9)}, "validation data differs; start"),
        ({"network": _network(seed=4)}, "network differs; start"),
    ],
)
def test_another_run_is_not_continued(stopped_run: Path, changes: dict[str, Any], message: str) -> None:
    values = {"network": _network(), "train": TRAIN, "validation": VALIDATION, "recipe": RECIPE, **changes}
    with pytest.raises(UsageError, match=message):
        fit(
            values["network"], values["train"], values["validation"], values["recipe"], run_dir=stopped_run, resume=True
        )


def test_a_used_run_folder_is_not_overwritten(stopped_run: Path) -> None:
    with pytest.raises(UsageError, match="already holds a run; add --resume or choose another --run-dir"):
        fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=stopped_run)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no checkpoint to continue; start the run without --resume"):
        fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=tmp_path, resume=True)
    with pytest.raises(UsageError, match="resume needs the run folder"):
        fit(_network(), TRAIN, VALIDATION, RECIPE, resume=True)


def test_damaged_and_foreign_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / checkpoint.FILE_NAME).write_bytes(b"not a checkpoint")
    with pytest.raises(InputFileError, match="is not a readable checkpoint"):
        fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=tmp_path, resume=True)
    monkeypatch.setattr(checkpoint, "_FORMAT", 99)
    checkpoint.save(tmp_path, checkpoint.Checkpoint(tensors={}, state={}))
    monkeypatch.undo()
    with pytest.raises(InputFileError, match="has checkpoint format 99, not 1"):
        checkpoint.load(tmp_path)


def test_run_folder_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(InputFileError, match="is a file, not a folder"):
        fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=path)
    with pytest.raises(InputFileError, match="cannot be written"):
        checkpoint.save(path, checkpoint.Checkpoint(tensors={}, state={}))


def test_divergence_is_one_clear_error() -> None:
    recipe = dataclasses.replace(RECIPE, lr=1e30)
    with pytest.raises(
        CheckFailedError, match=r"training diverged: .* in epoch 1, before batch .*lower the learning rate"
    ):
        fit(chain([Reshape((36,)), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2)], (1, 6, 6)), TRAIN, VALIDATION, recipe)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (
            dataclasses.replace(RECIPE, method="citros"),
            {},
            r"^method: there is no training method 'citros'; .*Did you mean 'citrus'\?",
        ),
        (
            dataclasses.replace(RECIPE, pretrain="sobr", pretrain_epochs=1),
            {},
            r"^pretrain: .* 'sobr'; .*Did you mean 'sabr'\?",
        ),
        (RECIPE, {"device": "tpu"}, "device 'tpu' is unknown; use cpu or cuda"),
        (dataclasses.replace(RECIPE, group_size=48), {}, "47 training inputs make no group of 48; use more data"),
    ],
)
def test_usage_errors(recipe: Recipe, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit(_network(), TRAIN, VALIDATION, recipe, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_absent_cuda_is_named() -> None:
    with pytest.raises(UsageError, match="device cuda was asked for, but PyTorch finds none"):
        fit(_network(), TRAIN, VALIDATION, RECIPE, device="cuda")


def test_data_of_another_shape() -> None:
    with pytest.raises(DataError, match=r"takes inputs of shape \(1, 6, 6\), but data digits has \(1, 8, 8\)"):
        fit(_network(), load("digits", split="train"), VALIDATION, RECIPE)


def test_network_without_weights() -> None:
    with pytest.raises(UsageError, match="no weights to train"):
        fit(chain([Reshape((2,))], (1, 1, 2)), _pairs(), _pairs(), dataclasses.replace(RECIPE, flip=False))


def _pairs() -> Dataset:
    images = torch.rand(6, 1, 1, 2)
    return Dataset(name="pairs", split="train", images=images, labels=images[:, 0, 0].argmax(1), num_classes=2)


def test_the_given_network_is_not_touched_and_the_result_is_plain(uninterrupted: trainer.TrainResult) -> None:
    network = _network()
    before = {name: value.clone() for name, value in _state(network).items()}
    result = fit(network, TRAIN, VALIDATION, dataclasses.replace(RECIPE, init="shi"))
    assert all(torch.equal(before[name], value) for name, value in _state(network).items())
    assert not _same(result.network, uninterrupted.network)
    for found in (result.network, uninterrupted.network):
        assert not found.training
        assert all(p.is_contiguous() and not p.requires_grad for p in found.parameters())


def test_history_tells_the_schedule_and_the_choice(uninterrupted: trainer.TrainResult) -> None:
    history = uninterrupted.history
    assert [entry["phase"] for entry in history] == ["warm-up", "ramp", "full"]
    assert [entry["eps"] for entry in history] == pytest.approx([0.0, 0.05, 0.05])
    assert [entry["tau"] for entry in history] == pytest.approx([0.0, 0.025, 0.025])
    assert [entry["lr"] for entry in history] == pytest.approx([1e-3, 1e-3, 2e-4])
    assert [entry["validation_certified_accuracy"] is None for entry in history] == [True, True, False]
    assert "shi" in history[0]
    assert "shi" in history[1]
    assert "shi" not in history[2]
    assert all(entry["loss"] > 0 and entry["gradient_norm"] > 0 for entry in history)


def test_best_epoch_is_by_the_sum_on_validation() -> None:
    recipe = dataclasses.replace(
        RECIPE, epochs=7, warmup_epochs=0, lr=0.02, milestones=(), validate_every=2, flip=False
    )
    result = fit(_network(), TRAIN, VALIDATION, recipe)
    judged = {
        entry["epoch"]: entry["validation_standard_accuracy"] + entry["validation_certified_accuracy"]
        for entry in result.history
        if entry["validation_certified_accuracy"] is not None
    }
    assert sorted(judged) == [3, 5, 7]
    assert result.best_epoch == max(judged, key=lambda epoch: (judged[epoch], -epoch))
    best = result.history[result.best_epoch - 1]
    assert accuracy(result.network, VALIDATION) == best["validation_standard_accuracy"]
    assert certified_accuracy(result.network, VALIDATION.take(10), 0.05) == best["validation_certified_accuracy"]


def test_progress_tells_rate_and_time_left() -> None:
    progress = _Recorder()
    fit(_network(), TRAIN, VALIDATION, RECIPE, progress=progress)
    assert progress.stage == "training (citrus)"
    assert progress.batches == progress.total
    assert progress.notes[-1] == "finished"
    assert "epoch 3/3 loss " in progress.notes[-2]
    assert "images/s" in progress.notes[-2]
    assert "s left" in progress.notes[-2]


def test_an_epoch_of_the_standard_method_is_pytorchs_own_step() -> None:
    """One batch, no regulariser: the weights move as torch.optim.Adam moves them on the plain loss."""
    recipe = Recipe(
        method="standard",
        eps=0.0,
        tau_ratio=1.0,
        epochs=1,
        warmup_epochs=0,
        ramp_epochs=0,
        group_size=2,
        groups_per_batch=100,
        shi_lambda=0.0,
        clip_norm=1e9,
    )
    torch.manual_seed(0)
    network = chain([Reshape((36,)), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2)], (1, 6, 6))
    data = TRAIN.take(46)
    result = fit(network, data, VALIDATION, recipe)
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.lr)
    nn.functional.cross_entropy(network(data.pixels()), data.labels).backward()
    optimiser.step()
    for name, value in result.network.named_parameters():
        torch.testing.assert_close(value, network.get_parameter(name).detach(), rtol=1e-4, atol=1e-6)


def test_digits_become_provable_in_seconds() -> None:
    """A tiny run on real images: certified accuracy rises far above the standard network's, standard accuracy stays."""
    train, validation = load("digits", split="train"), load("digits", split="validation")
    recipe = Recipe(
        eps=0.05,
        tau_ratio=0.4,
        epochs=24,
        warmup_epochs=1,
        ramp_epochs=10,
        milestones=(18,),
        lr=4e-3,
        groups_per_batch=10,
        pgd_steps=3,
        init="shi",
        certified_inputs=100,
        validate_every=6,
    )
    result = fit(architectures.build("mlp", (1, 8, 8), 10), train, validation, recipe)
    best = result.history[result.best_epoch - 1]
    assert best["validation_standard_accuracy"] >= 88
    assert best["validation_certified_accuracy"] >= 60


@pytest.mark.parametrize("stop_after", [BATCHES + 2, 3 * BATCHES])
def test_what_a_method_carries_survives_a_resume(tmp_path: Path, stop_after: int) -> None:
    recipe = dataclasses.replace(RECIPE, method="cw-uat", shi_lambda=0.0)
    whole = fit(_network(), TRAIN, VALIDATION, recipe, run_dir=tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        fit(_network(), TRAIN, VALIDATION, recipe, run_dir=tmp_path / "parts", progress=_Recorder(stop_after))
    resumed = fit(_network(), TRAIN, VALIDATION, recipe, run_dir=tmp_path / "parts", resume=True)
    assert _same(whole.network, resumed.network)
    deltas = [checkpoint.load(tmp_path / part).tensors["carried.delta"] for part in ("whole", "parts")]
    assert torch.equal(*deltas)
    assert deltas[0].abs().max() > 0


PRETRAINED = dataclasses.replace(RECIPE, epochs=5, milestones=(3,), pretrain="sabr", pretrain_epochs=3)


def test_pretraining_is_the_other_method_and_then_the_own_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def watched(name: str, field: str = "method") -> Method:
        def method(*arguments: Any) -> LossParts:
            seen.append(name)
            return METHODS[name](*arguments)

        return method

    monkeypatch.setattr(trainer, "method_named", watched)
    whole = fit(_network(), TRAIN, VALIDATION, PRETRAINED, run_dir=tmp_path)
    assert seen == ["sabr"] * 2 * BATCHES + ["citrus"] * 2 * BATCHES  # the warm-up is natural
    assert [entry["phase"] for entry in whole.history] == ["warm-up", "ramp", "pretraining", "full", "full"]
    assert all(entry["validation_standard_accuracy"] is not None for entry in whole.history)
    certified = [entry["validation_certified_accuracy"] for entry in whole.history]
    assert certified[:3] == [None] * 3
    assert None not in certified[3:]
    assert whole.best_epoch in (4, 5)
    monkeypatch.undo()

    alone = fit(
        _network(), TRAIN, VALIDATION, dataclasses.replace(PRETRAINED, method="sabr", pretrain="", pretrain_epochs=0)
    )
    losses = [[entry["loss"] for entry in result.history] for result in (whole, alone)]
    assert losses[0][:3] == losses[1][:3]
    assert losses[0][3] > 1.5 * losses[1][3]  # the sum over the boxes of the two others


@pytest.mark.parametrize("stop_after", [3 * BATCHES - 1, 3 * BATCHES, 3 * BATCHES + 1, 4 * BATCHES])
def test_a_run_stopped_around_the_end_of_pretraining_goes_on(tmp_path: Path, stop_after: int) -> None:
    whole = fit(_network(), TRAIN, VALIDATION, PRETRAINED)
    with pytest.raises(InterruptedRunError):
        fit(_network(), TRAIN, VALIDATION, PRETRAINED, run_dir=tmp_path, progress=_Recorder(stop_after))
    resumed = fit(_network(), TRAIN, VALIDATION, PRETRAINED, run_dir=tmp_path, resume=True)
    assert _same(resumed.network, whole.network)
    assert _timeless(resumed.history) == _timeless(whole.history)


def test_what_pretraining_carries_is_not_the_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []

    def starts(*arguments: Any) -> LossParts:
        found.append(bool(arguments[1].carried))
        return METHODS["cw-uat"](*arguments)

    def named(name: str, field: str = "method") -> Method:
        return starts if name == "cw-uat" else METHODS[name]

    monkeypatch.setattr(trainer, "method_named", named)
    recipe = dataclasses.replace(PRETRAINED, method="cw-uat", pretrain="uat", shi_lambda=0.0)
    fit(_network(), TRAIN, VALIDATION, recipe)
    assert found == [False] + [True] * (2 * BATCHES - 1)


def test_the_average_is_kept_and_survives_a_resume(tmp_path: Path) -> None:
    """Without batch norm: the result is the average of the weights after each step, as the sum written out."""
    network = chain([Reshape((36,)), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2)], (1, 6, 6))
    recipe = dataclasses.replace(RECIPE, average=0.75, epochs=2, ramp_epochs=0, warmup_epochs=1, milestones=())
    whole = fit(network, TRAIN, VALIDATION, recipe)
    plain = fit(network, TRAIN, VALIDATION, dataclasses.replace(recipe, average=0.0))
    assert not _same(whole.network, plain.network)
    with pytest.raises(InterruptedRunError):
        fit(network, TRAIN, VALIDATION, recipe, run_dir=tmp_path, progress=_Recorder(BATCHES + 1))
    resumed = fit(network, TRAIN, VALIDATION, recipe, run_dir=tmp_path, resume=True)
    assert _same(whole.network, resumed.network)

    steps: list[dict[str, Tensor]] = []
    stopped = tmp_path / "steps"
    for count in range(1, 2 * BATCHES):  # a run's weights after each step, read from its checkpoints
        with pytest.raises(InterruptedRunError):
            fit(
                network,
                TRAIN,
                VALIDATION,
                recipe,
                run_dir=stopped,
                resume=count > 1,
                progress=_Recorder(count),
            )
        saved = checkpoint.load(stopped).tensors
        steps.append({name: saved[f"network.{name}"] for name in _state(network)})
    last = fit(network, TRAIN, VALIDATION, recipe, run_dir=stopped, resume=True)
    assert _same(whole.network, last.network)
    saved = checkpoint.load(stopped).tensors
    steps.append({name: saved[f"network.{name}"] for name in _state(network)})
    for name, start in _state(network).items():
        mean = start.clone()
        for step in steps:
            mean = 0.75 * mean + 0.25 * step[name]
        torch.testing.assert_close(_state(whole.network)[name], mean)


@pytest.mark.parametrize("method", ["standard", "citrus-plus"])
def test_distillation_pulls_towards_the_given_network(tmp_path: Path, method: str) -> None:
    """With a heavy weight the student of new weights answers as its teacher; a resumed run has the same teacher."""
    teacher = fit(_network(), TRAIN, VALIDATION, dataclasses.replace(RECIPE, method="standard", epochs=8, lr=0.02))
    recipe = dataclasses.replace(
        RECIPE, method=method, init="shi", lr=0.02, epochs=8, milestones=(), flip=False, crop_padding=0, l1=0.0
    )
    away = []
    for weight in (0.0, 50.0):
        student = fit(teacher.network, TRAIN, VALIDATION, dataclasses.replace(recipe, distil=weight))
        gap = student.network(TRAIN.pixels()).softmax(1) - teacher.network(TRAIN.pixels()).softmax(1)
        away.append(gap.abs().mean().item())
    assert away[1] < away[0] / 2
    strong = dataclasses.replace(recipe, distil=50.0)
    with pytest.raises(InterruptedRunError):
        fit(teacher.network, TRAIN, VALIDATION, strong, run_dir=tmp_path, progress=_Recorder(BATCHES + 1))
    resumed = fit(teacher.network, TRAIN, VALIDATION, strong, run_dir=tmp_path, resume=True)
    assert _same(resumed.network, student.network)
    assert resumed.history[0]["distil"] > resumed.history[-1]["distil"]


def test_enough_ends_a_run_with_its_best_epoch(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=8, validate_every=2, milestones=())
    asked: list[int] = []

    def enough(entry: Any) -> bool:
        assert entry["validation_certified_accuracy"] is not None
        asked.append(entry["epoch"])
        return entry["epoch"] == 6

    whole = fit(_network(), TRAIN, VALIDATION, recipe)
    result = fit(_network(), TRAIN, VALIDATION, recipe, run_dir=tmp_path, enough=enough)
    again = fit(_network(), TRAIN, VALIDATION, recipe, run_dir=tmp_path, resume=True, enough=enough)
    assert asked == [4, 6, 6]
    assert _timeless(result.history) == _timeless(again.history) == _timeless(whole.history[:6])
    assert result.best_epoch in asked
    assert _same(result.network, again.network)


def test_a_checkpoint_from_before_a_field_existed_is_continued(
    tmp_path: Path, uninterrupted: trainer.TrainResult
) -> None:
    with pytest.raises(InterruptedRunError):
        fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=tmp_path, progress=_Recorder(BATCHES + 1))
    saved = checkpoint.load(tmp_path)
    origin = saved.state["origin"]
    older = {name: value for name, value in origin["recipe"].items() if name not in ("pool", "tau_from", "distil")}
    state = {**saved.state, "origin": {**origin, "recipe": older}}
    checkpoint.save(tmp_path, dataclasses.replace(saved, state=state))
    resumed = fit(_network(), TRAIN, VALIDATION, RECIPE, run_dir=tmp_path, resume=True)
    assert _same(resumed.network, uninterrupted.network)
    with pytest.raises(UsageError, match="recipe field pool differs: 0 there, 2 now"):
        fit(_network(), TRAIN, VALIDATION, dataclasses.replace(RECIPE, pool=2), run_dir=tmp_path, resume=True)


def test_training_on_all_keeps_the_last_epoch_and_validates_nothing(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=4, train_on="all")
    result = fit(_network(), TRAIN, VALIDATION, recipe)
    both = TRAIN.joined(VALIDATION)
    assert len(both) == 67
    figures = ("validation_standard_accuracy", "validation_certified_accuracy")
    assert all(entry[name] is None for entry in result.history for name in figures)
    assert result.best_epoch == 4
    last = dataclasses.replace(recipe, train_on="train", validate_every=4)  # which validates the last epoch only
    assert _same(fit(_network(), both, VALIDATION, last).network, result.network)
    assert not _same(fit(_network(), TRAIN, VALIDATION, last).network, result.network)
    with pytest.raises(InterruptedRunError):
        fit(_network(), TRAIN, VALIDATION, recipe, run_dir=tmp_path, progress=_Recorder(9))
    with pytest.raises(UsageError, match="recipe field train_on differs"):
        fit(_network(), TRAIN, VALIDATION, last, run_dir=tmp_path, resume=True)
    resumed = fit(_network(), TRAIN, VALIDATION, recipe, run_dir=tmp_path, resume=True)
    assert _same(resumed.network, result.network)
    assert _timeless(resumed.history) == _timeless(result.history)
