"""The moves of random graphs: one or a few nodes of each family of operators."""

from __future__ import annotations

import math
import operator
from functools import cache
from typing import Any

import torch
from torch import fx

from planish.ir.operators import schema
from planish.ir.rules.aten import pointwise
from support.random_graphs import Builder, Misfit, Move, aten, is_float
from support.refute import target

UNARY = "relu sigmoid tanh abs neg square gelu sign"
BINARY = "add.Tensor sub.Tensor mul.Tensor maximum minimum"
REDUCTIONS = (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default)
SCANS = (aten.cumsum.default, aten.cumprod.default, aten.softmax.int, aten.log_softmax.int)


@cache
def pointwise_of(operands: int) -> tuple[Any, ...]:
    """The pointwise operators that need so many tensors, and nothing else."""
    found = []
    for name in sorted(set(pointwise.RULES) - RANDOM):
        needed = [a for a in schema(target(name)).arguments if not a.has_default_value()]
        if [str(a.type) for a in needed] == ["Tensor"] * operands:
            found.append(target(name))
    return tuple(found)


RANDOM = {"aten.bernoulli.default", "aten.bernoulli.Tensor"}


def unary(b: Builder, x: fx.Node) -> fx.Node:
    return _pointwise(b, UNARY, x)


def binary(b: Builder, x: fx.Node) -> fx.Node:
    return _pointwise(b, BINARY, x, b.like(x))


def _pointwise(b: Builder, usual: str, *operands: fx.Node) -> fx.Node:
    """One of the usual operators or of the whole table, as floating-point numbers."""
    if b.chance.random() < 0.6:
        operator = target(f"aten.{b.chance.choice(usual.split())}")
    else:
        operator = b.chance.choice(pointwise_of(len(operands)))
    made = b.call(operator, *operands)
    return made if is_float(made) else b.call(aten.to.dtype, made, torch.float32)


