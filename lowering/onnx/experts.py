"""Products with the quantized weights of experts, a stack of matrices in one tensor.

The kernels know no stacks. Where all experts read the same rows, their weights become one below the
other, and one product gives what each of them makes of a row; where each has rows of its own, each
has a product of its own.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from planish.ir.quant import QuantizedTensor, dequantize
from planish.lowering.onnx import integer, merged, quantized
from planish.lowering.onnx.builder import Builder
from planish.lowering.onnx.quantized import KERNEL, Blocks

aten = torch.ops.aten


def product(b: Builder, x: ir.Value) -> ir.Value | None:
    """The node's product of `x` with a quantized stack [E, N, K] that is read transposed.

    None for a product with anything else.
    """
    source = _stack(b.node.args[1])
    if source is None:
        return None
    by_integers = integer.experts(b, source)
    if by_integers is not None:
        return by_integers
    name, stack = quantized.read(b, source)
    parts = _parts(b, name, stack)
    if parts and b.rank(x) == 2:
        return _of_shared_rows(b, x, parts)
    if parts and b.rank(x) == 3 and b.shape(x)[0] == len(parts):
        return _of_own_rows(b, x, parts)
    return b.op("MatMul", x, quantized.standard(b, name, stack, turned=True))


def _stack(weight: Any) -> fx.Node | None:
    """The node that dequantizes a stack, which the weight is a transposition of."""
    if not isinstance(weight, fx.Node) or weight.target is not aten.transpose.int:
        return None
    source, *dims = weight.args
    assert isinstance(source, fx.Node)
    turned = dims == [1, 2] and source.meta["val"].dim() == 3 and len(source.users) == 1
    return source if turned and source.target is dequantize else None


def _parts(b: Builder, name: str, stack: QuantizedTensor) -> list[Blocks]:
    """Each expert's weight as the kernel reads it; none where that is ruled out."""
    if name in b.target.dense:
        return []
    each = [
        quantized.blocks_of(b, f"{name}.{expert}", stack[expert], KERNEL)
        for expert in range(stack.shape[0])
    ]
    return [part for part in each if part is not None]


def _of_shared_rows(b: Builder, x: ir.Value, parts: list[Blocks]) -> ir.Value:
    """X [M, K] by all experts in one product: [E, M, N]."""
    experts, rows, columns = b.result_shape
    whole = quantized.linear(b, x, merged.below_one_another(b, parts), None)
    wide = b.typed(whole, b.result_dtype, (rows, experts * columns))
    return b.transpose(b.reshape(wide, (rows, experts, columns)), [1, 0, 2])


def _of_own_rows(b: Builder, x: ir.Value, parts: list[Blocks]) -> ir.Value:
    """X [E, M, K], each expert's rows by its own weight: [E, M, N]."""
    each = b.ops(len(parts), "Split", x, [1] * len(parts), axis=0)
    made = [quantized.linear(b, one, part, None) for one, part in zip(each, parts, strict=True)]
    return b.op("Concat", *made, axis=0)
