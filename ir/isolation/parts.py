"""Slices of what was put together: which of the parts they are.

Memory that is filled part by part is, after the last write, its parts one after another, whatever
it held before. Each write reads as the old value before it, what is written, and the old value
behind it; a slice of such a value that is one of its parts, or lies within one, is read from that
part alone.
"""

from __future__ import annotations

from dataclasses import replace

from planish.ir.flow.graph import Flow, Node
from planish.ir.flow.polynomial import Count, at_least
from planish.ir.flow.vocabulary import Concat, Expression, Reads, Reshape, Slice, Value


def resolve(flow: Flow) -> Flow:
    """A flow whose slices of concatenated values read the parts."""
    made: dict[Value, Concat] = {}
    nodes: list[Node] = []
    for node in flow.nodes:
        expressions = tuple(_resolved(one, made) for one in node.expressions)
        for output, expression in zip(node.outputs, expressions, strict=True):
            if isinstance(expression, Concat):
                made[output] = expression
            elif isinstance(inner := same(expression), Value) and inner in made:
                made[output] = made[inner]
        kept = expressions == node.expressions
        nodes.append(node if kept else replace(node, expressions=expressions))
    return replace(flow, nodes=tuple(nodes))


def _resolved(expression: Expression, made: dict[Value, Concat]) -> Expression:
    match expression:
        case Slice(value=value, step=1):
            if is_whole(expression):
                return _resolved(value, made)
            inner = _resolved(value, made)
            whole = made.get(inner) if isinstance(inner, Value) else inner
            if isinstance(whole, Concat) and whole.dim == expression.dim:
                part = _part(whole, expression)
                if part is not None:
                    return _resolved(part, made)
            return expression if inner is value else replace(expression, value=inner)
        case Concat(operands=operands):
            parts = tuple(_resolved(one, made) for one in operands)
            return expression if parts == operands else _flat(parts, expression.dim)
        case Reshape(value=value):
            inner = _resolved(value, made)
            return expression if inner is value else replace(expression, value=inner)
    return expression


def is_whole(part: Slice) -> bool:
    """Whether a slice is all of what it is taken from."""
    return part.start == 0 and part.step == 1 and part.size == part.value.shape[part.dim]


def same(expression: Expression) -> Expression:
    """What an expression is a copy of, if it is one; else itself."""
    match expression:
        case Reads(kind="copy", operands=(operand,), shape=shape):
            if operand.value.shape == shape and operand.tags == tuple(range(len(shape))):
                return same(operand.value)
    return expression


def _part(whole: Concat, part: Slice) -> Expression | None:
    """The operands that a slice is, or the one it lies in; None if it is neither for certain."""
    if part.start is None:
        return None
    bounds: list[Count] = [0]
    for operand in whole.operands:
        bounds.append(bounds[-1] + operand.shape[whole.dim])
    stop = part.start + part.size
    if part.start in bounds and stop in bounds:
        found = whole.operands[bounds.index(part.start) : bounds.index(stop)]
        return _flat(found, whole.dim) if len(found) > 1 else found[0] if found else None
    for operand, first, last in zip(whole.operands, bounds, bounds[1:], strict=False):
        if at_least(part.start - first, 0) and at_least(last - stop, 0):
            return replace(part, value=operand, start=part.start - first)
    return None


def _flat(parts: tuple[Expression, ...], dim: int) -> Concat:
    """Parts, those of parts among them."""
    found: list[Expression] = []
    for part in parts:
        found += part.operands if isinstance(part, Concat) and part.dim == dim else (part,)
    return Concat(tuple(found), dim)
