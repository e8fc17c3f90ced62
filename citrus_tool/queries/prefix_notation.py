"""How both languages write assertions: prefix notation and exact decimal numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

from citrus_tool.errors import UsageError
from citrus_tool.queries.constraint import Clause, Conjunction, Constraint, Variable
from citrus_tool.queries.spec import Spec

MAX_DIGITS = 4000
"""Longest number in a text (Python converts integers of up to 4300 digits)."""


def decimal(number: Fraction) -> str:
    """`number` in exact decimal notation, without an exponent and always with a point: -0.25, 3.0.

    Raises UsageError for a number that has none of MAX_DIGITS digits or less.
    """
    rest, twos, fives = _split(number.denominator)
    places = max(twos, fives, 1)
    if rest != 1 or places > MAX_DIGITS:
        raise UsageError("a number of the query has no short decimal form; round it to a float64 first.")
    digits = str(abs(number.numerator) * 10**places // number.denominator).rjust(places + 1, "0")
    return f"{'-' if number < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _split(denominator: int) -> tuple[int, int, int]:
    """(rest, a, b) with denominator = rest * 2^a * 5^b."""
    twos = (denominator & -denominator).bit_length() - 1
    rest, fives = denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    return rest, twos, fives


def assertions(
    spec: Spec,
    *,
    name: Callable[[Variable], str],
    equality: str,
    number: Callable[[Variable | None, Fraction], str],
) -> Iterator[str]:
    """One line for each constraint of `common` and each clause.

    `name` writes a variable, `equality` the relation ==, `number` a number (beside a variable of the same constraint,
    whose type it must have; None beside none).
    """

    def row_text(row: Constraint) -> str:
        factor = math.lcm(*(_split(value.denominator)[0] for value in (row.bound, *(c for _, c in row.terms))))
        terms, bound = [(v, c * factor) for v, c in row.terms], row.bound * factor
        relation = equality if row.relation == "==" else row.relation
        beside = terms[0][0]

        def term(variable: Variable, coefficient: Fraction) -> str:
            return name(variable) if coefficient == 1 else f"(* {number(variable, coefficient)} {name(variable)})"

        if len(terms) == 1:
            (variable, coefficient) = terms[0]
            if coefficient < 0:
                relation, coefficient, bound = relation.replace("<", ">"), -coefficient, -bound
            return f"({relation} {term(variable, coefficient)} {number(beside, bound)})"
        if sorted(c for _, c in terms) == [-1, 1]:
            small, large = (name(v) for v, _ in sorted(terms, key=lambda term: -term[1]))
            if bound == 0:
                return f"({relation} {small} {large})"
            return f"({relation} (- {small} {large}) {number(beside, bound)})"
        return f"({relation} (+ {' '.join(term(v, c) for v, c in terms)}) {number(beside, bound)})"

    def conjunction_text(conjunction: Conjunction) -> str:
        rows = [row_text(row) for row in conjunction]
        return rows[0] if len(rows) == 1 else f"(and {' '.join(rows)})"

    def clause_text(clause: Clause) -> str:
        if not clause:  # false
            return f"(<= {number(None, Fraction(1))} {number(None, Fraction(0))})"
        parts = [conjunction_text(conjunction) for conjunction in clause]
        return parts[0] if len(parts) == 1 else "(or\n  " + "\n  ".join(parts) + ")"

    for row in spec.common:
        yield f"(assert {row_text(row)})"
    for clause in spec.clauses:
        if () not in clause:
            yield f"(assert {clause_text(clause)})"


def assertion(spec: Spec, clause: Clause, longest: int = 80) -> str:
    """One assertion in the query's own language on one line, for messages; cut off behind `longest` characters."""
    lines = assertions(
        replace(spec, common=(), clauses=(clause,)),
        name=spec.describe,
        equality="=" if spec.version == "1.0" else "==",
        number=lambda _, value: decimal(value),
    )
    text = " ".join(next(lines, "(assert true)").split())
    return text if len(text) <= longest else text[: longest - 3] + "..."
