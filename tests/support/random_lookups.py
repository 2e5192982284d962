"""The moves of random graphs that look up, write, select by masks, and quantize."""

from __future__ import annotations

import torch
from torch import fx

from support.random_graphs import Builder, Misfit, Move, aten


def _counting(b: Builder, text: str) -> fx.Node:
    return b.call(aten.arange.default, b.size(text), device=torch.device("cpu"))


def _own(b: Builder, dtype: torch.dtype, shape: list[str]) -> fx.Node:
    return b.pick(lambda one: one.meta["val"].dtype == dtype and b.texts(one) == shape)


def in_order(b: Builder, x: fx.Node) -> fx.Node:
    """x[arange] along a dimension, perhaps shifted, scaled, reversed, or cast."""
    x = b.fit(x, bool)
    dim = b.chance.randrange(len(b.texts(x)))
    text = b.texts(x)[dim]
    index = _counting(b, text)
    way = b.chance.randrange(2 if b.careful else 6)
    if way == 1:
        index = b.call(aten.add.Tensor, b.call(aten.sub.Tensor, index, 1), 1)
    elif way == 2:
        index = b.call(aten.remainder.Scalar, b.call(aten.add.Tensor, index, 1), b.size(text))
    elif way == 3:
        index = b.call(aten.flip.default, index, [0])
    elif way == 4:
        index = b.call(aten.div.Tensor_mode, index, 2, rounding_mode="floor")
    elif way == 5:
        index = b.call(aten.sub.Tensor, index, 1)
    return b.call(aten.index.Tensor, x, [*[None] * dim, index])


def pooled(b: Builder, x: fx.Node) -> fx.Node:
    """x[arange(B), own index]: one position of each sample."""
    x = b.fit(x, lambda texts: len(texts) > 1 and texts[0] == "B" and texts[1] != "1")
    own = _own(b, torch.int64, ["B"])
    return b.call(aten.index.Tensor, x, [_counting(b, "B"), own])


def looked_up(b: Builder, x: fx.Node) -> fx.Node:
    """x looked up along a dimension by integers of the samples, or by constants."""
    dim = b.dim(x)
    if b.chance.random() < 0.5:
        index = b.stored(torch.tensor(b.chance.choice([[0, 1], [1, 0], [1, 1, 0], [0]])))
        return b.call(aten.index_select.default, x, dim, index)
    ints = b.pick(lambda one: one.meta["val"].dtype == torch.int64)
    return b.call(aten.index.Tensor, x, [*[None] * dim, ints])


def sorted_and_back(b: Builder, x: fx.Node) -> fx.Node:
    """Rows in the order of a key, something done to them, and each put where it was, or not."""
    x = b.fit(x, lambda texts: len(texts) > 1 and texts[0] == "B")
    key = x
    for _ in b.texts(x)[1:]:
        key = b.call(aten.select.int, key, -1, 0)
    order = b.call(aten.argsort.default, key)
    sorted_rows = b.call(aten.index.Tensor, x, [order])
    way = b.chance.randrange(2 if b.careful else 5)
    done = b.call(aten.tanh.default, sorted_rows)
    if way == 2:
        done = b.call(aten.cumsum.default, sorted_rows, 0)
    elif way == 3:
        done = b.call(aten.add.Tensor, sorted_rows, b.like(x))
    elif way == 4:
        order = b.call(aten.flip.default, order, [0])
    if b.chance.random() < 0.5:
        empty = b.call(aten.zeros_like.default, x)
        return b.call(aten.index_put.default, empty, [order], done, b.chance.random() < 0.2)
    if b.careful or b.chance.random() < 0.7:
        order = b.call(aten.argsort.default, order)
    return b.call(aten.index.Tensor, done, [order])


def gathered(b: Builder, x: fx.Node) -> fx.Node:
    dim = b.dim(x)
    other = b.like(x)
    index = b.call(aten.to.dtype, b.call(aten.gt.Scalar, other, 0), torch.int64)
    if b.texts(x)[dim] == "1":
        raise Misfit("one")
    return b.call(aten.gather.default, x, dim, index)


