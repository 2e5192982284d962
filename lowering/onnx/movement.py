"""Operators that move elements without computing: views, concatenation, slices, padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from planish.lowering.onnx.builder import Builder, Emitter, Number
from planish.lowering.onnx.sizes import Extent

aten = torch.ops.aten

END = torch.iinfo(torch.int64).max
"""The end of a slice that goes as far as there is something."""


def _reshape(b: Builder, x: ir.Value, *_: Any) -> ir.Value:
    """Any view: the shape of the result says all."""
    return b.reshape(x, b.result_shape)


def _expand(b: Builder, x: ir.Value, *_: Any) -> ir.Value:
    return b.expand(x, b.result_shape)


def _unsqueeze(b: Builder, x: ir.Value, dim: int) -> ir.Value:
    return b.op("Unsqueeze", x, [dim])


def _squeeze(b: Builder, x: ir.Value, *arguments: Any) -> ir.Value:
    """Drop those of the named dimensions that have one element; torch leaves the others."""
    named = arguments[0] if arguments else range(b.rank(x))
    dims = [named] if isinstance(named, int) else named
    shape, rank = b.shape(x), b.rank(x)
    gone = [
        dim % rank for dim in dims if not isinstance(shape[dim], torch.SymInt) and shape[dim] == 1
    ]
    return b.op("Squeeze", x, sorted(gone)) if gone else x


def _transpose(b: Builder, x: ir.Value, one: int, other: int) -> ir.Value:
    order = list(range(b.rank(x)))
    order[one], order[other] = order[other], order[one]
    return b.transpose(x, order)


def _reverse_dimensions(b: Builder, x: ir.Value) -> ir.Value:
    return b.transpose(x, list(reversed(range(b.rank(x)))))


def _permute(b: Builder, x: ir.Value, dims: Sequence[int]) -> ir.Value:
    return b.transpose(x, [dim % b.rank(x) for dim in dims])


def _move_dimension(b: Builder, x: ir.Value, source: Any, to: Any) -> ir.Value:
    rank = b.rank(x)
    sources = [dim % rank for dim in ([source] if isinstance(source, int) else source)]
    places = [dim % rank for dim in ([to] if isinstance(to, int) else to)]
    moved = dict(zip(places, sources, strict=True))
    rest = iter(dim for dim in range(rank) if dim not in sources)
    return b.transpose(x, [moved[dim] if dim in moved else next(rest) for dim in range(rank)])


def _repeat(b: Builder, x: ir.Value, times: Sequence[Extent]) -> ir.Value:
    longer = len(times) - b.rank(x)
    value = b.reshape(x, [1] * longer + list(b.shape(x))) if longer else x
    return b.op("Tile", value, times)


def _repeat_interleave(
    b: Builder,
    x: ir.Value,
    times: Extent,
    dim: int | None,
    *_: Any,
) -> ir.Value:
    """Each element `times` times in a row: a new dimension, expanded, then joined."""
    shape = list(b.shape(x))
    place = len(shape) if dim is None else dim % len(shape) + 1
    apart = b.reshape(x, [*shape[:place], 1, *shape[place:]])
    spread = b.expand(apart, [*shape[:place], times, *shape[place:]])
    return b.reshape(spread, b.result_shape)


def _cat(b: Builder, parts: Sequence[ir.Value], dim: int) -> ir.Value:
    dtype = b.result_dtype
    return b.op("Concat", *(b.cast(part, dtype) for part in parts), axis=dim)


def _stack(b: Builder, parts: Sequence[ir.Value], dim: int) -> ir.Value:
    dtype, place = b.result_dtype, dim % b.node.meta["val"].dim()
    raised = (b.op("Unsqueeze", b.cast(part, dtype), [place]) for part in parts)
    return b.op("Concat", *raised, axis=place)


def sliced(
    b: Builder, x: ir.Value, dim: int, start: Extent, end: Extent, step: int = 1
) -> ir.Value:
    """Part of a tensor along one dimension; bounds beyond its ends are moved to them."""
    return b.op("Slice", x, [start], [end], [dim], [step])


def _slice(
    b: Builder,
    x: ir.Value,
    dim: int,
    start: Any,
    end: Any,
    step: int,
) -> ir.Value:
    return sliced(b, x, dim, 0 if start is None else start, END if end is None else end, step)


def _narrow(
    b: Builder,
    x: ir.Value,
    dim: int,
    start: Extent,
    length: Extent,
) -> ir.Value:
    return sliced(b, x, dim, start, start + length)


def _select(b: Builder, x: ir.Value, dim: int, index: Extent) -> ir.Value:
    return b.op("Gather", x, b.scalar(index), axis=dim)


def _split(b: Builder, x: ir.Value, _how: Any, dim: int = 0) -> list[ir.Value]:
    """Any division into parts: the shapes of the results say how."""
    lengths = [part.shape[dim] for part in b.node.meta["val"]]
    return list(b.ops(len(lengths), "Split", x, lengths, axis=dim))


def _unbind(b: Builder, x: ir.Value, dim: int) -> list[ir.Value]:
    return [
        b.op("Gather", x, b.constant(index), axis=dim) for index in range(len(b.node.meta["val"]))
    ]


def _flip(b: Builder, x: ir.Value, dims: Sequence[int]) -> ir.Value:
    last, first = [-1] * len(dims), [torch.iinfo(torch.int64).min] * len(dims)
    return b.op("Slice", x, last, first, dims, last)


def _roll(
    b: Builder,
    x: ir.Value,
    shifts: Any,
    dims: Any = (),
) -> ir.Value:
    """Each dimension in two pieces, joined the other way round."""
    if not dims:
        raise NotImplementedError("roll over all dimensions at once")
    value = x
    for shift, dim in zip(shifts, dims, strict=True):
        tail = sliced(b, value, dim, -shift, END)
        value = b.op("Concat", tail, sliced(b, value, dim, 0, -shift), axis=dim)
    return value


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad(
    b: Builder,
    x: ir.Value,
    amounts: Sequence[Extent],
    mode: str = "constant",
    number: Number | None = None,
) -> ir.Value:
    """Torch gives begin and end of the last dimension first; ONNX all begins, then all ends."""
    axes = list(range(-1, -1 - len(amounts) // 2, -1))
    pads = [*amounts[::2], *amounts[1::2]]
    fill = b.constant(number or 0, b.result_dtype) if mode == "constant" else None
    return b.op("Pad", x, pads, fill, b.constant(axes), mode=_PAD_MODES[mode])


def _pad_constant(b: Builder, x: ir.Value, amounts: Sequence[Extent], number: Number) -> ir.Value:
    return _pad(b, x, amounts, "constant", number)


def _pixel_shuffle(b: Builder, x: ir.Value, factor: int) -> ir.Value:
    return b.op("DepthToSpace", x, blocksize=factor, mode="CRD")


MOVEMENT: dict[Callable[..., Any], Emitter] = {
    aten.reshape.default: _reshape,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.unflatten.int: _reshape,
    aten.expand.default: _expand,
    aten.expand_as.default: _expand,
    aten.broadcast_to.default: _expand,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.default: _squeeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.transpose.int: _transpose,
    aten.t.default: _reverse_dimensions,
    aten.numpy_T.default: _reverse_dimensions,
    aten.permute.default: _permute,
    aten.movedim.int: _move_dimension,
    aten.movedim.intlist: _move_dimension,
    aten.repeat.default: _repeat,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.slice.Tensor: _slice,
    aten.narrow.default: _narrow,
    aten.select.int: _select,
    aten.split.Tensor: _split,
    aten.split.sizes: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.unbind.int: _unbind,
    aten.flip.default: _flip,
    aten.roll.default: _roll,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad_constant,
    aten.pixel_shuffle.default: _pixel_shuffle,
}
"""How each operator that moves elements is emitted."""
