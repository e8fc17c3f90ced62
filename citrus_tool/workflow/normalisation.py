"""Is a network given the input that it was trained on? Accuracy answers: near chance, something is wrong with it.

The usual causes are normalisation (--mean, --std), the order of channels, pixels or axes, the scale 0..255, and labels
in another order. Each is tried on a few hundred inputs, by onnxruntime; what makes the network clearly better is named.
Nothing here changes what is computed: a guess becomes effective when the user gives the options.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom, binomtest
from torch import Tensor

from citrus_tool.data import Dataset
from citrus_tool.errors import AccuracyWarning, DataError
from citrus_tool.network import INPUT, Affine, Network, Reshape, Transpose
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.sources import DataSource

INPUTS: Final = 256
"""Inputs on which accuracy is looked at, spread evenly over the split: its standard error is at most 3.1 points."""
FEWEST: Final = 30
"""With fewer inputs nothing is said: accuracy's standard error may be 9 points."""
CLEARLY: Final = 1e-3
"""Two-sided sign test below which one reading is clearly better than another.

Some twenty are tried, so that chance alone makes one clearly better for one network in fifty at most.
"""
NOISE: Final = 0.05
"""Two-sided sign test above which one reading is not better than another at all: the customary level."""
LOW: Final = 0.25
"""Accuracy below this share of the way from chance to 1 is low enough to try other readings.

Above chance, since a wrong normalisation often leaves some accuracy.
"""
RENAMED: Final = 0.5
"""Share of inputs that a renaming of the classes must explain before it is suggested: most of them."""

PerChannel = tuple[float, ...]

