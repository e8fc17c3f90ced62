"""Properties as a training target: the images, labels and radius that VNN-LIB files of local robustness speak of.

A file of the usual form states one input box and that some output of another class reaches the label's: unsafe is
OR over classes c of Y_label <= Y_c. A UAP query (equal-to copies that share a perturbation) is k of these over one u.
`harden` trains on the centres of the boxes; the verdicts before and after come from `verify` on the same files: they
say that the properties hold, not how well the network does on other inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from citrus_tool.choices import Arithmetic
from citrus_tool.data import Dataset
from citrus_tool.errors import InputFileError
from citrus_tool.onnx_io import OnnxModel
from citrus_tool.onnx_io.contract import InputContract
from citrus_tool.queries import read
from citrus_tool.queries.benchmark import read_instances
from citrus_tool.queries.constraint import Clause, Conjunction
from citrus_tool.queries.prefix_notation import assertion
from citrus_tool.queries.spec import Spec
from citrus_tool.queries.uap import NotUapError, UapStructure, uap_structure
from citrus_tool.queries.verify import read_models, verify

SHARE = 0.2
"""Share of the training inputs that the properties' images make up, each repeated as often as the others: enough to
weigh in every batch without drowning the data."""
ROUNDING = 0.01
"""Most that a pixel's radius may be off, in units of the property's, and a clipped bound from 0 or 1: files round their
numbers."""
LEVEL = 0.02
"""Most that a pixel may be off a level of 8 bits, in levels, to count as that level: files round their numbers."""
FORM = "harden takes local robustness properties: a box of one radius, and (or (<= Y_label Y_c) ...) over classes c"


@dataclass(frozen=True, kw_only=True, eq=False)
class Property:
    """One file: `images` (k, *pixel_shape) float64 in [0, 1] keep `labels` within `eps`, in pixel space.

    k is 1 for local robustness; more for a UAP query, which asks it of at least one image for every shared u.
    """

    path: Path
    spec: Spec
    images: Tensor
    labels: tuple[int, ...]
    eps: float


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What `verify` said about a property: unsat (it holds), sat (a witness was replayed), unknown or timed-out."""

    path: Path
    verdict: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """Properties to train for, the seconds that each verdict may take, and the arithmetic that it is about."""

    properties: tuple[Property, ...]
    seconds: float
    arithmetic: Arithmetic = "float32"

    @property
    def eps(self) -> float:
        """The largest radius, in pixel space."""
        return max(found.eps for found in self.properties)

    def joined(self, train: Dataset) -> Dataset:
        """`train` and the properties' images, each distinct one as often as it takes to make up SHARE of the whole.

        8-bit data stay 8-bit where every pixel of the images is such a level.
        """
        pairs = {
            (image.numpy().tobytes(), label): (image, label)
            for found in self.properties
            for image, label in zip(found.images, found.labels, strict=True)
        }
        images = torch.stack([image for image, _ in pairs.values()])
        labels = torch.tensor([label for _, label in pairs.values()])
        base = train.images
        if base.dtype == torch.uint8:
            levels = (255 * images).round()
            if float((255 * images - levels).abs().max()) <= LEVEL:
                images = levels
            else:
                base = train.pixels()
        repeats = max(1, round(len(train) * SHARE / (1 - SHARE) / len(images)))
        return replace(
            train,
            images=torch.cat([base, images.to(base.dtype).repeat(repeats, 1, 1, 1)]),
            labels=torch.cat([train.labels, labels.repeat(repeats)]),
        )

    def verdicts(self, network: Path, done: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
        """What `verify` says about each property of the file `network`; `done` gets each as it comes."""
        findings = []
        for found in self.properties:
            models = read_models(found.spec, {found.spec.networks[0].name: network})
            answer = verify(found.spec, models, arithmetic=self.arithmetic, seconds=self.seconds)
            findings.append(Finding(path=found.path, verdict=answer.verdict.value))
            done(findings[-1])
        return findings


def read_target(paths: Sequence[Path], model: OnnxModel, *, seconds: float) -> Target:
    """The properties in `paths`: .vnnlib files (or .vnnlib.gz), folders of such, instances.csv files.

    Of an instances.csv the lines count that name the file of `model`.

    Raises InputFileError (VnnlibError) for a file that cannot be read, that states no local robustness (quoting the
    assertion), or that does not fit the network.
    """
    files = dict.fromkeys(file for path in paths for file in _files(path, model.path))
    return Target(properties=tuple(read_property(file, model) for file in files), seconds=seconds)


def _files(path: Path, network: Path) -> list[Path]:
    if path.is_dir():
        found = sorted([*path.glob("*.vnnlib"), *path.glob("*.vnnlib.gz")])
        if not found:
            raise InputFileError(f"{path}: holds no .vnnlib file; name the folder of the properties.")
        return found
    if path.suffix != ".csv":
        return [path]
    same = network.resolve()
    found = [i.query for i in read_instances(path) if all(file.resolve() == same for file in i.networks.values())]
    if not found:
        raise InputFileError(f"{path}: no line names the network {network}; give the properties one by one.")
    return found


def read_property(path: Path, model: OnnxModel) -> Property:
    """One file as a Property of `model`; raises InputFileError, and else as `read_target`."""
    spec = read(path)
    labels = _labels(spec, path)
    try:
        structure = uap_structure(spec)
    except NotUapError as error:
        raise InputFileError(f"{path}: {str(error).removesuffix('.')}; {FORM}.") from None
    if structure.empty:
        raise InputFileError(f"{path}: its input box is empty; correct the bounds.")
    entries, outputs = spec.networks[0].inputs[0].size, spec.networks[0].outputs[0].size
    contract = model.contract
    if (entries, outputs) != (math.prod(contract.file_shape), model.network.num_classes):
        raise InputFileError(
            f"{path}: speaks of {entries} inputs and {outputs} outputs, {model.path} has "
            f"{math.prod(contract.file_shape)} and {model.network.num_classes}; name this network's properties."
        )
    images, eps = _images(structure, contract, spec, path)
    return Property(path=path, spec=spec, images=images, labels=labels, eps=eps)


def _labels(spec: Spec, path: Path) -> tuple[int, ...]:
    """The label of each copy: the one class that every case of its unsafe set puts below another one."""
    unsafe: dict[str, list[Clause]] = {name: [] for name in spec.outputs}
    for clause in (*(((row,),) for row in spec.common), *spec.clauses):
        tensors = {variable.tensor for part in clause for row in part for variable, _ in row.terms}
        if tensors <= set(spec.inputs) and len(clause) == 1:
            if any(len(row.terms) > 1 and row.relation != "==" for row in clause[0]):
                raise _refused(path, spec, clause, "neither bounds an input nor links two copies")
            continue  # whether box and links are those of one shared perturbation is uap_structure's to say
        if len(tensors) != 1 or not tensors <= set(spec.outputs):
            raise _refused(path, spec, clause, "is no condition on the outputs alone")
        unsafe[tensors.pop()].append(clause)
    labels = []
    for name, clauses in unsafe.items():
        if len(clauses) != 1:
            if not clauses:
                raise InputFileError(f"{path}: no assertion speaks of the output {name}; {FORM}.")
            raise _refused(path, spec, clauses[1], "is a second condition on the same output")
        found = {_below(part) for part in clauses[0]}
        label = found.pop() if len(found) == 1 else None
        if label is None:
            raise _refused(path, spec, clauses[0], "does not put one label's output below others")
        labels.append(label)
    return tuple(labels)


def _below(part: Conjunction) -> int | None:
    """y of a conjunction that is the one row Y_y <= Y_c."""
    if len(part) != 1 or part[0].bound != 0 or part[0].relation == "==" or len(part[0].terms) != 2:
        return None
    terms = {coefficient: variable for variable, coefficient in part[0].terms}
    return terms[Fraction(1)].flat if set(terms) == {Fraction(1), Fraction(-1)} else None


def _refused(path: Path, spec: Spec, clause: Clause, why: str) -> InputFileError:
    return InputFileError(f"{path}: the assertion {assertion(spec, clause)} {why}; {FORM}.")


def _images(structure: UapStructure, contract: InputContract, spec: Spec, path: Path) -> tuple[Tensor, float]:
    """The centres (k, *pixel_shape) and the radius in pixel space; where [0, 1] cut a box off, the uncut centre."""
    centres = torch.from_numpy(structure.centres)
    radius = torch.from_numpy(structure.radius).expand_as(centres)
    lower, upper = (
        contract.to_pixels(side.reshape(-1, *contract.file_shape)) for side in (centres - radius, centres + radius)
    )
    half = (upper - lower) / 2
    eps = float(half.max())
    slack = ROUNDING * eps
    whole = half >= eps - slack
    low, high = lower.abs() <= slack, (upper - 1).abs() <= slack
    middle = torch.where(whole | (low & high), (lower + upper) / 2, torch.where(low, upper - eps, lower + eps))
    odd = ~(whole | low | high)
    outside = ((middle < -slack) | (middle > 1 + slack)) & ~odd
    for wrong, why in (
        (odd, "has another radius"),
        (outside, "lies outside [0, 1] in pixel space; --mean and --std are those that the file's input expects"),
    ):
        if bool(wrong.any()):
            copy, *place = torch.nonzero(wrong)[0].tolist()
            at = (copy, *place)
            raise InputFileError(
                f"{path}: pixel {tuple(place)} of {spec.networks[copy].inputs[0].name} with bounds "
                f"{float(lower[at]):g} and {float(upper[at]):g}, where the largest radius is {eps:g}, {why}; {FORM}."
            )
    return middle.clamp(0.0, 1.0), eps
