"""Operators that pick or place elements by index, and those that order them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from planish.lowering.onnx import quantized
from planish.lowering.onnx.builder import Builder, Emitter, Operand
from planish.lowering.onnx.sizes import Extent, broadcast

aten = torch.ops.aten


def _embedding(b: Builder, table: ir.Value, ids: ir.Value) -> ir.Value:
    packed = quantized.blocks(b, b.node.args[0], quantized.GATHER_KERNEL)
    if packed is not None and packed.columns % packed.size == 0:
        return quantized.embedding(b, packed, ids)
    return b.op("Gather", table, ids, axis=0)


def _index_select(b: Builder, x: ir.Value, dim: int, index: ir.Value) -> ir.Value:
    return b.op("Gather", x, index, axis=dim)


def _gather(b: Builder, x: ir.Value, dim: int, index: ir.Value) -> ir.Value:
    return b.op("GatherElements", x, index, axis=dim)


def _index(b: Builder, x: ir.Value, indices: Sequence[ir.Value | None]) -> ir.Value:
    """`x[i, :, j]`: integer tensors that broadcast with one another, or whole dimensions."""
    places = [place for place, index in enumerate(indices) if index is not None]
    given = [_integer(b, index) for index in indices if index is not None]
    if len(given) == 1:
        return b.op("Gather", x, given[0], axis=places[0])
    common = broadcast(*(b.shape(index) for index in given))
    picked = b.op("GatherND", _indexed_first(b, x, places), _tuples(b, given, common))
    if places != list(range(places[0], places[-1] + 1)):
        return picked  # torch puts the indexed dimensions first where they were not neighbours
    b.typed(picked, b.dtype(x), (*common, *_others(b.shape(x), places)))
    depth, before = len(common), places[0]
    rank = len(b.result_shape)
    order = [*range(depth, depth + before), *range(depth), *range(depth + before, rank)]
    return b.transpose(picked, order)


def _integer(b: Builder, index: ir.Value) -> ir.Value:
    if b.dtype(index) == torch.bool:
        raise NotImplementedError(
            "indexing by truth values: the size of the result depends on data"
        )
    return b.cast(index, torch.int64)


def _indexed_first(b: Builder, x: ir.Value, places: Sequence[int]) -> ir.Value:
    return b.transpose(x, [*places, *_others(range(b.rank(x)), places)])


def _others(parts: Sequence[Any], places: Sequence[int]) -> list[Any]:
    return [part for place, part in enumerate(parts) if place not in places]


def _tuples(b: Builder, indices: Sequence[ir.Value], common: Sequence[Extent]) -> ir.Value:
    """Index tensors of a common shape, side by side in a new last dimension."""
    columns = [b.op("Unsqueeze", b.expand(index, common), [-1]) for index in indices]
    return b.op("Concat", *columns, axis=-1)


def _index_put(
    b: Builder,
    x: ir.Value,
    indices: Sequence[ir.Value | None],
    values: ir.Value,
    accumulate: bool,
) -> ir.Value:
    """`x[i, j] = values`, the indexed dimensions being the first ones."""
    first = indices[0]
    if len(indices) == 1 and first is not None and b.dtype(first) == torch.bool and not accumulate:
        mask = b.reshape(first, [*b.shape(first), *[1] * (b.rank(x) - b.rank(first))])
        return b.op("Where", mask, b.cast(values, b.result_dtype), x)
    places = [place for place, index in enumerate(indices) if index is not None]
    if places != list(range(len(places))):
        raise NotImplementedError("index_put past a whole dimension")
    given = [_integer(b, index) for index in indices if index is not None]
    common = broadcast(*(b.shape(index) for index in given))
    updates = b.expand(b.cast(values, b.result_dtype), (*common, *_others(b.shape(x), places)))
    reduction = "add" if accumulate else "none"
    return b.op("ScatterND", x, _tuples(b, given, common), updates, reduction=reduction)


def _scatter(reduction: str = "none") -> Emitter:
    def emit(b: Builder, x: ir.Value, dim: int, index: ir.Value, source: Operand) -> ir.Value:
        shape = b.shape(index)
        updates = b.operand(source, b.result_dtype)
        if not isinstance(source, ir.Value):
            updates = b.expand(updates, shape)
        elif not b.has_shape(
            updates, shape
        ):  # torch reads only as much of the source as there is index
            starts, axes = [0] * len(shape), list(range(len(shape)))
            updates = b.op("Slice", updates, starts, shape, axes)
        return b.op("ScatterElements", x, index, updates, axis=dim, reduction=reduction)

    return emit


def _index_add(
    b: Builder, x: ir.Value, dim: int, index: ir.Value, source: ir.Value, alpha: Any
) -> ir.Value:
    """Add rows of the source to the rows of x that an index names."""
    dtype = b.result_dtype
    updates = b.cast(source, dtype)
    if alpha != 1:
        updates = b.op("Mul", updates, b.operand(alpha, dtype))
    place = dim % b.rank(x)
    column = b.op(
        "Unsqueeze", b.cast(index, torch.int64), [d for d in range(b.rank(x)) if d != place]
    )
    b.typed(column, torch.int64, [b.shape(index)[0] if d == place else 1 for d in range(b.rank(x))])
    full = b.expand(column, b.shape(source))
    return b.op("ScatterElements", x, full, updates, axis=place, reduction="add")


def top(b: Builder, x: ir.Value, count: Extent, dim: int, largest: bool) -> list[ir.Value]:
    """The `count` greatest or least elements along a dimension, in order, and where they are."""
    return list(b.ops(2, "TopK", x, [count], axis=dim, largest=int(largest), sorted=1))


def _sort(b: Builder, x: ir.Value, dim: int, descending: bool) -> list[ir.Value]:
    return top(b, x, b.shape(x)[dim], dim, descending)


def _argsort(b: Builder, x: ir.Value, dim: int, descending: bool) -> ir.Value:
    return _sort(b, x, dim, descending)[1]


def _one_hot(b: Builder, x: ir.Value, classes: int) -> ir.Value:
    return b.op("OneHot", x, b.constant(classes), b.constant([0, 1]), axis=-1)


INDEXING: dict[Callable[..., Any], Emitter] = {
    aten.embedding.default: _embedding,
    aten.index_select.default: _index_select,
    aten.gather.default: _gather,
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten.scatter.src: _scatter(),
    aten.scatter.value: _scatter(),
    aten.scatter_add.default: _scatter("add"),
    aten.index_add.default: _index_add,
    aten.topk.default: top,
    aten.sort.default: _sort,
    aten.sort.stable: _sort,
    aten.argsort.default: _argsort,
    aten.one_hot.default: _one_hot,
}
"""How each operator that picks, places or orders elements is emitted."""
