"""The moves of random ONNX graphs that look up and write by indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from support.random_onnx import Builder, Held, Misfit, Move, has_batch
from support.random_onnx_moves import END, sliced, with_axes


def counted(b: Builder, x: Held, dim: int) -> Held:
    """0, 1, 2, … along a dimension."""
    size = b.call("Squeeze", b.size(x.dims[dim]), dims=(), dtype="int")
    zero, one = b.constant(0, np.int64), b.constant(1, np.int64)
    return b.call("Range", zero, size, one, dims=(x.dims[dim],), dtype="int")


def in_order(b: Builder, x: Held) -> Held:
    """x[0, 1, 2, …], perhaps shifted, halved or turned around."""
    x = b.fit(x, bool)
    dim = b.chance.randrange(x.rank)
    index = counted(b, x, dim)
    one = b.constant(1, np.int64)
    way = b.chance.randrange(2 if b.careful else 5)
    if way == 1:
        more = b.call("Add", index, one, dims=index.dims, dtype="int")
        index = b.call("Sub", more, one, dims=index.dims, dtype="int")
    elif way == 2:
        index = b.call("Sub", index, one, dims=index.dims, dtype="int")
    elif way == 3:
        index = b.call("Div", index, b.constant(2, np.int64), dims=index.dims, dtype="int")
    elif way == 4:
        index = sliced(b, index, 0, -1, -END, -1, index.dims[0])
    return b.call("Gather", x, index, dims=x.dims, axis=dim)


def looked_up(b: Builder, x: Held) -> Held:
    """x looked up by constants, or by integers of the requests."""
    dim = b.dim(x)
    if b.chance.random() < 0.5:
        index = b.integers(*b.chance.choice([[0, 1], [1, 0], [1, 1, 0], [0]]))
    else:
        index = b.pick(lambda one: one.dtype == "int")
    dims = (*x.dims[:dim], *index.dims, *x.dims[dim + 1 :])
    return b.call("Gather", x, index, dims=dims, axis=dim)


def embedded(b: Builder, x: Held) -> Held:  # noqa: ARG001
    index = b.pick(lambda one: one.dtype == "int")
    return b.call("Gather", b.weight(2, 4), index, dims=(*index.dims, 4), axis=0)


def one_hot(b: Builder, x: Held) -> Held:  # noqa: ARG001
    index = b.pick(lambda one: one.dtype == "int")
    depth, pair = b.constant(3, np.int64), b.weight(2)
    return b.call("OneHot", index, depth, pair, dims=(*index.dims, 3), axis=-1)


def _own_index(b: Builder, x: Held) -> Held:
    """0 or 1 for each element, by its sign."""
    truths = b.call("Greater", b.like(x), b.constant(0.0), dims=x.dims, dtype="bool")
    return b.call("Cast", truths, dims=x.dims, dtype="int", to=7)


def sorted_and_back(b: Builder, x: Held) -> Held:
    """Rows in the order of a key, something done to them, and each put where it was, or not."""
    x = b.fit(x, lambda dims: len(dims) == 2 and has_batch(dims[0]))
    key = b.call("Gather", x, b.constant(0, np.int64), dims=x.dims[:1], axis=1)
    order = _order(b, key)
    rows = b.call("Gather", x, order, dims=x.dims, axis=0)
    way = b.chance.randrange(1 if b.careful else 4)
    done = b.call("Tanh", rows, dims=x.dims)
    if way == 1:
        done = b.call("CumSum", rows, b.constant(0, np.int64), dims=x.dims)
    elif way == 2:
        done = b.call("Add", rows, b.like(x), dims=x.dims)
    elif way == 3:
        order = sliced(b, order, 0, -1, -END, -1, order.dims[0])
    if b.chance.random() < 0.5:
        column = Held(with_axes(b, "Unsqueeze", order, [1], ()).name, (*order.dims, 1), "int")
        return b.call("ScatterND", b.like(x), column, done, dims=x.dims)
    if b.careful or b.chance.random() < 0.7:
        order = _order(b, b.call("Cast", order, dims=order.dims, to=1))
    return b.call("Gather", done, order, dims=x.dims, axis=0)


def _order(b: Builder, key: Held) -> Held:
    """The places of the smallest key, of the next, and so on."""
    more: dict[str, Any] = {"axis": 0, "largest": 0}
    _, places = b.several("TopK", [key, b.size(key.dims[0])], [key.dims] * 2, "int", **more)
    return places


def gathered(b: Builder, x: Held) -> Held:
    dim = b.dim(x)
    if x.dims[dim] == 1:
        raise Misfit("one")
    return b.call("GatherElements", x, _own_index(b, x), dims=x.dims, axis=dim)


def scattered(b: Builder, x: Held) -> Held:
    dim = b.dim(x)
    if x.dims[dim] == 1:
        raise Misfit("one")
    more = {}
    if b.version >= 16 and b.chance.random() < 0.5:
        more = {"reduction": b.chance.choice(["add", "mul", "none"])}
    index = _own_index(b, x)
    return b.call("ScatterElements", x, index, b.like(x), dims=x.dims, axis=dim, **more)


def _rows(b: Builder, x: Held) -> Held:
    """An index of every row [B, 1]: its own, or a request's."""
    own = b.pick(lambda one: one.dtype == "int" and one.dims == x.dims[:1])
    index = own if not b.careful and b.chance.random() < 0.4 else counted(b, x, 0)
    return Held(with_axes(b, "Unsqueeze", index, [1], ()).name, (*index.dims, 1), "int")


def put(b: Builder, x: Held) -> Held:
    """Rows written where an index says."""
    x = b.fit(x, lambda dims: len(dims) > 1 and has_batch(dims[0]))
    more = {}
    if b.version >= 16 and b.chance.random() < 0.5:
        more = {"reduction": "add"}
    return b.call("ScatterND", x, _rows(b, x), b.like(x), dims=x.dims, **more)


def picked(b: Builder, x: Held) -> Held:
    """One position of each sample, by numbers of batch dimensions or by pairs of places."""
    x = b.fit(x, lambda dims: len(dims) > 1 and has_batch(dims[0]) and dims[1] != 1)
    own = b.pick(lambda one: one.dtype == "int" and one.dims == x.dims[:1])
    column = Held(with_axes(b, "Unsqueeze", own, [1], ()).name, (*own.dims, 1), "int")
    dims = (x.dims[0], *x.dims[2:])
    if b.version >= 12 and b.chance.random() < 0.5:
        return b.call("GatherND", x, column, dims=dims, batch_dims=1)
    places = b.call("Concat", _rows(b, x), column, dims=(x.dims[0], 2), dtype="int", axis=1)
    return b.call("GatherND", x, places, dims=dims)


def how_many(b: Builder, x: Held) -> Held:
    """A size that data decide, as a number."""
    operator = b.chance.choice(["NonZero", "Compress", "Unique"])
    if operator == "Compress":
        flat = b.reshape(x, [x.dims])
        some = [flat, b.call("Greater", flat, b.constant(0.0), dims=flat.dims, dtype="bool")]
    else:
        some = [x]
    found = b.call(operator, *some, dims=())
    number = b.call("Cast", b.call("Size", found, dims=(), dtype="int"), dims=(), to=1)
    return b.call("Add", x, number, dims=x.dims)


LOOKUPS: list[Move] = [
    in_order, in_order, looked_up, sorted_and_back, embedded, one_hot, gathered, scattered, put,
    picked, how_many,
]  # fmt: skip
