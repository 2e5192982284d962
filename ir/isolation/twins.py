"""Values whose rows lie in an order that data decide, and their twins, whose rows stayed.

A twin is the same computation on rows that were never rearranged. A value has one only while
every operator on the way treats all rows alike, each by itself; whatever else touches it reads the
arranged value, of which nothing good is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from planish.ir.flow.known import Counting, Known, of
from planish.ir.flow.laws import Arrangement, ByPlace, GroupedProduct, Looked, Places, Rearranged
from planish.ir.flow.lookup import indexed
from planish.ir.flow.polynomial import Count, data_decides, product, quotient
from planish.ir.flow.vocabulary import (
    Concat,
    Expression,
    Fill,
    Operand,
    Reads,
    Reshape,
    Shape,
    Slice,
    Tag,
    Value,
)
from planish.ir.isolation.parts import is_whole, same

BY_ROW = frozenset(
    [
        *("copy", "linear", "add", "shift", "hadamard", "homogeneous", "square", "nonlinear"),
        *("equal", "one hot"),
        *("contract", "sum", "mean", "extreme", "statistic", "softmax", "norm", "rms norm"),
        "gather",
    ]
)
"""Kinds of `Reads` that treat all places of a dimension that they do not mix alike."""

BY_PLACE = (ByPlace, GroupedProduct)
"""Laws by which what becomes of a row depends on where it lies."""

OF_ALL = ("contract", "gather")
"""Those that read all of an operand and do with it the same for every row."""


class Apart(Exception):
    """An expression does not treat arranged rows alike, each by itself."""


@dataclass(frozen=True)
class Place:
    """Where in a value the places of an arrangement lie: along `dim`."""

    arrangement: Arrangement
    dim: int


class Twins:
    """The arranged values of a flow.

    Attributes:
        known: what is known of values and twins.
    """

    def __init__(self, known: dict[Value, Known]) -> None:
        self.known = known
        self._places: dict[Value, Place] = {}
        self._twins: dict[Value, Expression] = {}
        self._shares: dict[Expression, int] = {}

    def define(self, output: Value, place: Place, read: Expression) -> Value:
        """A twin for a value, that reads this."""
        twin = Value(output.name, read.shape, output.dtype)
        self._places[output], self._twins[output] = place, twin
        known = of(read, self.known)
        if known is not None:
            self.known[twin] = known
        share = self._shares.get(same(read))
        if share is not None:
            self._shares[twin] = share
        return twin

    def share(self, twin: Value, divisor: int) -> None:
        """Note that a twin is 0, 0, 1, 1, ...: each number as often as the divisor says."""
        self._shares[twin] = divisor

    def shared(self, expression: Expression) -> int | None:
        """How often each number comes in a twin that is 0, 0, 1, 1, ..."""
        return self._shares.get(self.swapped(expression))

    def counts(self, expression: Expression) -> bool:
        """Whether a value, or its twin if it has one, is 0, 1, 2, ..."""
        return self.known_of(expression) == Counting(0, (1,))

    def known_of(self, expression: Expression) -> Known | None:
        """What is known of a value, or of its twin if it has one."""
        return of(self.swapped(expression), self.known)

    def enumerate(self, output: Value, law: Places) -> Iterator[tuple[Value, Expression]]:
        """Twins of the places themselves: at each place of the grid its own coordinates."""
        grid = law.arrangement.grid
        columns: list[Expression] = []
        shape = grid if law.dim is None else (*grid, 1) if law.dim else (1, *grid)
        for number in range(len(grid)) if law.dim is not None else (law.column,):
            column = Value(f"{output.name}.{number}", shape, output.dtype)
            steps = [0] * len(shape)
            steps[number + (len(shape) > len(grid) and law.dim == 0)] = 1
            self.known[column] = Counting(0, tuple(steps))
            columns.append(column)
            yield column, Fill(shape)
        first = 0 if law.dim is None else 1 - law.dim
        self._places[output] = Place(law.arrangement, first)
        whole = len(grid) if law.dim else 0
        self._twins[output] = columns[0] if len(columns) == 1 else Concat(tuple(columns), whole)

    def place(self, expression: Expression) -> Place | None:
        """Where an expression is arranged, if at all.

        Raises:
            Apart: if it reads arranged rows otherwise than each by itself.
        """
        place: Place | None = None
        match expression:
            case Value():
                place = self._places.get(expression)
            case Fill():
                pass
            case Reads():
                place = self._place_of_reads(expression)
            case Reshape(value=value, shape=shape):
                place = self.place(value)
                if place is not None:
                    place = replace(place, dim=_kept(value.shape, shape, place.dim))
            case Slice(value=value):
                place = self._place_of_parts((value,), None if is_whole(expression) else expression)
            case Concat(operands=operands):
                place = self._place_of_parts(operands, expression)
            case _:
                if any(leaf in self._places for leaf in _leaves(expression)):
                    raise Apart
        return place

    def _place_of_parts(
        self, values: tuple[Expression, ...], cut: Slice | Concat | None
    ) -> Place | None:
        """The one place of several values, which lies in another dimension than the cut."""
        places = {self.place(value) for value in values}
        place = next(iter(places))
        if len(places) > 1 or (place is not None and cut is not None and place.dim == cut.dim):
            raise Apart
        return place

    def _place_of_reads(self, reads: Reads) -> Place | None:
        found: set[Place] = set()
        for operand in reads.operands:
            place = self.place(operand.value)
            if place is not None:
                tag = operand.tags[place.dim]
                size = operand.value.shape[place.dim]
                if isinstance(tag, str) or tag in reads.mixed or size != reads.shape[tag]:
                    raise Apart
                found.add(Place(place.arrangement, tag))
        if not found:
            return None
        if len(found) > 1 or reads.kind not in BY_ROW or isinstance(reads.law, BY_PLACE):
            raise Apart
        (place,) = found
        for operand in reads.operands:
            # What is the same for all rows may join them; what differs from one place of the
            # arrangement to the next, such as a position, is in no order of theirs.
            inner = self.place(operand.value)
            for dim, tag in enumerate(operand.tags):
                own = inner is not None and inner.dim == dim
                # What is read whole may be read at the place of each row, save by a product.
                whole = isinstance(tag, str) and inner is None and reads.kind not in OF_ALL
                if (tag == place.dim or whole) and not own and operand.value.shape[dim] != 1:
                    raise Apart
        return place

    def swapped(self, expression: Expression) -> Expression:
        """An expression over twins: the grid lies where its places were.

        Raises:
            Apart: if it depends on how many places there are.
        """
        place = self.place(expression)
        if isinstance(expression, Value):
            return self._twins.get(expression, expression)
        if place is None:
            return expression
        found = expression
        match expression:
            case Reads():
                found = self._swapped_reads(expression, place)
            case Reshape(value=value, shape=shape):
                found = Reshape(self.swapped(value), _spread(shape, place))
            case Slice(value=value) if is_whole(expression):
                found = self.swapped(value)
            case Slice(value=value, dim=dim):
                _settled(expression.start, expression.size)
                moved = _moved(dim, place)
                found = _cut(replace(expression, value=self.swapped(value), dim=moved))
            case Concat(operands=operands, dim=dim):
                parts = tuple(self.swapped(one) for one in operands)
                found = Concat(parts, _moved(dim, place))
        return found

    def _swapped_reads(self, reads: Reads, place: Place) -> Reads:
        grid = range(place.dim, place.dim + len(place.arrangement.grid))
        operands = []
        for operand in reads.operands:
            inner = self.place(operand.value)
            tags: list[Tag] = [
                _moved(tag, place) if isinstance(tag, int) else tag for tag in operand.tags
            ]
            if inner is not None:
                tags[inner.dim : inner.dim + 1] = grid
            operands.append(Operand(self.swapped(operand.value), tuple(tags)))
        mixed = frozenset(_moved(dim, place) for dim in reads.mixed)
        law = Rearranged() if reads.kind == "contract" else None
        return Reads(_spread(reads.shape, place), tuple(operands), reads.kind, mixed, law)

    def looked_up(self, law: Looked, place: Place, shape: Shape) -> Expression:
        """The twin of a lookup by places, which are known where nothing is arranged."""
        wide = _spread(shape, place)
        indices = tuple(None if one is None else self.swapped(one) for one in law.indices)
        given = [(dim, one) for dim, one in enumerate(indices) if one is not None]
        (dim, index), *others = given
        each = self._shares.get(index)
        if each is None or others or len(index.shape) != 1:
            return indexed(law.value, indices, lambda one: of(one, self.known), wide)
        rows = quotient(index.shape[0], each)
        if rows is None or rows != law.value.shape[dim]:
            raise Apart
        # Rows 0, 0, 1, 1, ...: each as often as the divisor says.
        tags = tuple(place if place <= dim else place + 1 for place in range(len(wide)))
        split = (*wide[:dim], rows, each, *wide[dim + 1 :])
        return Reshape(Reads(split, (Operand(law.value, tags),), "copy"), wide)


def _moved(dim: int, place: Place) -> int:
    """Where a dimension lies when the grid has taken its place."""
    return dim if dim <= place.dim else dim + len(place.arrangement.grid) - 1


def _cut(part: Slice) -> Expression:
    """A slice; one of several columns is that column."""
    if (
        isinstance(part.value, Concat)
        and part.value.dim == part.dim
        and isinstance(part.start, int)
        and part.size == 1
        and all(one.shape[part.dim] == 1 for one in part.value.operands)
        and 0 <= part.start < len(part.value.operands)
    ):
        return part.value.operands[part.start]
    return part


def _spread(shape: Shape, place: Place) -> Shape:
    """A shape with the grid in place of the arranged dimension."""
    rest = (*shape[: place.dim], *shape[place.dim + 1 :])
    _settled(*rest)
    return (*shape[: place.dim], *place.arrangement.grid, *shape[place.dim + 1 :])


def _settled(*sizes: Count | None) -> None:
    """Refuse sizes that data decide: how many places there are is everybody's."""
    if any(size is None or data_decides(size) for size in sizes):
        raise Apart


def _kept(old: Shape, new: Shape, dim: int) -> int:
    """The dimension of a new shape that is dimension `dim` of the old one."""
    before = product(old[:dim])
    for place, size in enumerate(new):
        if size == old[dim] and product(new[:place]) == before:
            return place
    raise Apart


def _leaves(expression: Expression) -> Iterator[Value]:
    """The values that an expression is made of, whatever its kind."""
    pending: list[object] = [expression]
    while pending:
        one = pending.pop()
        if isinstance(one, Value):
            yield one
        elif isinstance(one, Expression | Operand):
            pending += vars(one).values()
        elif isinstance(one, tuple):
            pending += one