NORMALISATIONS: Final[Mapping[str, tuple[PerChannel, PerChannel]]] = {
    "no normalisation": ((0.0,), (1.0,)),
    "MNIST's": ((0.1307,), (0.3081,)),
    "Fashion-MNIST's": ((0.2860,), (0.3530,)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "CIFAR-10's with the other usual std": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "ImageNet's mean with std 0.225 (VNN-COMP's oval21)": ((0.485, 0.456, 0.406), (0.225, 0.225, 0.225)),
    "Tiny ImageNet's": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "CIFAR-100's": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "pixels from -1 to 1": ((0.5,), (0.5,)),
    "pixels from 0 to 255": ((0.0,), (1 / 255,)),
    "pixels from 0 to 16, as scikit-learn's digits": ((0.0,), (1 / 16,)),
}
"""Mean and std in pixel space [0, 1] that networks are commonly trained with; (x - mean) / std is the file's input."""

OF_DATA: Final[Mapping[str, tuple[str, ...]]] = {
    "mnist": ("MNIST's",),
    "cifar10": ("CIFAR-10's", "CIFAR-10's with the other usual std"),
    "tinyimagenet": ("Tiny ImageNet's", "ImageNet's"),
}
"""What is tried first for a named data set: accuracy does not tell constants apart that differ by a few percent."""

PRESENTATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "with the channels in reverse (BGR)": lambda x: x.flip(1),
    "with rows and columns exchanged": lambda x: x.transpose(2, 3),
    "with black and white exchanged (1 - x)": lambda x: 1 - x,
    "with the pixels in the order (H, W, C)": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape),
}
"""What else may be wrong with images (n, C, H, W); no option mends these, the data or the file must change."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attempt:
    """One way to give images to a file: predictions (n,) and labels (n,) of the same inputs.

    Attributes:
        name: in words, a key of NORMALISATIONS or PRESENTATIONS among them.
        mean, std: per channel.
    """

    name: str
    mean: PerChannel
    std: PerChannel
    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        return np.asarray(self.predictions == self.labels)

    @property
    def correct(self) -> int:
        return int(self.right.sum())

    @property
    def flags(self) -> str:
        """The options that stand for it; empty for the identity."""
        if not any(self.mean) and all(value == 1 for value in self.std):
            return ""
        return f"--mean {_numbers(self.mean)} --std {_numbers(self.std)}"

    def better(self, other: Attempt, significance: float) -> bool:
        """By a two-sided sign test over the inputs that only one of the two gets right."""
        gained, lost = int((self.right & ~other.right).sum()), int((other.right & ~self.right).sum())
        return gained > lost and float(binomtest(gained, gained + lost).pvalue) < significance

    def renaming(self, classes: int) -> dict[int, int]:
        """The network's class -> the data's, the renaming that explains most predictions; only classes that occur."""
        table = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(table, (self.predictions, self.labels), 1)
        return {int(i): int(j) for i, j in zip(*linear_sum_assignment(-table), strict=True) if table[i, j]}


def _numbers(values: PerChannel) -> str:
    alike = values[:1] if len(set(values)) == 1 else values
    return ",".join(f"{value:.6g}" for value in alike)


def near_chance(predictions: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> bool:
    """Whether predictions (n,) look like guesses of one of `classes`.

    They do when no more of them are right than 99 of 100 guessers achieve, when accuracy is below twice the guessers'
    and not a tenth of the way from theirs to 1, or when one class is predicted for all inputs and there are others.
    """
    correct, n, chance = int((predictions == labels).sum()), len(labels), 1 / classes
    if len(np.unique(predictions)) == 1 and len(np.unique(labels)) > 1:
        return True
    return bool(correct <= binom.ppf(0.99, n, chance) or correct / n < min(2 * chance, chance + 0.1 * (1 - chance)))


def sample(data: Dataset, inputs: int = INPUTS) -> Dataset:
    """`inputs` of the images, spread evenly (all of them where there are fewer)."""
    return data.select(torch.linspace(0, len(data) - 1, min(inputs, len(data))).round().long())


def predict(model: OnnxModel, data: Dataset) -> Attempt:
    """The file on `data` as its contract says."""
    return _attempt("the given normalisation", model, data, model.contract.mean, model.contract.std)


def normalisations(model: OnnxModel, data: Dataset) -> list[Attempt]:
    """The file on `data` under each of NORMALISATIONS that fits its channels, and the data's own mean and std.

    No normalisation comes first, then what is usual for the data set.
    """
    channels = len(model.contract.mean)
    found = []
    plain, *others = NORMALISATIONS
    for name in (plain, *sorted(others, key=lambda name: name not in OF_DATA.get(data.name, ()))):
        mean, std = NORMALISATIONS[name]
        if len(mean) in (1, channels):
            found.append((name, _each(mean, channels), _each(std, channels)))
    pixels = data.pixels(dtype=torch.float64).transpose(0, 1).flatten(1)
    if channels == len(pixels):
        mean = tuple(round(float(value), 4) for value in pixels.mean(1))
        std = tuple(max(round(float(value), 4), 1e-4) for value in pixels.std(1))
        found += [("the data's own mean and std", mean, std), ("the data's own mean", mean, (1.0,) * channels)]
    return [_attempt(name, model, data, mean, std) for name, mean, std in found]


def _each(values: PerChannel, channels: int) -> PerChannel:
    return values * channels if len(values) == 1 else values


def presentations(model: OnnxModel, data: Dataset, mean: PerChannel, std: PerChannel) -> list[Attempt]:
    """The file on the images of `data` rearranged as each of PRESENTATIONS says that has an effect on them."""
    found = []
    for name, change in PRESENTATIONS.items():
        images = data.pixels()
        changed = change(images) if data.shape[1] == data.shape[2] or "exchanged" not in name else images
        if changed.shape == images.shape and not torch.equal(changed, images):
            rearranged = dataclasses.replace(data, images=changed.contiguous())
            found.append(_attempt(name, model, rearranged, mean, std))
    return found


def _attempt(name: str, model: OnnxModel, data: Dataset, mean: PerChannel, std: PerChannel) -> Attempt:
    runner = OnnxRunner(model, dataclasses.replace(model.contract, mean=mean, std=std))
    predictions = runner.logits(data.pixels()).argmax(axis=1).astype(np.int64)
    return Attempt(name=name, mean=mean, std=std, predictions=predictions, labels=data.labels.numpy())


def choose(attempts: Sequence[Attempt]) -> Attempt:
    """The first one unless the best is clearly better; then the first one than which the best is not better."""
    best = max(attempts, key=lambda attempt: attempt.correct)
    if not best.better(attempts[0], CLEARLY):
        return attempts[0]
    return next(attempt for attempt in attempts if not best.better(attempt, NOISE))


def alike(attempts: Sequence[Attempt], chosen: Attempt) -> list[Attempt]:
    """The other attempts whose accuracy differs from the chosen one's within noise."""
    return [t for t in attempts if t is not chosen and not t.better(chosen, NOISE) and not chosen.better(t, NOISE)]


