"""Arithmetic of sizes that may be symbols, where ONNX rounds, clamps and broadcasts.

Symbols stand for sizes of at least 1. What has no closed form becomes a symbol named after its
formula, so that the same formula is the same size wherever it occurs. A size that data decide is a
symbol `u0`, `u1`, …, and a formula that contains one is decided by data too (`by_data`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from planish.ir.flow.polynomial import Count, Polynomial, quotient, substitute
from planish.ir.flow.vocabulary import Shape

_TERMS = 64
"""Polynomials of more terms than this are not bounded: hostile models could make them huge."""

_PLAIN = re.compile(r"[A-Za-z_]\w*")
_BY_DATA = re.compile(r"(?<!\w)u\d+(?!\w)")


def by_data(size: Count) -> bool:
    """Whether data decide this size."""
    return isinstance(size, Polynomial) and any(map(_BY_DATA.search, size.symbols))


def least(size: Count) -> int | None:
    """A number that `size` is never below, if one can be seen.

    Sizes of inputs are at least 1; those that data or a formula decide are at least 0.
    """
    if isinstance(size, int):
        return size
    if len(size.terms) > _TERMS:
        return None
    raised = {
        name: Polynomial.symbol(name) + 1
        for name in size.symbols
        if _PLAIN.fullmatch(name) and not _BY_DATA.search(name)
    }
    over = substitute(size, raised)
    if isinstance(over, int):
        return over
    if any(factor < 0 for monomial, factor in over.terms if monomial):
        return None
    return dict(over.terms).get((), 0)


def at_least(size: Count, other: Count) -> bool:
    """Whether `size >= other` for every value of the symbols."""
    bound = least(size - other)
    return bound is not None and bound >= 0


def minimum(one: Count, two: Count) -> Count:
    """The smaller of two sizes."""
    if at_least(one, two):
        return two
    if at_least(two, one):
        return one
    first, second = sorted((str(one), str(two)))
    return Polynomial.symbol(f"min({first}, {second})")


def joined(one: Count, two: Count) -> Count:
    """The common size of two dimensions, one of which may be 1 where the other is not.

    Two symbols that are not known to be equal make a third: to take either of them would be wrong
    where it is 1 and the other is not.
    """
    if two in (one, 1):
        return one
    if one == 1 or isinstance(two, int):
        return two
    if isinstance(one, int):
        return one
    for whole, part in ((one, two), (two, one)):
        # A size and its minimum with a number above 1 can only be broadcast where they are equal.
        if _is_minimum_of(part, whole):
            return whole
    first, second = sorted((str(one), str(two)))
    return Polynomial.symbol(f"broadcast({first}, {second})")


def _is_minimum_of(part: Count, whole: Count) -> bool:
    text = re.escape(str(whole))
    found = re.fullmatch(rf"min\((?:(\d+), {text}|{text}, (\d+))\)", str(part))
    return found is not None and int(found[1] or found[2]) > 1


def joined_shape(shapes: Iterable[Shape]) -> Shape:
    """The common shape of operands, aligned from the right."""
    result: list[Count] = []
    for shape in shapes:
        missing: list[Count] = [1] * (len(shape) - len(result))
        result = missing + result
        start = len(result) - len(shape)
        for dim, size in enumerate(shape, start=start):
            result[dim] = joined(result[dim], size)
    return tuple(result)


def floored(dividend: Count, divisor: int) -> Count:
    """`dividend // divisor`, for a positive divisor."""
    if isinstance(dividend, int):
        return dividend // divisor
    exact = quotient(dividend, divisor)
    if exact is not None:
        return exact
    return Polynomial.symbol(f"floor(({dividend})/{divisor})")


def ceiled(dividend: Count, divisor: int) -> Count:
    """`dividend / divisor` rounded up, for a positive divisor."""
    if isinstance(dividend, Polynomial) and quotient(dividend, divisor) is None:
        return Polynomial.symbol(f"ceil(({dividend})/{divisor})")
    return floored(dividend + (divisor - 1 if isinstance(dividend, int) else 0), divisor)


def scaled(size: Count, factor: float) -> Count:
    """`floor(size * factor)`."""
    if isinstance(size, int):
        return int(size * factor // 1)
    if factor == int(factor):
        return size * int(factor)
    return Polynomial.symbol(f"floor(({size})*{factor!r})")
