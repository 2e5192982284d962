"""What masks of packed batches hold: by whose two rows are, between which bounds a number lies.

Masks are made of numbers of requests, places, truth values and constants, are spread and reshaped,
and then meet scores. Of every value on the way two bounds are kept: where both rows are the same
one, and where they are of different requests.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isnan

from planish.ir.flow.graph import Flow
from planish.ir.flow.known import Counting, Known, Numbers, of
from planish.ir.flow.laws import Computed, Hidden, Law, Softmax, Triangle
from planish.ir.flow.polynomial import Count
from planish.ir.flow.vocabulary import (
    Expression,
    Fill,
    Operand,
    Reads,
    Reshape,
    Shape,
    Slice,
    Value,
)
from planish.ir.isolation.parts import is_whole
from planish.ir.isolation.spans import (
    ANY,
    COARSE,
    FREE,
    NO,
    TRUTH,
    YES,
    Span,
    computed,
    constant,
    hull,
)

FAR = 5_000
"""By how much a mask that is finite has to lower scores at least.

Half of that is left to the scores themselves. The exponential of what is lower than the greatest
of its row by the other half is 0 in every type: of float64, below -746.
"""


@dataclass(frozen=True)
class Ids:
    """An element says whose the row is whose number its index along `dim` is."""

    dim: int


@dataclass(frozen=True)
class Mask:
    """Between which bounds an element lies, by the two rows whose numbers are its indices.

    Attributes:
        dims: the two dimensions of the rows; none if the bounds hold for every element.
        own: where both are the same row. Between two rows of one request nothing is known.
        other: where they are of different requests.
    """

    dims: tuple[int, ...]
    own: Span
    other: Span

    @property
    def far(self) -> float:
        """By how much what lies between different requests is less than a row's own."""
        return inf if self.other.high == -inf else self.own.low - self.other.high


Fact = Ids | Mask


class Masks:
    """The facts of a flow's values.

    Args:
        flow: to be followed.
        ids: inputs that hold a request's number for each row, with the dimension of the rows.
    """

    def __init__(self, flow: Flow, ids: Mapping[str, int]) -> None:
        self._known: Mapping[Value, Known] = flow.known
        self._facts: dict[Value, Fact] = {
            value: Ids(ids[value.name]) for value in flow.inputs if value.name in ids
        }
        if not ids:
            return
        self._facts |= {
            value: _everywhere(Span(min(several), max(several)))
            for value, several in flow.floats.items()
            if several and not any(map(isnan, several))
        }
        for node in flow.nodes:
            for output, expression in zip(node.outputs, node.expressions, strict=True):
                fact = self._of(expression, output.dtype)
                if fact is not None:
                    self._facts[output] = fact

    def zero(self, expression: Expression) -> Mask | None:
        """The mask of a value that is exactly 0 between rows of different requests."""
        fact = self._of(expression)
        return fact if isinstance(fact, Mask) and fact.dims and fact.other == NO else None

    def row(self, value: Expression, mixed: frozenset[int]) -> Mask | None:
        """The mask of scores, if a softmax leaves nothing of those between different requests."""
        fact = self._of(value)
        if not isinstance(fact, Mask) or len(mixed & set(fact.dims)) != 1:
            return None
        return fact if fact.far >= FAR else None

    def _of(self, expression: Expression, dtype: object = COARSE) -> Fact | None:
        fact: Fact | None = None
        match expression:
            case Value():
                fact = self._facts.get(expression) or self._counted(expression)
            case Fill(number=float() as number):
                fact = _everywhere(constant(number, dtype))
            case Reshape(value=value, shape=shape):
                fact = _reshaped(self._of(value), value.shape, shape)
            case Slice(value=value) if is_whole(expression):
                fact = self._of(value)
            case Reads(kind="copy", operands=(operand,), mixed=mixed, law=None) if not mixed:
                fact = _moved(self._of(operand.value), operand, expression)
            case Reads(law=Law() as law):
                fact = self._by_law(law, expression, dtype)
        return fact

    def _by_law(self, law: Law, reads: Reads, dtype: object) -> Mask | None:
        fact: Mask | None = None
        match law:
            case Computed():
                fact = self._computed(law, reads.shape, dtype)
            case Softmax(value=value):
                found = self.row(value, reads.mixed)
                fact = None if found is None else Mask(found.dims, TRUTH, NO)
            case Triangle(value=Expression() as value, diagonal=kept):
                fact = self._in_last(value, reads.shape)
                own = hull(fact.own, NO) if kept is None else fact.own if kept else NO
                fact = replace(fact, own=own, other=hull(fact.other, NO))
            case Hidden(value=Expression() as value):
                fact = self._in_last(value, reads.shape)
                fact = replace(fact, other=hull(fact.other, NEVER))
        return fact

    def _counted(self, value: Value) -> Mask | None:
        """Bounds of a tensor of integers or truth values that is known."""
        known = self._known.get(value)
        if not isinstance(known, Numbers) or not known.array.size:
            return None
        several = [float(one) for one in known.array.flat if isinstance(one, int)]
        whole = len(several) == known.array.size
        return _everywhere(Span(min(several), max(several))) if whole else None

    def _mask(self, operand: Expression | float, shape: Shape, dtype: object = COARSE) -> Mask:
        """Bounds of an operand that is broadcast to a shape, along the shape's dimensions."""
        if not isinstance(operand, Expression):
            return _everywhere(constant(operand, dtype))
        fact = self._of(operand)
        if not isinstance(fact, Mask):
            truths = str(getattr(operand, "dtype", "")).lower() in ("torch.bool", "bool")
            return _everywhere(TRUTH if truths else FREE)
        first = len(shape) - len(operand.shape)
        kept = all(operand.shape[dim] == shape[first + dim] for dim in fact.dims)
        dims = tuple(first + dim for dim in fact.dims)
        return Mask(dims, fact.own, fact.other) if kept else _everywhere(ANY)

    def _in_last(self, value: Expression, shape: Shape) -> Mask:
        """Bounds of a value by its indices along the last two dimensions."""
        last = (len(shape) - 2, len(shape) - 1)
        found = self._mask(value, shape)
        fits = found.dims in ((), last)
        return Mask(last, found.own, found.other) if fits else Mask(last, ANY, ANY)

    def _computed(self, law: Computed, shape: Shape, dtype: object) -> Mask | None:
        if law.function in _COMPARED:
            return self._compared(law, shape)
        masks = [self._mask(operand, shape, dtype) for operand in law.operands]
        dims = next((one.dims for one in masks if one.dims), ())
        masks = [one if one.dims in ((), dims) else _everywhere(ANY) for one in masks]
        own = computed(law.function, [one.own for one in masks], dtype)
        other = computed(law.function, [one.other for one in masks], dtype)
        if not dims and own == FREE:
            return None  # as of anything
        return Mask(dims, own, other)

    def _compared(self, law: Computed, shape: Shape) -> Mask:
        """Of numbers of requests, whether two are equal; of places, what holds of a row itself."""
        whose = [self._ids(operand, shape) for operand in law.operands]
        equal = {"eq": (YES, NO), "ne": (NO, YES)}.get(law.function)
        if equal and None not in whose and len(set(whose)) == 2:
            return Mask(tuple(sorted(dim for dim in whose if dim is not None)), *equal)
        counted = [self._steps(operand, shape) for operand in law.operands]
        if counted[0] is None or counted[1] is None:
            return _everywhere(TRUTH)
        base, *steps = (one - other for one, other in zip(*counted, strict=True))
        dims = tuple(dim for dim, step in enumerate(steps) if step != 0)
        if len(dims) != 2 or steps[dims[0]] + steps[dims[1]] != 0 or not isinstance(base, int):
            return _everywhere(TRUTH)
        return Mask(dims, YES if _COMPARED[law.function](base, 0) else NO, TRUTH)

    def _ids(self, operand: Expression | float, shape: Shape) -> int | None:
        """The dimension of a result along which an operand says whose each row is."""
        fact = self._of(operand) if isinstance(operand, Expression) else None
        if not isinstance(operand, Expression) or not isinstance(fact, Ids):
            return None
        place = len(shape) - len(operand.shape) + fact.dim
        return place if operand.shape[fact.dim] == shape[place] else None

    def _steps(self, operand: Expression | float, shape: Shape) -> list[Count] | None:
        """Where an operand that counts begins, and its steps along the dimensions of a result."""
        known = of(operand, self._known) if isinstance(operand, Expression) else None
        if not isinstance(known, Counting) or not isinstance(operand, Expression):
            return None
        first = len(shape) - len(operand.shape)
        sizes = zip(known.steps, operand.shape, shape[first:], strict=True)
        own = [step if size == whole else 0 for step, size, whole in sizes]
        return [known.base, *(0,) * first, *own]


