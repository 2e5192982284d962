"""The vocabulary in which operators say what each element of their result reads.

An operator's rule (`planish.ir.rules`) answers with an expression over its operands. There are
few kinds of expressions, and an analysis has one method for each:

    Reads      elements at the same place, whole dimensions, or both: most operators
    Reshape    the same elements in row-major order under another shape
    Slice      an arithmetic progression along one dimension: slice, select, flip
    Concat     operands one after another along one dimension
    Diagonal   where two dimensions have the same index
    Fill       nothing at all: constants, random numbers, memory left as it was
    Opaque     anything: an operator without a rule, or a size that data decide
    Branch     one of several graphs, by a predicate
    Loop       a graph over and over

Expressions nest, so an operator that does several things needs no word of its own: a grouped
convolution is a reshape, a contraction and a reshape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planish.ir.flow.polynomial import Count, product

if TYPE_CHECKING:
    from planish.ir.flow.graph import Flow
    from planish.ir.flow.laws import Law

Shape = tuple[Count, ...]

Tag = int | str
"""What a dimension of an operand of `Reads` is: the number of the dimension of the result that it
lies along, or a name for one that is read whole (the same name on two operands: read together)."""


class Unranked(tuple[Count, ...]):
    """The shape of a value of which not even the number of dimensions is known."""

    __slots__ = ()


UNRANKED: Shape = Unranked()
"""Looks empty; only `Opaque` makes values of this shape, so that no map ever holds for them, and
a front end lets no rule see them: an operator that is given one is unknown."""


class Expression:
    """What each element of a value reads. `shape` is the value's."""

    shape: Shape


@dataclass(frozen=True, eq=False)
class Value(Expression):
    """A leaf: an input, a stored tensor, or the result of an earlier node."""

    name: str
    shape: Shape
    dtype: Any = None


@dataclass(frozen=True)
class Operand:
    """One operand of `Reads`: a tag for each of its dimensions.

    Attributes:
        value: what is read.
        tags: of its dimensions.
        into: if its elements are places along a dimension of the first operand, which one.
    """

    value: Expression
    tags: tuple[Tag, ...]
    into: int | None = None


@dataclass(frozen=True, eq=False)
class Reads(Expression):
    """Element `i` reads, of each operand, the elements at `i` along the dimensions tagged so.

    Attributes:
        shape: of the result.
        operands: an operand's dimension of size 1 may lie along a larger one (broadcasting).
        kind: what is computed (`KINDS`), for analyses of structure; isolation does not ask.
        mixed: the dimensions of the result whose elements read each other, as in a softmax.
        law: what is computed exactly, where a proof needs it.
    """

    shape: Shape
    operands: tuple[Operand, ...]
    kind: str = "nonlinear"
    mixed: frozenset[int] = frozenset()
    law: Law | None = None

    def __post_init__(self) -> None:
        """Refuse operands with more dimensions than the result: a call that does not fit.

        Raises:
            ValueError: if a dimension of an operand lies along none of the result's.
        """
        rank = len(self.shape)
        for operand in self.operands:
            if any(isinstance(tag, int) and not -rank <= tag < rank for tag in operand.tags):
                raise ValueError(f"an operand of {len(operand.tags)} dimensions for one of {rank}")


@dataclass(frozen=True, eq=False)
class Reshape(Expression):
    """The elements of `value`, in row-major order, under another shape."""

    value: Expression
    shape: Shape


@dataclass(frozen=True, eq=False)
class Slice(Expression):
    """Element `i` along `dim` is element `start + step * i` of `value`; `start` None: unknown."""

    value: Expression
    dim: int
    start: Count | None
    step: int
    size: Count

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        """The shape of `value` with `size` at `dim`."""
        return replace_at(self.value.shape, self.dim, self.size)


@dataclass(frozen=True, eq=False)
class Concat(Expression):
    """The operands one after another along `dim`."""

    operands: tuple[Expression, ...]
    dim: int

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        """The shape of the operands with the sum of their sizes at `dim`."""
        total: Count = 0
        for operand in self.operands:
            total = total + operand.shape[self.dim]
        return replace_at(self.operands[0].shape, self.dim, total)


