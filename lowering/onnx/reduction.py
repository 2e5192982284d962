"""Operators that combine elements along dimensions: sums, extremes, running sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from planish.lowering.onnx.builder import Builder, Emitter
from planish.lowering.onnx.sizes import Extent

aten = torch.ops.aten


def _reduce(kind: str) -> Emitter:
    """A reduction over one dimension, several, or, when none are named, all."""

    def emit(b: Builder, x: ir.Value, dims: Any = None, keep: bool = False) -> ir.Value:
        value = b.cast(x, b.result_dtype)
        return b.op(kind, value, _axes(dims), keepdims=int(keep))

    return emit


def _axes(dims: int | Sequence[int] | None) -> list[int] | None:
    if isinstance(dims, int):
        return [dims]
    return list(dims) if dims else None


def _truth(kind: str) -> Emitter:
    """Whether any, or all, elements are true: the greatest, or least, of zeros and ones."""

    def emit(b: Builder, x: ir.Value, dims: Any = None, keep: bool = False) -> ir.Value:
        numbers = b.cast(b.cast(x, torch.bool), torch.int32)
        made = b.op(kind, numbers, _axes(dims), keepdims=int(keep))
        return b.cast(b.typed(made, torch.int32, b.result_shape), torch.bool)

    return emit


def _arg(kind: str) -> Emitter:
    def emit(b: Builder, x: ir.Value, dim: int | None = None, keep: bool = False) -> ir.Value:
        if dim is not None:
            return b.op(kind, x, axis=dim, keepdims=int(keep))
        return b.reshape(
            b.typed(b.op(kind, b.reshape(x, [-1]), axis=0), torch.int64, [1]),
            b.result_shape,
        )

    return emit


def _extreme_with_place(kind: str) -> Emitter:
    def emit(b: Builder, x: ir.Value, dim: int, keep: bool) -> list[ir.Value]:
        value = b.op(f"Reduce{kind}", x, [dim], keepdims=int(keep))
        return [value, b.op(f"Arg{kind}", x, axis=dim, keepdims=int(keep))]

    return emit


def _variance(b: Builder, x: ir.Value, dims: Any, correction: Any, keep: bool) -> ir.Value:
    """The mean squared distance from the mean, over the count less the correction."""
    dtype, axes = b.result_dtype, _axes(dims)
    center = b.op("ReduceMean", x, axes, keepdims=1)
    distance = b.op("Sub", x, center)
    total = b.op("ReduceSum", b.op("Mul", distance, distance), axes, keepdims=int(keep))
    count: Extent = 1
    for axis in range(b.rank(x)) if axes is None else axes:
        count = count * b.shape(x)[axis]
    return b.op(
        "Div", total, b.operand(count - int(correction if correction is not None else 1), dtype)
    )


def _deviation(b: Builder, x: ir.Value, dims: Any, correction: Any, keep: bool) -> ir.Value:
    return b.op("Sqrt", _variance(b, x, dims, correction, keep))


def _cumulative_sum(b: Builder, x: ir.Value, dim: int) -> ir.Value:
    return b.op("CumSum", b.cast(x, b.result_dtype), b.constant(dim))


def _norm(b: Builder, x: ir.Value, order: Any, dims: Any = None, keep: bool = False) -> ir.Value:
    kinds = {1: "ReduceL1", 2: "ReduceL2"}
    if order not in kinds:
        raise NotImplementedError(f"the norm of order {order}")
    return b.op(kinds[order], b.cast(x, b.result_dtype), _axes(dims), keepdims=int(keep))


REDUCTION: dict[Callable[..., Any], Emitter] = {
    aten.sum.default: _reduce("ReduceSum"),
    aten.sum.dim_IntList: _reduce("ReduceSum"),
    aten.mean.default: _reduce("ReduceMean"),
    aten.mean.dim: _reduce("ReduceMean"),
    aten.prod.dim_int: _reduce("ReduceProd"),
    aten.amax.default: _reduce("ReduceMax"),
    aten.amin.default: _reduce("ReduceMin"),
    aten.max.default: _reduce("ReduceMax"),
    aten.min.default: _reduce("ReduceMin"),
    aten.logsumexp.default: _reduce("ReduceLogSumExp"),
    aten.any.default: _truth("ReduceMax"),
    aten.any.dim: _truth("ReduceMax"),
    aten.any.dims: _truth("ReduceMax"),
    aten.all.default: _truth("ReduceMin"),
    aten.all.dim: _truth("ReduceMin"),
    aten.argmax.default: _arg("ArgMax"),
    aten.argmin.default: _arg("ArgMin"),
    aten.max.dim: _extreme_with_place("Max"),
    aten.min.dim: _extreme_with_place("Min"),
    aten.var.correction: _variance,
    aten.std.correction: _deviation,
    aten.cumsum.default: _cumulative_sum,
    aten.linalg_vector_norm.default: _norm,
}
"""How each operator that combines elements is emitted."""
