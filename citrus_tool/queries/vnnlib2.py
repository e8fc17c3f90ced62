"""VNN-LIB 2.0: the standard's official parser (PyPI `vnnlib`) reads and type-checks, this module gives it meaning.

The parser is C++ and trusts its input: it crashes on deep nesting, stops silently at a NUL character and takes the
index [0,1.5] for [0,1]. What it would get wrong is refused before it sees the text.
"""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import cast

import vnnlib

from citrus_tool.errors import UsageError
from citrus_tool.queries import algebra
from citrus_tool.queries.algebra import ExplosionError, Formula, Linear, NotLinearError, Operand
from citrus_tool.queries.constraint import Clause, Relation, Variable
from citrus_tool.queries.prefix_notation import MAX_DIGITS, assertions, decimal
from citrus_tool.queries.query_file import QueryText, VnnlibError, write
from citrus_tool.queries.spec import NetworkVariable, Spec, TensorVariable, describe_count, element

MAX_DEPTH = 1000
"""Deepest nesting of parentheses that is handed to the parser (its stack ends above 10,000)."""

MAX_ENTRIES = 50_000_000
"""Most entries of one tensor: a mistyped shape is refused before it fills the memory."""

FLOATS = {"Real": "real", "F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}
INTEGERS = {
    f"{sign}{bits}": f"{word}{bits}" for sign, word in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
}
ELEMENT_TYPES = {**FLOATS, **INTEGERS}
"""The parser's name of an element type -> the language's; only these can be read."""

_VERSION = re.compile(r"(?:\s|;[^\n]*\n)*\(\s*vnnlib-version\b")
_SKIPPED = re.compile(r'"[^"\n]*"|;[^\n]*')
_PARENTHESES = re.compile(r'"[^"\n]*"|;[^\n]*|[()]')
_FOREIGN = re.compile(r"[^\t\n\r\x20-\x7e]")
_ODD_INDEX = re.compile(r"\[[^\]\[()]*[^\]\[()0-9, \t\r\n][^\]\[()]*\]")
_SYNTAX = re.compile(r"Parse error: (.*?) at line (\d+), column (\d+)(?:: '(.*)')?", re.DOTALL)
_SCIENTIFIC = re.compile(r"-?[0-9]+(\.[0-9]+)?[eE][+-]?[0-9]*")

_RELATIONS: dict[type, tuple[Relation, bool]] = {  # relation, and whether the sides swap
    vnnlib.LessEqual: ("<=", False),
    vnnlib.LessThan: ("<", False),
    vnnlib.GreaterEqual: ("<=", True),
    vnnlib.GreaterThan: ("<", True),
    vnnlib.Equal: ("==", False),
}


def is_version2(source: QueryText) -> bool:
    """Whether the text starts, after comments, with (vnnlib-version ...), which only 2.0 has."""
    return _VERSION.match(source.text) is not None


def parse2(source: QueryText) -> Spec:
    """The Spec of a 2.0 text. Raises VnnlibError with the position that the parser gives (a line at least)."""
    query = _parsed(source, _guarded(source))
    networks = [_network(source, network) for network in query.networks]
    clauses: list[Clause] = []
    for assertion in query.assertions:
        try:
            clauses.extend(algebra.clauses(cast(Formula, _meaning(source, assertion.expr))))
        except ExplosionError as error:
            raise VnnlibError(
                source.name,
                f"multiplied out, an assertion is a disjunction of {describe_count(error.conjunctions)} conjunctions "
                f"with {describe_count(error.literals)} constraints, more than {algebra.MAX_LITERALS}",
                "split it into several assertions",
                _line(assertion),
            ) from None
    spec = Spec.of(networks, clauses, "2.0")
    missing = spec.unbounded_input()
    if missing is not None:
        name = spec.describe(missing)
        raise VnnlibError(
            source.name,
            f"input {name} is not bounded from both sides",
            f"assert (>= {name} ...) and (<= {name} ...), in every case of a disjunction",
        )
    return spec


def _guarded(source: QueryText) -> str:
    """The text for the parser: foreign characters in comments replaced. Raises for what the parser gets wrong."""
    text = source.text
    if _FOREIGN.search(text):
        text = _SKIPPED.sub(lambda m: _FOREIGN.sub("?", m[0]) if m[0][0] == ";" else m[0], text)
        foreign = _FOREIGN.search(text)
        if foreign:
            raise source.error(foreign.start(), f"the character {foreign[0]!r} is not part of VNN-LIB 2.0", "remove it")
    depth = 0
    for match in _PARENTHESES.finditer(text):
        if match[0] == "(":
            depth += 1
            if depth > MAX_DEPTH:
                raise source.error(
                    match.start(), f"parentheses nest deeper than {MAX_DEPTH}", "and, or, + and * take many arguments"
                )
        elif match[0] == ")":
            depth -= 1
    odd = _ODD_INDEX.search(_SKIPPED.sub(lambda m: " " * len(m[0]), text))
    if odd:
        raise source.error(odd.start(), f"{odd[0][:40]} is not a shape or index", "write whole numbers: [0,1]")
    return text


def _parsed(source: QueryText, text: str) -> vnnlib.Query:
    try:
        return vnnlib.parse_query_string(text)
    except vnnlib.VNNLibException as error:
        message = str(error)
    except Exception as error:  # std::exception of many kinds, such as IndexError('stoll') for a long integer
        raise VnnlibError(
            source.name, f"the VNN-LIB parser fails ({error})", "a number or shape is probably too large"
        ) from None
    syntax = _SYNTAX.match(message)
    if syntax:
        raise _syntax_error(source, int(syntax[2]), int(syntax[3]), syntax[4] or "")
    try:
        report = json.loads(message)["errors"][0]
        problem, hint = f"{report['message'].lower()} {report['offendingSymbol']}", _type_hint(report)
        line = int(report.get("line", 0))
    except (ValueError, KeyError, IndexError, TypeError):  # not a report: pass on what there is
        problem, hint, line = message.strip() or "the VNN-LIB parser refuses it", "", 0
    raise VnnlibError(source.name, problem, hint, line)


def _type_hint(report: dict[str, str]) -> str:
    symbol = report["offendingSymbol"]
    if report["errorCode"] == "TypeMismatch" and re.fullmatch(r"-?[0-9]+", symbol):
        return f"write {symbol}.0: an integer is not a {'real' if 'Real' in report['hint'] else 'float'} in VNN-LIB 2.0"
    return report["hint"].rstrip(".")


def _syntax_error(source: QueryText, line: int, column: int, token: str) -> VnnlibError:
    """The parser counts columns from 0 or from 1, by line: trust the one where `token` stands."""
    lines = source.text.split("\n")
    content = lines[line - 1] if 0 < line <= len(lines) else ""
    start = column if token and content.startswith(token, column) else max(column - 1, 0)
    before = content[:start]
    number = next((m[0] for m in _SCIENTIFIC.finditer(content) if m.start() <= start < m.end() + 1), None)
    if token in ("e", "E") or (token[:1] in ("e", "E") and number):
        problem = f"scientific notation{f' ({number})' if number else ''}"
        hint = "VNN-LIB 2.0 forbids it; write the number out, as 0.001"
    elif not token:
        problem, hint = "the text ends too early", "a ')' is missing, or there is no assertion"
    else:
        problem = f"{token[:40]!r} is not expected here"
        hint = {
            "=": "equality is written == in VNN-LIB 2.0",
            "not": "VNN-LIB has no negation; turn the comparison around",
            "/": "VNN-LIB 2.0 has no division; multiply by a decimal number",
            ".": "numbers start with a digit, as 0.5",
            ")": "a ')' is too many, or something is missing before it",
            "(": "a ')' may be missing before it" if before.strip() == "" else "an operand or ')' may be missing",
            "-": "negative numbers are written -0.5, without a space",
        }.get(token, "see the grammar of VNN-LIB 2.0")
    return VnnlibError(source.name, problem, hint, line, start + 1)


# ---------------------------------------------------------------------- declarations


def _network(source: QueryText, network: vnnlib.Network) -> NetworkVariable:
    if network.hidden:
        raise VnnlibError(
            source.name,
            f"network {network.name} declares the hidden tensor {network.hidden[0].name}",
            "citrus verifies inputs and outputs only; drop declare-hidden",
        )
    return NetworkVariable(
        name=network.name,
        inputs=tuple(_tensor(source, tensor) for tensor in network.inputs),
        outputs=tuple(_tensor(source, tensor) for tensor in network.outputs),
        equal_to=network.equal_to or None,
        isomorphic_to=network.isometric_to or None,
    )


def _tensor(source: QueryText, tensor: vnnlib.InputDefinition | vnnlib.OutputDefinition) -> TensorVariable:
    if tensor.dtype.name not in ELEMENT_TYPES:
        raise VnnlibError(
            source.name,
            f"the element type of {tensor.name} is not supported",
            f"use {', '.join(ELEMENT_TYPES.values())}",
        )
    if math.prod(tensor.shape) > MAX_ENTRIES:
        raise VnnlibError(
            source.name, f"{tensor.name} has {math.prod(tensor.shape)} entries", f"at most {MAX_ENTRIES} are supported"
        )
    return TensorVariable(
        name=tensor.name,
        shape=tuple(tensor.shape),
        element_type=ELEMENT_TYPES[tensor.dtype.name],
        onnx_name=tensor.onnx_name,
    )


# ---------------------------------------------------------------------- formulas


def _line(node: vnnlib.Node) -> int:
    """The line of the first variable or number in `node`, 0 if it has none."""
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, (vnnlib.Var, vnnlib.Literal)):
            return node.line
        stack.extend(reversed(node.children()))
    return 0