def doubt(model: OnnxModel, data: Dataset, other: Callable[[], Dataset] | None = None) -> str | None:
    """A warning with the probable cause and the fix where accuracy on `data` is near chance, None where all seems well.

    Also where accuracy is LOW and another reading of the input is clearly better.

    Args:
        other: a split on which alternatives are tried; default `data` itself.
    """
    judged = sample(data)
    if len(judged) < FEWEST:
        return None
    given, classes = predict(model, judged), model.network.num_classes
    guessing = near_chance(given.predictions, given.labels, classes)
    if not guessing and given.correct / len(judged) >= 1 / classes + LOW * (1 - 1 / classes):
        return None
    try:
        tried = judged if other is None else sample(other())
    except DataError:  # a small file has no validation split
        tried = judged
    cause = _cause(model, tried)
    if cause is None and not guessing:
        return None
    words = (
        f"{model.path} classifies only {given.correct} of {len(judged)} inputs of {data.name} ({data.split}) correctly"
    )
    return f"{words}{f', near chance for {classes} classes' if guessing else ''}; {cause or _UNKNOWN}"


_UNKNOWN = (
    "none of the usual normalisations is clearly better. Look for wrong --mean/--std, another order of channels or"
    " pixels, input in 0..255, labels in another order or of other data, or a network that is not trained yet."
)


def _cause(model: OnnxModel, data: Dataset) -> str | None:
    """What to do, by trying on `data`; None where nothing is clearly better."""
    given, classes, n = predict(model, data), model.network.num_classes, len(data)
    best = choose([given, *normalisations(model, data)])
    flags = f"with {best.flags}" if best.flags else "without --mean and --std"
    if best is not given and not near_chance(best.predictions, best.labels, classes):
        return f"{flags} ({best.name}) it is {best.correct} of {n} ({data.split}): give these options."
    other = choose([best, *presentations(model, data, best.mean, best.std)])
    if other is not best and not near_chance(other.predictions, other.labels, classes):
        more = "" if best is given else f" and {flags}"
        return f"{other.name}{more} it is {other.correct} of {n} ({data.split}): rearrange the images that way."
    renamed = best.renaming(classes)
    right = sum(renamed.get(int(p)) == int(y) for p, y in zip(best.predictions, best.labels, strict=True))
    if right >= max(RENAMED * n, 2 * best.correct) and len(np.unique(best.predictions)) > classes / 2:
        pairs = ", ".join(f"{i} is {j}" for i, j in list(renamed.items())[:5])
        return (
            f"its classes are in another order: renamed (the network's class {pairs}{', ...' * (len(renamed) > 5)})"
            f" {right} of {n} ({data.split}) are right: number the labels as the network does."
        )
    return None


def in_graph(network: Network) -> tuple[PerChannel, PerChannel] | None:
    """Mean and std of a normalisation that the graph itself starts with, per channel, if it does."""
    scale, shift = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    at, moved = INPUT, False
    for node in network.nodes:
        if node.inputs != (at,) or not isinstance(node.layer, Affine | Reshape | Transpose):
            break
        moved = moved or not isinstance(node.layer, Affine)
        at = node.name
        if isinstance(node.layer, Affine):
            a, b = node.layer.scale.double(), node.layer.shift.double()
            if max(a.dim(), b.dim()) > 3 or (moved and max(a.numel(), b.numel()) > 1):
                return None
            scale, shift = scale * a, shift * a + b
    if bool((scale <= 0).any()):
        return None
    both = torch.stack(torch.broadcast_tensors(-shift / scale, 1 / scale))  # type: ignore[no-untyped-call]
    if both[0].dim() != 3 or any(bool((t != t[:, :1, :1]).any()) for t in both):
        return None
    mean, std = (tuple(round(float(value), 6) + 0.0 for value in t[:, 0, 0]) for t in both)
    return None if not any(mean) and all(value == 1 for value in std) else (mean, std)


def warn_of_accuracy(model: OnnxModel, dataset: Dataset, choice: DataSource) -> None:
    """An AccuracyWarning that names the fix where the network does badly on `dataset` (normalisation.doubt).

    Alternatives are tried on the validation split of `choice`, which `dataset` is a split of.
    """
    sentence = doubt(model, dataset, lambda: choice.load("validation"))
    if sentence is not None:
        warnings.warn(sentence, AccuracyWarning, stacklevel=3)
