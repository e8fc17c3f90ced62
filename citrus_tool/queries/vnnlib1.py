"""VNN-LIB 1.0, the language of VNN-COMP's regular track: reader and writer.

(declare-const X_i Real) and (declare-const Y_j Real) name the input and output of one network; assertions with <=, >=,
=, and, or and linear arithmetic state the unsafe set. The reader takes what VNN-COMP's own tools take (numbers in
scientific notation among it) and works in one pass without recursion: time and memory are linear in the text.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias, cast

from citrus_tool.errors import UsageError
from citrus_tool.queries import algebra
from citrus_tool.queries.algebra import ExplosionError, Formula, Junction, Linear, NotLinearError, Operand
from citrus_tool.queries.constraint import Clause, Constraint, Variable, at_least, at_most, ordered, require_small
from citrus_tool.queries.prefix_notation import MAX_DIGITS, assertions, decimal
from citrus_tool.queries.query_file import QueryText, VnnlibError, nearest, write
from citrus_tool.queries.spec import NetworkVariable, Spec, TensorVariable, describe_count

NETWORK, INPUT, OUTPUT = "N", "X", "Y"
"""Names in the Spec of what a 1.0 file leaves without a name."""

_TOKEN = re.compile(r"[()]|;[^\n]*|[^\s();]+")
_NAME = re.compile(r"([XY])_(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

_COMPARISONS = ("<=", ">=", "=")
_CONNECTIVES = ("and", "or")
_ARITHMETIC = ("+", "-", "*", "/")
_COMMANDS = ("declare-const", "assert")
_OPERATORS = (*_COMPARISONS, *_CONNECTIVES, *_ARITHMETIC, *_COMMANDS)
_MISTAKES = {
    "<": "VNN-LIB 1.0 states closed sets, write <=",
    ">": "VNN-LIB 1.0 states closed sets, write >=",
    "==": "equality is written = in VNN-LIB 1.0",
    "!=": "VNN-LIB 1.0 has no inequality; state both sides with (or ...)",
    "=<": "did you mean <=",
    "=>": "did you mean >=; implications are not part of VNN-LIB",
    "not": "VNN-LIB has no negation; turn the comparison around",
    "&&": "did you mean and",
    "||": "did you mean or",
    "declare-fun": "write (declare-const X_0 Real) in place of (declare-fun X_0 () Real)",
    "define-fun": "definitions are not part of VNN-LIB; write the expression out",
    "let": "definitions are not part of VNN-LIB; write the expression out",
    "ite": "VNN-LIB has no if-then-else; state both cases with (or (and ...) (and ...))",
    "declare-network": "this is VNN-LIB 2.0; start the file with (vnnlib-version <2.0>)",
    "vnnlib-version": "only 2.0 files name a version, as (vnnlib-version <2.0>) before everything else",
    **dict.fromkeys(
        ("set-logic", "set-info", "set-option", "check-sat", "get-model", "get-value", "push", "pop", "exit", "echo"),
        "remove it; VNN-LIB keeps only declare-const and assert of SMT-LIB",
    ),
}

_Value: TypeAlias = Operand | Formula | str


class _Form:
    """An open parenthesis: where it stands, its operator, and the operands read so far."""

    __slots__ = ("args", "head", "offset")

    def __init__(self, offset: int) -> None:
        self.offset, self.head, self.args = offset, "", cast("list[_Value]", [])


class _FormReader:
    """One pass over the tokens; a form is turned into its meaning when its parenthesis closes."""

    def __init__(self, source: QueryText) -> None:
        self.source = source
        self.variables: dict[str, Variable] = {}
        self.declared_at: dict[Variable, int] = {}
        self.numbers: dict[str, Fraction] = {}
        self.clauses: list[Clause] = []

    def read(self) -> Spec:
        stack: list[_Form] = []
        for match in _TOKEN.finditer(self.source.text):
            token = match.group()
            if token == "(":
                if stack and not stack[-1].head:
                    raise self.source.error(
                        match.start(), "'(' where an operator should stand", "write the operator first: (<= X_0 1)"
                    )
                stack.append(_Form(match.start()))
            elif token == ")":
                if not stack:
                    raise self.source.error(match.start(), "')' without its '('", "one ')' is too many, here or before")
                form = stack.pop()
                result = self._close(form, match.start())
                if stack:
                    stack[-1].args.append(result)
            elif token[0] == ";":
                continue
            elif not stack:
                raise self.source.error(
                    match.start(), f"{_short(token)} outside of parentheses", "a '(' is missing, or a comment's ';'"
                )
            elif not stack[-1].head:
                self._open(stack, token, match.start())
            elif stack[-1].head == "declare-const":
                stack[-1].args.append(token)
            else:
                stack[-1].args.append(self._atom(token, match.start()))
        if stack:
            raise self.source.error(
                stack[0].offset, f"this '(' of ({stack[0].head or '...'} is never closed", "a ')' is missing after it"
            )
        return self._spec()

    # ------------------------------------------------------------------ tokens

    def _open(self, stack: list[_Form], head: str, offset: int) -> None:
        stack[-1].head = head
        if head not in _OPERATORS:
            raise self._unknown_operator(head, offset)
        if (head in _COMMANDS) != (len(stack) == 1):
            if head in _COMMANDS:
                line, _ = self.source.position(stack[0].offset)
                raise self.source.error(
                    offset,
                    f"{head} inside of ({stack[-2].head or '...'}",
                    f"a ')' is missing in the form that starts on line {line}",
                )
            raise self.source.error(
                offset,
                f"({head} outside of an assertion",
                f"write (assert ({head} ...)), or one ')' before is too many",
            )

    def _unknown_operator(self, head: str, offset: int) -> VnnlibError:
        if head in _MISTAKES:
            hint = _MISTAKES[head]
        elif head in self.variables or _NUMBER.fullmatch(head):
            hint = "write the operator first: (<= X_0 1)"
        else:
            guess = nearest(head, _OPERATORS)
            hint = f"did you mean {guess}" if guess else f"known are {' '.join(_OPERATORS)}"
        return self.source.error(offset, f"unknown operator {_short(head)}", hint)

    def _atom(self, token: str, offset: int) -> Variable | Fraction:
        found = self.variables.get(token) or self.numbers.get(token)
        if found is not None:
            return found
        if not _NUMBER.fullmatch(token):
            raise self._unknown_name(token, offset)
        mantissa, _, exponent = token.lower().partition("e")
        if len(mantissa) > MAX_DIGITS or len(exponent) > 5 or abs(int(exponent or "0")) > 1000:
            raise self.source.error(offset, f"the number {_short(token)} has too many digits", "write it shorter")
        number = Fraction(token)
        try:
            require_small(number)
        except OverflowError as error:
            raise self._overflow(offset, error) from None
        self.numbers[token] = number
        return number

    def _unknown_name(self, token: str, offset: int) -> VnnlibError:
        if token.lstrip("+-").lower() in ("inf", "infinity", "nan"):
            return self.source.error(offset, f"{token} is not a number of VNN-LIB", "write a finite bound")
        if token in _OPERATORS:
            hint = f"write the operator first: ({token} a b)" if token in _COMPARISONS else "a '(' is missing before it"
            return self.source.error(offset, f"operator {token} where a number or variable should stand", hint)
        if token[0].isdigit() or token[0] in "+-.":
            return self.source.error(offset, f"{_short(token)} is not a number", "write 1.5, -2 or 1e-3")
        if _NAME.fullmatch(token):
            count = sum(name[0] == token[0] for name in self.variables)
            last = f"{token[0]}_0 to {token[0]}_{count - 1} are" if count else f"no {token[0]}_j is"
            return self.source.error(
                offset, f"{_short(token)} is not declared", f"{last}; add (declare-const {_short(token)} Real) before"
            )
        guess = nearest(token, self.variables)
        hint = f"did you mean {guess}" if guess else "declare it before, as (declare-const X_0 Real)"
        return self.source.error(offset, f"{_short(token)} is not declared", hint)

    def _overflow(self, offset: int, error: OverflowError) -> VnnlibError:
        return self.source.error(offset, str(error), "numbers lie below 1e300 and have at most 1000 digits")

    # ------------------------------------------------------------------ forms

    def _close(self, form: _Form, end: int) -> _Value:
        head, args = form.head, form.args
        if head in _COMPARISONS:
            return self._compare(form)
        if head in _CONNECTIVES:
            if not args:
                raise self.source.error(form.offset, f"({head}) of nothing", "remove it or give it arguments")
            return algebra.join(head == "and", self._formulas(form))
        if head in _ARITHMETIC:
            return self._arithmetic(form)
        if head == "assert":
            self._assert(form)
        elif head == "declare-const":
            self._declare(form)
        else:
            raise self.source.error(form.offset, "empty parentheses", "remove them")
        return True  # of a command, at the top: nobody reads it

    def _compare(self, form: _Form) -> Formula:
        head, args = form.head, form.args
        if len(args) != 2:
            raise self.source.error(
                form.offset, f"({head} ...) compares two expressions, not {len(args)}", "one assertion for each pair"
            )
        left, right = args if head != ">=" else reversed(args)
        if head != "=":  # the three forms of nearly every line, without arithmetic
            if isinstance(left, Variable):
                if isinstance(right, Fraction):
                    return at_most(left, right)
                if isinstance(right, Variable):
                    return ordered(left, right)
            elif isinstance(left, Fraction) and isinstance(right, Variable):
                return at_least(right, left)
        self._operands(form)
        try:
            return algebra.relate(cast(Operand, left), "==" if head == "=" else "<=", cast(Operand, right))
        except OverflowError as error:
            raise self._overflow(form.offset, error) from None

    def _arithmetic(self, form: _Form) -> Operand:
        head, args = form.head, self._operands(form)
        if not args:
            raise self.source.error(form.offset, f"({head}) of nothing", "give it arguments")
        try:
            if head == "-" and len(args) == 1:
                return -args[0] if isinstance(args[0], Fraction) else Linear.of(args[0]).times(Fraction(-1))
            total = Linear.of(args[0])
            for arg in map(Linear.of, args[1:]):
                if head == "+":
                    total = total.plus(arg)
                elif head == "-":
                    total = total.plus(arg.times(Fraction(-1)))
                elif head == "*":
                    total = total.product(arg)
                elif not arg.is_constant():
                    raise NotLinearError
                elif not arg.value():
                    raise self.source.error(form.offset, "division by zero", "divide by another number")
                else:
                    total = total.times(1 / arg.value())
        except NotLinearError:
            problem = "a product of variables" if head == "*" else "division by a variable"
            raise self.source.error(
                form.offset, problem, "citrus verifies linear constraints; multiply by constants only"
            ) from None
        except OverflowError as error:
            raise self._overflow(form.offset, error) from None
        return total.value() if total.is_constant() else total

    def _operands(self, form: _Form) -> list[Operand]:
        for arg in form.args:
            if not isinstance(arg, (Fraction, Variable, Linear)):
                raise self.source.error(
                    form.offset, f"({form.head} ...) of a formula", "it takes numbers, variables and sums"
                )
        return cast("list[Operand]", form.args)

    def _formulas(self, form: _Form) -> list[Formula]:
        for arg in form.args:
            if not isinstance(arg, (Constraint, Junction, bool)):
                raise self.source.error(
                    form.offset, f"({form.head} ...) of a number or variable", "it takes comparisons such as (<= X_0 1)"
                )
        return cast("list[Formula]", form.args)

    def _assert(self, form: _Form) -> None:
        if len(form.args) != 1:
            raise self.source.error(
                form.offset, f"(assert ...) holds {len(form.args)} formulas, not one", "join them with (and ...)"
            )
        try:
            self.clauses.extend(algebra.clauses(self._formulas(form)[0]))
        except ExplosionError as error:
            raise self.source.error(
                form.offset,
                f"multiplied out, this assertion is a disjunction of {describe_count(error.conjunctions)} conjunctions "
                f"with {describe_count(error.literals)} constraints, more than {algebra.MAX_LITERALS}",
                "split it into several assertions",
            ) from None

    def _declare(self, form: _Form) -> None:
        names = [arg if isinstance(arg, str) else "(...)" for arg in form.args]
        if len(names) != 2:
            raise self.source.error(
                form.offset, f"(declare-const ...) with {len(names)} words, not two", "write (declare-const X_0 Real)"
            )
        name, sort = names
        match = _NAME.fullmatch(name)
        if match is None or len(name) > 12:
            raise self.source.error(
                form.offset,
                f"{_short(name)} is not a variable of VNN-LIB 1.0",
                "inputs are X_0, X_1, ..., outputs Y_0, ...",
            )
        if sort != "Real":
            hint = "declare it Real" if sort.lower() in ("real", "int") else "the only sort is Real"
            raise self.source.error(form.offset, f"{name} is declared {_short(sort)}", hint)
        if name in self.variables:
            line, _ = self.source.position(self.declared_at[self.variables[name]])
            raise self.source.error(form.offset, f"{name} is declared twice", f"the first time is on line {line}")
        variable = Variable(match[1], int(match[2]))
        self.variables[name] = variable
        self.declared_at[variable] = form.offset

    # ------------------------------------------------------------------ the whole

    def _spec(self) -> Spec:
        tensors = {prefix: self._tensor(prefix) for prefix in (INPUT, OUTPUT)}
        network = NetworkVariable(name=NETWORK, inputs=(tensors[INPUT],), outputs=(tensors[OUTPUT],))
        spec = Spec.of((network,), self.clauses, "1.0")
        missing = spec.unbounded_input()
        if missing is not None:
            name = spec.describe(missing)
            raise self.source.error(
                self.declared_at[missing],
                f"{name} is not bounded from both sides",
                f"assert (>= {name} ...) and (<= {name} ...), in every case of a disjunction",
            )
        return spec

    def _tensor(self, prefix: str) -> TensorVariable:
        indices = {variable.flat for variable in self.declared_at if variable.tensor == prefix}
        if not indices:
            kind = "input" if prefix == INPUT else "output"
            raise VnnlibError(
                self.source.name, f"no {kind} {prefix}_0 is declared", f"add (declare-const {prefix}_0 Real)"
            )
        gap = next((i for i in range(len(indices)) if i not in indices), None)
        if gap is not None:
            later = min(index for index in indices if index > gap)
            raise self.source.error(
                self.declared_at[Variable(prefix, later)],
                f"{prefix}_{gap} is not declared, but {prefix}_{later} is",
                "number the variables from 0 without gaps",
            )
        return TensorVariable(name=prefix, shape=(len(indices),))


def _short(token: str) -> str:
    return token if len(token) <= 40 else token[:37] + "..."


def parse1(source: QueryText) -> Spec:
    """The Spec of a 1.0 text: network N with input X and output Y. Raises VnnlibError with line and column."""
    return _FormReader(source).read()


def text1(spec: Spec) -> str:
    """`spec` in VNN-LIB 1.0: one network's inputs become X_i, its outputs Y_j, both row-major.

    Raises UsageError for what 1.0 cannot state: several networks or tensors, strict relations.
    """
    if len(spec.networks) != 1 or len(spec.tensors) != 2:
        raise UsageError(
            f"VNN-LIB 1.0 knows one network with one input and one output; the query has {len(spec.networks)} networks "
            f"and {len(spec.tensors)} tensors. Write it as VNN-LIB 2.0."
        )
    prefixes = {name: prefix for names, prefix in ((spec.inputs, INPUT), (spec.outputs, OUTPUT)) for name in names}
    rows = (*spec.common, *(r for clause in spec.clauses for conjunction in clause for r in conjunction))
    if any(row.relation == "<" for row in rows):
        raise UsageError("VNN-LIB 1.0 has no strict relation < or >; write the query as VNN-LIB 2.0.")
    lines = [
        f"(declare-const {prefixes[tensor.name]}_{index} Real)"
        for tensor in spec.tensors.values()
        for index in range(tensor.size)
    ]
    lines += assertions(
        spec, name=lambda v: f"{prefixes[v.tensor]}_{v.flat}", equality="=", number=lambda _, value: decimal(value)
    )
    return "\n".join(lines) + "\n"


def write1(spec: Spec, path: Path) -> None:
    """Writes `text1(spec)` to `path`, gzipped where it ends in .gz, whole or not at all. Raises as `text1`."""
    write(path, text1(spec))
