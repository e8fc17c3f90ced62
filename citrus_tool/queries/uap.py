"""UAP queries: k copies of one network whose inputs differ by constants, so that all of them carry the same u.

x_i = centre_i + u for one shared u in a box, and each copy has its own unsafe set: a point of the query's unsafe set is
one perturbation that fools all k inputs. The form is that of notes and of docs/vnnlib.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from citrus_tool.errors import UsageError
from citrus_tool.queries.constraint import Clause, Conjunction, Constraint, Variable, at_least, at_most, ordered
from citrus_tool.queries.exact_boxes import enclose
from citrus_tool.queries.spec import NetworkVariable, Spec, TensorVariable


@dataclass(frozen=True, kw_only=True, eq=False)
class UapStructure:
    """Input i is centres[i] + u, one u with |u| <= radius (per entry) for all k copies, up to `centre_error`.

    For each exact point of the query there is a real u with |u| <= radius and |x_i - (centres[i] + u)| <= centre_error
    for every i: the rounding of the centres to float64 (0 or about 1e-17), which a bound that couples the copies has to
    cover. `radius` already contains it, so every copy's exact box lies in [centre - radius, centre + radius]. `centres`
    (k, *input_shape) and `radius` (*input_shape,) are in the units of the files' inputs. `unsafe[i]`: copy i's own
    unsafe set, over its output tensor, as clauses (a conjunction of disjunctions).
    """

    networks: tuple[str, ...]
    input_shape: tuple[int, ...]
    centres: NDArray[np.float64]  # (k, *input_shape)
    radius: NDArray[np.float64]  # input_shape
    centre_error: float
    unsafe: tuple[tuple[Clause, ...], ...]
    empty: bool


class NotUapError(UsageError):
    """The query has no UAP structure; the message says which condition fails."""


def uap_structure(spec: Spec) -> UapStructure:
    """Recognises a UAP query, k >= 1 copies.

    Asked for: every network has one input and one output of the same shapes and is the first one or `equal-to` it;
    inputs are constrained by `common` only, by bounds of single entries and by equalities on the difference of the same
    entry of two copies, enough of them to fix all differences; every other constraint and every clause speaks of one
    copy's output. Raises NotUapError otherwise.
    """
    first = _require_copies(spec)
    k, size = len(spec.networks), first.size
    copy_of = {network.inputs[0].name: i for i, network in enumerate(spec.networks)}
    copy_of_output = {network.outputs[0].name: i for i, network in enumerate(spec.networks)}

    differences: list[list[tuple[int, int, Fraction]]] = [[] for _ in range(size)]  # entry -> (i, j, x_i - x_j)
    unsafe: list[list[Clause]] = [[] for _ in range(k)]
    for row in spec.common:
        if len(row.terms) == 1 and row.terms[0][0].tensor in copy_of:
            continue
        if all(variable.tensor in copy_of_output for variable, _ in row.terms):
            unsafe[_one_copy([row], copy_of_output)].append(((row,),))
            continue
        i, j, entry, difference = _difference(row, copy_of)
        differences[entry].append((i, j, difference))
    for clause in spec.clauses:
        if clause:
            unsafe[_one_copy([row for part in clause for row in part], copy_of_output)].append(clause)

    case = spec.common_case
    centres, radius = np.zeros((k, size)), np.zeros(size)
    error = Fraction(0)
    empty = case.empty or () in spec.clauses
    for entry in range(size):
        offsets = _offsets(k, differences[entry], entry)
        if offsets is None:
            empty, offsets = True, [Fraction(0)] * k
        sides = [spec.common_bounds(Variable(network.inputs[0].name, entry)) for network in spec.networks]
        lower = [low - c for (low, _), c in zip(sides, offsets, strict=True) if low is not None]
        upper = [high - c for (_, high), c in zip(sides, offsets, strict=True) if high is not None]
        if not lower or not upper:
            raise NotUapError(f"input entry {entry} is not bounded from both sides in any copy.")
        low, high = max(lower), min(upper)
        empty = empty or low > high
        middle, half = (low + high) / 2, abs(high - low) / 2
        worst = Fraction(0)
        for i, offset in enumerate(offsets):
            centres[i, entry] = near = float(middle + offset)
            worst = max(worst, abs(middle + offset - Fraction(near)))
        radius[entry] = enclose(half + worst)[1]
        error = max(error, worst)
    return UapStructure(
        networks=tuple(network.name for network in spec.networks),
        input_shape=first.shape,
        centres=centres.reshape(k, *first.shape),
        radius=radius.reshape(first.shape),
        centre_error=enclose(error)[1],
        unsafe=tuple(map(tuple, unsafe)),
        empty=empty,
    )


def _require_copies(spec: Spec) -> TensorVariable:
    """The first network's input, when all networks are copies of the first with one input and output each."""
    root = spec.networks[0]
    for network in spec.networks:
        if len(network.inputs) != 1 or len(network.outputs) != 1:
            raise NotUapError(f"network {network.name} has several inputs or outputs.")
        if network is not root and network.equal_to != root.name:
            raise NotUapError(f"network {network.name} is not equal-to the first network {root.name}.")
        if network.inputs[0].shape != root.inputs[0].shape or network.outputs[0].shape != root.outputs[0].shape:
            raise NotUapError(f"network {network.name} declares other shapes than {root.name}.")
    return root.inputs[0]


