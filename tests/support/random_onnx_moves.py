"""The moves of random ONNX graphs by element and by place: pointwise operators, movement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.ir.flow.polynomial import Count
from support.random_onnx import Builder, Dims, Held, Misfit, Move, has_batch, is_float

UNARY = """
    Abs Neg Relu LeakyRelu Elu Selu Sigmoid Tanh Exp Log Sqrt Floor Ceil Round Sign Erf Softplus
    Softsign HardSigmoid ThresholdedRelu Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh
    Reciprocal Identity Shrink
"""
LATER = {"HardSwish": 14, "Mish": 18, "Gelu": 20, "Celu": 12}
BINARY = "Add Sub Mul Div Pow Max Min Mean Sum"
END = 2**63 - 1


def unary(b: Builder, x: Held) -> Held:
    known = [*UNARY.split(), *(name for name, version in LATER.items() if b.version >= version)]
    return b.call(b.chance.choice(known), x, dims=x.dims)


def _beside(b: Builder, x: Held) -> Held:
    """A value or a constant that lies along the last dimensions of another."""

    def fits(one: Held) -> bool:
        tail = x.dims[x.rank - one.rank :]
        return is_float(one) and one.rank <= x.rank and _broadcasts(one.dims, tail)

    if b.chance.random() < 0.3:
        return b.weight(*(size for size in x.dims[-1:] if isinstance(size, int)))
    return b.pick(fits)


def _broadcasts(one: Dims, whole: Dims) -> bool:
    return all(size in (1, other) for size, other in zip(one, whole, strict=True))


def binary(b: Builder, x: Held) -> Held:
    pair = [x, _beside(b, x)]
    b.chance.shuffle(pair)
    return b.call(b.chance.choice(BINARY.split()), *pair, dims=x.dims)


def remainder(b: Builder, x: Held) -> Held:
    return b.call("Mod", x, b.weight(), dims=x.dims, fmod=1)


def leaky(b: Builder, x: Held) -> Held:
    return b.call("PRelu", x, _beside(b, x), dims=x.dims)


def clipped(b: Builder, x: Held) -> Held:
    return b.call("Clip", x, b.constant(-1.0), b.constant(1.0), dims=x.dims)


def _truth(b: Builder, x: Held) -> Held:
    """Truth values of the shape of x."""
    operator = b.chance.choice(["Greater", "Less", "Equal", "IsNaN", "IsInf"])
    if operator in ("IsNaN", "IsInf"):
        made = b.call(operator, x, dims=x.dims, dtype="bool")
    else:
        made = b.call(operator, x, _beside(b, x), dims=x.dims, dtype="bool")
    if b.chance.random() < 0.3:
        made = b.call("Not", made, dims=x.dims, dtype="bool")
    if b.chance.random() < 0.3:
        made = b.call(b.chance.choice(["And", "Or", "Xor"]), made, made, dims=x.dims, dtype="bool")
    return made


def selected(b: Builder, x: Held) -> Held:
    """Where, by a comparison, by a mask of the requests, or by a constant."""
    way = b.chance.randrange(3)
    last = x.dims[-1] if x.dims else 0
    if way == 0 and isinstance(last, int):
        mask = b.constant(np.arange(last) >= b.chance.randrange(2), np.bool_)
    elif way == 1:
        mask = b.pick(lambda one: one.dtype == "bool" and one.dims == x.dims)
    else:
        mask = _truth(b, x)
    return b.call("Where", mask, x, b.like(x), dims=x.dims)


def cast(b: Builder, x: Held) -> Held:
    kind, dtype = b.chance.choice([("bool", 9), ("float", 11), ("float", 10), ("float", 1)])
    made = b.call("Cast", x, dims=x.dims, dtype=kind, to=dtype)
    return b.call("Cast", made, dims=x.dims, to=1)


def upper(b: Builder, x: Held) -> Held:
    if x.rank < 2 or b.version < 14:
        raise Misfit("no matrix")
    return b.call("Trilu", x, dims=x.dims, upper=b.chance.randrange(2))


def transpose(b: Builder, x: Held) -> Held:
    if not x.dims:
        raise Misfit("a number")
    order = list(range(x.rank))
    b.chance.shuffle(order)
    return b.call("Transpose", x, dims=tuple(x.dims[dim] for dim in order), perm=order)


def fold(b: Builder, x: Held) -> Held:
    if x.rank < 2:
        raise Misfit("nothing to fold")
    dim = b.chance.randrange(x.rank - 1)
    parts: list[Sequence[Count]] = [(size,) for size in x.dims]
    parts[dim : dim + 2] = [x.dims[dim : dim + 2]]
    return b.reshape(x, parts)


def unfold(b: Builder, x: Held) -> Held:
    """A dimension that is a product of two, perhaps in the wrong order, or halved."""
    pairs = [(dim, factors) for dim, size in enumerate(x.dims) for factors in _factors(b, size)]
    if not pairs:
        raise Misfit("nothing is folded")
    dim, factors = b.chance.choice(pairs)
    if not b.careful:
        b.chance.shuffle(factors)
    parts: list[Sequence[Count]] = [(size,) for size in x.dims]
    parts[dim : dim + 1] = [(factor,) for factor in factors]
    return b.reshape(x, parts)


def _factors(b: Builder, size: Count) -> list[list[Count]]:
    if isinstance(size, int):
        return [[2, size // 2], [size // 2, 2]] if size % 2 == 0 else []
    sizes = {one for held in b.values for one in held.dims}
    ordered = sorted(sizes, key=str)
    return [[p, q] for p in ordered for q in ordered if p * q == size]


def swapped(b: Builder, x: Held) -> Held:
    """Other sizes for the same elements, which is no transposition."""
    if b.careful:
        raise Misfit("it mixes")
    dims = list(x.dims)
    b.chance.shuffle(dims)
    return b.reshape(x, [(size,) for size in dims])


def flattened(b: Builder, x: Held) -> Held:
    axis = b.chance.randint(0, x.rank)
    dims = _products(x.dims[:axis], x.dims[axis:])
    return b.call("Flatten", x, dims=dims, axis=axis)


def _products(*several: Dims) -> Dims:
    found: list[Count] = []
    for dims in several:
        whole: Count = 1
        for size in dims:
            whole = whole * size
        found.append(whole)
    return tuple(found)


def with_axes(b: Builder, operator: str, x: Held, axes: Sequence[int], dims: Dims) -> Held:
    """Axes as an input, as an attribute before opset 13."""
    if b.version < 13:
        return b.call(operator, x, dims=dims, axes=list(axes))
    return b.call(operator, x, b.integers(*axes), dims=dims)


def unsqueeze(b: Builder, x: Held) -> Held:
    place = b.chance.randint(0, x.rank)
    return with_axes(b, "Unsqueeze", x, [place], (*x.dims[:place], 1, *x.dims[place:]))


def squeeze(b: Builder, x: Held) -> Held:
    ones = [dim for dim, size in enumerate(x.dims) if size == 1]
    if not ones:
        raise Misfit("no dimension of one")
    dim = b.chance.choice(ones)
    return with_axes(b, "Squeeze", x, [dim], (*x.dims[:dim], *x.dims[dim + 1 :]))


def sliced(b: Builder, x: Held, dim: int, start: int, end: int, step: int, size: Count) -> Held:
    """x[start:end:step] along a dimension."""
    places = (b.integers(one) for one in (start, end, dim, step))
    return b.call("Slice", x, *places, dims=(*x.dims[:dim], size, *x.dims[dim + 1 :]))


def part(b: Builder, x: Held) -> Held:
    dim = b.dim(x)
    size = x.dims[dim]
    if not isinstance(size, int):
        way = b.chance.choice([(0, END, size), (1, END, size - 1), (0, -1, size - 1), (0, 2, 2)])
        return sliced(b, x, dim, way[0], way[1], 1, way[2])
    start, step = b.chance.randrange(size), b.chance.choice([1, 1, 2])
    return sliced(b, x, dim, start, END, step, len(range(start, size, step)))


def flip(b: Builder, x: Held) -> Held:
    dim = b.dim(x)
    return sliced(b, x, dim, -1, -END, -1, x.dims[dim])


def flip_twice(b: Builder, x: Held) -> Held:
    x = b.fit(x, bool)
    dim = b.chance.randrange(x.rank)
    once = b.call("Tanh", sliced(b, x, dim, -1, -END, -1, x.dims[dim]), dims=x.dims)
    return sliced(b, once, dim, -1, -END, -1, x.dims[dim])


def roll(b: Builder, x: Held) -> Held:
    return _parts(b, x, b.dim(x), in_order=False)


def cut_and_join(b: Builder, x: Held) -> Held:
    x = b.fit(x, bool)
    return _parts(b, x, b.chance.randrange(x.rank), in_order=b.careful or b.chance.random() < 0.7)


def _parts(b: Builder, x: Held, dim: int, in_order: bool) -> Held:
    """The first element and the rest, joined again."""
    first = sliced(b, x, dim, 0, 1, 1, 1)
    rest = sliced(b, x, dim, 1, END, 1, x.dims[dim] - 1)
    pair = [first, b.call("Relu", rest, dims=rest.dims)]
    return b.call("Concat", *(pair if in_order else pair[::-1]), dims=x.dims, axis=dim)


def join(b: Builder, x: Held) -> Held:
    dim = b.dim(x)
    dims = (*x.dims[:dim], x.dims[dim] * 2, *x.dims[dim + 1 :])
    return b.call("Concat", x, b.like(x), dims=dims, axis=dim)


def split(b: Builder, x: Held) -> Held:
    dim = b.dim(x)
    size = x.dims[dim]
    if not isinstance(size, int) or size % 2:
        raise Misfit("no two halves")
    halves = [(*x.dims[:dim], size // 2, *x.dims[dim + 1 :])] * 2
    if b.version < 13:
        pair = b.several("Split", [x], halves, axis=dim, split=[size // 2] * 2)
    else:
        pair = b.several("Split", [x, b.integers(size // 2, size // 2)], halves, axis=dim)
    return b.chance.choice(pair)


def expand(b: Builder, x: Held) -> Held:
    place = b.chance.randint(0, x.rank)
    sizes: list[Count] = [2, *(one for held in b.values[:4] for one in held.dims[:2])]
    size = b.chance.choice([one for one in sizes if not (b.careful and has_batch(one))])
    wide = with_axes(b, "Unsqueeze", x, [place], (*x.dims[:place], 1, *x.dims[place:]))
    dims = (*x.dims[:place], size, *x.dims[place:])
    return b.call("Expand", wide, b.shape([(one,) for one in dims]), dims=dims)


def tile(b: Builder, x: Held) -> Held:
    dim = b.dim(x)
    times = b.integers(*(2 if one == dim else 1 for one in range(x.rank)))
    return b.call("Tile", x, times, dims=(*x.dims[:dim], x.dims[dim] * 2, *x.dims[dim + 1 :]))


def pad(b: Builder, x: Held) -> Held:
    dim = b.dim(x)
    before, after = b.chance.choice([(1, 1), (0, 2), (1, -1), (-1, 1)])
    pads = [0] * (2 * x.rank)
    pads[dim], pads[x.rank + dim] = before, after
    mode = "constant" if min(before, after) < 0 else b.chance.choice(["constant", "edge"])
    size = x.dims[dim] + (before + after)
    dims = (*x.dims[:dim], size, *x.dims[dim + 1 :])
    return b.call("Pad", x, b.integers(*pads), dims=dims, mode=mode)


def reversed_parts(b: Builder, x: Held) -> Held:
    """The first positions of each sample backwards, as many as it says."""
    x = b.fit(x, lambda dims: len(dims) > 1 and has_batch(dims[0]) and dims[1] != 1)
    if not isinstance(x.dims[1], int) and x.dims[1] != b.values[0].dims[1]:
        raise Misfit("of unknown length")
    own = b.pick(lambda one: one.dtype == "int" and one.dims == x.dims[:1])
    lengths = b.call("Add", own, b.constant(1, np.int64), dims=own.dims, dtype="int")
    return b.call("ReverseSequence", x, lengths, dims=x.dims, batch_axis=0, time_axis=1)


PLACES: list[Move] = [
    unary, unary, unary, binary, binary, binary, remainder, leaky, clipped, selected, cast, upper,
    transpose, transpose, fold, fold, unfold, unfold, swapped, flattened, unsqueeze, squeeze, part,
    flip, flip_twice, roll, cut_and_join, join, split, expand, tile, pad, reversed_parts,
]  # fmt: skip