@dataclass(frozen=True, eq=False)
class Diagonal(Expression):
    """The elements where `first` and `second` have one index, which comes last; of equal size."""

    value: Expression
    first: int
    second: int

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        """The other dimensions, then the common one."""
        sizes = self.value.shape
        pair = (self.first, self.second)
        return (*(n for dim, n in enumerate(sizes) if dim not in pair), sizes[self.first])


@dataclass(frozen=True, eq=False)
class Fill(Expression):
    """Elements that read nothing.

    Attributes:
        shape: of the result.
        content: `"constant"` if all are equal, `"by place"` if not, `"random"`, or
            `"uninitialized"`: what other requests left behind.
        number: what all elements are, if that is known.
    """

    shape: Shape
    content: str = "constant"
    number: float | None = None


@dataclass(frozen=True, eq=False)
class Opaque(Expression):
    """Elements that may read everything.

    Attributes:
        shape: of the result, as far as it is known.
        operands: whatever may be read.
        why: for people.
        kind: `"unknown"` where nothing is claimed (no rule), else the kind of the finding:
            `"value"`, `"control"`, `"state"` or `"shape"` (the result's size depends on data).
        law: what is computed exactly, where a proof needs it.
    """

    shape: Shape
    operands: tuple[Expression, ...]
    why: str
    kind: str = "unknown"
    law: Law | None = None


@dataclass(frozen=True, eq=False)
class Branch(Expression):
    """Output `index` of one of several graphs, chosen by a predicate.

    Attributes:
        shape: of the result.
        predicate: what chooses.
        bodies: the graphs, which take `operands`, and read values of the enclosing graph besides.
        index: which output.
        operands: what each body is given.
    """

    shape: Shape
    predicate: Expression
    bodies: tuple[Flow, ...]
    index: int
    operands: tuple[Expression, ...] = ()


@dataclass(frozen=True, eq=False)
class Loop(Expression):
    """Output `index` of a graph that is run until it says stop.

    Attributes:
        shape: of the result.
        body: its inputs are the carried values, then `scanned`, one element each, then `fixed`;
            its outputs are the carried values, then values that are stacked along a new first
            dimension, one element an iteration.
        carried: the carried values before the first iteration.
        scanned: read element by element along their first dimension.
        condition: the output of `body`, if any, that decides whether to go on.
        trips: how many iterations at most, if that is data; None if sizes decide.
        index: which output; the carried ones come first.
        fixed: given to every iteration alike.
    """

    shape: Shape
    body: Flow
    carried: tuple[Expression, ...]
    scanned: tuple[Expression, ...] = ()
    condition: int | None = None
    trips: Expression | None = None
    index: int = 0
    fixed: tuple[Expression, ...] = ()


KINDS = {
    "copy": "the elements themselves",
    "linear": "a linear map of each element",
    "add": "a sum of operands",
    "shift": "a constant added",
    "hadamard": "a product of operands",
    "ratio": "the first operand divided by the second, or by a number",
    "homogeneous": "f(a x) = a f(x) for a > 0, such as relu",
    "square": "a power of each element",
    "nonlinear": "any function of each element",
    "equal": "whether two operands are equal, or whether they differ",
    "one hot": "a one at the place that each element names, and zeros",
    "contract": "a sum of products over what is read whole",
    "sum": "a sum over what is read whole",
    "mean": "a mean over what is read whole",
    "extreme": "a maximum or minimum over what is read whole",
    "statistic": "any other number from what is read whole",
    "softmax": "a softmax along what is mixed",
    "norm": "a normalization along what is mixed, by mean and variance",
    "rms norm": "a normalization along what is mixed, by the root of the mean square",
    "scan": "a running sum or product along what is mixed",
    "order": "a sorting or selection along what is mixed",
    "window": "what lies near along what is mixed",
    "transform": "a transform, such as Fourier's, along what is mixed",
    "gather": "elements chosen by an index",
    "scatter": "elements written where an index says",
}
"""What `Reads` computes, for analyses of structure."""


