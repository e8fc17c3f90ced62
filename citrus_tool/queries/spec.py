"""What a VNN-LIB file states, in one form for both versions of the language, exact.

A query asks whether an assignment of the networks' inputs and outputs lies in the UNSAFE set (sat: there is one, a
counterexample). Every number of the text is kept as a Fraction; float64 appears only in views, rounded outward where
a proof needs the set (`InputBox.lower`, `HalfSpaces`), inward where a witness needs a point (`InputBox.inner_lower`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from citrus_tool.errors import InputFileError, UsageError
from citrus_tool.queries.constraint import Clause, Conjunction, Constraint, Variable
from citrus_tool.queries.exact_boxes import Bounds, InputBox, copy_box, enclose, propagate, unbounded_box, write_bounds

Values: TypeAlias = Mapping[str, "NDArray[np.generic] | Sequence[float | Fraction]"]
"""Tensor name -> its entries, in any shape, row-major."""

MAX_CASES = 100_000
"""Most conjunctions that `Spec.cases` lists unless told otherwise: the list stays in memory."""


@dataclass(frozen=True, kw_only=True)
class TensorVariable:
    """An input or output tensor that a network declares; `element_type` as VNN-LIB 2.0 spells it (real, float32...)."""

    name: str
    shape: tuple[int, ...]
    element_type: str = "real"
    onnx_name: str | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class NetworkVariable:
    """A declared network: `equal_to` names the network whose model it shares, `isomorphic_to` whose structure."""

    name: str
    inputs: tuple[TensorVariable, ...]
    outputs: tuple[TensorVariable, ...]
    equal_to: str | None = None
    isomorphic_to: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class HalfSpaces:
    """R rows a y <= b, (R, N) and (R,), over N = all outputs of a query (declaration order, row-major), a superset of
    the exact ones.

    The exact coefficient of row r, column j lies within `error[r, j]` of `coefficients[r, j]` (0 almost always), the
    exact bound is at most `bounds[r]`. An equality is two rows, a strict relation is its closure.
    """

    coefficients: NDArray[np.float64]
    error: NDArray[np.float64]
    bounds: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One conjunction of the unsafe set, split by what its constraints speak about.

    `outputs`: over outputs only. `mixed`: over several inputs, or inputs and outputs. Every other constraint bounds one
    input and is in `boxes` (input tensor -> box). `empty`: an exact lower bound lies above its upper bound.
    """

    boxes: Mapping[str, InputBox]
    outputs: Conjunction
    mixed: Conjunction
    empty: bool
    spec: Spec = field(repr=False)

    def half_spaces(self) -> HalfSpaces:
        """`outputs` as rows."""
        return self.spec.half_spaces(self.outputs)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A query. The unsafe set: every constraint of `common` holds and, in every clause, at least one conjunction.

    This form is as small as the file (a product of k disjunctions is never multiplied out); `cases` lists the
    disjunction of conjunctions. `version` is the language that the query was written in; it does not count in ==.
    """

    networks: tuple[NetworkVariable, ...]
    common: Conjunction
    clauses: tuple[Clause, ...]
    version: Literal["1.0", "2.0"] = field(default="2.0", compare=False)

    @staticmethod
    def of(
        networks: Sequence[NetworkVariable], assertions: Iterable[Clause], version: Literal["1.0", "2.0"] = "2.0"
    ) -> Spec:
        """The conjunction of `assertions`; those of one conjunction become `common`, those that are true vanish."""
        common: list[Constraint] = []
        clauses: list[Clause] = []
        for clause in assertions:
            if len(clause) == 1:
                common.extend(clause[0])
            elif () not in clause:
                clauses.append(clause)
        return Spec(networks=tuple(networks), common=tuple(common), clauses=tuple(clauses), version=version)

    @cached_property
    def tensors(self) -> Mapping[str, TensorVariable]:
        """Every declared tensor by name, in declaration order."""
        return {t.name: t for network in self.networks for t in (*network.inputs, *network.outputs)}

    @cached_property
    def inputs(self) -> Mapping[str, TensorVariable]:
        """The input tensors of all networks."""
        return {t.name: t for network in self.networks for t in network.inputs}

    @cached_property
    def outputs(self) -> Mapping[str, TensorVariable]:
        """The output tensors of all networks."""
        return {t.name: t for network in self.networks for t in network.outputs}

    def network_of(self, tensor: str) -> NetworkVariable:
        """The network that declares `tensor`."""
        return next(n for n in self.networks if any(t.name == tensor for t in (*n.inputs, *n.outputs)))

    def describe(self, variable: Variable) -> str:
        """`variable` as the query's language writes it: X_3, or X[0,1]."""
        if self.version == "1.0":
            return f"{variable.tensor}_{variable.flat}"
        return element(self.tensors[variable.tensor], variable.flat)

    # ------------------------------------------------------------------ meaning

    def evaluate(self, values: Values) -> bool:
        """Whether the assignment lies in the unsafe set, decided in exact arithmetic.

        Floats count as the exact numbers they are; an assignment with a NaN or infinity lies in no set. Raises
        UsageError for a missing tensor or a wrong number of entries.
        """
        exact = self.exact(values)
        if exact is None:
            return False
        return all(row.holds(exact) for row in self.common) and all(
            any(all(row.holds(exact) for row in conjunction) for conjunction in clause) for clause in self.clauses
        )

    def exact(self, values: Values) -> Mapping[Variable, Fraction] | None:
        """`values` as fractions; None where one is not finite. Raises UsageError as `evaluate`."""
        result: dict[Variable, Fraction] = {}
        for tensor in self.tensors.values():
            if tensor.name not in values:
                raise UsageError(f"the assignment lacks {tensor.name}; give all {len(self.tensors)} tensors.")
            given = values[tensor.name]
            entries = given.ravel().tolist() if isinstance(given, np.ndarray) else given
            if len(entries) != tensor.size:
                raise UsageError(f"the assignment has {len(entries)} values for {tensor.name}, not {tensor.size}.")
            for index, entry in enumerate(entries):
                if not math.isfinite(entry):
                    return None
                result[Variable(tensor.name, index)] = Fraction(entry)
        return result

    def rounded(self) -> Spec:
        """The same query with every number rounded to the nearest float64.

        This is how tools that call float() on the text, the competition's scorer among them, understand the file.
        """

        def row(exact: Constraint) -> Constraint:
            terms = tuple((v, _nearest(c)) for v, c in exact.terms)
            return replace(exact, terms=terms, bound=_nearest(exact.bound))

        clauses = tuple(tuple(tuple(map(row, part)) for part in clause) for clause in self.clauses)
        return replace(self, common=tuple(map(row, self.common)), clauses=clauses)

    # ------------------------------------------------------------------ views

    def is_box(self) -> bool:
        """Whether the unsafe set is one input box times a set of outputs: no clause speaks of inputs, nothing mixes."""
        return all(len(row.terms) == 1 or self._about_outputs(row) for row in self.common) and all(
            self._about_outputs(row) for clause in self.clauses for conjunction in clause for row in conjunction
        )

    @property
    def case_count(self) -> int:
        """How many conjunctions the disjunctive normal form has."""
        return math.prod(len(clause) for clause in self.clauses)

    def cases(self, *, limit: int = MAX_CASES) -> Iterator[Case]:
        """The conjunctions of the disjunctive normal form, in order.

        Raises InputFileError with their number where that exceeds `limit`.
        """
        if self.case_count > limit:
            raise InputFileError(
                f"the query is a disjunction of {describe_count(self.case_count)} conjunctions, more than the {limit} "
                "that are listed; state it with fewer or smaller disjunctions."
            )
        for choice in itertools.product(*self.clauses):
            yield self._case(tuple(itertools.chain.from_iterable(choice)))

    @cached_property
    def common_case(self) -> Case:
        """What holds in every conjunction: the case of `common` alone."""
        return self._case(())

    def unbounded_input(self) -> Variable | None:
        """The first input entry without a finite lower and upper bound in every case, or None.

        An entry counts as bounded where `common` bounds it, directly or through linear constraints between inputs, or
        where every conjunction of one clause bounds it directly.
        """
        bounded = [set(self._common_bounds.lower), set(self._common_bounds.upper)]
        for clause in self.clauses:
            sides = [self._direct_bounds(conjunction) for conjunction in clause]
            for side, attribute in zip(bounded, ("lower", "upper"), strict=True):
                each = [set(getattr(bounds, attribute)) for bounds in sides]
                side |= set.intersection(*each) if each else side
        if () in self.clauses:
            return None
        both = bounded[0] & bounded[1]
        for tensor in self.inputs.values():
            for index in range(tensor.size):  # at most len(both) + 1 steps
                if Variable(tensor.name, index) not in both:
                    return Variable(tensor.name, index)
        return None

    def common_bounds(self, variable: Variable) -> tuple[Fraction | None, Fraction | None]:
        """Exact lower and upper bound of an input entry in `common` (None: none), strict ones as their closure."""
        lower, upper = self._common_bounds.lower.get(variable), self._common_bounds.upper.get(variable)
        return lower and lower[0], upper and upper[0]

    def half_spaces(self, conjunction: Conjunction) -> HalfSpaces:
        """Constraints over outputs as rows over all outputs (see HalfSpaces)."""
        starts = dict(
            zip(self.outputs, itertools.accumulate((t.size for t in self.outputs.values()), initial=0), strict=False)
        )
        width = sum(t.size for t in self.outputs.values())
        signed = [(row, sign) for row in conjunction for sign in ((1, -1) if row.relation == "==" else (1,))]
        coefficients, error = np.zeros((len(signed), width)), np.zeros((len(signed), width))
        bounds = np.zeros(len(signed))
        for r, (row, sign) in enumerate(signed):
            for variable, exact in row.terms:
                column = starts[variable.tensor] + variable.flat
                coefficients[r, column] = near = float(exact * sign)
                error[r, column] = enclose(abs(exact * sign - Fraction(near)))[1]
            bounds[r] = enclose(row.bound * sign)[1]
        return HalfSpaces(coefficients=coefficients, error=error, bounds=bounds)

    # ------------------------------------------------------------------ inside

    def _about_outputs(self, row: Constraint) -> bool:
        return all(variable.tensor in self.outputs for variable, _ in row.terms)

    def _bounds_one_input(self, row: Constraint) -> bool:
        return len(row.terms) == 1 and row.terms[0][0].tensor in self.inputs

    def _direct_bounds(self, conjunction: Conjunction) -> Bounds:
        bounds = Bounds()
        for row in conjunction:
            if self._bounds_one_input(row):
                bounds.add(row)
        return bounds

    @cached_property
    def _common_bounds(self) -> Bounds:
        bounds = self._direct_bounds(self.common)
        rows = (row for row in self.common if len(row.terms) > 1)
        propagate(bounds, [row for row in rows if all(v.tensor in self.inputs for v, _ in row.terms)])
        return bounds

    @cached_property
    def _common_boxes(self) -> Mapping[str, InputBox]:
        boxes = {tensor.name: unbounded_box(tensor.shape) for tensor in self.inputs.values()}
        write_bounds(boxes, self._common_bounds)
        return boxes

    @cached_property
    def _common_empty(self) -> bool:
        return any(self._common_bounds.empty(v) for v in self._common_bounds.lower)

    def _case(self, extra: Conjunction) -> Case:
        touched = [row for row in extra if self._bounds_one_input(row)]
        boxes, empty = self._common_boxes, self._common_empty
        if touched:
            local, common = Bounds(), self._common_bounds
            for row in touched:
                variable = row.terms[0][0]
                if variable in common.lower:
                    local.lower.setdefault(variable, common.lower[variable])
                if variable in common.upper:
                    local.upper.setdefault(variable, common.upper[variable])
                local.add(row)
            changed = {row.terms[0][0].tensor for row in touched}
            boxes = {name: copy_box(box) if name in changed else box for name, box in boxes.items()}
            write_bounds(boxes, local)
            empty = empty or any(local.empty(row.terms[0][0]) for row in touched)
        outputs, mixed = self._common_rest
        if extra:
            more_outputs, more_mixed = self._rest(extra)
            outputs, mixed = outputs + more_outputs, mixed + more_mixed
        return Case(boxes=boxes, outputs=outputs, mixed=mixed, empty=empty, spec=self)

    @cached_property
    def _common_rest(self) -> tuple[Conjunction, Conjunction]:
        return self._rest(self.common)

    def _rest(self, conjunction: Conjunction) -> tuple[Conjunction, Conjunction]:
        """The constraints over outputs only, and those that bound neither outputs nor one input."""
        rest = [row for row in conjunction if not self._bounds_one_input(row)]
        outputs = [self._about_outputs(row) for row in rest]
        return (
            tuple(row for row, flag in zip(rest, outputs, strict=True) if flag),
            tuple(row for row, flag in zip(rest, outputs, strict=True) if not flag),
        )


def element(tensor: TensorVariable, index: int) -> str:
    """Entry `index` of `tensor` in VNN-LIB 2.0: X[0,3], or X for a scalar."""
    if not tensor.shape:
        return tensor.name
    places = []
    for size in reversed(tensor.shape):
        index, place = divmod(index, size)
        places.append(str(place))
    return f"{tensor.name}[{','.join(reversed(places))}]"


def describe_count(count: int) -> str:
    """`count` in digits, or as a power of ten where it is longer than a reader wants."""
    return str(count) if count < 10**15 else f"about 10^{int(count.bit_length() * math.log10(2))}"


def _nearest(exact: Fraction) -> Fraction:
    return Fraction(exact.numerator / exact.denominator)