def _meaning(source: QueryText, root: vnnlib.Node) -> Formula | Operand:
    """The formula or expression that `root` stands for, children first, without recursion."""
    open_nodes: list[tuple[vnnlib.Node, list[vnnlib.Node], list[Formula | Operand]]] = []
    results: list[Formula | Operand] = []
    pending = [root]
    while True:
        if pending:
            node = pending.pop()
            if isinstance(node, vnnlib.Var):
                results.append(_variable(source, node))
            elif isinstance(node, vnnlib.Literal):
                results.append(_number(source, node))
            else:
                open_nodes.append((node, pending, results))
                pending, results = list(reversed(node.children())), []
        elif open_nodes:
            node, pending, outer = open_nodes.pop()
            try:
                outer.append(_combine(node, results))
            except NotLinearError:
                hint = "citrus verifies linear constraints; polynomials are not supported"
                raise VnnlibError(source.name, "a product of variables", hint, _line(node)) from None
            except OverflowError as error:
                raise VnnlibError(source.name, str(error), "numbers lie below 1e300", _line(node)) from None
            results = outer
        else:
            return results[0]


def _combine(node: vnnlib.Node, parts: list[Formula | Operand]) -> Formula | Operand:
    """Raises NotLinearError, OverflowError. The parser has checked which parts are formulas."""
    if isinstance(node, vnnlib.Connective):
        return algebra.join(isinstance(node, vnnlib.And), cast("list[Formula]", parts))
    operands = cast("list[Operand]", parts)
    if isinstance(node, vnnlib.Comparison):
        left, right = operands
        if isinstance(node, vnnlib.NotEqual):
            return algebra.differ(left, right)
        relation, swap = _RELATIONS[type(node)]
        return algebra.relate(right, relation, left) if swap else algebra.relate(left, relation, right)
    total = Linear.of(operands[0])
    if isinstance(node, vnnlib.Negate):
        return total.times(Fraction(-1))
    for operand in map(Linear.of, operands[1:]):
        if isinstance(node, vnnlib.Minus):
            total = total.plus(operand.times(Fraction(-1)))
        else:
            total = total.plus(operand) if isinstance(node, vnnlib.Plus) else total.product(operand)
    return total


