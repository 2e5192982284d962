"""The forward analysis: from what each node reads to what each value depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, TypeVar

from planish.ir.flow.graph import Flow, Node
from planish.ir.flow.laws import Rearranged
from planish.ir.flow.polynomial import Count
from planish.ir.flow.vocabulary import (
    Concat,
    Diagonal,
    Expression,
    Fill,
    Opaque,
    Operand,
    Reads,
    Reshape,
    Shape,
    Slice,
    Value,
)
from planish.ir.isolation import control, digits
from planish.ir.isolation.dependence import ADVISORY, MANY, NOTHING, Cause, Dependence, Kind
from planish.ir.isolation.digits import Map
from planish.ir.isolation.pages import NO_PAGES, Pages
from planish.ir.isolation.segments import NO_SEGMENTS, Segments

T = TypeVar("T")

READING = {
    "softmax": "a softmax over",
    "norm": "a normalization over",
    "rms norm": "a normalization over",
    "sum": "a sum over",
    "mean": "a mean over",
    "extreme": "a maximum or minimum over",
    "statistic": "a statistic over",
    "contract": "a contraction over",
    "scan": "a running sum over",
    "order": "a sorting or selection over",
    "window": "neighbours along",
    "gather": "a lookup anywhere along",
    "scatter": "writes anywhere along",
    "transform": "a transform along",
}


ROUNDING = (
    "which rows are multiplied together depends on what other requests hold, so a kernel may add "
    "in another order, which moves the last bits"
)


class Interpreter:
    """Gives every value of a flow its `Dependence`.

    Attributes:
        dependences: by value, filled by `run`.
    """

    def __init__(
        self,
        given: Mapping[Value, Dependence],
        segments: Segments = NO_SEGMENTS,
        pages: Pages = NO_PAGES,
    ) -> None:
        self.dependences: dict[Value, Dependence] = dict(given)
        self._pages = pages
        self._segments = segments
        self._node = Node("", "", (), ())
        self._inside = ""
        self._nested: dict[Flow, Any] = {}  # what was found once, of the node at work

    def run(self, flow: Flow) -> None:
        """Analyse every node, in order."""
        self.dependences.update((value, NOTHING) for value in flow.stored)
        for node in flow.nodes:
            self._node = node
            self._nested.clear()
            host = self._joined(self.of(value) for value in node.controls)
            for output, expression in zip(node.outputs, node.expressions, strict=True):
                found = self.of(expression)
                if not host.on_nothing:
                    found = found | self.decided(host, "how all are computed")
                self.dependences[output] = found

    def of(self, expression: Expression) -> Dependence:
        """What an expression depends on."""
        match expression:
            case Value():
                found = self._value(expression)
            case Reads():
                found = self._limited(self._reads(expression))
            case Reshape(value=value, shape=shape):
                found = self.reshape(self.of(value), value.shape, shape)
            case Slice():
                found = self.slice(expression)
            case Concat():
                found = self._limited(self._concat(expression))
            case Diagonal():
                found = self._diagonal(expression)
            case Fill(content=content):
                found = self._fill(content)
            case Opaque():
                found = self._opaque(expression)
            case _:
                this: Any = self  # type checkers may see this file under two names
                found = control.of(expression, this)
        return found

    def _value(self, value: Value) -> Dependence:
        found = self.dependences.get(value)
        if found is None:  # nothing defined it: an ill-formed graph is never taken for safe
            why = f"{value.name} is read before anything defines it"
            found = Dependence(frozenset(), frozenset({self.cause("unknown", why)}))
        return found

    def _joined(self, several: Iterable[Dependence]) -> Dependence:
        return reduce(lambda left, right: left | right, several, NOTHING)

    def cause(self, kind: Kind, why: str) -> Cause:
        """A mixing at the node at work."""
        node = self._node
        return Cause(kind, self.place, node.operator, why, node.where)

    def decided(self, predicate: Dependence, what: str) -> Dependence:
        """What follows from a number or a truth value that decides for all requests."""
        causes = {
            replace(one, kind="control") if one.kind == "value" else one for one in predicate.causes
        }
        if predicate.maps:
            causes.add(self.cause("control", f"one request decides {what}"))
        return Dependence(frozenset(), frozenset(causes))

    def once(self, flow: Flow, find: Callable[[], T]) -> T:
        """What is found of a nested graph, looked for once a node: its outputs share it."""
        if flow not in self._nested:
            self._nested[flow] = find()
        found: T = self._nested[flow]
        return found

    def body(self, flow: Flow, given: Sequence[Dependence]) -> tuple[Dependence, ...]:
        """What the outputs of a nested graph depend on."""
        outer, inside, nested = self._node, self._inside, self._nested
        self._inside, self._nested = f"{inside}{outer.name}/", {}
        self.dependences.update(zip(flow.inputs, given, strict=True))
        self.run(flow)
        self._node, self._inside, self._nested = outer, inside, nested
        return tuple(self.of(one) for one in flow.outputs.values())

    @property
    def place(self) -> str:
        """The node at work, with the nodes whose graphs it is nested in."""
        return self._inside + self._node.name

    def _limited(self, found: Dependence) -> Dependence:
        if len(found.maps) <= MANY:
            return found
        cause = self.cause("value", f"each element reads more than {MANY} requests")
        return Dependence(frozenset(), found.causes | {cause})

    def _reads(self, reads: Reads) -> Dependence:
        result = NOTHING
        for operand in reads.operands:
            found = self.of(operand.value)
            if found.on_nothing or self._pages.own(operand, reads):
                continue
            maps: set[Map] = set()
            causes = set(found.causes)
            for one in found.maps:
                kept, why = self._segments.kept(one, operand, reads), None
                if kept is None:
                    kept, why = self._along(one, operand, reads)
                if why is not None:
                    causes.add(self.cause("value", why))
                if kept is not None:
                    maps.add(kept)
            result = result | Dependence(frozenset(maps), frozenset(causes))
        return self._rounded(result) if isinstance(reads.law, Rearranged) else result

    def _rounded(self, found: Dependence) -> Dependence:
        """What a product depends on whose rows others may move; the first on the way is told."""
        if found.on_nothing or any(one.kind == ADVISORY for one in found.causes):
            return found
        return replace(found, causes=found.causes | {self.cause(ADVISORY, ROUNDING)})

    def _along(self, one: Map, operand: Operand, reads: Reads) -> tuple[Map | None, str | None]:
        """A map of an operand as one of the result, and why requests meet if they do.

        Where they meet, the map goes on as if each request had read only its own.
        """
        places: dict[int, int] = {}
        why: str | None = None
        lost = False
        for digit in one.digits:
            tag = operand.tags[digit.dim]
            size = operand.value.shape[digit.dim]
            if isinstance(tag, str):
                why = f"{READING.get(reads.kind, 'reads whole')} {_dimension(digit.dim, size)}"
                lost = True
                continue
            places[digit.dim] = tag
            if tag in reads.mixed:
                why = f"{READING.get(reads.kind, 'reads whole')} {_dimension(digit.dim, size)}"
            elif size != reads.shape[tag]:
                why = f"sizes {size} and {reads.shape[tag]} may differ"
                lost = True
        if lost:
            return None, why
        return digits.moved(one, places), why

    def reshape(self, found: Dependence, before: Shape, shape: Shape) -> Dependence:
        """What `found`, of a value of shape `before`, becomes under another shape."""
        old, new = (", ".join(map(str, sizes)) for sizes in (before, shape))
        return self._mapped(
            found,
            lambda one: digits.reshaped(one, before, shape),
            f"a reshape from [{old}] to [{new}] cuts across the requests",
        )

    def _mapped(self, found: Dependence, move: Callable[[Map], Map | None], why: str) -> Dependence:
        """`found` with its maps moved; where one cannot be, requests meet, for this reason."""
        if not found.maps:
            return found
        moved = [move(one) for one in found.maps]
        causes = {self.cause("value", why)} if None in moved else frozenset[Cause]()
        return Dependence(frozenset(one for one in moved if one is not None), found.causes | causes)

    def _diagonal(self, expression: Diagonal) -> Dependence:
        found = self.of(expression.value)
        rank = len(expression.value.shape)
        pair = expression.first, expression.second
        maps = frozenset(digits.diagonal(one, *pair, rank) for one in found.maps)
        return Dependence(maps, found.causes)

    def slice(self, part: Slice) -> Dependence:
        """What a slice depends on."""
        dim, old = part.dim, part.value.shape[part.dim]
        return self._mapped(
            self.of(part.value),
            lambda one: (
                digits.sliced(one, dim, old, part.start, part.step, part.size)
                if one.at(dim)
                else one
            ),
            f"a slice of {_dimension(dim, old)} takes parts of different requests",
        )

    def _concat(self, concat: Concat) -> Dependence:
        dim = concat.dim
        total = concat.shape[dim]
        found: list[Dependence] = []
        starts: list[Count] = []
        start: Count = 0
        for operand in concat.operands:
            found.append(self.of(operand))
            starts.append(start)
            start = start + operand.shape[dim]
        causes = frozenset().union(*(one.causes for one in found))
        sizes = [operand.shape[dim] for operand in concat.operands]
        crossing = [[one for one in each.maps if one.at(dim)] for each in found]
        steady = frozenset(one for each in found for one in each.maps if not one.at(dim))
        if not any(crossing):
            return self._stacked(found, sizes, starts, dim, total, causes)
        single = [
            (next(iter(each.maps)), size, begin)
            for each, size, begin in zip(found, sizes, starts, strict=True)
            if len(each.maps) == 1
        ]
        if len(single) == sum(bool(each.maps) for each in found):
            parts = [(one, size) for one, size, _ in single]
            whole = digits.joined(parts, [begin for _, _, begin in single], dim, total)
            if whole is not None:
                return Dependence(frozenset({whole}), causes)
        # A part begins where whole periods of the digits end, for every part is so many of them.
        repeating = all(
            digits.periodic(one, dim, size) for each in crossing for one in each for size in sizes
        )
        kept = frozenset(one for each in crossing for one in each)
        if repeating:
            return Dependence(steady | kept, causes)
        why = f"parts are joined along {_dimension(dim, total)}, along which requests lie"
        return Dependence(steady, causes | {self.cause("value", why)})

    def _stacked(
        self,
        found: list[Dependence],
        sizes: list[Count],
        starts: list[Count],
        dim: int,
        total: Count,
        causes: frozenset[Cause],
    ) -> Dependence:
        """Parts none of which has requests along `dim`: perhaps one request each."""
        maps = frozenset(one for each in found for one in each.maps)
        several = len(maps) > 1 and all(len(each.maps) == 1 for each in found)
        if several and all(size == 1 for size in sizes):
            parts = [(next(iter(each.maps)), size) for each, size in zip(found, sizes, strict=True)]
            whole = digits.joined(parts, starts, dim, total)
            if whole is not None:
                return Dependence(frozenset({whole}), causes)
        return Dependence(maps, causes)

    def _fill(self, content: str) -> Dependence:
        if content != "uninitialized":
            return NOTHING
        why = "memory is read as earlier requests left it"
        return Dependence(frozenset(), frozenset({self.cause("state", why)}))

    def _opaque(self, opaque: Opaque) -> Dependence:
        found = self._joined(self.of(operand) for operand in opaque.operands)
        if found.on_nothing:
            return NOTHING
        kind: Kind = opaque.kind  # type: ignore[assignment]
        if found.maps:
            return Dependence(frozenset(), found.causes | {self.cause(kind, opaque.why)})
        return Dependence(frozenset(), found.causes)


def _dimension(dim: int, size: Count) -> str:
    return f"dimension {dim} (of size {size})"
