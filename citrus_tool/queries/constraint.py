"""Linear constraints over the entries of tensors, exact and in canonical form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias

Relation: TypeAlias = Literal["<=", "<", "=="]

MAX_BITS = 3500
"""Longest numerator or denominator of a number: keeps arithmetic linear and every number writable in decimal."""

MAX_MAGNITUDE = 1000
"""Numbers lie below 2^1000 in absolute value, so that none overflows a float64."""


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
