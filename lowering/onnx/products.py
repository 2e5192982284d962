"""Operators that multiply matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from planish.lowering.onnx import experts, integer, merged, quantized
from planish.lowering.onnx.builder import Builder, Emitter, Number

aten = torch.ops.aten


def linear(b: Builder, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    """X · weightᵀ + bias. The weight keeps the checkpoint's layout; it is turned at load."""
    if bias is not None and b.rank(x) == 2:
        return b.op("Gemm", x, weight, bias, transB=1)
    product = b.op("MatMul", x, b.transpose(weight, [1, 0]))
    return product if bias is None else b.op("Add", product, bias)


def _linear(b: Builder, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
    by_integers = integer.linear(b)
    if by_integers is not None:
        return by_integers
    packed = quantized.blocks(b, b.node.args[1], quantized.KERNEL)
    if packed is not None:
        return merged.linear(b, x, packed, bias)
    turned = quantized.turned(b, b.node.args[1])
    if turned is not None:
        product = b.op("MatMul", x, turned)
        return product if bias is None else b.op("Add", product, bias)
    return linear(b, x, weight, bias)


def _matmul(b: Builder, x: ir.Value, y: ir.Value) -> ir.Value:
    by_experts = experts.product(b, x)
    return b.op("MatMul", x, y) if by_experts is None else by_experts


def _add_product(
    b: Builder, bias: ir.Value, x: ir.Value, y: ir.Value, beta: Number, alpha: Number
) -> ir.Value:
    """Beta · bias + alpha · x y, batched or not."""
    dtype = b.result_dtype
    product = b.op("MatMul", x, y)
    if alpha != 1:
        product = b.op("Mul", product, b.constant(alpha, dtype))
    if beta != 1:
        bias = b.op("Mul", bias, b.constant(beta, dtype))
    return b.op("Add", product, bias)


def _einsum(
    b: Builder,
    equation: str,
    tensors: Sequence[ir.Value],
) -> ir.Value:
    return b.op("Einsum", *tensors, equation=equation)


PRODUCTS: dict[Callable[..., Any], Emitter] = {
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mv.default: _matmul,
    aten.dot.default: _matmul,
    aten.addmm.default: _add_product,
    aten.baddbmm.default: _add_product,
    aten.einsum.default: _einsum,
}
"""How each product of matrices is emitted."""
