"""What expressions are made of, and which parts slices take."""

from __future__ import annotations

from planish.ir.flow.vocabulary import Branch, Expression, Loop, Reads, Slice, Value


def is_whole(part: Slice) -> bool:
    """Whether a slice takes every index in order."""
    whole = part.value.shape[part.dim]
    return part.size == whole and part.start == 0 and part.step == 1


def is_segment(part: Slice) -> bool:
    """Whether a slice takes consecutive indices whose places are numbers."""
    return isinstance(part.start, int) and isinstance(part.size, int) and part.step == 1


def inside(expression: Expression) -> list[Expression]:
    """The expressions that an expression is made of directly."""
    if isinstance(expression, Reads):
        return [operand.value for operand in expression.operands]
    if isinstance(expression, Branch):
        outer = (value for body in expression.bodies for value in body.captured)
        return [expression.predicate, *expression.operands, *outer]
    if isinstance(expression, Loop):
        trips = (expression.trips,) if expression.trips is not None else ()
        given = (*expression.carried, *expression.scanned, *expression.fixed, *trips)
        return [*given, *expression.body.captured]
    one = getattr(expression, "value", None)
    return [*getattr(expression, "operands", ()), *([one] if one is not None else [])]


def values_of(expression: Expression) -> list[Value]:
    """The values that an expression is made of."""
    if isinstance(expression, Value):
        return [expression]
    return [value for one in inside(expression) for value in values_of(one)]
