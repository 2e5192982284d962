"""Packed batches: rows one request after another, and inputs that say which row is whose.

A batch may lie along one axis, tokens of one request after tokens of another. Which rows are
whose is the same for all requests, for whoever packs the batch knows: a map from rows to requests
that no number of a request decides. A `Map` then gives a row, and says: this element depends on
nothing but the request that has this row. Whatever works on each row by itself keeps that, and so
does attention that reads within requests:

    Packed     by bounds; the operator reads nothing else
    Weighed    by a mask that is true only where two rows are of one request: what it forbids
               weighs exactly 0, which times a number that is not finite would not be 0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planish.ir.flow.graph import Flow
from planish.ir.flow.laws import Alike, Both, Packed, Weighed
from planish.ir.flow.vocabulary import Expression, Operand, Reads, Reshape, Shape, Value
from planish.ir.isolation.digits import Digit, Map, make
from planish.ir.isolation.parts import same

FINITE = (
    "what attention computes is finite: a mask of truth values keeps requests apart as long as "
    "no other request's number is infinite or NaN"
)


@dataclass(frozen=True)
class Ids:
    """An element says whose the row is whose number its index along `dim` is."""

    dim: int


@dataclass(frozen=True)
class Within:
    """An element is true only if its indices along two dimensions are rows of one request."""

    first: int
    second: int


Fact = Ids | Within


class Segments:
    """What is known of a flow whose batch is packed.

    Attributes:
        assumed: what was relied upon, for people.

    Args:
        flow: to be followed.
        bounds: inputs that hold where each request begins, and where the last one ends.
        ids: inputs that hold a request's number for each row, with the dimension of the rows.
    """

    def __init__(self, flow: Flow, bounds: tuple[str, ...], ids: Mapping[str, int]) -> None:
        self.assumed: set[str] = set()
        self._bounds = {value for value in flow.inputs if value.name in bounds}
        self._facts: dict[Value, Fact] = {
            value: Ids(ids[value.name]) for value in flow.inputs if value.name in ids
        }
        for node in flow.nodes if bounds or ids else ():
            for output, expression in zip(node.outputs, node.expressions, strict=True):
                if same(expression) in self._bounds:
                    self._bounds.add(output)
                fact = self._of(expression)
                if fact is not None:
                    self._facts[output] = fact

    def _of(self, expression: Expression) -> Fact | None:
        match expression:
            case Value():
                return self._facts.get(expression)
            case Reshape(value=value, shape=shape):
                return _reshaped(self._of(value), value.shape, shape)
            case Reads(kind="copy", operands=(operand,), mixed=mixed, law=None) if not mixed:
                return self._moved(operand, expression)
            case Reads(kind="equal", operands=(one, other), law=Alike()):
                first, second = self._moved(one, expression), self._moved(other, expression)
                if isinstance(first, Ids) and isinstance(second, Ids) and first != second:
                    return Within(first.dim, second.dim)
            case Reads(operands=operands, law=Both()) if _are_truths(operands):
                found = (self._moved(operand, expression) for operand in operands)
                return next((one for one in found if isinstance(one, Within)), None)
        return None

    def _moved(self, operand: Operand, reads: Reads) -> Fact | None:
        """A fact of an operand as one of the result, along dimensions that are not spread."""
        fact = self._of(operand.value)
        dims = () if fact is None else _dims(fact)
        places = [operand.tags[dim] for dim in dims]
        for dim, place in zip(dims, places, strict=True):
            if not isinstance(place, int) or operand.value.shape[dim] != reads.shape[place]:
                return None
        return type(fact)(*places) if fact is not None else None  # type: ignore[arg-type]

    def kept(self, one: Map, operand: Operand, reads: Reads) -> Map | None:
        """The map of a result that reads rows across requests, but only within each.

        None if nothing says so: the rows that are read have to be all rows in their order, and
        those of the result as well.
        """
        law = reads.law
        if not isinstance(law, Packed | Weighed) or one.offset != 0 or len(one.digits) != 1:
            return None
        (digit,) = one.digits
        size = operand.value.shape[digit.dim]
        tag = operand.tags[digit.dim]
        every = digit == Digit(digit.dim, 1, size) and reads.shape[law.place] == size
        if not every or (tag != law.across and tag not in reads.mixed):
            return None
        if not self._divide(law):
            return None
        return make(0, [Digit(law.place, 1, size)])

    def _divide(self, law: Packed | Weighed) -> bool:
        """Whether an operator reads within requests alone."""
        if isinstance(law, Packed):
            return bool(law.bounds) and all(same(one) in self._bounds for one in law.bounds)
        fact = self._of(law.mask) if law.mask is not None else None
        rank = len(law.mask.shape) if law.mask is not None else 0
        if fact not in (Within(rank - 2, rank - 1), Within(rank - 1, rank - 2)):
            return False
        self.assumed.add(FINITE)
        return True


NO_SEGMENTS = Segments(Flow((), (), (), {}), (), {})
"""Of a batch that is not packed."""


def _dims(fact: Fact) -> tuple[int, ...]:
    return (fact.dim,) if isinstance(fact, Ids) else (fact.first, fact.second)


def _are_truths(operands: tuple[Operand, ...]) -> bool:
    kinds = {str(getattr(operand.value, "dtype", "")) for operand in operands}
    return len(operands) == 2 and kinds == {"torch.bool"}


def _reshaped(fact: Fact | None, old: Shape, new: Shape) -> Fact | None:
    """A fact after dimensions of size 1 came or went, or after others were split before it."""
    if fact is None:
        return None
    dims = _dims(fact)
    least = min(dims)
    if old[least:] == new[len(new) - (len(old) - least) :]:
        shift = len(new) - len(old)
        return type(fact)(*(dim + shift for dim in dims))
    kept = [dim for dim, size in enumerate(old) if size != 1]
    places = [dim for dim, size in enumerate(new) if size != 1]
    if [old[dim] for dim in kept] != [new[dim] for dim in places] or not set(dims) <= set(kept):
        return None
    return type(fact)(*(places[kept.index(dim)] for dim in dims))
