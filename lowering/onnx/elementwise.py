"""Operators that compute each element on its own: arithmetic, comparison, casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from planish.lowering.onnx.builder import Builder, Emitter, Operand

aten = torch.ops.aten


def promote(b: Builder, *operands: Operand) -> list[ir.Value]:
    """The operands as tensors of the one dtype that torch would compute in."""
    dtype = common_dtype(b, *operands)
    return [b.operand(operand, dtype) for operand in operands]


def common_dtype(b: Builder, *operands: Operand) -> torch.dtype:
    """The dtype that torch computes in (`torch.result_type`): tensors outrank numbers."""
    first, *rest = (_stand_in(b, operand) for operand in operands)
    for other in rest:
        dtype = torch.result_type(first, other)
        dimensions = max(_dimensions(first), _dimensions(other))
        first = torch.empty([1] * dimensions, dtype=dtype, device="meta")
    return torch.result_type(first, first)


def _stand_in(b: Builder, operand: Operand) -> Tensor | bool | int | float:
    if isinstance(operand, ir.Value):
        return torch.empty([1] * b.rank(operand), dtype=b.dtype(operand), device="meta")
    return 1 if isinstance(operand, torch.SymInt) else operand


def _dimensions(stand_in: Tensor | bool | int | float) -> int:
    return stand_in.dim() if isinstance(stand_in, Tensor) else 0


def unary(kind: str, **attributes: Any) -> Emitter:
    """An operator of one tensor, computed in the dtype of its result."""

    def emit(b: Builder, x: ir.Value) -> ir.Value:
        return b.op(kind, b.cast(x, b.result_dtype), **attributes)

    return emit


def binary(kind: str, swap: bool = False, **attributes: Any) -> Emitter:
    """An operator of two operands with torch's promotion of dtypes."""

    def emit(b: Builder, x: Operand, y: Operand) -> ir.Value:
        x, y = promote(b, x, y)
        return b.op(kind, y, x, **attributes) if swap else b.op(kind, x, y, **attributes)

    return emit


def _weighted(kind: str, swap: bool = False) -> Emitter:
    """`x + alpha·y` or `x - alpha·y`; swapped, `y - alpha·x`."""

    def emit(b: Builder, x: Operand, y: Operand, alpha: Any = 1) -> ir.Value:
        dtype = b.result_dtype
        left, right = (y, x) if swap else (x, y)
        left, right = b.operand(left, dtype), b.operand(right, dtype)
        if alpha != 1:
            right = b.op("Mul", right, b.operand(alpha, dtype))
        return b.op(kind, left, right)

    return emit


def _divide(b: Builder, x: Operand, y: Operand) -> ir.Value:
    dtype = b.result_dtype
    return b.op("Div", b.operand(x, dtype), b.operand(y, dtype))


def _divide_rounding(
    b: Builder, x: Operand, y: Operand, rounding_mode: str | None = None
) -> ir.Value:
    if rounding_mode is None:
        return _divide(b, x, y)
    left, right = promote(b, x, y)
    if b.result_dtype.is_floating_point:
        quotient = b.op("Div", left, right)
        if rounding_mode == "floor":
            return b.op("Floor", quotient)
        return b.op("Mul", b.op("Sign", quotient), b.op("Floor", b.op("Abs", quotient)))
    if rounding_mode == "floor":  # ONNX rounds the quotient of integers towards zero
        left = b.op("Sub", left, b.op("Mod", left, right))
    return b.op("Div", left, right)


def _floor_divide(b: Builder, x: Operand, y: Operand) -> ir.Value:
    return _divide_rounding(b, x, y, "floor")


def _remainder(b: Builder, x: Operand, y: Operand) -> ir.Value:
    """The remainder with the sign of the divisor, as in Python."""
    left, right = promote(b, x, y)
    if not b.result_dtype.is_floating_point:
        return b.op("Mod", left, right)
    whole = b.op("Floor", b.op("Div", left, right))
    return b.op("Sub", left, b.op("Mul", whole, right))


