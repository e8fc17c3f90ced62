"""The first configuration file of a user's network (`citrus init`): what the file and the data say, as commented TOML.

Choices are made on the validation split. Every value is one that the commands take by `--config`; entries at the top
are for all of them, tables for the command that they are named after.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from citrus_tool import onnx_io
from citrus_tool.data import Dataset
from citrus_tool.errors import UsageError
from citrus_tool.files import toml_value, write_text
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.sources import DataChoice, ModelChoice
from citrus_tool.workflow.normalisation import Attempt, alike, choose, doubt, in_graph, normalisations, predict, sample
from citrus_tool.workflow.recipe_choice import RECIPE_OF_DATA

BY_SHAPE: Final[Mapping[tuple[tuple[int, ...], int], str]] = {
    ((1, 8, 8), 10): "digits",
    ((64,), 10): "digits",
    ((1, 28, 28), 10): "mnist",
    ((784,), 10): "mnist",
    ((3, 32, 32), 10): "cifar10",
    ((3072,), 10): "cifar10",
    ((3, 64, 64), 200): "tinyimagenet",
}
"""The named data set that a network with this input (without axes of 1 in front of a flat one) and classes is for."""

INPUTS: Final = 512
"""Validation inputs on which normalisations are compared: accuracy's standard error is then at most 2.2 points."""
LIMIT: Final = 1000
"""Test inputs that the file asks for, at most: as many as `harden` judges by default."""

EPS: Final[Mapping[str, tuple[str, str]]] = {
    "digits": ("0.11", "0.02, 0.05, 0.11"),
    "mnist": ("0.1", "0.05, 0.1, 0.3"),
    "cifar10": ("2/255", "1/255, 2/255, 8/255"),
    "tinyimagenet": ("1/255", "1/255, 2/255"),
}
"""Suggested eps and sweep: those of the literature, for digits those of this project."""


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """What `look` found out about a network and its data.

    Attributes:
        chosen: the reading of the input that the file gets; alike: others whose accuracy is the same within noise.
        plain: pixels in [0, 1] as they are.
        doubt: a warning about `chosen` if accuracy stays low.
        graph: mean and std of a normalisation inside the file.
    """

    source: ModelChoice
    choice: DataChoice
    model: OnnxModel
    dataset: Dataset
    plain: Attempt
    chosen: Attempt
    alike: tuple[Attempt, ...]
    doubt: str | None
    graph: tuple[tuple[float, ...], tuple[float, ...]] | None

    @property
    def eps(self) -> tuple[str, str]:
        """The suggested eps and a sweep around it."""
        other = ("2/255", "1/255, 2/255, 8/255") if self.dataset.shape[0] == 3 else ("0.1", "0.02, 0.05, 0.1")
        return EPS.get(self.choice.name, other)

    def facts(self) -> list[tuple[str, str]]:
        """(what, value) lines for readers."""
        contract, n = self.model.contract, len(self.chosen.labels)
        batch = "one at a time" if contract.batch else "any batch"
        inside = "none" if self.graph is None else "mean {}, std {}".format(*map(_numbers, self.graph))
        known = "" if self.dataset.classes_known else " at least"
        return [
            ("network", f"{self.source.path}, opset {self.model.opset}"),
            ("input", f"{contract.file_shape}, {contract.layout}, {batch}"),
            ("classes", str(self.model.network.num_classes)),
            ("data", f"{self.choice.name}, images {self.dataset.shape},{known} {self.dataset.num_classes} classes"),
            ("normalisation in the graph", inside),
            ("accuracy on plain pixels", f"{self.plain.correct} of {n} ({self.dataset.split})"),
            ("normalisation in front", self.chosen.flags or "none"),
            ("accuracy so", f"{self.chosen.correct} of {n} ({self.dataset.split})"),
        ]


def look(source: ModelChoice, choice: DataChoice) -> FirstLook:
    """Reads the file and the validation split, and tries the usual normalisations unless `source` gives one.

    Raises CitrusError where the file or the data cannot be read.
    """
    dataset = choice.load("validation")
    bare = ModelChoice(path=source.path).read(dataset)
    few = sample(dataset, INPUTS)
    attempts = normalisations(bare, few)
    given = source.mean is not None or source.std is not None
    chosen = predict(source.read(dataset), few) if given else choose(attempts)
    model = ModelChoice(path=source.path, mean=chosen.mean, std=chosen.std).read(dataset)
    return FirstLook(
        source=source,
        choice=choice,
        model=model,
        dataset=dataset,
        plain=attempts[0],
        chosen=chosen,
        alike=tuple(attempt for attempt in alike(attempts, chosen) if attempt.flags != chosen.flags),
        doubt=doubt(model, dataset),
        graph=in_graph(bare.network),
    )


