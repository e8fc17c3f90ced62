"""What a VNN-LIB file states, in one form for both versions of the language, exact.

A query asks whether an assignment of the networks' inputs and outputs lies in the UNSAFE set (sat: there is one, a
counterexample). Every number of the text is kept as a Fraction; float64 appears only in views, rounded outward where
a proof needs the set (`InputBox.lower`, `HalfSpaces`), inward where a witness needs a point (`InputBox.inner_lower`).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from citrus_tool.errors import InputFileError, UsageError

Relation: TypeAlias = Literal["<=", "<", "=="]
Values: TypeAlias = Mapping[str, "NDArray[np.generic] | Sequence[float | Fraction]"]
"""Tensor name -> its entries, in any shape, row-major."""

MAX_BITS = 3500
"""Longest numerator or denominator of a number: keeps arithmetic linear and every number writable in decimal."""

MAX_MAGNITUDE = 1000
"""Numbers lie below 2^1000 in absolute value, so that none overflows a float64."""

MAX_CASES = 100_000
"""How many conjunctions `Spec.cases` lists unless told otherwise."""


class Variable(NamedTuple):
    """Entry `flat` (row-major) of the tensor declared as `tensor`; tensor names are unique in a query."""

    tensor: str
    flat: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """sum of coefficient * variable `relation` `bound`, in canonical form (built by `constraint`).

    Canonical: variables sorted, no zero coefficient, the first coefficient 1 or -1 (1 where the relation is ==).
    """

    terms: tuple[tuple[Variable, Fraction], ...]
    relation: Relation
    bound: Fraction

    def holds(self, value: Mapping[Variable, Fraction]) -> bool:
        """Whether the exact assignment `value` satisfies it."""
        total = sum((c * value[v] for v, c in self.terms), Fraction(0))
        return _compare(total, self.relation, self.bound)


Conjunction: TypeAlias = tuple[Constraint, ...]
Clause: TypeAlias = tuple[Conjunction, ...]
"""A disjunction of conjunctions. The empty clause is false; the empty conjunction is true."""

_ONE, _MINUS_ONE = Fraction(1), Fraction(-1)


def _compare(left: Fraction, relation: Relation, right: Fraction) -> bool:
    if relation == "<=":
        return left <= right
    return left < right if relation == "<" else left == right


def require_small(number: Fraction) -> None:
    """Raises OverflowError for a number of more than MAX_BITS bits or of absolute value about 2^MAX_MAGNITUDE."""
    top, bottom = number.numerator.bit_length(), number.denominator.bit_length()
    if top > MAX_BITS or bottom > MAX_BITS or top - bottom > MAX_MAGNITUDE:
        raise OverflowError("a number is too large or has too many digits")


def constraint(terms: Mapping[Variable, Fraction], relation: Relation, bound: Fraction) -> Constraint | bool:
    """sum terms `relation` bound in canonical form; a truth value where no variable is left.

    Raises OverflowError for a number out of range (`require_small`).
    """
    kept = sorted((v, c) for v, c in terms.items() if c)
    if not kept:
        return _compare(Fraction(0), relation, bound)
    lead = kept[0][1] if relation == "==" else abs(kept[0][1])
    if lead != 1:
        kept, bound = [(v, c / lead) for v, c in kept], bound / lead
    require_small(bound)
    for _, coefficient in kept:
        require_small(coefficient)
    return Constraint(terms=tuple(kept), relation=relation, bound=bound)


def at_most(variable: Variable, bound: Fraction) -> Constraint:
    """`variable` <= `bound`, already canonical."""
    return Constraint(terms=((variable, _ONE),), relation="<=", bound=bound)


def at_least(variable: Variable, bound: Fraction) -> Constraint:
    """`variable` >= `bound`, already canonical."""
    return Constraint(terms=((variable, _MINUS_ONE),), relation="<=", bound=-bound)


def ordered(small: Variable, large: Variable) -> Constraint | bool:
    """`small` <= `large`, already canonical."""
    if small < large:
        return Constraint(terms=((small, _ONE), (large, _MINUS_ONE)), relation="<=", bound=Fraction(0))
    if small == large:
        return True
    return Constraint(terms=((large, _MINUS_ONE), (small, _ONE)), relation="<=", bound=Fraction(0))


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
class InputBox:
    """Bounds of one input tensor, float64, in the tensor's shape.

    [lower, upper] contains every point of the exact box: use it for proofs. [inner_lower, inner_upper] holds exactly
    the float64 points of the exact box (none where it is inverted): use it for witnesses. Infinite where unbounded.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    inner_lower: NDArray[np.float64]
    inner_upper: NDArray[np.float64]

    def float32(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The least and greatest float32 of the exact box per entry; least > greatest where it holds none.

        VNN-COMP's scorer casts a witness to float32 before its strict box check, and float32(0.1) > 0.1.
        """
        with np.errstate(over="ignore"):
            least, greatest = self.inner_lower.astype(np.float32), self.inner_upper.astype(np.float32)
            below, above = least < self.inner_lower, greatest > self.inner_upper
            least[below] = np.nextafter(least[below], np.float32(np.inf))
            greatest[above] = np.nextafter(greatest[above], np.float32(-np.inf))
        return least, greatest

    def clamp(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """`values` cast to float32 and moved inward onto the nearest float32 of the exact box.

        Raises UsageError naming the first entry whose exact interval holds no float32 (see `Spec.rounded`).
        """
        least, greatest = self.float32()
        if (least > greatest).any():
            index = int(np.flatnonzero(least > greatest)[0])
            raise UsageError(
                f"no float32 lies between the bounds of entry {index}; clamp to the box of Spec.rounded(), "
                "whose bounds are read as float64, as the competition's scorer reads them."
            )
        with np.errstate(over="ignore"):
            cast = np.asarray(values).astype(np.float32).reshape(least.shape)
        return np.clip(cast, least, greatest)


@dataclass(frozen=True, kw_only=True, eq=False)
class HalfSpaces:
    """Rows a y <= b over all outputs of a query (declaration order, row-major), a superset of the exact ones.

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


class _Bounds:
    """Exact bounds of input variables: (value, strict) per variable and side."""

    def __init__(self) -> None:
        self.lower: dict[Variable, tuple[Fraction, bool]] = {}
        self.upper: dict[Variable, tuple[Fraction, bool]] = {}

    def add(self, row: Constraint) -> None:
        """Tightens by a constraint of one variable."""
        variable, coefficient = row.terms[0]
        strict = row.relation == "<"
        if coefficient.numerator < 0:  # the coefficient is 1 or -1
            self.tighten_lower(variable, -row.bound, strict)
            return
        self.tighten_upper(variable, row.bound, strict)
        if row.relation == "==":
            self.tighten_lower(variable, row.bound, strict)

    def tighten_upper(self, variable: Variable, bound: Fraction, strict: bool) -> None:
        old = self.upper.get(variable)
        if old is None or (bound, not strict) < (old[0], not old[1]):
            self.upper[variable] = bound, strict

    def tighten_lower(self, variable: Variable, bound: Fraction, strict: bool) -> None:
        old = self.lower.get(variable)
        if old is None or (bound, strict) > old:
            self.lower[variable] = bound, strict

    def empty(self, variable: Variable) -> bool:
        lower, upper = self.lower.get(variable), self.upper.get(variable)
        if lower is None or upper is None:
            return False
        return lower[0] > upper[0] or (lower[0] == upper[0] and (lower[1] or upper[1]))


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
        """`values` as fractions; None where one is not finite. Raises as `evaluate`."""
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

    def _direct_bounds(self, conjunction: Conjunction) -> _Bounds:
        bounds = _Bounds()
        for row in conjunction:
            if self._bounds_one_input(row):
                bounds.add(row)
        return bounds

    @cached_property
    def _common_bounds(self) -> _Bounds:
        bounds = self._direct_bounds(self.common)
        rows = (row for row in self.common if len(row.terms) > 1)
        _propagate(bounds, [row for row in rows if all(v.tensor in self.inputs for v, _ in row.terms)])
        return bounds

    @cached_property
    def _common_boxes(self) -> Mapping[str, InputBox]:
        boxes = {tensor.name: _unbounded(tensor.shape) for tensor in self.inputs.values()}
        _write_bounds(boxes, self._common_bounds)
        return boxes

    @cached_property
    def _common_empty(self) -> bool:
        return any(self._common_bounds.empty(v) for v in self._common_bounds.lower)

    def _case(self, extra: Conjunction) -> Case:
        touched = [row for row in extra if self._bounds_one_input(row)]
        boxes, empty = self._common_boxes, self._common_empty
        if touched:
            local, common = _Bounds(), self._common_bounds
            for row in touched:
                variable = row.terms[0][0]
                if variable in common.lower:
                    local.lower.setdefault(variable, common.lower[variable])
                if variable in common.upper:
                    local.upper.setdefault(variable, common.upper[variable])
                local.add(row)
            changed = {row.terms[0][0].tensor for row in touched}
            boxes = {name: _copy(box) if name in changed else box for name, box in boxes.items()}
            _write_bounds(boxes, local)
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


def _copy(box: InputBox) -> InputBox:
    return InputBox(
        lower=box.lower.copy(),
        upper=box.upper.copy(),
        inner_lower=box.inner_lower.copy(),
        inner_upper=box.inner_upper.copy(),
    )


def _unbounded(shape: tuple[int, ...]) -> InputBox:
    below, above = np.full(shape, -np.inf), np.full(shape, np.inf)
    return InputBox(lower=below, upper=above, inner_lower=below.copy(), inner_upper=above.copy())


def enclose(exact: Fraction) -> tuple[float, float]:
    """The greatest float64 at most `exact` and the least at least `exact`."""
    try:
        near = exact.numerator / exact.denominator
    except OverflowError:
        return (math.nextafter(math.inf, 0.0), math.inf) if exact > 0 else (-math.inf, math.nextafter(-math.inf, 0.0))
    top, bottom = near.as_integer_ratio()
    difference = exact.numerator * bottom - top * exact.denominator
    if difference == 0:
        return near, near
    return (near, math.nextafter(near, math.inf)) if difference > 0 else (math.nextafter(near, -math.inf), near)


def _nearest(exact: Fraction) -> Fraction:
    return Fraction(exact.numerator / exact.denominator)


def _write_bounds(boxes: Mapping[str, InputBox], bounds: _Bounds) -> None:
    """Rounds `bounds` into arrays of `boxes`, of which cases share some: read-only from then on."""
    for variable, (exact, strict) in bounds.lower.items():
        below, above = enclose(exact)
        box = boxes[variable.tensor]
        box.lower.flat[variable.flat] = below
        box.inner_lower.flat[variable.flat] = math.nextafter(above, math.inf) if strict and above == below else above
    for variable, (exact, strict) in bounds.upper.items():
        below, above = enclose(exact)
        box = boxes[variable.tensor]
        box.upper.flat[variable.flat] = above
        box.inner_upper.flat[variable.flat] = math.nextafter(below, -math.inf) if strict and above == below else below
    for box in boxes.values():
        for array in (box.lower, box.upper, box.inner_lower, box.inner_upper):
            array.flags.writeable = False


def _propagate(bounds: _Bounds, rows: Iterable[Constraint]) -> None:
    """Finds missing bounds of inputs through linear constraints between inputs, such as X2 - X1 == c, in linear time.

    A row sum c_i v_i <= b bounds v_k by (b - sum of the least other terms) / c_k. Bounds that exist are not tightened.
    """
    halves: list[tuple[list[tuple[Variable, Fraction]], Fraction]] = []
    for row in rows:
        halves.append((list(row.terms), row.bound))
        if row.relation == "==":
            halves.append(([(v, -c) for v, c in row.terms], -row.bound))

    def side(positive: bool) -> dict[Variable, tuple[Fraction, bool]]:
        return bounds.lower if positive else bounds.upper

    waiting: defaultdict[tuple[Variable, bool], list[int]] = defaultdict(list)
    missing = [0] * len(halves)
    for number, (terms, _) in enumerate(halves):
        for variable, coefficient in terms:
            if variable not in side(coefficient > 0):
                missing[number] += 1
                waiting[variable, coefficient > 0].append(number)
    ready = [number for number, count in enumerate(missing) if count <= 1]
    while ready:
        number = ready.pop()
        terms, bound = halves[number]
        least = {v: side(c > 0)[v][0] * c for v, c in terms if v in side(c > 0)}
        if len(least) < len(terms) - 1:
            continue
        total = sum(least.values(), Fraction(0))
        targets = terms if len(least) == len(terms) else [term for term in terms if term[0] not in least]
        for variable, coefficient in targets:
            known = side(coefficient < 0)
            if variable not in known:
                known[variable] = ((bound - total + least.get(variable, Fraction(0))) / coefficient, False)
                for other in waiting.pop((variable, coefficient < 0), ()):
                    missing[other] -= 1
                    if missing[other] <= 1:
                        ready.append(other)