def _power(b: Builder, x: Operand, y: Operand) -> ir.Value:
    dtype = b.result_dtype
    base = b.operand(x, dtype)
    if isinstance(y, ir.Value | torch.SymInt):
        return b.op("Pow", base, b.operand(y, dtype))
    if y == 2:
        return b.op("Mul", base, base)
    return b.op("Pow", base, b.operand(y, dtype))


def _rsqrt(b: Builder, x: ir.Value) -> ir.Value:
    return b.op("Reciprocal", b.op("Sqrt", b.cast(x, b.result_dtype)))


def _expm1(b: Builder, x: ir.Value) -> ir.Value:
    dtype = b.result_dtype
    return b.op("Sub", b.op("Exp", b.cast(x, dtype)), b.constant(1, dtype))


def _log1p(b: Builder, x: ir.Value) -> ir.Value:
    dtype = b.result_dtype
    return b.op("Log", b.op("Add", b.cast(x, dtype), b.constant(1, dtype)))


def _log2(b: Builder, x: ir.Value) -> ir.Value:
    dtype = b.result_dtype
    return b.op("Div", b.op("Log", b.cast(x, dtype)), b.constant(math.log(2), dtype))


def logical(kind: str) -> Emitter:
    """An operator on truth values; numbers count as true unless they are zero."""

    def emit(b: Builder, *operands: ir.Value) -> ir.Value:
        return b.op(kind, *(b.operand(operand, torch.bool) for operand in operands))

    return emit


def bitwise(kind: str) -> Emitter:
    """An operator on bits, which for truth values ONNX calls by another name."""

    def emit(b: Builder, *operands: Operand) -> ir.Value:
        dtype = b.result_dtype
        values = (b.operand(operand, dtype) for operand in operands)
        return b.op(kind if dtype == torch.bool else f"Bitwise{kind}", *values)

    return emit


def compare(kind: str, negate: bool = False) -> Emitter:
    """A comparison. Truth values are compared as integers, which ONNX can order."""

    def emit(b: Builder, x: Operand, y: Operand) -> ir.Value:
        values = promote(b, x, y)
        if b.dtype(values[0]) == torch.bool:
            values = [b.cast(value, torch.int32) for value in values]
        result = b.op(kind, *values)
        return b.op("Not", result) if negate else result

    return emit


def _is_nan(b: Builder, x: ir.Value) -> ir.Value:
    return b.op("IsNaN", b.cast(x, common_dtype(b, x, 1.0)))


def _is_infinite(b: Builder, x: ir.Value) -> ir.Value:
    return b.op("IsInf", b.cast(x, common_dtype(b, x, 1.0)))


def _where(b: Builder, condition: ir.Value, x: Operand, y: Operand) -> ir.Value:
    dtype = b.result_dtype
    return b.op("Where", b.cast(condition, torch.bool), b.operand(x, dtype), b.operand(y, dtype))


def _masked_fill(b: Builder, x: ir.Value, mask: ir.Value, value: Operand) -> ir.Value:
    return _where(b, mask, value, x)


def _clamp(
    b: Builder, x: ir.Value, low: Operand | None = None, high: Operand | None = None
) -> ir.Value:
    dtype = b.result_dtype
    value = b.cast(x, dtype)
    if low is not None:
        value = b.op("Max", value, b.operand(low, dtype))
    return value if high is None else b.op("Min", value, b.operand(high, dtype))


def _clamp_min(b: Builder, x: ir.Value, low: Operand) -> ir.Value:
    return _clamp(b, x, low)


def _clamp_max(b: Builder, x: ir.Value, high: Operand) -> ir.Value:
    return _clamp(b, x, None, high)


def _copy(b: Builder, x: ir.Value, *_: ir.Value) -> ir.Value:
    return b.cast(x, b.result_dtype)


