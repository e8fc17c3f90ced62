"""A query and its network files as questions of one form: one network, one input box, one formula over its outputs.

Copies of a network that share a perturbation u become one network over u (a UAP query of any k); other queries with
several networks become one network over all their inputs, side by side. The unsafe set is the union of the questions'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from citrus_tool.bounds.rounding import enclose_bounds
from citrus_tool.choices import Arithmetic
from citrus_tool.errors import UnsupportedNetworkError, UsageError
from citrus_tool.network import INPUT, Affine, Concat, Evaluation, GraphBuilder, Network, Reshape, Slice, size
from citrus_tool.onnx_io import OnnxModel, OnnxRunner
from citrus_tool.queries.constraint import Clause, Constraint
from citrus_tool.queries.exact_boxes import InputBox
from citrus_tool.queries.formula import Columns, Formula
from citrus_tool.queries.spec import Case, Spec
from citrus_tool.queries.uap import NotUapError, UapStructure, uap_structure
from citrus_tool.queries.witness import Check, check
from citrus_tool.threat import Box

MAX_QUESTIONS = 10_000
"""Most input boxes that one query may speak of; each is proven on its own."""

LINK_ULPS = 4
"""Units in the last place (float32) by which witness inputs of two networks may miss an equality between them: the
rounding of both, and of the numbers in the query."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InputSlice:
    """How a network's input is made of z: z[start : start + size] + centre (None: 0), (*input_shape,)."""

    tensor: str
    start: int
    size: int
    centre: NDArray[np.float64] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """Is there a z in `box` with formula(network(z), z)?

    Attributes:
        network: in float64, evaluation mode; its output is every output of the query, in order of declaration.
        box: of one z, batch of 1; contains the exact set.
        least, greatest: (*input_shape,) float64, the range in which witnesses are looked for.
        formula: over the outputs and z, flat.
        parts: how z gives the networks' inputs.
        room: tensor -> least and greatest float32 that a witness may have.
        empty: no z lies in the exact box.
    """

    network: Network
    box: Box
    least: Tensor
    greatest: Tensor
    formula: Formula
    parts: tuple[InputSlice, ...]
    room: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    empty: bool

    @property
    def shared(self) -> bool:
        """z is the perturbation that all inputs share; the question is then the query's only one."""
        return self.parts[0].centre is not None

    def inputs(self, z: Tensor) -> dict[str, NDArray[np.float32]]:
        """The networks' inputs at z (*input_shape,), cast to float32 inside their boxes, flat."""
        flat = z.detach().double().flatten().numpy()
        found: dict[str, NDArray[np.float32]] = {}
        for part in self.parts:
            x = flat[part.start : part.start + part.size]
            if part.centre is not None:
                x = x + part.centre.ravel()
            least, greatest = self.room[part.tensor]
            found[part.tensor] = np.clip(x.astype(np.float32), least, greatest)
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Files:
    """A query and its network files, read; `models` has an entry for every declared network, copies included.

    `arithmetic`: what is proven; files in `float32` get points of the query's boxes that are float32 themselves.
    """

    spec: Spec
    models: Mapping[str, OnnxModel]
    arithmetic: Arithmetic

    @staticmethod
    def of(spec: Spec, models: Mapping[str, OnnxModel], arithmetic: Arithmetic = "float32") -> Files:
        """Checks that each declared network fits its file; `models` needs no entry for a copy (equal-to).

        Raises UsageError with both sizes, UnsupportedNetworkError for networks with several inputs or outputs.
        """
        shared = {network.name: models[network.equal_to or network.name] for network in spec.networks}
        for network in spec.networks:
            model = shared[network.name]
            if len(network.inputs) != 1 or len(network.outputs) != 1:
                raise UnsupportedNetworkError(
                    f"network {network.name} declares several inputs or outputs; citrus reads networks with one each."
                )
            for what, tensor, there in (
                ("input", network.inputs[0], size(model.contract.pixel_shape)),
                ("output", network.outputs[0], model.network.num_classes),
            ):
                if tensor.size != there:
                    raise UsageError(
                        f"{tensor.name} has {tensor.size} entries, the {what} of {model.path} has {there}; "
                        f"check which file belongs to network {network.name}."
                    )
        return Files(spec=spec, models=shared, arithmetic=arithmetic)

    def networks(self) -> dict[str, Network]:
        """Network name -> a float64 copy; networks that share a file share it."""
        runs = Evaluation(arithmetic=self.arithmetic)
        frozen = {
            id(model): model.network.frozen(dtype=torch.float64, evaluation=runs) for model in self.models.values()
        }
        return {name: frozen[id(model)] for name, model in self.models.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """Runs the files on given inputs with onnxruntime and judges the result as the competition's scorer does.

    Equalities between inputs of different networks (the shared perturbation of a UAP query) are judged up to the
    rounding of the inputs to float32, LINK_ULPS; all else is exact.
    """

    files: Files
    exact: Spec
    rounded: Spec
    links: tuple[Constraint, ...]
    runners: Mapping[str, OnnxRunner]

    @staticmethod
    def of(files: Files) -> Replay:
        """With one runner for each file."""
        spec = files.spec
        links = [
            row
            for row in spec.common
            if row.relation == "=="
            and len({v.tensor for v, _ in row.terms}) > 1
            and all(v.tensor in spec.inputs for v, _ in row.terms)
        ]
        dropped = set(links)
        plain = replace(spec, common=tuple(row for row in spec.common if row not in dropped)) if links else spec
        runners = {id(model): OnnxRunner(model) for model in files.models.values()}
        return Replay(
            files=files,
            exact=plain,
            rounded=plain.rounded(),
            links=tuple(links),
            runners={name: runners[id(model)] for name, model in files.models.items()},
        )

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """`inputs` by tensor, flat (size,), and the outputs that onnxruntime gives for them, one input at a time."""
        values: dict[str, NDArray[np.float32]] = {}
        for network in self.files.spec.networks:
            source, target = network.inputs[0], network.outputs[0]
            runner = self.runners[network.name]
            x = np.asarray(inputs[source.name], dtype=np.float32).reshape(source.shape)
            values[source.name] = x
            batch = torch.from_numpy(x.reshape(1, *runner.contract.pixel_shape).copy())
            values[target.name] = runner.logits(batch).reshape(target.shape)
        return values

    def judge(self, values: Mapping[str, NDArray[np.float32]]) -> Check:
        """Whether replayed values, flat (size,) by tensor, lie in the unsafe set, by the query's numbers read as
        float64 (the scorer's way).

        They also have to by the numbers as written, except where a bound leaves no float32 between.
        """
        found = check(self.rounded, values)
        if not found.holds:
            return found
        for row in self.links:
            terms = [(c * Fraction(float(np.ravel(values[v.tensor])[v.flat]))) for v, c in row.terms]
            allowed = Fraction(LINK_ULPS, 2**24) * (sum(map(abs, terms), Fraction(0)) + abs(row.bound))
            if abs(sum(terms, Fraction(0)) - row.bound) > allowed:
                names = ", ".join(self.exact.describe(v) for v, _ in row.terms)
                return Check(holds=False, reason=f"{names} miss their stated difference by more than rounding.")
        return found


def questions(files: Files) -> Iterator[Question]:
    """The questions that a query stands for, one for each input box that it speaks of; a UAP query is one.

    Raises InputFileError where there are more than MAX_QUESTIONS.
    """
    spec = files.spec
    if len(spec.networks) > 1:
        try:
            structure = uap_structure(spec)
        except NotUapError:
            pass
        else:
            yield _shared(files, structure)
            return
    side_by_side = _SideBySide.of(files)
    if spec.is_box():
        yield side_by_side.question(spec.common_case, spec.clauses)
        return
    for case in spec.cases(limit=MAX_QUESTIONS):
        yield side_by_side.question(case, ())


def _shared(files: Files, structure: UapStructure) -> Question:
    """Copies over one u.

    The centres' rounding to float64 (`centre_error`, half a unit in the last place) is one more rounding in the sum
    centre + u, of which the rounding margin of that layer counts OWN.
    """
    spec, count = files.spec, size(structure.input_shape)
    parts = [
        InputSlice(tensor=network.inputs[0].name, start=0, size=count, centre=centre)
        for network, centre in zip(spec.networks, structure.centres, strict=True)
    ]
    shape = next(iter(files.models.values())).contract.pixel_shape
    network, columns = _network(files, parts, shape)
    clauses = [clause for copy in structure.unsafe for clause in copy]
    radius = torch.from_numpy(structure.radius.reshape(shape))
    return Question(
        network=network,
        box=Box(centre=torch.zeros_like(radius)[None], radius=radius[None]),
        least=-radius,
        greatest=radius,
        formula=Formula.of((), clauses, columns),
        parts=tuple(parts),
        room={name: _room(spec.common_case.boxes[name]) for name in spec.inputs},
        empty=structure.empty,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _SideBySide:
    """All networks over the concatenation of their inputs; one network keeps its input's shape."""

    shape: tuple[int, ...]
    parts: tuple[InputSlice, ...]
    network: Network
    columns: Columns

    @staticmethod
    def of(files: Files) -> _SideBySide:
        parts: list[InputSlice] = []
        start = 0
        for tensor in files.spec.inputs.values():
            parts.append(InputSlice(tensor=tensor.name, start=start, size=tensor.size, centre=None))
            start += tensor.size
        single = len(files.spec.networks) == 1
        shape = next(iter(files.models.values())).contract.pixel_shape if single else (start,)
        network, columns = _network(files, parts, shape)
        return _SideBySide(shape=shape, parts=tuple(parts), network=network, columns=columns)

    def question(self, case: Case, clauses: Sequence[Clause]) -> Question:
        room = {name: _room(box) for name, box in case.boxes.items()}

        def joined(arrays: Sequence[NDArray[np.floating]]) -> Tensor:
            flat = np.concatenate([a.astype(np.float64).ravel() for a in arrays])
            return torch.from_numpy(flat).reshape(self.shape)

        lower = joined([box.lower for box in case.boxes.values()])
        upper = joined([box.upper for box in case.boxes.values()])
        least, greatest = (joined([room[name][side] for name in case.boxes]) for side in (0, 1))
        return Question(
            network=self.network,
            box=enclose_bounds(lower[None], torch.maximum(lower, upper)[None]),
            least=least,
            greatest=torch.maximum(least, greatest),
            formula=Formula.of((*case.outputs, *case.mixed), clauses, self.columns),
            parts=self.parts,
            room=room,
            empty=case.empty,
        )


def _room(box: InputBox) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The float32 range of a tensor's entries; where it is empty, the float32 nearest to the bounds."""
    least, greatest = (side.ravel() for side in box.float32())
    inverted = least > greatest
    if inverted.any():
        near = ((box.lower + box.upper) / 2).ravel().astype(np.float32)
        least, greatest = np.where(inverted, near, least), np.where(inverted, near, greatest)
    return least, greatest


def _network(files: Files, parts: Sequence[InputSlice], shape: tuple[int, ...]) -> tuple[Network, Columns]:
    """All declared networks as one, and where the query's variables stand in it."""
    spec, networks = files.spec, files.networks()
    outputs: dict[str, int] = {}
    stop = 0
    for tensor in spec.outputs.values():
        outputs[tensor.name] = stop
        stop += tensor.size
    columns = Columns(
        outputs=outputs,
        inputs={part.tensor: part.start for part in parts},
        output_size=stop,
        input_size=size(shape),
    )
    if len(spec.networks) == 1:
        return networks[spec.networks[0].name], columns
    builder = GraphBuilder(shape)
    ends = []
    for declared, part in zip(spec.networks, parts, strict=True):
        network = networks[declared.name]
        front = INPUT
        if part.size != size(shape):
            front = builder.add(Slice(0, part.start, part.start + part.size), front)
        if part.centre is not None:
            centre = torch.from_numpy(part.centre.reshape(shape))
            front = builder.add(Affine(torch.ones_like(centre), centre), front)
        if network.input_shape != (shape if part.size == size(shape) else (part.size,)):
            front = builder.add(Reshape(network.input_shape), front)
        names = {INPUT: front}
        for node in network.nodes:
            names[node.name] = builder.add(node.layer, *(names[i] for i in node.inputs))
        ends.append(names[network.output_name])
    builder.add(Concat(0), *ends)
    return builder.build(like=network).eval(), columns
