"""Packed batches: rows one request after another, and inputs that say which row is whose.

A batch may lie along one axis, tokens of one request after tokens of another. Which rows are
whose is the same for all requests, for whoever packs the batch knows: a map from rows to requests
that no number of a request decides. A `Map` then gives a row, and says: this element depends on
nothing but the request that has this row. Whatever works on each row by itself keeps that, and so
does attention that reads within requests:

    Packed      by bounds; the operator reads nothing else
    Softmax     of scores that a mask lowers so far, wherever two rows are of different requests,
                that what it leaves of them is exactly 0
    Products    with what is exactly 0 there, such as those weights

0 times a number that is not finite is no number, so that all is finite is assumed; and of a mask
that is not minus infinity, that what it is added to is small beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from planish.ir.flow.graph import Flow
from planish.ir.flow.laws import Packed, Products, Softmax
from planish.ir.flow.polynomial import Count
from planish.ir.flow.vocabulary import Operand, Reads, Tag
from planish.ir.isolation.digits import Digit, Map, make
from planish.ir.isolation.masks import Mask, Masks
from planish.ir.isolation.parts import same

FINITE = (
    "what attention computes is finite: a mask keeps requests apart as long as no other request's "
    "number is infinite or NaN"
)


class Segments:
    """What is known of a flow whose batch is packed.

    Args:
        flow: to be followed.
        bounds: inputs that hold where each request begins, and where the last one ends.
        ids: inputs that hold a request's number for each row, with the dimension of the rows.
    """

    def __init__(self, flow: Flow, bounds: tuple[str, ...], ids: Mapping[str, int]) -> None:
        self._finite = False
        self._bound: tuple[float, float] | None = None  # of what a mask meets, and how low it is
        self._masks = Masks(flow, ids)
        self._bounds = {value for value in flow.inputs if value.name in bounds}
        self._active = bool(bounds or ids)
        for node in flow.nodes if bounds else ():
            for output, expression in zip(node.outputs, node.expressions, strict=True):
                if same(expression) in self._bounds:
                    self._bounds.add(output)

    @property
    def assumed(self) -> frozenset[str]:
        """What was relied upon, for people: of several bounds the strictest."""
        found = {FINITE} if self._finite else set()
        if self._bound is not None:
            limit, far = self._bound
            found.add(
                "the numbers that a mask is added to, or put in place of, are less than "
                f"{limit:.3g} from 0: it lowers what it hides by {far:.3g} or more"
            )
        return frozenset(found)

    def kept(self, one: Map, operand: Operand, reads: Reads) -> Map | None:
        """The map of a result that reads rows across requests, but only within each.

        None if nothing says so: the rows that are read have to be all rows in their order, and
        those of the result as well.
        """
        if not self._active or one.offset != 0 or len(one.digits) != 1:
            return None
        (digit,) = one.digits
        size, tag = operand.value.shape[digit.dim], operand.tags[digit.dim]
        if digit != Digit(digit.dim, 1, size):
            return None
        place = self._place(tag, size, reads)
        if place is None or reads.shape[place] != size:
            return None
        return make(0, [Digit(place, 1, size)])

    def _place(self, tag: Tag, size: Count, reads: Reads) -> int | None:
        """The dimension of the result along which the rows lie that read rows of a tag."""
        match reads.law:
            case Packed(place=place, bounds=bounds, across=across) if tag == across:
                return (
                    place if bounds and all(same(one) in self._bounds for one in bounds) else None
                )
            case Softmax(value=value) if tag in reads.mixed:
                return self._by_weights(tag, self._masks.row(value, reads.mixed))
            case Products() if isinstance(tag, str):
                return self._by_zeros(tag, size, reads)
        return None

    def _by_weights(self, tag: Tag, mask: Mask | None) -> int | None:
        """The rows of a softmax of scores that a mask lowers between different requests."""
        if mask is None or tag not in mask.dims:
            return None
        self._finite = True
        free = max(mask.own.free, mask.other.free)
        if mask.other.high > -inf and free:
            bound = (mask.far / 4 / free, mask.far)
            self._bound = min(bound, self._bound or bound)
        return next(dim for dim in mask.dims if dim != tag)

    def _by_zeros(self, tag: str, size: Count, reads: Reads) -> int | None:
        """The rows of a sum of products one of whose operands is 0 between different requests."""
        for operand in reads.operands:
            fact = self._masks.zero(operand.value)
            if fact is not None:
                tags = [operand.tags[dim] for dim in fact.dims]
                places = [one for one in tags if isinstance(one, int)]
                sizes = {operand.value.shape[dim] for dim in fact.dims}
                if tag in tags and places and sizes == {size}:
                    self._finite = True
                    return places[0]
        return None


NO_SEGMENTS = Segments(Flow((), (), (), {}), (), {})
"""Of a batch that is not packed."""
