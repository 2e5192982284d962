"""Rows that are taken out, worked on and put back: sorted by expert, or picked by a mask.

Mixtures of experts sort the tokens of all requests by expert, work on each, and undo the sort;
others pick the rows that a mask names and write the results back. In between, row `k` belongs to
a request that data decide. But if each row was computed from itself alone, then what is put back
at place `g` is what place `g` of the original gives: `f(x[p])[inverse of p] = f(x)`.

So what is put back is read from twins (`planish.ir.isolation.twins`), whose rows stayed where they
were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planish.ir.flow.graph import Flow, Node
from planish.ir.flow.known import Counting
from planish.ir.flow.laws import (
    GroupedProduct,
    Indices,
    Looked,
    Picked,
    Places,
    Quotient,
    Rearranged,
    Sorting,
    Written,
)
from planish.ir.flow.polynomial import quotient
from planish.ir.flow.vocabulary import (
    Expression,
    Operand,
    Reads,
    Reshape,
    Shape,
    Slice,
    Tag,
    Value,
    aligned,
    pointwise,
)
from planish.ir.isolation.facts import Ends, Facts, Inverse
from planish.ir.isolation.twins import Apart, Place, Twins

COUNTS = "no expert is given more than 2^24 rows at once"


def put_back(flow: Flow) -> tuple[Flow, frozenset[str]]:
    """A flow in which what is put back is read from where it was, and what that assumes."""
    reader = _Reader(flow)
    nodes = tuple(one for node in flow.nodes for one in reader.read(node))
    if not reader.used:
        return flow, frozenset()
    return replace(flow, nodes=nodes, known=reader.twins.known), frozenset(reader.assumed)


class _Reader:
    """Walks a flow once.

    Attributes:
        twins: of arranged values.
        used: whether anything was put back.
        assumed: what that rests on.
    """

    def __init__(self, flow: Flow) -> None:
        self.twins = Twins(dict(flow.known))
        self.used = False
        self.assumed: set[str] = set()
        self._facts = Facts(self.twins)

    def read(self, node: Node) -> Iterator[Node]:
        """The node, what is put back by it read from twins; then the twins of its outputs."""
        expressions: list[Expression] = []
        twins: list[tuple[Value, Expression]] = []
        for output, expression in zip(node.outputs, node.expressions, strict=True):
            self._facts.note(output, self._facts.found(expression))
            try:
                back = self._back(output, expression)
            except Apart:
                back = None
            expressions.append(expression if back is None else back)
            if back is None:
                twins += self._twin(output, expression, bool(node.controls))
        yield replace(node, expressions=tuple(expressions))
        if twins:
            values, read = zip(*twins, strict=True)
            yield replace(node, outputs=values, expressions=read, controls=())

    def _twin(
        self, output: Value, expression: Expression, controlled: bool
    ) -> Iterator[tuple[Value, Expression]]:
        """Values to define so that `output` has a twin; none if it has none."""
        law = getattr(expression, "law", None)
        if isinstance(law, Places):
            yield from self.twins.enumerate(output, law)
            return
        try:
            found = self._arranged(expression, controlled)
        except Apart:
            return
        if found is not None:
            twin = self.twins.define(output, *found)
            if isinstance(law, Quotient) and self.twins.counts(law.value):
                self.twins.share(twin, law.divisor)
            yield twin, found[1]

    def _arranged(
        self, expression: Expression, controlled: bool
    ) -> tuple[Place, Expression] | None:
        """Where an expression is arranged, and what its twin reads.

        A number on the host may tell how many rows there are, which is everybody's: a call that
        is given one may do no more than move elements.
        """
        law = getattr(expression, "law", None)
        if isinstance(law, Picked):
            apart = self.twins.place(law.value) is None
            return (Place(law.arrangement, law.dim), law.value) if apart else None
        if isinstance(law, GroupedProduct):
            return self._product_of_groups(law)
        place = self.twins.place(expression)
        if place is None or (controlled and not _moves(expression)):
            return None
        if isinstance(law, Looked) and self.twins.place(law.value) is None:
            return place, self.twins.looked_up(law, place, expression.shape)
        return place, self.twins.swapped(expression)

    def _product_of_groups(self, law: GroupedProduct) -> tuple[Place, Expression]:
        """Row by row: each with the matrix that its own key names.

        The groups are all rows, those of the least key first, if the rows were sorted by their
        keys from the least up, the keys are integers for each of which there is a matrix, and the
        groups end where counting the same keys says.
        """
        ends, place = self._facts.of(law.ends), self.twins.place(law.value)
        if not isinstance(ends, Ends) or place is None or place != Place(ends.arrangement, 0):
            raise Apart
        by = ends.arrangement.by
        fits = law.weight.shape[0] == ends.size and law.ends.shape == (ends.size,)
        if not isinstance(by, Sorting) or not fits:
            raise Apart
        self.assumed.add(COUNTS)
        operands = (
            Operand(self.twins.swapped(law.value), (0, "inner")),
            Operand(law.weight, ("group", "inner", 1)),
            Operand(by.key, (0,)),
        )
        shape = (ends.arrangement.grid[0], law.weight.shape[2])
        return place, Reads(shape, operands, "contract", law=Rearranged())

    def _back(self, output: Value, expression: Expression) -> Expression | None:
        """An expression that puts arranged rows back, as one over their twins; else None."""
        law = getattr(expression, "law", None)
        found: Expression | None = None
        if isinstance(law, Looked):
            found = self._by_inverse(law, expression.shape)
        elif isinstance(law, Written):
            found = self._by_places(law) or self._whole(output, law, expression)
        self.used |= found is not None
        return found

    def _by_inverse(self, law: Looked, shape: Shape) -> Expression | None:
        """`y[inverse of p]`, where `y` is arranged by `p`."""
        (dim, index), *others = _given(law.indices)
        fact, place = self._facts.of(index), self.twins.place(law.value)
        if others or not isinstance(fact, Inverse) or place != Place(fact.arrangement, dim):
            return None
        return pointwise("copy", self.twins.swapped(law.value), shape=shape)

    def _by_places(self, law: Written) -> Expression | None:
        """`x[p] = y` or `x[p] += y`, where `y` is arranged by `p`, or by the mask `p`."""
        source = self.twins.place(law.source)
        if source is None or self.twins.place(law.value) is not None:
            return None
        part = self.twins.swapped(law.source)
        targets = self._targets(law, source)
        if targets is None:
            rows = self._rows(law, source)
            if rows is None:
                return None
            sizes = part.shape
            part = Reshape(part, (*sizes[: source.dim], *rows, *sizes[source.dim + 1 :]))
            targets = (source.dim, "added")
        return self._written(law, part, source, targets)

    def _targets(self, law: Written, source: Place) -> tuple[Tag, ...] | None:
        """For each dimension of the grid, the dimension of the result that it lies along."""
        grid = source.arrangement.grid
        given = _given(law.indices)
        first, index = given[0]
        if law.masked:
            same = len(given) == 1 and index is source.arrangement.mask
            return tuple(range(first, first + len(grid))) if same else None
        found: list[Tag] = [f"added {number}" for number in range(len(grid))]
        for dim, one in given:
            number = self._coordinate(one, source)
            if number is None or isinstance(found[number], int):
                return None
            if law.value.shape[dim] != grid[number]:
                return None
            found[number] = dim
        # Of several writes to one place the last one wins, and which that is data decide.
        return tuple(found) if law.add or all(isinstance(tag, int) for tag in found) else None

    def _coordinate(self, index: Expression, source: Place) -> int | None:
        """Which coordinate of the places of an arrangement an index is."""
        place = self.twins.place(index)
        known = self.twins.known_of(index)
        if place != Place(source.arrangement, 0) or not isinstance(known, Counting):
            return None
        moving = [number for number, step in enumerate(known.steps) if step != 0]
        if known.base != 0 or [known.steps[number] for number in moving] != [1]:
            return None
        return moving[0] if len(known.steps) == len(source.arrangement.grid) else None

    def _rows(self, law: Written, source: Place) -> Shape | None:
        """How many rows are added to, and how many to each: those of rows 0, 0, 1, 1, ..."""
        (dim, index), *others = _given(law.indices)
        each = self.twins.shared(index)
        if (
            each is None
            or others
            or law.masked
            or not law.add
            or source.arrangement.mask is not None
        ):
            return None
        rows = quotient(source.arrangement.grid[0], each)
        fits = self.twins.place(index) == Place(source.arrangement, 0) and dim == source.dim
        return (rows, each) if rows is not None and rows == law.value.shape[dim] and fits else None

    def _written(
        self, law: Written, part: Expression, source: Place, targets: tuple[Tag, ...]
    ) -> Expression | None:
        """The base, at each place overwritten or added to by the twin of what is written."""
        shape, first = law.value.shape, source.dim
        named = sorted(tag for tag in targets if isinstance(tag, int))
        if named != list(range(first, first + len(named))):
            return None
        rest = [dim for dim in range(len(shape)) if dim not in named]
        tags = (*rest[:first], *targets, *rest[first:])
        if len(tags) != len(part.shape) or any(
            isinstance(tag, int) and size not in (1, shape[tag])
            for tag, size in zip(tags, part.shape, strict=True)
        ):
            return None
        operands = [Operand(part, tags)]
        mask = source.arrangement.mask
        if mask is not None:
            operands.append(Operand(mask, targets))
        if law.add or mask is not None:
            operands.insert(0, aligned(law.value, len(shape)))
        return Reads(shape, tuple(operands), "scatter")

    def _whole(self, output: Value, law: Written, expression: Expression) -> Expression | None:
        """`x[p] = y` where `p` has every place of `x`, none of which keeps what it was."""
        (dim, index), *others = _given(law.indices)
        if law.add or law.masked or others or not isinstance(expression, Reads):
            return None
        place = self.twins.place(index)
        every = place is None or place.arrangement.mask is None
        if not every or not self.twins.counts(index):
            return None
        if self.twins.swapped(index).shape != (law.value.shape[dim],):
            return None
        if place is not None and len(law.value.shape) == 1 and self.twins.counts(law.source):
            self._facts.note(output, Inverse(place.arrangement))
        return replace(expression, operands=expression.operands[1:])


def _given(indices: Indices) -> list[tuple[int, Expression]]:
    """The indices that are there, by dimension; at least one is."""
    return [(dim, one) for dim, one in enumerate(indices) if one is not None]


def _moves(expression: Expression) -> bool:
    """Whether an expression moves elements by sizes and computes nothing from them."""
    return isinstance(expression, Reshape | Slice) or (
        isinstance(expression, Reads) and expression.kind == "copy"
    )