ELEMENTWISE: dict[Callable[..., Any], Emitter] = {
    aten.abs.default: unary("Abs"),
    aten.neg.default: unary("Neg"),
    aten.sign.default: unary("Sign"),
    aten.floor.default: unary("Floor"),
    aten.ceil.default: unary("Ceil"),
    aten.round.default: unary("Round"),
    aten.sqrt.default: unary("Sqrt"),
    aten.rsqrt.default: _rsqrt,
    aten.reciprocal.default: unary("Reciprocal"),
    aten.exp.default: unary("Exp"),
    aten.expm1.default: _expm1,
    aten.log.default: unary("Log"),
    aten.log1p.default: _log1p,
    aten.log2.default: _log2,
    aten.sin.default: unary("Sin"),
    aten.cos.default: unary("Cos"),
    aten.tan.default: unary("Tan"),
    aten.atan.default: unary("Atan"),
    aten.tanh.default: unary("Tanh"),
    aten.erf.default: unary("Erf"),
    aten.add.Tensor: _weighted("Add"),
    aten.add.Scalar: _weighted("Add"),
    aten.sub.Tensor: _weighted("Sub"),
    aten.sub.Scalar: _weighted("Sub"),
    aten.rsub.Tensor: _weighted("Sub", swap=True),
    aten.rsub.Scalar: _weighted("Sub", swap=True),
    aten.mul.Tensor: binary("Mul"),
    aten.mul.Scalar: binary("Mul"),
    aten.div.Tensor: _divide,
    aten.div.Scalar: _divide,
    aten.div.Tensor_mode: _divide_rounding,
    aten.floor_divide.default: _floor_divide,
    aten.remainder.Tensor: _remainder,
    aten.remainder.Scalar: _remainder,
    aten.fmod.Tensor: binary("Mod", fmod=1),
    aten.fmod.Scalar: binary("Mod", fmod=1),
    aten.pow.Tensor_Scalar: _power,
    aten.pow.Tensor_Tensor: _power,
    aten.pow.Scalar: _power,
    aten.maximum.default: binary("Max"),
    aten.max.other: binary("Max"),
    aten.min.other: binary("Min"),
    aten.minimum.default: binary("Min"),
    aten.logical_and.default: logical("And"),
    aten.logical_or.default: logical("Or"),
    aten.logical_xor.default: logical("Xor"),
    aten.logical_not.default: logical("Not"),
    aten.__and__.Tensor: bitwise("And"),
    aten.__and__.Scalar: bitwise("And"),
    aten.__or__.Tensor: bitwise("Or"),
    aten.__or__.Scalar: bitwise("Or"),
    aten.__xor__.Tensor: bitwise("Xor"),
    aten.bitwise_and.Tensor: bitwise("And"),
    aten.bitwise_and.Scalar: bitwise("And"),
    aten.bitwise_or.Tensor: bitwise("Or"),
    aten.bitwise_or.Scalar: bitwise("Or"),
    aten.bitwise_xor.Tensor: bitwise("Xor"),
    aten.bitwise_not.default: bitwise("Not"),
    aten.eq.Tensor: compare("Equal"),
    aten.eq.Scalar: compare("Equal"),
    aten.ne.Tensor: compare("Equal", negate=True),
    aten.ne.Scalar: compare("Equal", negate=True),
    aten.lt.Tensor: compare("Less"),
    aten.lt.Scalar: compare("Less"),
    aten.le.Tensor: compare("LessOrEqual"),
    aten.le.Scalar: compare("LessOrEqual"),
    aten.gt.Tensor: compare("Greater"),
    aten.gt.Scalar: compare("Greater"),
    aten.ge.Tensor: compare("GreaterOrEqual"),
    aten.ge.Scalar: compare("GreaterOrEqual"),
    aten.isnan.default: _is_nan,
    aten.isinf.default: _is_infinite,
    aten.where.self: _where,
    aten.where.ScalarSelf: _where,
    aten.where.ScalarOther: _where,
    aten.where.Scalar: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.default: _clamp_min,
    aten.clamp_min.Tensor: _clamp_min,
    aten.clamp_max.default: _clamp_max,
    aten.clamp_max.Tensor: _clamp_max,
    aten._to_copy.default: _copy,
    aten.to.dtype: _copy,
    aten.type_as.default: _copy,
    aten.clone.default: _copy,
    aten.alias.default: _copy,
    aten.detach.default: _copy,
    aten.contiguous.default: _copy,
    aten.lift_fresh_copy.default: _copy,
}
"""How each elementwise operator is emitted."""
