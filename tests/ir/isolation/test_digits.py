"""Every operation on maps, against the formula evaluated at every index of small shapes."""

import itertools
import math
import random
from collections.abc import Iterator

import pytest

from planish.ir.flow.polynomial import Polynomial
from planish.ir.isolation.digits import Digit, Map, joined, make, reshaped, rows, sliced

B, H, T = (Polynomial.symbol(name) for name in "BHT")


def at(one: Map, index: tuple[int, ...]) -> int:
    """Evaluate a map of numbers at one index."""
    total = one.offset
    for digit in one.digits:
        total = total + digit.weight * (index[digit.dim] // digit.stride % digit.extent)  # type: ignore[operator]
    assert isinstance(total, int)
    return total


def indices(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, shape))


def unravel(linear: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    index: list[int] = []
    for size in reversed(shape):
        index.insert(0, linear % size)
        linear //= size
    return tuple(index)


SHAPES = [
    shape
    for rank in (1, 2, 3, 4)
    for shape in itertools.product((1, 2, 3, 4, 6), repeat=rank)
    if math.prod(shape) in (6, 12, 24)
]


def test_a_reshape_keeps_the_formula_or_refuses() -> None:
    kept = 0
    for old, new in itertools.product(SHAPES, SHAPES):
        if math.prod(old) != math.prod(new):
            continue
        for dim, size in enumerate(old):
            for stride in (n for n in range(1, size) if size % n == 0):
                one = make(1, [Digit(dim, stride, size // stride, 2)])
                after = reshaped(one, old, new)
                if after is None:
                    continue
                kept += 1
                for linear in range(math.prod(old)):
                    assert at(one, unravel(linear, old)) == at(after, unravel(linear, new))
    assert kept > 5000


def test_slices_keep_the_formula_or_refuse() -> None:
    chance = random.Random(0)
    kept = 0
    for _ in range(5000):
        size = chance.choice([2, 3, 4, 6, 8, 12])
        stride = chance.choice([n for n in range(1, size + 1) if size % n == 0])
        extent = chance.choice([n for n in range(1, size + 1) if size % (stride * n) == 0])
        step = chance.choice([-2, -1, 1, 1, 2])
        start = chance.randrange(size)
        longest = (size - 1 - start) // step if step > 0 else start // -step
        count = chance.randint(1, longest + 1)
        one = make(5, [Digit(0, stride, extent, 3)])
        after = sliced(one, 0, size, start, step, count)
        if after is None:
            continue
        kept += 1
        for place in range(count):
            assert at(one, (start + step * place,)) == at(after, (place,))
    assert kept > 2000


def test_symbolic_reshapes() -> None:
    own = rows(0, B)
    folded = reshaped(own, (B, T, 8), (B * T, 8))
    assert folded is not None
    assert str(folded) == "(i0//T) mod B"
    assert reshaped(folded, (B * T, 8), (B, T, 2, 4)) == own
    assert reshaped(own, (B, T), (T, B)) is None
    heads = make(0, [Digit(0, 1, B)])
    assert str(reshaped(heads, (B, H, T), (B * H, T))) == "(i0//H) mod B"


def test_parts_in_order_are_the_whole() -> None:
    first = sliced(rows(0, B), 0, B, 0, 1, 2)
    rest = sliced(rows(0, B), 0, B, 2, 1, B - 2)
    assert first is not None
    assert rest is not None
    assert joined([(first, 2), (rest, B - 2)], [0, 2], 0, B) == rows(0, B)
    assert joined([(rest, B - 2), (first, 2)], [0, B - 2], 0, B) is None


def test_a_flip_twice_is_the_identity() -> None:
    once = sliced(rows(0, B), 0, B, B - 1, -1, B)
    assert once is not None
    assert once != rows(0, B)
    assert sliced(once, 0, B, B - 1, -1, B) == rows(0, B)


def test_several_rows_a_request() -> None:
    assert rows(0, 2 * B, 2) == make(0, [Digit(0, 2, B)])
    with pytest.raises(ValueError, match="3 rows a request do not divide 2\\*B rows"):
        rows(0, 2 * B, 3)
