"""Small changes of a module's source, one at a time: what tests/mutation.py lets the tests find."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
"""What stands in an operator's place: for comparisons the one that differs in a tie, and the opposite."""
OTHER_NAMES = {
    one: other
    for pair in (
        ("min", "max"),
        ("amin", "amax"),
        ("minimum", "maximum"),
        ("argmin", "argmax"),
        ("all", "any"),
        ("lower", "upper"),
        ("floor", "ceil"),
    )
    for one, other in (pair, pair[::-1])
}
"""Names of functions, attributes and keywords, and the opposite of each."""
UNSEEN = ("strict", "device")
"""Arguments that say what holds anyway, or what only a GPU shows."""
UNCHANGED = frozenset({"annotation", "returns", "decorator_list", "type_params"})
"""Fields of the syntax tree that decide nothing when the code runs, or how a class is made."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change: `new` for what stands in `parent`, in the field (at the index of a list)."""

    parent: ast.AST
    field: str
    index: int | None
    new: ast.AST
    statement: ast.stmt

    @property
    def old(self) -> ast.AST:
        """What stands there."""
        value = getattr(self.parent, self.field)
        found: ast.AST = value if self.index is None else value[self.index]
        return found

    def words(self) -> str:
        """Line, and what becomes of what."""
        old, new = (ast.unparse(one).splitlines()[0] for one in (self.old, self.new))
        whole = ast.unparse(self.statement).splitlines()[0]
        return f"line {self.statement.lineno}: {old}  ->  {new}   in   {whole[:120]}"

    def lines(self) -> range:
        """The lines of its statement; of one with a block, those above the block."""
        first = getattr(self.statement, "body", [None])[0]
        end = self.statement.end_lineno if first is None else max(self.statement.lineno, first.lineno - 1)
        return range(self.statement.lineno, (end or self.statement.lineno) + 1)

    def apply(self) -> None:
        """Changes the tree that it was found in."""
        if self.index is None:
            setattr(self.parent, self.field, self.new)
        else:
            getattr(self.parent, self.field)[self.index] = self.new


def _with(node: ast.AST, **fields: object) -> ast.AST:
    other = copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _others(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                for other in OPERATORS[type(op)]:
                    yield _with(node, ops=[*ops[:i], other(), *ops[i + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op):
            for other in OPERATORS.get(type(op), ()):
                yield _with(node, op=other())
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(value=not value)
        case ast.Constant(value=int() as value):
            yield ast.Constant(value=value + 1)
        case ast.Constant(value=float() as value):
            yield ast.Constant(value=2 * value or 1.0)
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in OTHER_NAMES:
            yield _with(node, attr=OTHER_NAMES[name])
        case ast.Call(keywords=keywords):
            if isinstance(node.func, ast.Name) and node.func.id in OTHER_NAMES:
                yield _with(node, func=ast.Name(id=OTHER_NAMES[node.func.id], ctx=ast.Load()))
            for i, keyword in enumerate(keywords):
                if keyword.arg not in (None, *UNSEEN):
                    yield _with(node, keywords=[*keywords[:i], *keywords[i + 1 :]])
        case ast.keyword(arg="min" | "max" as name):
            yield _with(node, arg=OTHER_NAMES[name])
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            if not isinstance(test, ast.Compare | ast.UnaryOp):
                yield _with(node, test=ast.UnaryOp(op=ast.Not(), operand=test))
        case ast.comprehension(ifs=[_, *_] as ifs):
            for i in range(len(ifs)):
                yield _with(node, ifs=[*ifs[:i], *ifs[i + 1 :]])
        case ast.Expr(value=ast.Call() | ast.YieldFrom()) | ast.Raise():
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()


def _is_left_out(node: ast.AST) -> bool:
    match node:
        case ast.keyword(arg=name) if name in UNSEEN:
            return True
        case ast.JoinedStr() | ast.Assert():  # wording; what the code claims of itself
            return True
        case ast.BinOp(left=ast.Constant(value=str()) | ast.JoinedStr()):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id="__slots__" | "__all__")]):
            return True
    return False


def changes(node: ast.AST, statement: ast.stmt | None = None) -> Iterator[Change]:
    """Every change of a syntax tree, in the source's order."""
    is_test_of_types = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
    for field, value in ast.iter_fields(node):
        if field in UNCHANGED or (is_test_of_types and field != "args"):
            continue
        children = value if isinstance(value, list) else [value]
        for i, child in enumerate(children):
            if not isinstance(child, ast.AST) or _is_left_out(child) or (is_test_of_types and i):
                continue
            inside = child if isinstance(child, ast.stmt) else statement
            if inside is None:
                continue
            for new in _others(child):
                new = ast.copy_location(new, child) if hasattr(child, "lineno") else new
                yield Change(
                    parent=node, field=field, index=i if isinstance(value, list) else None, new=new, statement=inside
                )
            if not isinstance(child, ast.Raise):  # wording
                yield from changes(child, inside)
