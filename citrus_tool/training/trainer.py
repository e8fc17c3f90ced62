"""The training loop: any method of the registry, any recipe.

On the CPU a resumed run equals an uninterrupted one bit for bit, given the same PyTorch and number of threads.

Epochs are judged on the validation split by standard accuracy plus certified accuracy at the recipe's eps (an input is
certified when IBP or CROWN proves it; the percentages are added), and the best one is kept. Only epochs at full eps
of the recipe's own method take part. A recipe that trains on the validation split too (`train_on`) has nothing to
choose by: it keeps the last epoch. The test split is never seen here.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from citrus_tool import files
from citrus_tool.bounds.crown import crown
from citrus_tool.bounds.interval import margins
from citrus_tool.bounds.rounding import exact_products
from citrus_tool.choices.recipe import Recipe
from citrus_tool.context import ON_CPU, RunContext
from citrus_tool.data import Dataset
from citrus_tool.devices import device_of, resolve_device
from citrus_tool.errors import CheckFailedError, InterruptedRunError, UsageError
from citrus_tool.names import differing, meant
from citrus_tool.network import Network
from citrus_tool.threat import Threat
from citrus_tool.training import checkpoint, schedule, shi
from citrus_tool.training.batch_norm_statistics import estimate
from citrus_tool.training.batches import TrainingSet, generator_for, training_images
from citrus_tool.training.method import Method
from citrus_tool.training.methods import METHODS
from citrus_tool.training.optimiser import Optimiser

OnEpoch = Callable[[Mapping[str, Any]], None]
"""Receives an epoch's entry of the history (see `fit`) when the epoch is closed and saved."""

_DEFAULTS: Mapping[str, Any] = {
    name: value
    for name, value in Recipe(eps=0.0, tau_ratio=1.0, epochs=1).to_json().items()
    if name not in ("eps", "tau_ratio", "epochs")
}
"""What a recipe's fields are when a checkpoint from before they existed does not hold them."""
_READ_EVERY = 20
"""Batches between two looks at the loss on the device: the host waits for it only there, and sees divergence soon."""


class DivergedError(CheckFailedError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run.

    Attributes:
        network: the best epoch's network, on the CPU, float32, in evaluation mode.
        history: one entry an epoch, see `fit`.
        best_epoch: its number, counted from 1.
        seconds: training and validation time, summed over interrupted and resumed runs.
    """

    network: Network
    history: list[dict[str, Any]]
    best_epoch: int
    seconds: float


def fit(
    network: Network,
    train: Dataset,
    validation: Dataset,
    recipe: Recipe,
    context: RunContext = ON_CPU,
    *,
    on_epoch: OnEpoch | None = None,
    enough: Callable[[Mapping[str, Any]], bool] | None = None,
) -> TrainResult:
    """Trains a copy of `network` on `train` and returns the best epoch by `validation` (`recipe.train_on` "all": trains
    on both and returns the last one).

    The history holds for each epoch: epoch (from 1), phase (warm-up, ramp, pretraining, full), eps, tau and lr at its
    end, the mean of every loss part over its batches, seconds, and validation_standard_accuracy and
    validation_certified_accuracy in percent (None where not measured).

    Args:
        context: its run_dir receives a checkpoint after every epoch and on Ctrl-C; its resume continues from that
            checkpoint, where recipe, data and network must be the ones it began with; the data set must fit in its
            device's memory.
        on_epoch: gets every epoch's entry as it is made (a resumed run: from where it goes on).
        enough: is asked with the history's entry of every validated epoch at full eps (after a resume again with the
            last one); True ends the run there, with the best epoch so far.

    Raises:
        UsageError: unknown method or device, a used run folder without resume, resume with another recipe or data.
        InputFileError: run_dir cannot be written or its checkpoint is damaged.
        DataError: the data does not fit the network.
        DivergedError: the loss became NaN or infinite.
        InterruptedRunError: Ctrl-C; the state is saved when there is a run_dir.
    """
    for data in (train, validation):
        data.require_classifier(network.input_shape, network.num_classes, "the network")
    if len(train) < recipe.group_size:
        raise UsageError(f"{len(train)} training inputs make no group of {recipe.group_size}; use more data.")
    run_dir = context.run_dir
    if run_dir is None and context.resume:
        raise UsageError("resume needs the run folder of the run to continue; give --run-dir.")
    run = _Training(network, train, validation, recipe, context, on_epoch, enough or (lambda entry: False))
    if run_dir is not None:
        files.require_writable_folder(run_dir)
        if context.resume:
            run.restore(checkpoint.load(run_dir))
        elif checkpoint.exists(run_dir):
            raise UsageError(f"run folder {run_dir} already holds a run; add --resume or choose another --run-dir.")
    return run.finish()


def method_named(name: str, field: str = "method") -> Method:
    """The training method of that name; raises UsageError that names the recipe's `field` and lists the names."""
    if name not in METHODS:
        hint = meant(name, METHODS, " Did you mean {!r}?")
        raise UsageError(f"{field}: there is no training method {name!r}; methods are {', '.join(METHODS)}.{hint}")
    return METHODS[name]