_COMPARED: Mapping[str, Callable[[int, int], bool]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}

NEVER = Span(-inf, -inf)


def _everywhere(span: Span) -> Mask:
    return Mask((), span, span)


def _dims(fact: Fact) -> tuple[int, ...]:
    return (fact.dim,) if isinstance(fact, Ids) else fact.dims


def _placed(fact: Fact, dims: Sequence[int]) -> Fact:
    """A fact along other dimensions."""
    return Ids(dims[0]) if isinstance(fact, Ids) else replace(fact, dims=tuple(sorted(dims)))


def _lost(fact: Fact | None) -> Fact | None:
    """What is left where the dimensions of a fact are not followed."""
    return _everywhere(ANY) if isinstance(fact, Mask) else None


def _moved(fact: Fact | None, operand: Operand, reads: Reads) -> Fact | None:
    """A fact of an operand as one of the result, along dimensions that are not spread."""
    if fact is None:
        return None
    places = []
    for dim in _dims(fact):
        place = operand.tags[dim]
        if not isinstance(place, int) or operand.value.shape[dim] != reads.shape[place]:
            return _lost(fact)
        places.append(place)
    return _placed(fact, places)


def _reshaped(fact: Fact | None, old: Shape, new: Shape) -> Fact | None:
    """A fact after dimensions of size 1 came or went, or after others were split before it."""
    if fact is None or not _dims(fact):
        return fact
    dims = _dims(fact)
    least = min(dims)
    if old[least:] == new[len(new) - (len(old) - least) :]:
        shift = len(new) - len(old)
        return _placed(fact, [dim + shift for dim in dims])
    kept = [dim for dim, size in enumerate(old) if size != 1]
    places = [dim for dim, size in enumerate(new) if size != 1]
    if [old[dim] for dim in kept] != [new[dim] for dim in places] or not set(dims) <= set(kept):
        return _lost(fact)
    return _placed(fact, [places[kept.index(dim)] for dim in dims])
