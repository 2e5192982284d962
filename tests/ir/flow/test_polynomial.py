import itertools

import pytest

from planish.ir.flow.polynomial import (
    Count,
    Polynomial,
    floor_quotient,
    quotient,
    row_strides,
    substitute,
)

B, H, T = (Polynomial.symbol(name) for name in "BHT")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (B + 1, "B + 1"),
        (B * T - T, "B*T - T"),
        ((B + 1) * (B - 1), "B**2 - 1"),
        (B - B, "0"),
        (2 * B - B * 2 + 3, "3"),
        (1 - B, "-B + 1"),
    ],
)
def test_arithmetic_has_one_form(count: Count, text: str) -> None:
    assert str(count) == text


@pytest.mark.parametrize(
    ("dividend", "divisor", "result"),
    [
        (B * T, T, B),
        (B * T + T, T, B + 1),
        (B * B - 1, B + 1, B - 1),
        (6 * B, 4, None),
        (B * T, H, None),
        (B + 1, B, None),
        (B * T + 1, T, None),
        (12, 4, 3),
        (12, 5, None),
        (0, B, 0),
        (B, 0, None),
        (B, B, 1),
        (7, B, None),
    ],
)
def test_division_is_exact_or_nothing(
    dividend: Count, divisor: Count, result: Count | None
) -> None:
    assert quotient(dividend, divisor) == result


def test_division_that_rounds_down() -> None:
    assert floor_quotient(2 * B + 1, 2) == B
    assert floor_quotient(6 * B * T - 1, 3) == 2 * B * T - 1
    assert floor_quotient(B + 1, 2) is None
    assert floor_quotient(7, 2) == 3
    assert floor_quotient(B, 0) is None


def test_division_undoes_multiplication() -> None:
    some: list[Count] = [B, T + 1, B * T + 2, H - 3 * B, B * B * T + H]
    for one, other in itertools.product(some, some):
        assert quotient(one * other, other) == one


def test_substitution_ties_sizes() -> None:
    assert substitute(B * T + H, {"H": B * 2}) == B * T + 2 * B
    assert substitute(B * T, {"B": 3}) == 3 * T


def test_row_strides() -> None:
    assert row_strides([B, T, 4]) == [4 * T, 4, 1]