def scaled(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(aten.mul.Tensor, x, b.weight(*_tail(b, x, 1)))


def _tail(b: Builder, x: fx.Node, most: int) -> list[int]:
    """The static sizes at the end of a shape."""
    sizes: list[int] = []
    for text in reversed(b.texts(x)):
        if not text.isdigit() or len(sizes) == most:
            break
        sizes.insert(0, int(text))
    if not sizes:
        raise Misfit("no static size at the end")
    return sizes


def fold(b: Builder, x: fx.Node) -> fx.Node:
    texts = b.texts(x)
    if len(texts) < 2:
        raise Misfit("nothing to fold")
    dim = b.chance.randrange(len(texts) - 1)
    shape = [b.size(t) for t in texts[:dim]]
    shape += [b.product(texts[dim : dim + 2]), *(b.size(t) for t in texts[dim + 2 :])]
    return b.call(aten.reshape.default, x, shape)


def unfold_dim(b: Builder, x: fx.Node) -> fx.Node:
    texts = b.texts(x)
    folded = [d for d, t in enumerate(texts) if "*" in t or (t.isdigit() and int(t) % 2 == 0)]
    if not folded:
        raise Misfit("nothing is folded")
    dim = b.chance.choice(folded)
    factors = texts[dim].split("*") if "*" in texts[dim] else ["2", str(int(texts[dim]) // 2)]
    if not b.careful:
        b.chance.shuffle(factors)
    parts = [factors[0], b.product(factors[1:])]
    if b.chance.random() < 0.5:
        parts.reverse()
    shape = [*texts[:dim], *parts, *texts[dim + 1 :]]
    return b.call(aten.view.default, _contiguous(b, x), [_argument(b, one) for one in shape])


def _argument(b: Builder, one: Any) -> Any:
    return b.size(one) if isinstance(one, str) else one


def _contiguous(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(aten.clone.default, x, memory_format=torch.contiguous_format)


def swapped_view(b: Builder, x: fx.Node) -> fx.Node:
    """A view with the sizes in another order, which is not a permutation."""
    if b.careful:
        raise Misfit("it mixes")
    shape = b.texts(x)
    b.chance.shuffle(shape)
    return b.call(aten.reshape.default, x, [b.size(text) for text in shape])


def permute(b: Builder, x: fx.Node) -> fx.Node:
    order = list(range(len(b.texts(x))))
    b.chance.shuffle(order)
    return b.call(aten.permute.default, x, order)


def part(b: Builder, x: fx.Node) -> fx.Node:
    dim = b.dim(x)
    start, step = b.chance.choice([0, 1, -1, -2]), b.chance.choice([1, 1, 1, 2])
    if not b.texts(x)[dim].isdigit():
        start, step = b.chance.choice([0, 0, 1, -1]), 1
    return b.call(aten.slice.Tensor, x, dim, start, 2**63 - 1, step)


def selected(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(aten.select.int, x, b.dim(x), b.chance.choice([0, 1, -1]))


def flip(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(aten.flip.default, x, [b.dim(x)])


def flip_twice(b: Builder, x: fx.Node) -> fx.Node:
    x = b.fit(x, bool)
    dim = b.chance.randrange(len(b.texts(x)))
    once = b.call(aten.flip.default, x, [dim])
    return b.call(aten.flip.default, b.call(aten.tanh.default, once), [dim])


def roll(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(aten.roll.default, x, [1], [b.dim(x)])


def join(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(aten.cat.default, [x, b.like(x)], b.dim(x))


def stack(b: Builder, x: fx.Node) -> fx.Node:
    place = b.chance.randint(0, len(b.texts(x)))
    return b.call(aten.stack.default, [x, b.like(x)], place)


def cut_and_join(b: Builder, x: fx.Node) -> fx.Node:
    x = b.fit(x, bool)
    dim = b.chance.randrange(len(b.texts(x)))
    first = b.call(aten.slice.Tensor, x, dim, 0, 1)
    rest = b.call(aten.slice.Tensor, x, dim, 1, 2**63 - 1)
    parts = [first, b.call(aten.relu.default, rest)]
    if not b.careful and b.chance.random() < 0.3:
        parts.reverse()
    return b.call(aten.cat.default, parts, dim)


def expand(b: Builder, x: fx.Node) -> fx.Node:
    texts = b.texts(x)
    place = b.chance.randint(0, len(texts))
    wide = b.call(aten.unsqueeze.default, x, place)
    size = b.size(b.chance.choice(["2", "T", "B"] if not b.careful else ["2", "T"]))
    shape = [*(b.size(t) for t in texts[:place]), size, *(b.size(t) for t in texts[place:])]
    return b.call(aten.expand.default, wide, shape)


def repeat(b: Builder, x: fx.Node) -> fx.Node:
    times = [1] * len(b.texts(x))
    times[b.dim(x)] = 2
    if b.chance.random() < 0.3:
        return b.call(aten.repeat_interleave.self_int, x, 2, b.chance.randrange(len(times)))
    return b.call(aten.repeat.default, x, times)


def windows(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(aten.unfold.default, x, b.dim(x), 2, b.chance.choice([1, 2]))


def strided(b: Builder, x: fx.Node) -> fx.Node:
    """Memory read again: of what was just made, or of a permuted view of it."""
    x = b.fit(x, lambda texts: bool(texts) and all(t.isdigit() for t in texts[1:]))
    texts = b.texts(x)
    made = b.call(aten.tanh.default, x)
    numbers = [int(t) for t in texts[1:]]
    steps = [math.prod(numbers[n:]) for n in range(len(numbers) + 1)]
    return b.call(aten.as_strided.default, made, [b.size(texts[0]), *numbers], steps, 0)


def reduce(b: Builder, x: fx.Node) -> fx.Node:
    keep = b.chance.random() < 0.5
    return b.call(b.chance.choice(REDUCTIONS), x, [b.dim(x)], keep)


def normalize(b: Builder, x: fx.Node) -> fx.Node:
    dim = b.dim(x)
    mean = b.call(aten.mean.dim, x, [dim], True)
    spread = b.call(
        aten.add.Tensor, b.call(aten.std.correction, x, [dim], correction=0, keepdim=True), 1.0
    )
    return b.call(aten.div.Tensor, b.call(aten.sub.Tensor, x, mean), spread)


def along(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(b.chance.choice(SCANS), x, b.dim(x))


def order(b: Builder, x: fx.Node) -> fx.Node:
    pair = b.call(aten.sort.default, x, b.dim(x))
    return b.call(operator.getitem, pair, 0)


def best(b: Builder, x: fx.Node) -> fx.Node:
    dim = b.dim(x)
    if b.texts(x)[dim] == "1":
        raise Misfit("one")
    pair = b.call(aten.topk.default, x, 2, dim)
    if b.chance.random() < 0.5:
        return b.call(operator.getitem, pair, 0)
    places = b.call(operator.getitem, pair, 1)
    return b.call(aten.gather.default, x, dim, places)


def layer_norm(b: Builder, x: fx.Node) -> fx.Node:
    width = _tail(b, x, b.chance.choice([1, 2]))
    weight = b.weight(*width)
    result = b.call(aten.native_layer_norm.default, x, width, weight, None, 1e-5)
    return b.call(operator.getitem, result, 0)


def batch_norm(b: Builder, x: fx.Node) -> fx.Node:
    x = b.fit(x, lambda texts: len(texts) > 1 and texts[1].isdigit())
    texts = b.texts(x)
    n = int(texts[1])
    ones = b.stored(torch.ones(n))
    training = not b.careful and b.chance.random() < 0.4
    return b.call(
        aten.batch_norm.default, x, ones, None, b.stored(torch.zeros(n)), b.stored(torch.ones(n)),
        training, 0.0, 1e-5, False,
    )  # fmt: skip


def linear(b: Builder, x: fx.Node) -> fx.Node:
    (width,) = _tail(b, x, 1)
    return b.call(aten.linear.default, x, b.weight(4, width), b.weight(4))


def matmul(b: Builder, x: fx.Node) -> fx.Node:
    """x with another value of its shape, over the last dimension."""
    if len(b.texts(x)) < 2:
        raise Misfit("no matrix")
    other = b.call(aten.transpose.int, b.like(x), -1, -2)
    return b.call(aten.matmul.default, x, other)


def attention(b: Builder, x: fx.Node) -> fx.Node:
    x = b.fit(x, lambda texts: len(texts) in (3, 4))
    return b.call(aten.scaled_dot_product_attention.default, x, b.like(x), b.like(x))


def einsum(b: Builder, x: fx.Node) -> fx.Node:
    x = b.fit(x, bool)
    letters = "abcde"[: len(b.texts(x))]
    kept = [letter for letter, t in zip(letters, b.texts(x), strict=True) if "B" in t]
    if not b.careful:
        kept = b.chance.sample(letters, b.chance.randint(1, len(letters)))
    rest = [letter for letter in letters if letter not in kept and b.chance.random() < 0.5]
    result = "".join(dict.fromkeys([*kept, *rest]))
    return b.call(aten.einsum.default, f"{letters},{letters}->{result}", [x, b.like(x)])


def convolution(b: Builder, x: fx.Node) -> fx.Node:
    x = b.fit(x, lambda texts: len(texts) == 3)
    if not b.texts(x)[1].isdigit():
        order = [0, 2, 1] if b.texts(x)[2].isdigit() else [1, 0, 2]
        x = b.call(aten.permute.default, x, order)
    n = int(b.texts(x)[1]) if b.texts(x)[1].isdigit() else 0
    if not n:
        raise Misfit("no channels")
    groups = b.chance.choice([1, n])
    weight = b.weight(n, n // groups, 1 if b.chance.random() < 0.5 else 3)
    pad = [(b.texts(weight)[2] == "3" and 1) or 0]
    return b.call(aten.convolution.default, x, weight, None, [1], pad, [1], False, [0], groups)


def grouped(b: Builder, x: fx.Node) -> fx.Node:
    """Each sample convolved with its own filters: the batch is folded into the groups."""
    x = b.fit(x, lambda texts: texts == ["B", "T", "4"])
    flat = b.call(
        aten.reshape.default,
        b.call(aten.permute.default, x, [0, 2, 1]),
        [1, b.product(["B", "4"]), b.size("T")],
    )
    own = b.like(x)
    filters = b.call(aten.mean.dim, own, [1])
    weight = b.call(aten.reshape.default, filters, [b.product(["B", "4"]), 1, 1])
    groups = b.product(["B", "4"])
    out = b.call(aten.convolution.default, flat, weight, None, [1], [0], [1], False, [0], groups)
    return b.call(aten.reshape.default, out, [b.size("B"), 4, b.size("T")])


def pad(b: Builder, x: fx.Node) -> fx.Node:
    rank = len(b.texts(x))
    dim = b.dim(x)
    pads = [0, 0] * (rank - dim)
    pads[-2:] = b.chance.choice([[1, 1], [0, 2], [-1, 1], [1, -1]])
    return b.call(aten.constant_pad_nd.default, x, pads)


def triangle(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(b.chance.choice((aten.tril.default, aten.triu.default)), x)


def diagonal(b: Builder, x: fx.Node) -> fx.Node:
    texts = b.texts(x)
    pairs = [
        (i, j)
        for i in range(len(texts))
        for j in range(len(texts))
        if i != j and texts[i] == texts[j]
    ]
    if not pairs:
        raise Misfit("no two alike")
    return b.call(aten.diagonal.default, x, 0, *b.chance.choice(pairs))


MOVES: list[Move] = [
    along, order, flip, best, swapped_view,
    unary, binary, binary, scaled, fold, fold, unfold_dim, unfold_dim, swapped_view, permute,
    permute, part, selected, flip, flip_twice, roll, join, stack, cut_and_join, expand, repeat,
    windows, strided, reduce, reduce, normalize, along, order, best, layer_norm, batch_norm,
    linear, matmul, matmul, attention, einsum, convolution, grouped, pad, triangle, diagonal,
]  # fmt: skip
