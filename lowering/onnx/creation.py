"""Operators that make tensors from sizes and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from planish.lowering.onnx.builder import Builder, Emitter, Number, Operand
from planish.lowering.onnx.sizes import Extent

aten = torch.ops.aten


def filled(b: Builder, node: fx.Node, number: Operand) -> ir.Value:
    """A tensor of a node's shape that holds one number everywhere."""
    value = b.operand(number, b.result_dtype(node))
    return b.expand(value, node.meta["val"].shape)


def _full(b: Builder, node: fx.Node, like: Any, number: Operand) -> ir.Value:  # noqa: ARG001
    return filled(b, node, number)


def _new_full(
    b: Builder, node: fx.Node, like: Any, shape: Any, number: Operand  # noqa: ARG001
) -> ir.Value:
    return filled(b, node, number)


def _constant(number: Number) -> Emitter:
    def emit(b: Builder, node: fx.Node, *arguments: Any) -> ir.Value:  # noqa: ARG001
        return filled(b, node, number)

    return emit


def _arange(b: Builder, node: fx.Node, end: Operand) -> ir.Value:
    return _range(b, node, 0, end)


def _range(
    b: Builder, node: fx.Node, start: Operand, end: Operand, step: Operand = 1
) -> ir.Value:
    dtype = b.result_dtype(node)
    whole = not any(isinstance(bound, float) for bound in (start, end, step))
    values = [b.operand(bound, torch.int64 if whole else dtype) for bound in (start, end, step)]
    made = b.op("Range", *values)
    return b.cast(b.typed(made, b.dtype(values[0]), node.meta["val"].shape), dtype)


def _triangle(upper: int) -> Emitter:
    def emit(b: Builder, node: fx.Node, x: ir.Value, diagonal: Extent) -> ir.Value:  # noqa: ARG001
        return b.op("Trilu", x, b.scalar(diagonal), upper=upper)

    return emit


def _identity(b: Builder, node: fx.Node, *sizes: Extent) -> ir.Value:  # noqa: ARG001
    shape: Sequence[Extent] = node.meta["val"].shape
    row, column = (
        b.op("Unsqueeze", _range_of(b, extent), [axis])
        for extent, axis in zip(shape, (1, 0), strict=True)
    )
    equal = b.typed(b.op("Equal", row, column), torch.bool, shape)
    return b.cast(equal, b.result_dtype(node))


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
