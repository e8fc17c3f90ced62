"""Sums and Boolean formulas as a reader builds them bottom-up, in time linear in the text however deep they nest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from citrus_tool.queries.constraint import Clause, Constraint, Relation, Variable, constraint, require_small

MAX_LITERALS = 4_000_000
"""Most constraints of one assertion's disjunctive normal form, counted with repetition: they still fit into memory."""

_SATURATED = 10**30
"""Counts stop here, so that nested formulas do not make numbers of many digits."""


class NotLinearError(ArithmeticError):
    """A product of two expressions that both hold variables."""


class Linear:
    """scale * (sum of terms + constant), no term 0. Operations consume their operands: the larger one is reused."""

    __slots__ = ("constant", "scale", "terms")

    def __init__(self, terms: dict[Variable, Fraction], constant: Fraction) -> None:
        self.scale, self.terms, self.constant = Fraction(1), terms, constant

    @staticmethod
    def of(value: Operand) -> Linear:
        """`value` as a Linear of its own."""
        if isinstance(value, Linear):
            return value
        if isinstance(value, Variable):
            return Linear({value: Fraction(1)}, Fraction(0))
        return Linear({}, value)

    def is_constant(self) -> bool:
        """Whether no variable is left."""
        return not self.scale or not self.terms

    def value(self) -> Fraction:
        """The constant part."""
        return self.scale * self.constant

    def times(self, factor: Fraction) -> Linear:
        """Raises OverflowError (`require_small`)."""
        self.scale *= factor
        require_small(self.scale)
        return self

    def plus(self, other: Linear) -> Linear:
        """Raises OverflowError (`require_small`)."""
        small, large = (self, other) if len(self.terms) <= len(other.terms) else (other, self)
        if not large.scale:
            large.terms, large.constant, large.scale = {}, Fraction(0), Fraction(1)
        ratio = small.scale / large.scale
        for variable, coefficient in small.terms.items():
            total = large.terms.pop(variable, Fraction(0)) + coefficient * ratio
            require_small(total)
            if total:
                large.terms[variable] = total
        large.constant += small.constant * ratio
        require_small(large.constant)
        return large

    def product(self, other: Linear) -> Linear:
        """Raises NotLinearError, OverflowError."""
        if other.is_constant():
            return self.times(other.value())
        if self.is_constant():
            return other.times(self.value())
        raise NotLinearError


Operand: TypeAlias = Linear | Variable | Fraction


@dataclass(frozen=True, slots=True, eq=False)
class Junction:
    """A conjunction or disjunction of at least two formulas, with the size of its disjunctive normal form."""

    conjunctive: bool
    parts: Sequence[Formula]
    conjunctions: int
    literals: int


Formula: TypeAlias = Constraint | bool | Junction


def relate(left: Operand, relation: Relation, right: Operand) -> Formula:
    """left `relation` right. Raises OverflowError."""
    total = Linear.of(left).plus(Linear.of(right).times(Fraction(-1)))
    scaled = {v: c * total.scale for v, c in total.terms.items()}
    return constraint(scaled, relation, -total.value())


def differ(left: Operand, right: Operand) -> Formula:
    """left != right, which is left < right or right < left. Raises OverflowError."""
    total = Linear.of(left).plus(Linear.of(right).times(Fraction(-1)))
    scaled = {v: c * total.scale for v, c in total.terms.items()}
    below = constraint(scaled, "<", -total.value())
    above = constraint({v: -c for v, c in scaled.items()}, "<", total.value())
    return join(False, [below, above])


def join(conjunctive: bool, parts: Sequence[Formula]) -> Formula:
    """The conjunction or disjunction of `parts`; truth values are simplified away."""
    kept = [part for part in parts if not isinstance(part, bool)]
    if len(kept) < len(parts) and any(part is not conjunctive for part in parts if isinstance(part, bool)):
        return not conjunctive
    if len(kept) <= 1:
        return kept[0] if kept else conjunctive
    conjunctions, literals = (1, 0) if conjunctive else (0, 0)
    for part in kept:
        count, size = (part.conjunctions, part.literals) if isinstance(part, Junction) else (1, 1)
        if conjunctive:
            conjunctions, literals = conjunctions * count, literals * count + size * conjunctions
        else:
            conjunctions, literals = conjunctions + count, literals + size
    return Junction(conjunctive, kept, min(conjunctions, _SATURATED), min(literals, _SATURATED))


class ExplosionError(ValueError):
    """The disjunctive normal form of one assertion holds `conjunctions` conjunctions, of `literals` constraints."""

    def __init__(self, conjunctions: int, literals: int) -> None:
        self.conjunctions, self.literals = conjunctions, literals
        super().__init__()


def clauses(formula: Formula) -> Iterator[Clause]:
    """`formula` as clauses whose conjunction it is: top-level conjunctions are split, the rest is multiplied out.

    Raises ExplosionError where a clause would hold more than MAX_LITERALS constraints.
    """
    stack = [formula]
    while stack:
        part = stack.pop()
        if isinstance(part, Constraint):
            yield ((part,),)
        elif isinstance(part, bool):
            yield ((),) if part else ()
        elif part.conjunctive:
            stack.extend(reversed(part.parts))
        elif part.literals > MAX_LITERALS:
            raise ExplosionError(part.conjunctions, part.literals)
        else:
            yield tuple(_conjunctions(part))


_Pending: TypeAlias = "tuple[Formula, _Pending] | None"
_Collected: TypeAlias = "tuple[Constraint, _Collected] | None"


def _conjunctions(formula: Formula) -> Iterator[tuple[Constraint, ...]]:
    """The disjunctive normal form, depth first; what has been collected is a linked list that branches share."""
    stack: list[tuple[_Pending, _Collected]] = [((formula, None), None)]
    while stack:
        pending, collected = stack.pop()
        while pending is not None:
            part, pending = pending
            if isinstance(part, Constraint):
                collected = part, collected
            elif isinstance(part, Junction) and part.conjunctive:
                for inner in reversed(part.parts):
                    pending = inner, pending
            elif isinstance(part, Junction):
                stack.extend(((inner, pending), collected) for inner in reversed(part.parts[1:]))
                pending = part.parts[0], pending
        found: list[Constraint] = []
        while collected is not None:
            row, collected = collected
            found.append(row)
        yield tuple(reversed(found))