def replace_at(shape: Shape, dim: int, size: Count) -> Shape:
    """`shape` with another size at `dim`."""
    return (*shape[:dim], size, *shape[dim + 1 :])


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The common shape of operands, aligned from the right.

    Of two different sizes neither of which is the number 1, the first is taken: an interpreter
    that depends on their being equal asks itself.
    """
    rank = max(map(len, shapes), default=0)
    result: list[Count] = [1] * rank
    for shape in shapes:
        for dim, size in enumerate(shape, start=rank - len(shape)):
            if result[dim] == 1:
                result[dim] = size
    return tuple(result)


def aligned(value: Expression, rank: int) -> Operand:
    """An operand that lies along the last dimensions of a result of `rank` dimensions."""
    first = rank - len(value.shape)
    return Operand(value, tuple(range(first, rank)))


def pointwise(
    kind: str, *values: Expression, shape: Shape | None = None, law: Law | None = None
) -> Reads:
    """Each element reads the elements at its place, with broadcasting."""
    if shape is None:
        shape = broadcast([value.shape for value in values])
    operands = tuple(aligned(value, len(shape)) for value in values)
    return Reads(shape, operands, kind, law=law)


def along(
    kind: str,
    value: Expression,
    dims: Sequence[int],
    *others: Expression,
    law: Law | None = None,
) -> Reads:
    """Each element reads whole `dims` of `value`, and of `others` what lies at its place."""
    rank = len(value.shape)
    operands = (aligned(value, rank), *(aligned(other, rank) for other in others))
    return Reads(value.shape, operands, kind, frozenset(dims), law)


def affine(value: Expression, weight: Expression | None, bias: Expression | None) -> Expression:
    """`value * weight + bias`, of which any may be missing, with broadcasting to `value`."""
    if weight is not None:
        value = pointwise("hadamard", value, weight, shape=value.shape)
    return pointwise("add", value, bias, shape=value.shape) if bias is not None else value


def reduction(kind: str, value: Expression, dims: Sequence[int], keep: bool = False) -> Reads:
    """Each element reads whole `dims` of `value`, which vanish, or stay with size 1."""
    gone = set(dims)
    tags: list[Tag] = []
    shape: list[Count] = []
    for dim, size in enumerate(value.shape):
        if dim in gone:
            tags.append(f"whole{dim}")
            shape += [1] if keep else []
        else:
            tags.append(len(shape))
            shape.append(size)
    return Reads(tuple(shape), (Operand(value, tuple(tags)),), kind)


def permuted(value: Expression, order: Sequence[int]) -> Reads:
    """Dimension `k` of the result is dimension `order[k]` of `value`."""
    shape = tuple(value.shape[dim] for dim in order)
    tags = tuple(list(order).index(dim) for dim in range(len(order)))
    return Reads(shape, (Operand(value, tags),), "copy")


def contraction(
    shape: Shape,
    *operands: tuple[Expression, Sequence[Tag]],
    kind: str = "contract",
    law: Law | None = None,
) -> Reads:
    """A sum of products: what lies along no dimension of the result is read whole."""
    read = tuple(Operand(value, tuple(tags)) for value, tags in operands)
    return Reads(shape, read, kind, law=law)


def everything(kind: str, shape: Shape, *values: Expression) -> Reads:
    """Each element reads all of `values`."""
    operands = (
        Operand(value, tuple(f"whole{number}.{dim}" for dim in range(len(value.shape))))
        for number, value in enumerate(values)
    )
    return Reads(shape, tuple(operands), kind)


def inserted(value: Expression, *dims: int) -> Reads:
    """`value` with dimensions of size 1, at these places of the result."""
    rank = len(value.shape) + len(dims)
    tags = tuple(dim for dim in range(rank) if dim not in dims)
    sizes = iter(value.shape)
    shape = tuple(1 if dim in dims else next(sizes) for dim in range(rank))
    return Reads(shape, (Operand(value, tags),), "copy")


def repeated(value: Expression, times: Sequence[Count]) -> Expression:
    """`value` as tiles, `times[k]` of them along dimension `k`; new dimensions come first."""
    rank = len(times)
    value = inserted(value, *range(rank - len(value.shape))) if rank > len(value.shape) else value
    spread = tuple(size for pair in zip(times, value.shape, strict=True) for size in pair)
    tags = tuple(range(1, 2 * rank, 2))
    tiles = Reads(spread, (Operand(value, tags),), "copy")
    return Reshape(tiles, tuple(product(pair) for pair in zip(times, value.shape, strict=True)))
