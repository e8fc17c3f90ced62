"""The unsafe set of a query as a formula over linear functionals, and as layers behind the network.

A row is a functional t = a y + c z - b of outputs y and input z; it holds where t <= 0. The formula is a conjunction of
clauses, each a disjunction of conjunctions of rows. max(p, q) = q + ReLU(p - q) and min(p, q) = p - ReLU(p - q) turn it
into layers whose output is positive exactly where the formula fails. The bounds of ReLU networks then do the rest: an
optimised slope of such a ReLU weighs two conditions that have to hold together, branching on it splits the cases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from citrus_tool.network import INPUT, Add, Concat, GraphBuilder, Network, Reshape, size
from citrus_tool.queries.constraint import Conjunction, Constraint, Variable
from citrus_tool.queries.exact_boxes import enclose

MAX_TARGETS = 48
"""Most cases that are proven one by one; more are folded into one functional with min, a looser bound, but one."""

Clause: TypeAlias = tuple[tuple[int, ...], ...]
"""A disjunction of conjunctions of rows, by number."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where the variables of a query stand among the outputs y and the inputs z of the network that is verified."""

    outputs: dict[str, int]
    inputs: dict[str, int]
    output_size: int
    input_size: int

    def place(self, variable: Variable) -> tuple[bool, int]:
        """(is an output, column)."""
        if variable.tensor in self.outputs:
            return True, self.outputs[variable.tensor] + variable.flat
        return False, self.inputs[variable.tensor] + variable.flat


@dataclass(frozen=True, kw_only=True, eq=False)
class Formula:
    """AND over clauses, OR over conjunctions, AND over rows t_r <= 0; float64.

    Attributes:
        outputs, inputs: (R, columns) coefficients a and c.
        bound: (R,) b, rounded up: the exact row implies this one, up to `error`.
        error: (R, columns of y and z) how far the exact coefficients are off; 0 almost always.
        clauses: none: everything is unsafe. An empty clause: nothing is.
    """

    outputs: Tensor
    inputs: Tensor
    bound: Tensor
    error: Tensor
    clauses: tuple[Clause, ...]

    @staticmethod
    def of(common: Conjunction, clauses: Iterable[Sequence[Conjunction]], columns: Columns) -> Formula:
        """The formula of constraints; an equality is two rows, a strict relation its closure."""
        numbers: dict[Constraint, tuple[int, ...]] = {}
        signed: list[tuple[Constraint, int]] = []

        def rows(conjunction: Conjunction) -> tuple[int, ...]:
            found: list[int] = []
            for row in conjunction:
                if row not in numbers:
                    signs = (1, -1) if row.relation == "==" else (1,)
                    numbers[row] = tuple(range(len(signed), len(signed) + len(signs)))
                    signed.extend((row, sign) for sign in signs)
                found.extend(numbers[row])
            return tuple(dict.fromkeys(found))

        numbered: list[Clause] = [((number,),) for number in rows(common)]
        numbered += [tuple(map(rows, clause)) for clause in clauses]
        outputs = torch.zeros(len(signed), columns.output_size, dtype=torch.float64)
        inputs = torch.zeros(len(signed), columns.input_size, dtype=torch.float64)
        error = torch.zeros(len(signed), columns.output_size + columns.input_size, dtype=torch.float64)
        bound = torch.zeros(len(signed), dtype=torch.float64)
        for number, (row, sign) in enumerate(signed):
            for variable, exact in row.terms:
                is_output, column = columns.place(variable)
                near = float(exact * sign)
                (outputs if is_output else inputs)[number, column] = near
                off = enclose(abs(exact * sign - Fraction(near)))[1]
                error[number, column + (0 if is_output else columns.output_size)] = off
            bound[number] = enclose(row.bound * sign)[1]
        return Formula(outputs=outputs, inputs=inputs, bound=bound, error=error, clauses=tuple(numbered))

    @property
    def refuted(self) -> bool:
        """A clause has nothing left that could hold."""
        return () in self.clauses

    def without(self, failing: Iterable[int]) -> Formula:
        """The formula where the rows `failing` hold nowhere."""
        gone = set(failing)
        clauses = tuple(tuple(part for part in clause if gone.isdisjoint(part)) for clause in self.clauses)
        return replace(self, clauses=clauses)

    def value(self, y: Tensor, z: Tensor, error: Tensor | None = None) -> Tensor:
        """(n,) max over clauses of min over conjunctions of max over rows: at most 0 where the formula holds.

        Differentiable; y (n, outputs), z (n, inputs) flat, in their own dtype. With an error (n, outputs) of y it is at
        most 0 where the formula may hold.
        """
        rows = self.rows(y, z)
        if error is not None:
            rows = rows - error @ self.outputs.abs().to(error).T
        if not self.clauses:
            return rows.new_full((len(y),), -math.inf)
        parts = [torch.stack([_largest(rows, part) for part in clause]).amin(0) for clause in self.clauses]
        return torch.stack(parts).amax(0)

    def rows(self, y: Tensor, z: Tensor) -> Tensor:
        """(n, R) the functionals t."""
        rows = y @ self.outputs.to(y).T - self.bound.to(y)
        return rows + z @ self.inputs.to(z).T if bool(self.inputs.any()) else rows

    def cases(self) -> tuple[tuple[int, ...], ...] | None:
        """The conjunctions of the disjunctive normal form, or None where there are more than MAX_TARGETS."""
        if math.prod(map(len, self.clauses)) > MAX_TARGETS:
            return None
        return tuple(
            tuple(dict.fromkeys(itertools.chain.from_iterable(choice))) for choice in itertools.product(*self.clauses)
        )


