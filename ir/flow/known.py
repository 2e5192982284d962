"""What is known of a value without running anything: small integers, and counting along dims.

Models compute shapes and indices inside the graph. A gather that reads `arange(B)` reads each
request's own row; to see that, the analysis has to follow the numbers. It follows two kinds:

    Numbers   every element, exactly: an array of `Count`s (sizes may be symbols) or truth values
    Counting  `base + sum(steps[d] * index[d])`: what arange makes, exact integers only

What is not certain is not known. In particular a cast to a floating-point type loses what was
known, and so does anything that could overflow or wrap.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from planish.ir.flow.polynomial import Count, Polynomial
from planish.ir.flow.vocabulary import (
    Concat,
    Expression,
    Fill,
    Reads,
    Reshape,
    Shape,
    Slice,
    Value,
)

LARGEST = 4096
"""Arrays of more elements than this are not followed."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """Every element of an integer or boolean tensor: an object array of `Count`s or bools."""

    array: np.ndarray


@dataclass(frozen=True)
class Counting:
    """An integer tensor whose element at `index` is `base + sum(steps[d] * index[d])`.

    Attributes:
        base: the element at the origin.
        steps: one a dimension; 0 where the value is the same along it.
    """

    base: Count
    steps: tuple[Count, ...]


Known = Numbers | Counting


def numbers(values: Any, shape: Shape | None = None) -> Numbers | None:
    """`Numbers` from nested lists or an array; None if there are too many."""
    array = np.array(values, dtype=object)
    if shape is not None:
        sizes = _static(shape)
        if sizes is None:
            return None
        array = array.reshape(sizes)
    return Numbers(array) if array.size <= LARGEST else None


def of(expression: Expression, known: Mapping[Value, Known]) -> Known | None:
    """What is known of an expression, from what is known of the values it is made of.

    Only expressions that move elements are followed; what operators compute is their rules' to
    say (`planish.ir.rules`).
    """
    match expression:
        case Value():
            return known.get(expression)
        case Reads(kind="copy", operands=(operand,), mixed=mixed) if not mixed:
            return _moved(of(operand.value, known), operand.tags, expression)
        case Reshape(value=value, shape=shape):
            return _reshaped(of(value, known), value.shape, shape)
        case Slice(value=value, start=start) if start is not None:
            return _sliced(of(value, known), expression)
        case Concat(operands=operands, dim=dim):
            parts = [of(operand, known) for operand in operands]
            if all(isinstance(part, Numbers) for part in parts):
                joined = np.concatenate([part.array for part in parts], axis=dim)  # type: ignore[union-attr]
                return numbers(joined)
        case Fill() | _:
            pass
    return None


def _static(shape: Shape) -> tuple[int, ...] | None:
    sizes = [size for size in shape if isinstance(size, int)]
    return tuple(sizes) if len(sizes) == len(shape) and prod(sizes) <= LARGEST else None


def _moved(known: Known | None, tags: tuple[int | str, ...], reads: Reads) -> Known | None:
    if known is None or any(isinstance(tag, str) for tag in tags):
        return None
    places = [int(tag) for tag in tags]
    if isinstance(known, Counting):
        steps: list[Count] = [0] * len(reads.shape)
        sizes = reads.operands[0].value.shape
        for place, step, size in zip(places, known.steps, sizes, strict=True):
            # A dimension of size 1 has only index 0, however far it is then broadcast.
            steps[place] = step if size != 1 else 0
        return Counting(known.base, tuple(steps))
    shape = _static(reads.shape)
    if shape is None:
        return None
    order = np.argsort(places)
    array = known.array.transpose(order)
    spread = [1] * len(shape)
    for place, size in zip(sorted(places), array.shape, strict=True):
        spread[place] = size
    return Numbers(np.broadcast_to(array.reshape(spread), shape))


def _reshaped(known: Known | None, old: Shape, new: Shape) -> Known | None:
    if isinstance(known, Numbers):
        shape = _static(new)
        return Numbers(known.array.reshape(shape)) if shape is not None else None
    if known is None:
        return None
    # Dimensions of size 1 come and go; anything else would need division.
    kept = [(size, step) for size, step in zip(old, known.steps, strict=True) if size != 1]
    if [size for size, _ in kept] != [size for size in new if size != 1]:
        return None
    rest = iter(kept)
    return Counting(known.base, tuple(next(rest)[1] if size != 1 else 0 for size in new))


def _sliced(known: Known | None, part: Slice) -> Known | None:
    if known is None or part.start is None:
        return None
    if isinstance(known, Counting):
        step = known.steps[part.dim]
        steps = list(known.steps)
        steps[part.dim] = step * part.step if part.size != 1 else 0
        return Counting(known.base + step * part.start, tuple(steps))
    if not (isinstance(part.start, int) and isinstance(part.size, int)):
        return None
    indices = [part.start + part.step * number for number in range(part.size)]
    if any(not 0 <= index < known.array.shape[part.dim] for index in indices):
        return None
    return Numbers(known.array.take(indices, axis=part.dim))


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def combined(name: str, left: Known | None, right: Known | None, shape: Shape) -> Known | None:
    """What is known of `left <name> right`, elementwise with broadcasting to `shape`."""
    if left is None or right is None:
        return None
    if isinstance(left, Numbers) and isinstance(right, Numbers):
        return _combined_numbers(name, left.array, right.array)
    one, other = _counting(left, len(shape)), _counting(right, len(shape))
    if one is None or other is None or name not in _ARITHMETIC:
        return None
    if name == "mul":
        if any(step != 0 for step in other.steps):
            one, other = other, one
        if any(step != 0 for step in other.steps):
            return None
        steps = tuple(step * other.base for step in one.steps)
        return Counting(one.base * other.base, steps)
    act = _ARITHMETIC[name]
    pairs = zip(one.steps, other.steps, strict=True)
    return Counting(act(one.base, other.base), tuple(act(a, b) for a, b in pairs))


def _counting(known: Known, rank: int) -> Counting | None:
    """As `Counting` of `rank` dimensions, if it is that or one number."""
    if isinstance(known, Numbers):
        if known.array.size != 1 or isinstance(known.array.flat[0], bool):
            return None
        return Counting(known.array.flat[0], (0,) * rank)
    return Counting(known.base, (0,) * (rank - len(known.steps)) + known.steps)


def _combined_numbers(name: str, left: np.ndarray, right: np.ndarray) -> Numbers | None:
    whole = all(isinstance(x, int) for x in (*left.flat, *right.flat))
    if name in _ARITHMETIC:
        return numbers(_ARITHMETIC[name](left, right))
    if name in _COMPARISONS and whole:
        return numbers(_each(_COMPARISONS[name], left, right))
    if name in ("floordiv", "mod") and whole and all(x > 0 for x in right.flat):
        # Of non-negative numbers, so that rounding down and towards zero are the same.
        if all(x >= 0 for x in left.flat):
            return numbers(
                _each(operator.floordiv if name == "floordiv" else operator.mod, left, right)
            )
        return None
    if name in ("and", "or") and all(isinstance(x, bool) for x in (*left.flat, *right.flat)):
        return numbers(_each(operator.and_ if name == "and" else operator.or_, left, right))
    return None


def _each(function: Callable[[Any, Any], Any], left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = np.broadcast_arrays(left, right)
    result = np.empty(left.shape, dtype=object)
    for place in np.ndindex(left.shape):
        result[place] = function(left[place], right[place])
    return result


def one_number(known: Known | None) -> Count | None:
    """The value of a tensor known to hold one number."""
    if isinstance(known, Numbers) and known.array.size == 1:
        number = known.array.flat[0]
        return number if isinstance(number, int | Polynomial) else None
    if isinstance(known, Counting) and not any(known.steps):
        return known.base
    return None
