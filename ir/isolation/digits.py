"""Which request an element may depend on: sums of digits of its index.

After `view(B, T, H, D)`, a permutation and `view(B*H, T, D)`, row `r` belongs to request
`(r // H) mod B`: the batch is one digit of the row's number in mixed radix. A `Map` is such a
formula, `offset + sum(weight * ((index[dim] // stride) mod extent))`, whose strides and extents
may be symbols; so one analysis holds for every batch size and length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from planish.ir.flow.polynomial import Count, divides, product, quotient, row_strides
from planish.ir.flow.vocabulary import Shape


@dataclass(frozen=True)
class Digit:
    """`weight * ((index[dim] // stride) mod extent)`.

    `stride * extent` divides the size of the dimension.
    """

    dim: int
    stride: Count
    extent: Count
    weight: Count = 1

    def __str__(self) -> str:
        place = f"i{self.dim}"
        inner = place if self.stride == 1 else f"{place}//{_bracketed(self.stride)}"
        text = (
            f"({inner} mod {self.extent})" if self.stride == 1 else f"({inner}) mod {self.extent}"
        )
        return text if self.weight == 1 else f"{_bracketed(self.weight)}*({text})"


def _bracketed(count: Count) -> str:
    text = str(count)
    return text if text.replace("_", "").isalnum() else f"({text})"


@dataclass(frozen=True)
class Map:
    """The one request that an element may depend on, as a function of its index."""

    offset: Count
    digits: frozenset[Digit]

    def __str__(self) -> str:
        parts = [str(digit) for digit in sorted(self.digits, key=lambda d: (d.dim, str(d.stride)))]
        if self.offset != 0 or not parts:
            parts.append(str(self.offset))
        return " + ".join(parts)

    def at(self, dim: int) -> list[Digit]:
        """The digits of one dimension."""
        return [digit for digit in self.digits if digit.dim == dim]


def make(offset: Count, digits: Iterable[Digit]) -> Map:
    """A map in its one form: nothing that is always 0, neighbours merged, like digits added."""
    weights: dict[tuple[int, Count, Count], Count] = {}
    for digit in digits:
        key = (digit.dim, digit.stride, digit.extent)
        weights[key] = weights.get(key, 0) + digit.weight
    kept = [Digit(*key, weight) for key, weight in weights.items() if weight != 0 and key[2] != 1]
    merged = True
    while merged:
        merged = False
        for high in kept:
            for low in kept:
                if (
                    high is not low
                    and high.dim == low.dim
                    and high.stride == low.stride * low.extent
                    and high.weight == low.weight * low.extent
                ):
                    joint = Digit(low.dim, low.stride, low.extent * high.extent, low.weight)
                    kept = [one for one in kept if one is not high and one is not low] + [joint]
                    merged = True
                    break
            if merged:
                break
    return Map(offset, frozenset(kept))


def rows(dim: int, size: Count, group: int = 1) -> Map:
    """The map of a tensor whose rows along `dim` belong to requests, `group` rows to each.

    Raises:
        ValueError: if `group` does not divide the size.
    """
    requests = quotient(size, group)
    if requests is None:
        raise ValueError(f"{group} rows a request do not divide {size} rows")
    return make(0, [Digit(dim, group, requests)])


def moved(one: Map, places: Mapping[int, int]) -> Map:
    """`one` with its dimensions renamed."""
    return make(
        one.offset,
        (Digit(places[d.dim], d.stride, d.extent, d.weight) for d in one.digits),
    )


def reshaped(one: Map, old: Shape, new: Shape) -> Map | None:
    """The map after a row-major reshape; None where a digit is broken up.

    In the linear index a digit of dimension `d` has its stride times the product of the later
    sizes. It lies in the new dimension whose stride divides its own and which it does not leave;
    where it straddles the boundary between two, it is split, if both parts are whole.
    """
    steps = row_strides(new)
    digits: list[Digit] = []
    pending = [
        (digit.stride * product(old[digit.dim + 1 :]), digit.extent, digit.weight)
        for digit in one.digits
    ]
    while pending:
        stride, extent, weight = pending.pop()
        for dim in range(len(new) - 1, -1, -1):
            inner = quotient(stride, steps[dim])
            if inner is None:
                continue
            if divides(inner * extent, new[dim]):
                digits.append(Digit(dim, inner, extent, weight))
                break
            low = quotient(new[dim], inner)
            high = None if low is None or low == 1 else quotient(extent, low)
            if low is not None and high is not None:
                digits.append(Digit(dim, inner, low, weight))
                pending.append((stride * low, high, weight * low))
                break
        else:
            return None
    return make(one.offset, digits)


def sliced(
    one: Map, dim: int, old: Count, start: Count | None, step: int, size: Count
) -> Map | None:
    """The map after taking `start + step * i` along `dim`; None where that is not a map."""
    offset = one.offset
    digits: list[Digit] = []
    for digit in one.digits:
        if digit.dim != dim:
            digits.append(digit)
            continue
        part = None if start is None else _sliced_digit(digit, old, start, step, size)
        if part is None:
            return None
        offset = offset + part[0]
        digits += part[1]
    return make(offset, digits)


def _sliced_digit(
    digit: Digit, old: Count, start: Count, step: int, size: Count
) -> tuple[Count, list[Digit]] | None:
    """What a digit adds after a slice: a constant, and digits."""
    dim, stride, extent, weight = digit.dim, digit.stride, digit.extent, digit.weight
    period = stride * extent
    if stride == 1 and extent == old:
        return weight * start, [Digit(dim, 1, size, weight * step)]
    if step != 1 and size != 1:
        return None
    if divides(period, start) and divides(period, size):
        return 0, [digit]
    first, count = quotient(start, stride), quotient(size, stride)
    if period == old and first is not None and count is not None:
        return weight * first, [Digit(dim, stride, count, weight)]
    if size == 1 and all(isinstance(n, int) for n in (start, stride, extent)):
        return weight * ((start // stride) % extent), []  # type: ignore[operator]
    return (0, []) if size == 1 and start == 0 else None


def joined(
    parts: Sequence[tuple[Map, Count]], starts: Sequence[Count], dim: int, total: Count
) -> Map | None:
    """One map for parts laid one after another along `dim`, if they continue each other.

    Args:
        parts: the map of each part and its size along `dim`.
        starts: where each part begins.
        dim: the dimension.
        total: its size in the result.
    """
    others = {frozenset(d for d in one.digits if d.dim != dim) for one, _ in parts}
    weight = _common_weight(parts, starts, dim)
    if len(others) != 1 or weight is None:
        return None
    origins = {one.offset - weight * start for (one, _), start in zip(parts, starts, strict=True)}
    if len(origins) != 1:
        return None
    return make(origins.pop(), [*others.pop(), Digit(dim, 1, total, weight)])


def _common_weight(
    parts: Sequence[tuple[Map, Count]], starts: Sequence[Count], dim: int
) -> Count | None:
    """By how much the request changes from one index of `dim` to the next, in every part."""
    weights: set[Count] = set()
    for one, size in parts:
        own = one.at(dim)
        if own and (len(own) > 1 or own[0].stride != 1 or own[0].extent != size):
            return None
        if own:
            weights.add(own[0].weight)
        elif size != 1:
            return None
    if not weights and len(parts) > 1:
        (first, _), (second, _) = parts[:2]
        run = quotient(second.offset - first.offset, starts[1] - starts[0])
        if run is not None:
            weights.add(run)
    return weights.pop() if len(weights) == 1 else None


def periodic(one: Map, dim: int, size: Count) -> bool:
    """Whether the digits of `dim` repeat every `size` elements."""
    return all(divides(digit.stride * digit.extent, size) for digit in one.at(dim))


def diagonal(one: Map, first: int, second: int, rank: int) -> Map:
    """The map where two dimensions have one index, which comes last."""
    others = [dim for dim in range(rank) if dim not in (first, second)]
    places = {dim: place for place, dim in enumerate(others)}
    places[first] = places[second] = rank - 2
    return moved(one, places)