def guess(source: ModelChoice) -> str:
    """The named data set that fits a file's input and classes; raises UsageError where none does."""
    found = onnx_io.inspect(source.path, mean=source.mean, std=source.std)
    shape = found.contract.pixel_shape
    if found.contract.layout == "flat":
        shape = tuple(size for size in shape if size != 1)
    if found.num_classes is not None and (name := BY_SHAPE.get((shape, found.num_classes))):
        return name
    raise UsageError(
        f"{found.path} takes inputs of shape {found.contract.file_shape} and has {found.num_classes} classes, for which"
        " no data set is known by name; add --data FILE.npz or --data FOLDER."
    )


def write(first: FirstLook, path: Path) -> None:
    """Writes `toml(first, path)` to `path`."""
    write_text(path, toml(first, path))


def toml(first: FirstLook, path: Path) -> str:
    """The configuration as TOML with a comment for each choice."""
    facts = dict(first.facts())
    name = first.choice.name
    eps, several = first.eps
    recipe = RECIPE_OF_DATA.get(name, "cifar10-2" if first.dataset.shape[0] == 3 else "mnist-cpu")
    test = min(LIMIT, len(first.choice.load("test")))
    lines = [
        f"# Settings for {first.source.path}, written by `citrus init`. Use them with",
        "#",
        f"#     citrus certify-uap --config {path}",
        f"#     citrus harden --config {path}",
        "#",
        "# Entries at the top are for every command that has such an option, a table is for the command of that name.",
        "# Options on the command line win. Paths are relative to the folder that citrus is run in.",
        "",
        f"# input {facts['input']}; {facts['classes']} classes",
        _entry("model", str(first.source.path)),
        "",
        f"# {facts['data']}",
        _entry("data", name),
        *([_entry("data-root", str(first.choice.root))] if first.choice.root is not None else []),
        "",
        *_wrapped(_normalisation(first)),
        *(
            [_entry("mean", list(first.chosen.mean)), _entry("std", list(first.chosen.std))]
            if first.chosen.flags
            else ["# mean = [0.5]", "# std = [0.5]"]
        ),
        "",
        "# One perturbation u, |u| <= eps in pixel space [0, 1], is shared by the inputs of a group.",
        f"# {'Usual' if name in EPS else 'A guess'} for {name}; you know what u may look like.",
        _entry("eps", eps),
        "group-size = 5",
        "",
        f"# The first {test} inputs of the test split are judged; remove the line to judge all of them.",
        _entry("limit", test),
        "seed = 0",
        "",
        "[certify-uap]",
        f"# eps = [{', '.join(toml_value(one) for one in several.split(', '))}]  # several: one table, and a curve",
        'protocol = "all"  # "correct": only inputs that are classified correctly without a perturbation',
        'bounds = "crown"  # "ibp" is faster, "alpha" and "full" prove more and take longer',
        "",
        "[harden]",
        'method = "citrus"  # certified training across inputs; citrus harden --help lists the others',
        f"{_entry('recipe', recipe)}  # eps above replaces the recipe's; docs/training.md says what is in it",
        '# init = "shi"  # new weights, in place of training on from those of the file',
    ]
    return "\n".join(lines) + "\n"


def _entry(key: str, value: Any) -> str:
    return f"{key} = {toml_value(value)}"


def _normalisation(first: FirstLook) -> str:
    chosen, n, split = first.chosen, len(first.chosen.labels), first.dataset.split
    right = f"{chosen.correct} of {n} inputs ({split}) are classified correctly"
    if first.graph is not None and not chosen.flags:
        words = f"The graph normalises by itself ({dict(first.facts())['normalisation in the graph']}): {right}."
    elif not chosen.flags:
        words = f"The file takes plain pixels in [0, 1]: {right}, and no usual normalisation is clearly better."
    else:
        words = f"The file expects (x - mean) / std, by {chosen.name}: {right}, {first.plain.correct} on plain pixels."
        if first.alike:
            words += f" As good within noise: {'; '.join(t.name for t in first.alike)}. The training code knows best."
    return words if first.doubt is None else f"{words} WARNING: {first.doubt}"


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=118, initial_indent="# ", subsequent_indent="# ")