def _largest(rows: Tensor, part: tuple[int, ...]) -> Tensor:
    return rows[:, list(part)].amax(1) if part else rows.new_full((len(rows),), -math.inf)


Kind: TypeAlias = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class Extremum:
    """The max or min of entries of a vector (by number) and of other extrema."""

    kind: Kind
    parts: tuple[Expression, ...]


Expression: TypeAlias = "int | Extremum"


def with_rows(network: Network, formula: Formula, numbers: Sequence[int]) -> Network:
    """A network whose margins f_0 - f_j are the rows `numbers`: its outputs are 0, -t, -t, ..."""
    return _behind(network, formula, numbers, list(range(len(numbers))))


def with_targets(network: Network, formula: Formula) -> Network:
    """A network whose margins f_0 - f_j are functionals that are all positive exactly where the formula fails.

    One for each case (the max of its rows), or a single one where there are too many cases.
    """
    cases = formula.cases()
    targets: list[Expression]
    used = sorted({row for clause in formula.clauses for part in clause for row in part})
    place = {row: number for number, row in enumerate(used)}
    if cases is not None:
        targets = [extremum("max", [place[row] for row in case]) for case in cases]
    else:
        clauses = [
            extremum("min", [extremum("max", [place[row] for row in part]) for part in clause])
            for clause in formula.clauses
        ]
        targets = [extremum("max", clauses)]
    return _behind(network, formula, used, targets)


def extremum(kind: Kind, parts: Sequence[Expression]) -> Expression:
    """The max or min of `parts`, of which there is at least one."""
    return parts[0] if len(parts) == 1 else Extremum(kind=kind, parts=tuple(parts))


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A float64 layer with constant weights (out, in) and bias (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _behind(network: Network, formula: Formula, numbers: Sequence[int], targets: Sequence[Expression]) -> Network:
    index = torch.tensor(list(numbers), dtype=torch.long)
    builder = GraphBuilder(network.input_shape)
    names = {INPUT: INPUT}
    for node in network.nodes:
        names[node.name] = builder.add(node.layer, *(names[i] for i in node.inputs))
    last = builder.add(linear(formula.outputs[index], -formula.bound[index]), names[network.output_name], name="rows")
    if bool(formula.inputs[index].any()):
        flat = INPUT if len(network.input_shape) == 1 else builder.add(Reshape((size(network.input_shape),)), INPUT)
        last = builder.add(Add(), last, builder.add(linear(formula.inputs[index]), flat, name="inputs"), name="both")
    last, chosen = evaluated(builder, last, len(numbers), targets)
    final = torch.cat([torch.zeros_like(chosen[:1]), -chosen])
    builder.add(linear(final), last, name="unsafe")
    return builder.build(like=network)


def evaluated(builder: GraphBuilder, last: str, width: int, targets: Sequence[Expression]) -> tuple[str, Tensor]:
    """Layers that compute `targets` from the vector at node `last`, float64, with ReLU.

    Returns: the node whose entries hold them, and the 0/1 matrix (targets, entries) that picks them.
    """
    while any(isinstance(target, Extremum) for target in targets):
        level = _Level(width=width)
        targets = [level.reduced(target) for target in targets]
        difference, combined = level.matrices()
        relu = builder.add(nn.ReLU(), builder.add(linear(difference), last))
        last = builder.add(linear(combined), builder.add(Concat(0), relu, last))
        width = len(combined)
    chosen = torch.zeros(len(targets), width, dtype=torch.float64)
    for number, target in enumerate(targets):
        assert isinstance(target, int)
        chosen[number, target] = 1.0
    return last, chosen


class _Level:
    """One layer of pairwise extrema: entries of the next vector, each an old entry or the extremum of two."""

    def __init__(self, *, width: int) -> None:
        self._width = width
        self._entries: dict[tuple[Kind, int, int] | int, int] = {}

    def _entry(self, key: tuple[Kind, int, int] | int) -> int:
        return self._entries.setdefault(key, len(self._entries))

    def reduced(self, expression: Expression) -> Expression:
        """`expression` over the next vector, entries that stand together paired off."""
        if isinstance(expression, int):
            return self._entry(expression)
        plain = [part for part in expression.parts if isinstance(part, int)]
        parts: list[Expression] = [self.reduced(part) for part in expression.parts if not isinstance(part, int)]
        for first, second in zip(plain[::2], plain[1::2], strict=False):
            parts.append(self._entry((expression.kind, first, second)))
        if len(plain) % 2:
            parts.append(self._entry(plain[-1]))
        return extremum(expression.kind, parts)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Differences p - q of the pairs, and the next vector from (ReLU of these, this vector)."""
        pairs = [key for key in self._entries if not isinstance(key, int)]
        difference = torch.zeros(len(pairs), self._width, dtype=torch.float64)
        combined = torch.zeros(len(self._entries), len(pairs) + self._width, dtype=torch.float64)
        for number, (_, first, second) in enumerate(pairs):
            difference[number, first] += 1.0
            difference[number, second] -= 1.0
        place = {pair: number for number, pair in enumerate(pairs)}
        for key, entry in self._entries.items():
            if isinstance(key, int):
                combined[entry, len(pairs) + key] = 1.0
            else:
                kind, first, second = key
                combined[entry, place[key]] = 1.0 if kind == "max" else -1.0
                combined[entry, len(pairs) + (second if kind == "max" else first)] = 1.0
        return difference, combined
