"""What some operators compute exactly, beyond what they read.

A sort, a lookup and a scatter each read everything; together they may give every row back what it
computed from itself. To see that, the analysis of isolation has to know which operator did what.
A rule attaches a law to the expression it answers with (`Reads.law`, `Opaque.law`); an analysis
that knows nothing of laws loses precision, never soundness.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.ir.flow.polynomial import Count
from planish.ir.flow.vocabulary import Expression, Shape

Indices = tuple[Expression | None, ...]
"""For each of the first dimensions of a value, the index along it; None for one taken whole."""


@dataclass(frozen=True, eq=False)
class Sorting:
    """One sort of `key` [N], which it orders from the least up if it is `ascending`."""

    key: Expression
    ascending: bool


@dataclass(frozen=True)
class Arrangement:
    """Places of a grid, each at most once, in an order that data decide.

    Attributes:
        grid: its sizes.
        by: a sort, whose arrangement has every place; or a mask of the grid's shape, where it
            has those at which the mask is not zero, in row-major order.
    """

    grid: Shape
    by: Sorting | Expression

    @property
    def mask(self) -> Expression | None:
        """What picks places; None if all are there."""
        return self.by if isinstance(self.by, Expression) else None


class Law:
    """What an operator computes."""


@dataclass(frozen=True, eq=False)
class Places(Law):
    """Element `k` is place `k` of an arrangement.

    Attributes:
        arrangement: of a grid.
        dim: that of the coordinates; None if there is one coordinate, without a dimension.
        column: the one coordinate that it is, if it has no dimension.
    """

    arrangement: Arrangement
    dim: int | None = None
    column: int = 0


@dataclass(frozen=True, eq=False)
class Picked(Law):
    """The elements of `value` at the places of an arrangement, whose grid begins at `dim`."""

    arrangement: Arrangement
    value: Expression
    dim: int = 0


@dataclass(frozen=True, eq=False)
class Looked(Law):
    """`value[indices]`."""

    value: Expression
    indices: Indices


@dataclass(frozen=True, eq=False)
class Written(Law):
    """`value[indices] = source`, or `+= source` with every addition counting if `add`.

    The one index is a mask if `masked`: the same numbers mean other places as a mask.
    """

    value: Expression
    indices: Indices
    source: Expression
    add: bool = False
    masked: bool = False


@dataclass(frozen=True, eq=False)
class ByPlace(Law):
    """A function of each element's place too: triangles, causal masks, chance.

    Attributes:
        dims: the dimensions of the result along which the place matters; None for all.
    """

    dims: tuple[int, ...] | None = None


class Rearranged(Law):
    """A product of rows whose number or order data decide, so that it may add in another order."""


@dataclass(frozen=True, eq=False)
class Packed(ByPlace):
    """Attention over rows that lie one request after another, each of its own request's.

    Attributes:
        place: the dimension of the result along which they lie.
        bounds: where each request begins, and where the last one ends: of the queries, of the keys.
        across: the tag of the dimension of the other operands along which they lie.
    """

    place: int = 0
    bounds: tuple[Expression, ...] = ()
    across: str = ""


@dataclass(frozen=True, eq=False)
class Computed(Law):
    """A function of the elements at each place, of operands that are broadcast, and of numbers.

    Attributes:
        function: `add sub mul div neg min max cast` of numbers; `eq ne lt le gt ge`, which give
            truth values; `not and or` of truth values; `where`, whose first operand chooses.
        operands: in the order of the function.
    """

    function: str
    operands: tuple[Expression | float, ...]


@dataclass(frozen=True, eq=False)
class Triangle(ByPlace):
    """Zero on one side of a diagonal of the last two dimensions, and `value` elsewhere.

    Attributes:
        value: of the result's shape.
        diagonal: whether elements with two equal indices are kept; None if that is not known.
    """

    value: Expression | None = None
    diagonal: bool | None = None


@dataclass(frozen=True, eq=False)
class Hidden(ByPlace):
    """`value`, or minus infinity by place; never so where the last two indices are equal."""

    value: Expression | None = None


@dataclass(frozen=True, eq=False)
class Softmax(Law):
    """The softmax of `value` along what is mixed."""

    value: Expression


class Products(Law):
    """A sum over what is read whole of the products of the elements of all operands."""


@dataclass(frozen=True, eq=False)
class Below(Law):
    """Integers from 0 up to, but not including, a size."""

    size: Count


@dataclass(frozen=True, eq=False)
class Chosen(Below):
    """Integers that are places of `value` along `dim`; of None: in all of it, row by row."""

    value: Expression
    dim: int | None


@dataclass(frozen=True, eq=False)
class Quotient(Law):
    """`value // divisor`, rounded down."""

    value: Expression
    divisor: int


@dataclass(frozen=True, eq=False)
class Cast(Law):
    """The same numbers in another type, if they are integers from 0 up to `exact`."""

    value: Expression
    exact: int


@dataclass(frozen=True, eq=False)
class Histogram(Law):
    """How many elements of `value` lie in each of `bins` equal parts of `low` to `high`."""

    value: Expression
    bins: int
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class RunningSum(Law):
    """The sums of `value` up to and including each element of its one dimension."""

    value: Expression


@dataclass(frozen=True, eq=False)
class GroupedProduct(Law):
    """Row `k` of `value` [N, I] times `weight[e]` [I, O], `e` the first with `k < ends[e]`."""

    value: Expression
    weight: Expression
    ends: Expression