def methods_of(recipe: Recipe) -> tuple[Method, Method]:
    """The method of a recipe's pretraining and its own one, which are the same without pretraining; raises as
    `method_named`.
    """
    own = method_named(recipe.method)
    return method_named(recipe.pretrain, "pretrain") if recipe.pretrain else own, own


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device(resolve_device("auto"))
    if name not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is unknown; use cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but PyTorch finds none; use --device cpu.")
    return torch.device(name)


@dataclass(kw_only=True)
class _Position:
    """Where a run stands: the next batch of an epoch (equal to the number of batches: validation comes next)."""

    epoch: int = 0
    batch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -math.inf
    seconds: float = 0.0
    epoch_seconds: float = 0.0


class _Training:
    """One training's working state. `finish` takes it to its end from wherever it stands."""

    def __init__(
        self,
        network: Network,
        train: Dataset,
        validation: Dataset,
        recipe: Recipe,
        context: RunContext,
        on_epoch: OnEpoch | None,
        enough: Callable[[Mapping[str, Any]], bool],
    ) -> None:
        self.methods, self.device = methods_of(recipe), _device(context.device)
        self.recipe, self.run_dir, self.progress = recipe, context.run_dir, context.progress
        self.on_epoch, self.validation, self.enough = on_epoch, validation, enough
        self.training_set = TrainingSet.of(training_images(train, validation, recipe), recipe, self.device)
        self.origin = {
            "recipe": recipe.to_json(),
            "train data": train.sha256(),
            "validation data": validation.sha256(),
            "network": fingerprint(network),
        }
        self.network = copy.deepcopy(network).to(device=self.device, dtype=torch.float32).eval()
        if recipe.init == "shi":
            cpu = copy.deepcopy(network).to(dtype=torch.float32)
            shi.initialise(cpu, generator_for(torch.device("cpu"), recipe.seed, "init"))
            self.network.load_state_dict(cpu.state_dict())
        teacher = (
            copy.deepcopy(network).to(device=self.device, dtype=torch.float32).eval() if recipe.distil > 0 else None
        )
        self.optimiser = Optimiser(self.network, recipe, self.methods[1], teacher)
        self.judged = copy.deepcopy(self.network) if recipe.average > 0 else self.network
        self.best: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.at = _Position()

    def finish(self) -> TrainResult:
        recipe, batches = self.recipe, self.training_set.batches
        self.progress.start(f"training ({recipe.method})", recipe.epochs * batches, "batch")
        done = self.at.epoch * batches + self.at.batch
        if done:
            self.progress.advance(done, "resumed")
        with _interruption() as interrupted, exact_products():  # the attack allows TF32 for itself
            while not self._ended():
                started = time.monotonic()
                completed = self._epoch(interrupted)
                entry = self._close_epoch(interrupted) if completed else None
                self._count(started)
                if entry is None:
                    raise self._interrupted()
                entry["seconds"] = round(self.at.epoch_seconds, 3)
                self.at.history.append(entry)
                self.at.epoch, self.at.batch, self.at.epoch_seconds, self.sums = self.at.epoch + 1, 0, 0.0, {}
                self.save()
                if self.on_epoch is not None:
                    self.on_epoch(entry)
        self.progress.finish()
        result = copy.deepcopy(self.network).cpu()
        for name, tensor in _tensors(result).items():
            tensor.data = self.best[name].contiguous().clone()
            tensor.requires_grad_(False)
        return TrainResult(
            network=result, history=self.at.history, best_epoch=self.at.best_epoch, seconds=round(self.at.seconds, 3)
        )

    def _ended(self) -> bool:
        """Whether the run is over: all its epochs, or `enough` says so of the last one."""
        if self.at.epoch == self.recipe.epochs or not self.at.history:
            return self.at.epoch == self.recipe.epochs
        last = self.at.history[-1]
        judged = last["phase"] == "full" and last["validation_standard_accuracy"] is not None
        return judged and self.enough(last)

    def _count(self, started: float) -> None:
        elapsed = time.monotonic() - started
        self.at.seconds += elapsed
        self.at.epoch_seconds += elapsed

    def _epoch(self, interrupted: Callable[[], bool]) -> bool:
        """The epoch's remaining batches; False when the user stopped it in between."""
        recipe, batches = self.recipe, self.training_set.batches
        order = self.training_set.order(self.at.epoch)
        self.optimiser.method = self.methods[self.at.epoch >= recipe.pretrain_epochs]
        if self.at.batch == 0 and self.at.epoch == recipe.pretrain_epochs:
            self.optimiser.carried = {}  # what it holds is the other method's
        note, mark, images = "", time.monotonic(), 0
        while self.at.batch < batches:
            point = schedule.at(recipe, self.at.epoch, self.at.batch, batches)
            batch = self.training_set.batch(order, self.at.epoch, self.at.batch)
            generator = generator_for(self.device, recipe.seed, "method", self.at.epoch, self.at.batch)
            for name, value in self.optimiser.step(batch, point, generator).items():
                self.sums[name] = self.sums[name] + value if name in self.sums else value
            self._average()
            self.at.batch += 1
            images += len(batch.labels)
            if self.at.batch % _READ_EVERY == 0 or self.at.batch == batches:
                loss = self._loss()
                rate = images / max(time.monotonic() - mark, 1e-9)
                left = ((recipe.epochs - self.at.epoch) * batches - self.at.batch) * recipe.batch_size / rate
                note = (
                    f"epoch {self.at.epoch + 1}/{recipe.epochs} loss {loss:.4f} eps {point.eps:.4g}"
                    f" {rate:.0f} images/s {_duration(left)} left"
                )
            self.progress.advance(1, note)
            if interrupted():
                return False
        return True

    def _average(self) -> None:
        """Moves the judged weights towards the trained ones (Polyak averaging with exponential weights)."""
        if self.judged is not self.network:
            pairs = zip(self.judged.parameters(), self.network.parameters(), strict=True)
            with torch.no_grad():
                for mean, value in pairs:
                    mean.lerp_(value, 1 - self.recipe.average)

    def _loss(self) -> float:
        """Mean loss of the epoch so far; raises DivergedError when it is no finite number."""
        means = {name: float(total) / self.at.batch for name, total in self.sums.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                kept = "" if self.run_dir is None else f" The checkpoint in {self.run_dir} is from before."
                raise DivergedError(
                    f"training diverged: {name} is {value} in epoch {self.at.epoch + 1}, before batch"
                    f" {self.at.batch + 1}; lower the learning rate (now {self.recipe.lr:g}) or raise"
                    f" ramp_epochs.{kept}"
                )
        return means["loss"]

    def _close_epoch(self, interrupted: Callable[[], bool]) -> dict[str, Any] | None:
        """The epoch's history entry, after validation; None when the user stopped the validation."""
        recipe, epoch = self.recipe, self.at.epoch
        point = schedule.at(recipe, epoch, self.training_set.batches - 1, self.training_set.batches)
        estimate(self.judged, self.training_set.plain())
        last = epoch == recipe.epochs - 1
        pretraining = epoch < recipe.pretrain_epochs
        judged = point.full and not pretraining and (last or (recipe.epochs - 1 - epoch) % recipe.validate_every == 0)
        held_out = recipe.train_on == "train"
        standard_accuracy = certified = None
        if held_out and (judged or pretraining or not point.full):
            standard_accuracy = accuracy(self.judged, self.validation)
        if held_out and judged and recipe.eps > 0 and recipe.certified_inputs > 0:
            subset = self.validation.take(recipe.certified_inputs)
            certified = certified_accuracy(self.judged, subset, recipe.eps, interrupted)
            if certified is None:
                return None
        score = (standard_accuracy or 0.0) + (certified or 0.0)
        if (judged and held_out and score > self.at.best_score) or (last and not held_out):
            self.at.best_score, self.at.best_epoch = score, epoch + 1
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in _tensors(self.judged).items()}
        begun = "warm-up" if point.natural else "ramp"
        return {
            "epoch": epoch + 1,
            "phase": begun if not point.full else "pretraining" if pretraining else "full",
            "eps": point.eps,
            "tau": point.tau,
            "lr": point.lr,
            **{name: float(total) / self.training_set.batches for name, total in self.sums.items()},
            "validation_standard_accuracy": standard_accuracy,
            "validation_certified_accuracy": certified,
        }

    def _interrupted(self) -> InterruptedRunError:
        self.save()
        where = f"in epoch {self.at.epoch + 1} of {self.recipe.epochs}"
        if self.run_dir is None:
            return InterruptedRunError(f"training stopped {where}; nothing is kept, since there was no --run-dir.")
        return InterruptedRunError(
            f"training stopped {where}; its state is in {self.run_dir}: run the same command again with --resume."
        )

    def save(self) -> None:
        """Writes the checkpoint when there is a run folder."""
        if self.run_dir is None:
            return
        tensors = {f"network.{name}": tensor for name, tensor in _tensors(self.network).items()}
        if self.judged is not self.network:
            tensors |= {f"average.{name}": tensor for name, tensor in _tensors(self.judged).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"sums.{name}": tensor for name, tensor in self.sums.items()}
        tensors |= {f"adam.{name}": tensor for name, tensor in self.optimiser.moments().items()}
        tensors |= {f"carried.{name}": tensor for name, tensor in self.optimiser.carried.items()}
        state = {"origin": self.origin, "position": dataclasses.asdict(self.at)}
        checkpoint.save(self.run_dir, checkpoint.Checkpoint(tensors=tensors, state=state))

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Takes over a checkpoint of the same run; raises UsageError naming the first field that differs."""
        before = saved.state["origin"]
        _require_same({**before, "recipe": {**_DEFAULTS, **before["recipe"]}}, self.origin, str(self.run_dir))
        names = ("network", "best", "sums", "adam", "carried", "average")
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for name, tensor in saved.tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        with torch.no_grad():
            for name, tensor in _tensors(self.network).items():
                tensor.copy_(parts["network"][name])
            for name, tensor in _tensors(self.judged).items():
                tensor.copy_(parts["average" if self.judged is not self.network else "network"][name])
        self.best = parts["best"]
        self.sums = {name: tensor.to(self.device) for name, tensor in parts["sums"].items()}
        self.optimiser.restore(parts["adam"])
        self.optimiser.carried = {name: tensor.to(self.device) for name, tensor in parts["carried"].items()}
        self.at = _Position(**saved.state["position"])


def fingerprint(network: Network) -> str:
    """Digest of a network's graph and weights."""
    digest = hashlib.sha256()
    for node in network.nodes:
        digest.update(f"{node.name} {type(node.layer).__name__} {node.inputs} {node.shape}".encode())
    for name, tensor in _tensors(network).items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensors(network: Network) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _require_same(before: Mapping[str, Any], now: Mapping[str, Any], run_dir: str) -> None:
    old, new = _flat(before), _flat(now)
    if (name := differing(old, dict(sorted(new.items())))) is not None:
        shown = "" if len(str(new.get(name))) == 64 else f": {old.get(name)!r} there, {new.get(name)!r} now"
        raise UsageError(f"{run_dir} holds another run: {name} differs{shown}; start a new --run-dir instead.")