def _one_copy(rows: Sequence[Constraint], copy_of_output: Mapping[str, int]) -> int:
    tensors = {variable.tensor for row in rows for variable, _ in row.terms}
    if len(tensors) != 1 or not tensors <= set(copy_of_output):
        raise NotUapError(
            f"a constraint or disjunction speaks of {', '.join(sorted(tensors))}, not of one copy's output."
        )
    return copy_of_output[tensors.pop()]


def _difference(row: Constraint, copy_of: Mapping[str, int]) -> tuple[int, int, int, Fraction]:
    """(i, j, entry, c) of a row x_i[entry] - x_j[entry] == c."""
    if row.relation == "==" and len(row.terms) == 2 and all(v.tensor in copy_of for v, _ in row.terms):
        (left, one), (right, minus_one) = row.terms
        if left.flat == right.flat and left.tensor != right.tensor and one == 1 and minus_one == -1:
            return copy_of[left.tensor], copy_of[right.tensor], left.flat, row.bound
    names = ", ".join(variable.tensor for variable, _ in row.terms[:4])
    raise NotUapError(f"a constraint on {names} is neither a bound nor the difference of the same entry of two copies.")


def _offsets(k: int, edges: Sequence[tuple[int, int, Fraction]], entry: int) -> list[Fraction] | None:
    """x_i - x_0 for every copy i; None where the differences contradict each other."""
    neighbours: list[list[tuple[int, Fraction]]] = [[] for _ in range(k)]
    for i, j, difference in edges:
        neighbours[j].append((i, difference))
        neighbours[i].append((j, -difference))
    offsets: list[Fraction | None] = [None] * k
    offsets[0] = Fraction(0)
    queue, consistent = deque([0]), True
    while queue:
        here = queue.popleft()
        base = offsets[here]
        assert base is not None
        for there, difference in neighbours[here]:
            if offsets[there] is None:
                offsets[there] = base + difference
                queue.append(there)
            elif offsets[there] != base + difference:
                consistent = False
    known = [offset for offset in offsets if offset is not None]
    if len(known) < k:
        raise NotUapError(f"the differences between copies at input entry {entry} are not all fixed.")
    return known if consistent else None


def uap_query(
    images: NDArray[np.floating],
    labels: Sequence[int],
    eps: float | Fraction | NDArray[np.floating],
    num_classes: int,
    *,
    output_shape: Sequence[int] | None = None,
    element_type: str = "real",
) -> Spec:
    """The query "one u with |u| <= eps fools all k images", the inverse of `uap_structure`; ties count as fooled.

    `images` (k, *input_shape) in the units and shape of the model file's input, read as exact (input_shape includes the
    file's batch dimension of 1, as in (k, 1, 28, 28)); `labels` k classes. `eps` is in the units of the file's input
    too: a number, or an array of input_shape (per-channel normalisation); a float counts as its shortest decimal, 0.1
    as 1/10. Networks f1..fk with X1..Xk, Y1..Yk, output shape (1, num_classes) unless given. Raises UsageError.
    """
    k, shape = len(images), images.shape[1:]
    out_shape = (1, num_classes) if output_shape is None else tuple(output_shape)
    if k < 1 or len(labels) != k:
        raise UsageError(f"a UAP query needs one label for each image; got {k} images and {len(labels)} labels.")
    if num_classes < 2 or any(not 0 <= label < num_classes for label in labels):
        raise UsageError(f"labels must lie in 0..{num_classes - 1}, and there must be two classes at least.")
    if not np.isfinite(images).all() or int(np.prod(out_shape)) != num_classes:
        raise UsageError("images must be finite, and output_shape must hold num_classes entries.")
    size = int(np.prod(shape))
    if isinstance(eps, Fraction):
        radii = [eps] * size
    else:
        radii = [Fraction(str(value)) for value in np.broadcast_to(np.asarray(eps), shape).ravel().tolist()]
    if any(value < 0 for value in radii):
        raise UsageError("eps must not be negative.")

    networks = tuple(
        NetworkVariable(
            name=f"f{i}",
            inputs=(TensorVariable(name=f"X{i}", shape=shape, element_type=element_type),),
            outputs=(TensorVariable(name=f"Y{i}", shape=out_shape, element_type=element_type),),
            equal_to=None if i == 1 else "f1",
        )
        for i in range(1, k + 1)
    )
    exact = [[Fraction(value) for value in image.ravel().tolist()] for image in images]
    assertions: list[Clause] = []
    for entry, (value, radius) in enumerate(zip(exact[0], radii, strict=True)):
        first = Variable("X1", entry)
        assertions.append(((at_least(first, value - radius), at_most(first, value + radius)),))
    for i in range(1, k):
        for entry in range(size):
            terms = ((Variable("X1", entry), Fraction(1)), (Variable(f"X{i + 1}", entry), Fraction(-1)))
            row = Constraint(terms=terms, relation="==", bound=exact[0][entry] - exact[i][entry])
            assertions.append(((row,),))
    for i, label in enumerate(labels, start=1):
        assertions.append(tuple(_fooled(f"Y{i}", label, other) for other in range(num_classes) if other != label))
    return Spec.of(networks, assertions, "2.0")


def _fooled(output: str, label: int, other: int) -> Conjunction:
    row = ordered(Variable(output, label), Variable(output, other))
    assert isinstance(row, Constraint)  # label != other
    return (row,)
