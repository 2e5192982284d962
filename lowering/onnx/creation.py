"""Operators that make tensors from sizes and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from planish.lowering.onnx.builder import Builder, Emitter, Number, Operand
from planish.lowering.onnx.sizes import Extent

aten = torch.ops.aten


def filled(b: Builder, number: Operand) -> ir.Value:
    """A tensor of a node's shape that holds one number everywhere."""
    value = b.operand(number, b.result_dtype)
    return b.expand(value, b.result_shape)


def _full(b: Builder, _like: Any, number: Operand) -> ir.Value:
    return filled(b, number)


def _new_full(
    b: Builder,
    _like: Any,
    _shape: Any,
    number: Operand,
) -> ir.Value:
    return filled(b, number)


def _constant(number: Number) -> Emitter:
    def emit(b: Builder, *_: Any) -> ir.Value:
        return filled(b, number)

    return emit


def _arange(b: Builder, end: Operand) -> ir.Value:
    return _range(b, 0, end)


def _range(b: Builder, start: Operand, end: Operand, step: Operand = 1) -> ir.Value:
    dtype = b.result_dtype
    whole = not any(isinstance(bound, float) for bound in (start, end, step))
    values = [b.operand(bound, torch.int64 if whole else dtype) for bound in (start, end, step)]
    made = b.op("Range", *values)
    return b.cast(b.typed(made, b.dtype(values[0]), b.result_shape), dtype)


def _triangle(upper: int) -> Emitter:
    def emit(b: Builder, x: ir.Value, diagonal: Extent) -> ir.Value:
        return b.op("Trilu", x, b.scalar(diagonal), upper=upper)

    return emit


def _identity(b: Builder, *_: Extent) -> ir.Value:
    shape: Sequence[Extent] = b.result_shape
    row, column = (
        b.op("Unsqueeze", _range_of(b, extent), [axis])
        for extent, axis in zip(shape, (1, 0), strict=True)
    )
    equal = b.typed(b.op("Equal", row, column), torch.bool, shape)
    return b.cast(equal, b.result_dtype)


def _range_of(b: Builder, extent: Extent) -> ir.Value:
    return b.op("Range", b.constant(0), b.scalar(extent), b.constant(1))


CREATION: dict[Callable[..., Any], Emitter] = {
    aten.arange.default: _arange,
    aten.arange.start: _range,
    aten.arange.start_step: _range,
    aten.full.default: _full,
    aten.full_like.default: _full,
    aten.fill.Scalar: _full,
    aten.new_full.default: _new_full,
    aten.zeros.default: _constant(0),
    aten.zeros_like.default: _constant(0),
    aten.new_zeros.default: _constant(0),
    aten.empty.memory_format: _constant(0),
    aten.new_empty.default: _constant(0),
    aten.ones.default: _constant(1),
    aten.ones_like.default: _constant(1),
    aten.new_ones.default: _constant(1),
    aten.scalar_tensor.default: filled,
    aten.tril.default: _triangle(0),
    aten.triu.default: _triangle(1),
    aten.eye.default: _identity,
    aten.eye.m: _identity,
}
"""How each operator that makes a tensor is emitted."""
