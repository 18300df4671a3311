"""The faults that are put in: signs, terms, roundings, comparisons, edges. Pure: source in, mutated sources out."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
_NAMES = {
    "floor": "ceil",
    "ceil": "floor",
    "min_horizontal": "max_horizontal",
    "max_horizontal": "min_horizontal",
    "minimum": "maximum",
    "maximum": "minimum",
    "cum_sum": "cum_max",
    "first": "last",
    "last": "first",
    "ROUND_HALF_EVEN": "ROUND_DOWN",
}
"""Names of functions and modes that come in pairs."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault in one module."""

    line: int
    what: str
    source: str
    nth: int = 0
    """Of several such faults on one line, which; from 0."""


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every fault of the kinds below, one at a time, in the order of the source.

    Sign flips, dropped terms of sums, ``//`` rounded instead of cut, swapped comparisons and boundaries, swapped extremes and roundings,
    numbers off by one, negated conditions, swapped booleans. Annotations, docstrings and messages of errors are left alone.
    """
    tree = ast.parse(source)
    plain = [ast.unparse(statement) for statement in tree.body]
    seen: Counter[tuple[int, str]] = Counter()
    for number, statement in enumerate(tree.body):
        for node in list(_nodes([statement])):
            for what, change in _changes(node):
                undo = _replace(tree, node, change)
                text = ast.unparse(tree.body[number])
                undo()
                if text != plain[number]:
                    line = getattr(node, "lineno", 0)
                    yield Mutant(line, what, "\n".join((*plain[:number], text, *plain[number + 1 :])), seen[line, what])
                    seen[line, what] += 1


def _nodes(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Walk what computes: inside functions and at module level, but not annotations, docstrings and what is raised.

    Nor numbers given by keyword: ``max(initial=0)`` of what is never negative has no other meaning with 1.
    """
    stack: list[ast.AST] = list(reversed(body))
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant) and type(node.value.value) is int:
            continue
        if isinstance(node, ast.ClassDef) and not any(isinstance(part, ast.FunctionDef) for part in node.body):
            continue
        yield node
        children = [
            child
            for field, value in ast.iter_fields(node)
            if field
            not in {"annotation", "returns", "decorator_list", "args" if isinstance(node, ast.FunctionDef) else ""}
            for child in (value if isinstance(value, list) else [value])
            if isinstance(child, ast.AST)
        ]
        stack += reversed(children)


Change = ast.AST


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:
    if isinstance(node, ast.BinOp):
        yield from _of_arithmetic(node)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARED:
        swapped = _COMPARED[type(node.ops[0])]
        yield (
            f"{type(node.ops[0]).__name__} becomes {swapped.__name__}",
            ast.Compare(node.left, [swapped()], node.comparators),
        )
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Invert, ast.Not)):
        yield f"{type(node.op).__name__} dropped", node.operand
    elif isinstance(node, ast.Attribute) and node.attr in _NAMES:
        yield f"{node.attr} becomes {_NAMES[node.attr]}", ast.Attribute(node.value, _NAMES[node.attr], node.ctx)
    elif isinstance(node, ast.Name) and node.id in {"min", "max", "any", "all"}:
        other = {"min": "max", "max": "min", "any": "all", "all": "any"}[node.id]
        yield f"{node.id} becomes {other}", ast.Name(other, node.ctx)
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield f"{node.value} becomes {node.value + 1}", ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield f"{node.value} becomes {not node.value}", ast.Constant(not node.value)
    elif isinstance(node, ast.If):
        yield "condition negated", ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.IfExp):
        yield "branches swapped", ast.IfExp(node.test, node.orelse, node.body)


def _of_arithmetic(node: ast.BinOp) -> Iterator[tuple[str, Change]]:
    left, right = node.left, node.right
    if isinstance(node.op, ast.Add):
        yield "+ becomes -", ast.BinOp(left, ast.Sub(), right)
        yield "second term dropped", left
    elif isinstance(node.op, ast.Sub):
        yield "- becomes +", ast.BinOp(left, ast.Add(), right)
        yield "subtrahend dropped", left
    elif isinstance(node.op, ast.Mult):
        yield "factor dropped", left
    elif isinstance(node.op, ast.FloorDiv):
        half = ast.BinOp(copy.deepcopy(right), ast.FloorDiv(), ast.Constant(2))
        yield "// rounds", ast.BinOp(ast.BinOp(left, ast.Add(), half), ast.FloorDiv(), right)
        yield "divisor dropped", left
    elif isinstance(node.op, ast.Div):
        yield "divisor dropped", left
    elif isinstance(node.op, ast.BitAnd):
        yield "& becomes |", ast.BinOp(left, ast.BitOr(), right)
    elif isinstance(node.op, ast.BitOr):
        yield "| becomes &", ast.BinOp(left, ast.BitAnd(), right)


def _replace(tree: ast.Module, target: ast.AST, change: ast.AST) -> Callable[[], None]:
    """Put a change in a node's place; what is returned takes it back. A change may hold the node's own parts: they are only read."""
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            if value is target:
                setattr(node, field, change)
                return lambda: setattr(node, field, target)
            if isinstance(value, list) and any(each is target for each in value):
                place = next(place for place, each in enumerate(value) if each is target)
                value[place] = change
                return lambda: value.__setitem__(place, target)
    raise LookupError(f"{ast.dump(target)} is not of this tree")
