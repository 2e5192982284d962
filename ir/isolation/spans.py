"""Bounds of numbers: what a mask holds, and what is left of it after sums, products and choices.

A mask is made of constants and truth values, then meets numbers of which nothing is known, such as
scores. A `Span` bounds the part that is known, and counts the part that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isinf, isnan
from typing import Any


@dataclass(frozen=True)
class Span:
    """A number from `low` to `high`, plus `free` times at most what is assumed of free numbers."""

    low: float
    high: float
    free: float = 0.0

    @property
    def largest(self) -> float:
        """The greatest absolute value of the part that is known."""
        return max(abs(self.low), abs(self.high))


ANY = Span(-inf, inf)
"""Nothing is known, not even that it is finite."""

FREE = Span(0, 0, 1)
"""Any finite number."""

TRUTH, NO, YES = Span(0, 1), Span(0, 0), Span(1, 1)
"""Truth values are 0 and 1."""


def _plus(one: Span, other: Span) -> Span:
    return Span(one.low + other.low, one.high + other.high, one.free + other.free)


def _minus(one: Span) -> Span:
    return Span(-one.high, -one.low, one.free)


def _times(one: Span, other: Span) -> Span:
    if one.free and other.free:
        return FREE if one.largest == other.largest == 0 else ANY
    corners = [x * y for x in (one.low, one.high) for y in (other.low, other.high)]
    free = one.free or other.free
    weight = other.largest if one.free else one.largest
    if any(map(isnan, corners)) or (free and isinf(weight)):
        return ANY
    return Span(min(corners), max(corners), free * weight if free else 0)


def _inverse(one: Span) -> Span:
    """1 / x, for what is away from 0."""
    apart = (one.low > 0 or one.high < 0) and not one.free and not isinf(one.largest)
    return Span(1 / one.high, 1 / one.low) if apart else ANY


def _over(one: Span, other: Span) -> Span:
    return FREE if other.free and one.largest == 0 else _times(one, _inverse(other))


def _least(one: Span, other: Span) -> Span:
    return Span(min(one.low, other.low), min(one.high, other.high), max(one.free, other.free))


def _greatest(one: Span, other: Span) -> Span:
    return Span(max(one.low, other.low), max(one.high, other.high), max(one.free, other.free))


def hull(one: Span, other: Span) -> Span:
    """Either of two numbers."""
    return Span(min(one.low, other.low), max(one.high, other.high), max(one.free, other.free))


def _chosen(condition: Span, one: Span, other: Span) -> Span:
    return {YES: one, NO: other}.get(condition) or hull(one, other)


def _not(one: Span) -> Span:
    return Span(1 - one.high, 1 - one.low)


_ROUNDING: Mapping[str, Callable[..., Span]] = {
    "add": _plus,
    "sub": lambda one, other: _plus(one, _minus(other)),
    "mul": _times,
    "div": _over,
    "neg": _minus,
    "cast": lambda one: one,
}

_EXACT: Mapping[str, Callable[..., Span]] = {
    "min": _least,
    "max": _greatest,
    "where": _chosen,
    "not": _not,
    "and": _least,
    "or": _greatest,
}
"""`not`, `and` and `or` are those of truth values."""


def computed(function: str, operands: Sequence[Span], dtype: Any) -> Span:
    """What a function (`planish.ir.flow.laws.Computed`) gives of operands, in this dtype.

    Nothing is known of a function that is not listed here.
    """
    if function in _EXACT:
        return _EXACT[function](*operands)
    name = _name(dtype)
    found = _ROUNDING[function](*operands) if function in _ROUNDING else ANY
    if isnan(found.low) or isnan(found.high):
        found = ANY
    if name == "bool":
        return found if found in (NO, YES) else TRUTH
    if name in _TYPES:
        return _widened(found, name)
    # Whole numbers wrap around and divide otherwise; small ones are what they seem.
    small = name.startswith(("int", "uint")) and function != "div" and not found.free
    if small and found in (NO, YES, TRUTH):
        return found
    bounded = not any(isinf(one.largest) for one in operands)
    return FREE if bounded and any(one.free for one in operands) else ANY


def constant(number: float, dtype: Any) -> Span:
    """A number, as this dtype holds it."""
    if isnan(number):
        return ANY
    if isinf(number):
        return Span(number, number)
    found, (largest, _, _) = _widened(Span(number, number), dtype), _limits(dtype)
    fits = abs(number) <= largest  # and stays so when it is rounded
    return Span(max(found.low, -largest), min(found.high, largest)) if fits else found


_SMALL = 256
"""Integers up to here are exact in every type."""


def _widened(one: Span, dtype: Any) -> Span:
    """Bounds that hold after rounding, overflow and underflow, too."""
    if one.low == one.high and abs(one.low) <= _SMALL and one.low == round(one.low):
        return one
    largest, least, step = _limits(dtype)
    low = one.low - abs(one.low) * step if not isinf(one.low) else one.low
    high = one.high + abs(one.high) * step if not isinf(one.high) else one.high
    if low < -largest or 0 < low < least:
        low = -inf if low < 0 else 0
    if high > largest or -least < high < 0:
        high = inf if high > 0 else 0
    return replace(one, low=low, high=high)


def _limits(dtype: Any) -> tuple[float, float, float]:
    """The largest number of a type, the least above 0, and the relative error of rounding."""
    return _TYPES.get(_name(dtype), _TYPES[COARSE])


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.").lower()


COARSE = "float16"
"""A floating-point type whose bounds hold for every one that is computed in."""

_DOUBLE, _SINGLE = (1.797e308, 2.3e-308, 2.3e-16), (3.4028234663852886e38, 1.2e-38, 1.2e-7)
_TYPES = {
    "float64": _DOUBLE,
    "double": _DOUBLE,
    "float32": _SINGLE,
    "float": _SINGLE,
    "bfloat16": (3.3895e38, 1.2e-38, 2**-7),
    COARSE: (65504.0, 6.2e-5, 2**-7),
}
"""By the names of torch and ONNX."""
