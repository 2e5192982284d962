"""Integers that name places along an axis, followed to what they pick.

`topk`, `argmax`, a sort and `arange` give integers that are places along a dimension. When the
indices of that dimension move, these integers move with them, and nothing else changes as long as
a program asks only what does not depend on their order: which are equal, and what lies at the
place that they name. Whatever else is done with them pins the dimension.

A sort by such integers puts rows into another order when the names move
(`planish.ir.axes.rows`). The product of groups of sorted rows, each with the matrix that its name
picks, is known by how its groups are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from planish.ir.axes.rows import SortedRows
from planish.ir.axes.sites import Site
from planish.ir.axes.terms import (
    UNIT,
    CannotUnify,
    Product,
    Term,
    leaf,
    resolved,
    size_of,
    split_product,
    unify,
)
from planish.ir.flow.laws import (
    Arrangement,
    Cast,
    Chosen,
    GroupedProduct,
    Histogram,
    Picked,
    Places,
    Quotient,
    RunningSum,
    Sorting,
)
from planish.ir.flow.polynomial import quotient
from planish.ir.flow.vocabulary import Concat, Diagonal, Expression, Operand, Reads, Reshape, Slice

Terms = tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Name:
    """Each number is a place along `along`; from the least up along `rows`, if that is given."""

    along: Term
    rows: Term | None = None


@dataclass(frozen=True, eq=False)
class Tally:
    """How many numbers are each name along `along`; of `rows`, if those are sorted by them."""

    along: Term
    rows: Term | None


@dataclass(frozen=True, eq=False)
class Ends:
    """Where in the sorted `rows` those of each name along `along` end."""

    along: Term
    rows: Term


class Blank:
    """Memory that is still to be written."""


Meaning = Name | Tally | Ends | Blank


class Names:
    """What the numbers of a flow's values mean.

    Attributes:
        rows: what sorts arrange.

    Args:
        terms: of each expression, as soon as they are known.
        done: notes that something of this kind is done along a term, at the node that is read.
        site: the site of this kind at that node.
    """

    def __init__(
        self,
        terms: Mapping[Expression, Terms],
        done: Callable[[Term, str], None],
        site: Callable[[str], Site],
    ) -> None:
        self._terms = terms
        self._done = done
        self._site = site
        self._meanings: dict[Expression, Meaning] = {}
        self.rows = SortedRows()

    def of(self, expression: Expression) -> Meaning | None:
        """What the numbers of an expression mean, if more than themselves."""
        return self._meanings.get(expression)

    def mean(self, expression: Expression, meaning: Meaning | None) -> None:
        """Note what the numbers of an expression mean."""
        if meaning is not None:
            self._meanings[expression] = meaning

    def use(self, expression: Expression, site: str = "counted") -> None:
        """The numbers themselves matter: what they name keeps its order."""
        meaning = self.of(expression)
        if isinstance(meaning, Name | Ends):
            self._done(meaning.along, site)

    def made(self, reads: Reads) -> Terms | None:
        """The terms of a result that lies along other things than it reads; None for all others."""
        match reads.law:
            case Places(arrangement=Arrangement(by=Sorting() as by), dim=None):
                return self._sort(by)
            case Picked(arrangement=Arrangement(by=Sorting() as by)):
                return self._sort(by)
            case Histogram() as law:
                return self._bins(law)
            case RunningSum(value=value) if self._tallied(value) is not None:
                return tuple(leaf(size) for size in reads.shape)
        return None

    def _bins(self, law: Histogram) -> Terms | None:
        """The places that are named, if each has one bin."""
        name = self.of(law.value)
        if not isinstance(name, Name) or law.bins < 2 or size_of(name.along) != law.bins:
            return None
        if (law.low, law.high) != (0, law.bins - 1):
            return None
        for term in self._terms[law.value]:
            self._done(term, "statistic")
        return (name.along,)

    def _tallied(self, value: Expression) -> Ends | None:
        """What the running sums of these numbers are, if that is where sorted rows end."""
        tally = self.of(value)
        if not isinstance(tally, Tally) or tally.rows is None:
            return None
        return Ends(tally.along, tally.rows)

    def _sort(self, by: Sorting) -> Terms:
        """The rows that a sort arranges: the same for its values and its places."""
        (key,) = self._terms[by.key]
        self._done(key, "ranked")
        name = self.of(by.key)
        along = name.along if isinstance(name, Name) else UNIT
        return (self.rows.of(by, size_of(key), along, self._site("sorted")),)

    def picks(self, reads: Reads) -> frozenset[str]:
        """The tags of dimensions that are read whole, of which names pick one place each."""
        if isinstance(reads.law, GroupedProduct):
            return self._groups(reads.law)
        tags = {tag for operand in reads.operands for tag in operand.tags if isinstance(tag, str)}
        indices = [operand for operand in reads.operands if operand.into is not None]
        if reads.kind == "scatter" and not indices and tags:
            for term in self._terms[reads.operands[0].value]:
                self._done(term, "written by index")
        named = [self._points(reads, operand) for operand in indices]
        return frozenset(tags) if named and all(named) else frozenset()

    def _points(self, reads: Reads, index: Operand) -> bool:
        """Whether an index names places of what it looks up or writes; they are one axis then."""
        if index.into is None:
            return False
        term = self._terms[reads.operands[0].value][index.into]
        name = self.of(index.value)
        if isinstance(name, Name) and size_of(name.along) == size_of(term):
            unify(name.along, term)
            return True
        self.use(index.value)
        self._done(term, "looked up" if reads.kind == "gather" else "written by index")
        return False

    def _groups(self, law: GroupedProduct) -> frozenset[str]:
        ends = self.of(law.ends)
        if isinstance(ends, Ends):
            rows, group = self._terms[law.value][0], self._terms[law.weight][0]
            if resolved(rows) is resolved(ends.rows) and size_of(group) == size_of(ends.along):
                unify(group, ends.along)
                return frozenset({"group", "ends"})
        self.use(law.ends)
        return frozenset()

    def read(self, expression: Expression) -> None:
        """Follow names through an expression whose terms are known."""
        match expression:
            case Reshape(value=value) | Slice(value=value) | Diagonal(value=value):
                meaning = self.of(value)
                if isinstance(meaning, Ends):
                    self.use(value)
                elif isinstance(meaning, Name):
                    self.mean(expression, Name(meaning.along))
                elif isinstance(meaning, Blank):
                    self.mean(expression, meaning)
            case Concat(operands=operands):
                self.mean(expression, self._together(operands))
            case Reads():
                self.mean(expression, self._read(expression))

    def _together(self, several: Sequence[Expression]) -> Name | None:
        """Names along one axis, of which any may come out; else they are used."""
        found = [self.of(one) for one in several]
        names = [one for one in found if isinstance(one, Name)]
        sizes = {size_of(name.along) for name in names}
        if names and len(names) == len(found) and len(sizes) == 1:
            for name in names[1:]:
                unify(names[0].along, name.along)
            return Name(names[0].along)
        for one in several:
            self.use(one)
        return None

    def _read(self, reads: Reads) -> Meaning | None:
        values = [operand.value for operand in reads.operands]
        found = self._by_law(reads)
        if found is not None:
            return found
        if reads.kind == "copy" and len(values) == 1 and not reads.mixed and reads.law is None:
            inner = self.of(values[0])
            moved = reads.operands[0].tags != tuple(range(len(reads.shape)))
            return Name(inner.along) if moved and isinstance(inner, Name) else inner
        if reads.kind in ("gather", "scatter"):
            return self._moved(reads)
        if reads.kind == "one hot":
            self._one_hot(reads)
        elif reads.kind == "equal" and len(values) == 2:
            self._together(values)  # whether two names are equal stays so wherever both move
        elif not isinstance(reads.law, GroupedProduct):  # which has picked its groups
            for value in values:
                self.use(value)
        return None

    def _by_law(self, reads: Reads) -> Meaning | None:
        found: Meaning | None = None
        match reads.law:
            case Chosen(value=value, dim=dim):
                terms = self._terms[value]
                self.use(value)
                found = Name(Product(terms) if dim is None else terms[dim])
            case Places(arrangement=Arrangement(by=Sorting(key=key)), dim=None):
                found = Name(self._terms[key][0])
            case Picked(arrangement=Arrangement(by=Sorting() as by), value=value):
                name = self.of(value)
                if isinstance(name, Name):
                    found = Name(name.along, self.rows.terms[by] if by.ascending else None)
            case Cast(value=value, exact=exact):
                found = self._cast(value, exact)
            case Histogram(value=value):
                found = self._counted(reads, value)
            case RunningSum(value=value):
                found = self._tallied(value)
            case Quotient(value=value, divisor=divisor):
                found = self._outer(value, divisor)
        return found

    def _cast(self, value: Expression, exact: int) -> Meaning | None:
        """The same names in a type that holds them all. How many there are stays below 2^24."""
        meaning = self.of(value)
        if isinstance(meaning, Name):
            size = size_of(meaning.along)
            return meaning if isinstance(size, int) and size <= exact else None
        return meaning if isinstance(meaning, Tally | Ends) and exact >= 2**24 else None

    def _counted(self, reads: Reads, value: Expression) -> Tally | None:
        """A histogram with one bin for each place that is named."""
        name = self.of(value)
        if not isinstance(name, Name) or self._terms.get(reads) != (name.along,):
            return None
        return Tally(name.along, name.rows)

    def _outer(self, value: Expression, divisor: int) -> Name | None:
        """Names of rows of several places each, divided by how many: the rows' names."""
        name = self.of(value)
        if not isinstance(name, Name):
            return None
        rows = quotient(size_of(name.along), divisor)
        try:
            return None if rows is None else Name(split_product(name.along, rows)[0])
        except CannotUnify:
            return None

    def _one_hot(self, reads: Reads) -> None:
        """One place for each that is named."""
        number, *others = reads.operands
        (dim,) = set(range(len(reads.shape))) - set(number.tags)
        term, name = self._terms[reads][dim], self.of(number.value)
        if isinstance(name, Name) and size_of(name.along) == size_of(term):
            unify(name.along, term)
        else:
            self._done(term, "counted")
            self.use(number.value)
        for other in others:
            self.use(other.value)

    def _moved(self, reads: Reads) -> Meaning | None:
        """What is looked up keeps its meaning; what is written, if all that is there has it."""
        values = [operand.value for operand in reads.operands if operand.into is None]
        if reads.kind == "scatter":
            values = [one for one in values if not isinstance(self.of(one), Blank)] or values
        return self._together(values)