def scattered(b: Builder, x: fx.Node) -> fx.Node:
    dim = b.dim(x)
    if b.texts(x)[dim] == "1":
        raise Misfit("one")
    index = b.call(aten.to.dtype, b.call(aten.gt.Scalar, b.like(x), 0), torch.int64)
    operator = b.chance.choice((aten.scatter_add.default, aten.scatter.src))
    return b.call(operator, x, dim, index, b.like(x))


def put(b: Builder, x: fx.Node) -> fx.Node:
    """Writes of each sample at its own position, or wherever an index says."""
    x = b.fit(x, lambda texts: len(texts) > 1 and texts[0] == "B" and texts[1] != "1")
    own = _own(b, torch.int64, ["B"])
    rows = own if not b.careful and b.chance.random() < 0.4 else _counting(b, "B")
    value = b.call(aten.select.int, b.like(x), 1, 0)
    return b.call(aten.index_put.default, x, [rows, own], value, b.chance.random() < 0.5)


def added(b: Builder, x: fx.Node) -> fx.Node:
    dim = b.dim(x)
    source = b.call(aten.slice.Tensor, b.like(x), dim, 0, 2)
    if b.texts(source)[dim] != "2":
        raise Misfit("another size")
    index = b.stored(torch.tensor(b.chance.choice([[0, 1], [1, 0], [1, 1]])))
    operator = b.chance.choice((aten.index_add.default, aten.index_copy.default))
    return b.call(operator, x, dim, index, source)


def written(b: Builder, x: fx.Node) -> fx.Node:
    dim = b.dim(x)
    source = b.call(aten.slice.Tensor, b.like(x), dim, 0, 1)
    return b.call(aten.slice_scatter.default, x, source, dim, 1, 2)


def chosen(b: Builder, x: fx.Node) -> fx.Node:
    """where, by a comparison of values or by a constant mask."""
    other = b.like(x)
    if b.chance.random() < 0.5:
        mask = b.call(aten.gt.Tensor, b.like(x), other)
    else:
        width = b.texts(x)[-1:]
        if not width or not width[0].isdigit():
            raise Misfit("no static size")
        same = b.chance.random() < 0.5
        mask = b.stored(torch.arange(int(width[0])) >= (0 if same else 1))
    return b.call(aten.where.self, mask, x, other)


def masked(b: Builder, x: fx.Node) -> fx.Node:
    mask = _own(b, torch.bool, ["B", "T"])
    texts = b.texts(x)
    if texts[:2] != ["B", "T"]:
        raise Misfit("another shape")
    for _ in texts[2:]:
        mask = b.call(aten.unsqueeze.default, mask, -1)
    return b.call(aten.masked_fill.Scalar, x, mask, b.chance.choice([0.0, -1e9]))


def embedded(b: Builder, x: fx.Node) -> fx.Node:  # noqa: ARG001
    ints = b.pick(lambda one: one.meta["val"].dtype == torch.int64)
    table = b.stored(torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.0, 3.0, 1.0, -2.0]]))
    return b.call(aten.embedding.default, table, ints)


def quantized(b: Builder, x: fx.Node) -> fx.Node:
    """Dynamic quantization by the largest number along a dimension, or of all."""
    size = b.call(aten.abs.default, x)
    if not b.careful and b.chance.random() < 0.3:
        largest = b.call(aten.max.default, size)
    else:
        largest = b.call(aten.amax.default, size, [b.dim(x)], True)
    scale = b.call(aten.add.Tensor, b.call(aten.div.Tensor, largest, 127.0), 1e-6)
    codes = b.call(aten.round.default, b.call(aten.div.Tensor, x, scale))
    clamped = b.call(aten.clamp.default, codes, -127, 127)
    return b.call(aten.mul.Tensor, clamped, scale)


def noise(b: Builder, x: fx.Node) -> fx.Node:
    return b.call(aten.add.Tensor, x, b.call(aten.rand_like.default, x))


LOOKUPS: list[Move] = [
    in_order, in_order, pooled, looked_up, sorted_and_back, gathered, scattered, put, added,
    written, chosen, masked, embedded, quantized, noise,
]  # fmt: skip
