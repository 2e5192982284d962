"""Sizes as polynomials with integer coefficients, so that one analysis holds for every size.

The analyses need little of algebra and need it thousands of times: addition, multiplication,
exact division, equality. A computer algebra system does far more and takes far longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias, Union

Monomial: TypeAlias = tuple[tuple[str, int], ...]
"""A product of powers of symbols, sorted by symbol: `(("B", 1), ("T", 2))`."""

Count: TypeAlias = Union[int, "Polynomial"]
"""A size: a number, or a polynomial that is not one."""


_DATA = re.compile(r"u\d+")
"""How sizes are named that data decide."""


class Polynomial:
    """A polynomial over symbols that stand for integers, such as `B*T + 1`. Immutable.

    Arithmetic gives a plain `int` wherever the result is a number.
    """

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms: frozenset[tuple[Monomial, int]] = frozenset(terms.items())
        self._hash = hash(self.terms)

    @staticmethod
    def symbol(name: str) -> Polynomial:
        """The polynomial that is one symbol."""
        return Polynomial({((name, 1),): 1})

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols that occur."""
        return frozenset(name for monomial, _ in self.terms for name, _ in monomial)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and self.terms == other.terms

    def __add__(self, other: Count) -> Count:
        total = dict(self.terms)
        for monomial, factor in _terms(other):
            total[monomial] = total.get(monomial, 0) + factor
        return _settled(total)

    __radd__ = __add__

    def __neg__(self) -> Count:
        return self * -1

    def __sub__(self, other: Count) -> Count:
        return self + other * -1

    def __rsub__(self, other: Count) -> Count:
        return self * -1 + other

    def __mul__(self, other: Count) -> Count:
        total: dict[Monomial, int] = {}
        for one, factor in self.terms:
            for two, other_factor in _terms(other):
                monomial = _times(one, two)
                total[monomial] = total.get(monomial, 0) + factor * other_factor
        return _settled(total)

    __rmul__ = __mul__

    def __str__(self) -> str:
        """As people write it, in one order: `B*T + 1`."""
        ordered = sorted(self.terms, key=lambda term: (-_degree(term[0]), term[0]))
        text = " + ".join(_term_text(monomial, factor) for monomial, factor in ordered)
        return text.replace("+ -", "- ")

    __repr__ = __str__


def product(counts: Iterable[Count]) -> Count:
    """All of them multiplied; 1 for none."""
    result: Count = 1
    for count in counts:
        result = result * count
    return result


def row_strides(sizes: Iterable[Count]) -> list[Count]:
    """How far apart neighbours along each dimension lie in row-major order, in elements."""
    strides: list[Count] = []
    stride: Count = 1
    for size in reversed(list(sizes)):
        strides.insert(0, stride)
        stride = stride * size
    return strides


def quotient(dividend: Count, divisor: Count) -> Count | None:
    """`dividend / divisor` if that is a polynomial with integer coefficients, else None.

    Long division by the leading term. That the remainder vanishes identically is what makes the
    answer hold for every value of the symbols.
    """
    if isinstance(dividend, int) and isinstance(divisor, int):
        return dividend // divisor if divisor and dividend % divisor == 0 else None
    if dividend == divisor:
        return 1
    if divisor in (0, 1):
        return dividend if divisor else None
    lead, lead_factor = max(_terms(divisor), key=_rank)
    rest: Count = dividend
    result: Count = 0
    while rest != 0:
        top, factor = max(_terms(rest), key=_rank)
        monomial = _over(top, lead)
        if monomial is None or factor % lead_factor:
            return None
        part = _settled({monomial: factor // lead_factor})
        result = result + part
        rest = rest - part * divisor
    return result


def floor_quotient(dividend: Count, divisor: Count) -> Count | None:
    """`dividend / divisor` rounded down, where that is a polynomial: `(2*B + 1) // 2` is `B`."""
    exact = quotient(dividend, divisor)
    if exact is None and isinstance(divisor, int) and divisor > 0:
        constant = dict(_terms(dividend)).get((), 0)
        exact = quotient(dividend - constant % divisor, divisor)
    return exact


def divides(divisor: Count, dividend: Count) -> bool:
    """Whether `divisor` divides `dividend` for every value of the symbols."""
    return quotient(dividend, divisor) is not None


def data_decides(count: Count) -> bool:
    """Whether data decide a size, or a part of it: `u0`, `u0 + 1`, `FloorDiv(u0, 2)`."""
    return isinstance(count, Polynomial) and any(
        _DATA.fullmatch(word) for name in count.symbols for word in re.findall(r"\w+", name)
    )


def at_least(count: Count, bound: int) -> bool:
    """Whether `count` is never less than `bound`, sizes being 1 or more.

    False where that is not plain: for numbers that data decide (`u0`), rounded quotients (which
    are symbols with brackets in their names) and differences of sizes.
    """
    if isinstance(count, int):
        return count >= bound
    if any(not name.isidentifier() or _DATA.fullmatch(name) for name in count.symbols):
        return False
    least = {name: Polynomial.symbol(name) + 1 for name in count.symbols}
    above = substitute(count, least) - bound
    if isinstance(above, int):
        return above >= 0
    return all(factor >= 0 for _, factor in above.terms)


def substitute(count: Count, values: Mapping[str, Count]) -> Count:
    """`count` with symbols replaced."""
    if isinstance(count, int) or not (count.symbols & values.keys()):
        return count
    total: Count = 0
    for monomial, factor in count.terms:
        term: Count = factor
        for name, power in monomial:
            base = values.get(name, Polynomial.symbol(name))
            for _ in range(power):
                term = term * base
        total = total + term
    return total


def _terms(count: Count) -> Iterable[tuple[Monomial, int]]:
    return count.terms if isinstance(count, Polynomial) else (((), count),) if count else ()


def _settled(terms: Mapping[Monomial, int]) -> Count:
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    if not kept:
        return 0
    if len(kept) == 1 and () in kept:
        return kept[()]
    return Polynomial(kept)


def _times(one: Monomial, two: Monomial) -> Monomial:
    powers = dict(one)
    for name, power in two:
        powers[name] = powers.get(name, 0) + power
    return tuple(sorted(powers.items()))


def _over(one: Monomial, two: Monomial) -> Monomial | None:
    powers = dict(one)
    for name, power in two:
        powers[name] = powers.get(name, 0) - power
    if any(power < 0 for power in powers.values()):
        return None
    return tuple(sorted((name, power) for name, power in powers.items() if power))


def _degree(monomial: Monomial) -> int:
    return sum(power for _, power in monomial)


def _rank(term: tuple[Monomial, int]) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """An order of monomials that multiplication keeps: by degree, then lexicographic."""
    monomial = term[0]
    return _degree(monomial), tuple((*(-ord(c) for c in name), power) for name, power in monomial)


def _term_text(monomial: Monomial, factor: int) -> str:
    powers = "*".join(name if power == 1 else f"{name}**{power}" for name, power in monomial)
    if not powers:
        return str(factor)
    return powers if factor == 1 else f"-{powers}" if factor == -1 else f"{factor}*{powers}"