def _flat(origin: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in origin.items() if name != "recipe"}
    return {**{f"recipe field {name}": value for name, value in origin["recipe"].items()}, **rest}


def accuracy(network: Network, data: Dataset, batch_size: int = 500) -> float:
    """Percent of `data` that the network, on its own device, classifies correctly."""
    device = device_of(network)
    correct = 0
    with torch.no_grad():
        for start in range(0, len(data), batch_size):
            part = slice(start, start + batch_size)
            predicted = network(data.pixels(part).to(device)).argmax(1).cpu()
            correct += int((predicted == data.labels[part]).sum())
    return 100.0 * correct / len(data)


def certified_accuracy(
    network: Network, data: Dataset, eps: float, stop: Callable[[], bool] = lambda: False, batch_size: int = 25
) -> float | None:
    """Percent of `data` proven correct in the whole ball of eps (pixel space), by IBP or else CROWN, in float64; None
    when stopped.

    It picks epochs; the certificate of a run is made elsewhere, on the exported file.
    """
    device = device_of(network)
    twin = network.frozen(dtype=torch.float64, device=device)
    threat = Threat(eps=eps)
    x, labels = data.pixels(dtype=torch.float64).to(device), data.labels.to(device)
    with torch.no_grad():
        proven = (margins(twin, threat.box(x), labels) > 0).all(1)
        hopeful = torch.nonzero(~proven & (twin(x).argmax(1) == labels))[:, 0]
        for index in (hopeful[i : i + batch_size] for i in range(0, len(hopeful), batch_size)):
            if stop():
                return None
            lower = crown(twin, threat.box(x[index]), labels[index]).lower
            proven[index] = (lower > 0).all(1)
    return 100.0 * float(proven.double().mean())


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Inside the block the first Ctrl-C only sets a flag, which the yielded function reads; a second one acts as ever.

    Python delivers signals to the main thread only; elsewhere the flag stays down.
    """
    raised = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield raised.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        raised.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield raised.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