def _number(source: QueryText, node: vnnlib.Literal) -> Fraction:
    if len(node.lexeme) > MAX_DIGITS:
        raise VnnlibError(source.name, "a number has too many digits", "write it shorter", node.line)
    return Fraction(node.lexeme)


def _variable(source: QueryText, node: vnnlib.Var) -> Variable:
    index = 0
    for place, size in zip(node.indices, node.shape, strict=True):
        if not 0 <= place < size:
            raise VnnlibError(
                source.name, f"an index of {node.name} is out of range", f"its shape is {node.shape}", node.line
            )
        index = index * size + place
    return Variable(node.name, index)


# ---------------------------------------------------------------------- writing


def text2(spec: Spec) -> str:
    """`spec` in VNN-LIB 2.0. Raises UsageError where a number has no finite form in the tensors' element type."""

    def number(variable: Variable | None, value: Fraction) -> str:
        if variable is None or spec.tensors[variable.tensor].element_type in FLOATS.values():
            return decimal(value)
        if value.denominator != 1:
            raise UsageError(
                f"{value} is not a whole number, but {variable.tensor} is an integer tensor; declare it real."
            )
        return str(value.numerator)

    lines = ["(vnnlib-version <2.0>)"]
    for network in spec.networks:
        lines.append(f"(declare-network {network.name}")
        if network.equal_to is not None:
            lines.append(f"  (equal-to {network.equal_to})")
        if network.isomorphic_to is not None:
            lines.append(f"  (isomorphic-to {network.isomorphic_to})")
        for kind, tensors in (("input", network.inputs), ("output", network.outputs)):
            for tensor in tensors:
                node = "" if tensor.onnx_name is None else f' "{tensor.onnx_name}"'
                shape = ",".join(map(str, tensor.shape))
                lines.append(f"  (declare-{kind} {tensor.name} {tensor.element_type} [{shape}]{node})")
        lines[-1] += ")"
    lines += assertions(spec, name=lambda v: element(spec.tensors[v.tensor], v.flat), equality="==", number=number)
    return "\n".join(lines) + "\n"


def write2(spec: Spec, path: Path) -> None:
    """Writes `text2(spec)` to `path`, gzipped where it ends in .gz, whole or not at all. Raises as `text2`."""
    write(path, text2(spec))
