"""Lookups by an index of which something is known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from planish.ir.flow.known import Counting, Known, Numbers
from planish.ir.flow.laws import Indices, Looked
from planish.ir.flow.polynomial import at_least
from planish.ir.flow.vocabulary import Expression, Operand, Reads, Shape, Slice, Tag

Knows = Callable[[Expression], Known | None]
"""What is known of an index."""


def progression(known: Known | None) -> Counting | None:
    """An index as counting: numbers in arithmetic progression along one dimension are that too."""
    if isinstance(known, Counting):
        return known
    if not isinstance(known, Numbers) or any(isinstance(x, bool) for x in known.array.flat):
        return None
    if known.array.size == 1:
        return Counting(known.array.flat[0], (0,) * known.array.ndim)
    lengths = [size for size in known.array.shape if size != 1]
    if len(lengths) != 1:
        return None
    flat = list(known.array.flat)
    step = flat[1] - flat[0]
    if any(after - before != step for before, after in pairwise(flat)):
        return None
    steps = tuple(step if size != 1 else 0 for size in known.array.shape)
    return Counting(flat[0], steps)


def lookup(
    value: Expression, dim: int, known: Known | None, places: tuple[Tag, ...], index_shape: Shape
) -> tuple[Expression, Tag]:
    """How `value` is read along `dim` by an index: what of it, and along which dimension.

    Args:
        value: what is looked up.
        dim: of `value`.
        known: what is known of the index.
        places: the dimension of the result that each dimension of the index lies along.
        index_shape: of the index.

    Returns:
        `value`, cut to what the index reaches in order, with the dimension of the result it then
        lies along; or as it was, with a name that says that it is read whole.
    """
    counting = progression(known)
    whole = (value, f"looked up {dim}")
    if counting is None:
        return whole
    size = value.shape[dim]
    moving = [k for k, step in enumerate(counting.steps) if step != 0 and index_shape[k] != 1]
    base = counting.base
    if isinstance(base, int) and base < 0:
        if moving:
            return whole  # indices that wrap around
        base = size + base
    if not moving:
        start = base if at_least(base, 0) else None
        return Slice(value, dim, start, 1, 1), f"picked {dim}"
    step = counting.steps[moving[0]]
    if len(moving) > 1 or not isinstance(step, int):
        return whole
    last = base + step * (index_shape[moving[0]] - 1)
    if not (at_least(base, 0) and at_least(last, 0)):
        return whole  # some of them may wrap around
    return Slice(value, dim, base, step, index_shape[moving[0]]), places[moving[0]]


def indexed(value: Expression, indices: Indices, knows: Knows, shape: Shape) -> Expression:
    """`value[indices]`, of this shape: NumPy's indexing by integers, None for a whole dimension."""
    whole = value
    given = [dim for dim, one in enumerate(indices) if one is not None]
    joint = max(len(one.shape) for one in indices if one is not None)
    together = given == list(range(given[0], given[-1] + 1))
    first = given[0] if together else 0
    tags: list[Tag] = []
    free = iter([n for n in range(len(shape)) if not first <= n < first + joint])
    operands: list[Operand] = []
    for dim in range(len(value.shape)):
        one = indices[dim] if dim < len(indices) else None
        if one is None:
            tags.append(next(free))
            continue
        places = tuple(range(first + joint - len(one.shape), first + joint))
        value, tag = lookup(value, dim, knows(one), places, one.shape)
        tags.append(tag)
        operands.append(Operand(one, places, dim))
    law = Looked(whole, indices)
    return Reads(shape, (Operand(value, tuple(tags)), *operands), "gather", law=law)
