"""Stacks of sign blocks: put together by standard operators, from the bytes they are stored in.

All inputs are constants, so that ONNX Runtime computes the matrix once, on loading: the file is as
small as the stack, and what runs is as large and fast as the dense model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from planish.ir.stack import BYTE, sign_stack
from planish.lowering.onnx.builder import Builder, Emitter


def _sign_stack(
    b: Builder,
    signs: ir.Value,
    left: ir.Value,
    right: ir.Value,
    _errors: ir.Value,
) -> ir.Value:
    """Σ (2 · bit - 1) · (A B), over the first dimension, in float32."""
    blocks, rows, words = b.shape(signs)
    columns = b.shape(right)[-1]
    apart = b.op("Unsqueeze", signs, [-1])
    shifts = b.constant(torch.arange(BYTE, dtype=torch.uint8))
    shifted = b.op("BitShift", apart, shifts, direction="RIGHT")
    bits = b.op("BitwiseAnd", shifted, b.constant(torch.tensor([1], dtype=torch.uint8)))
    bits = b.typed(bits, torch.uint8, (blocks, rows, words, BYTE))
    flat = b.reshape(bits, (blocks, rows, words * BYTE))
    used = b.typed(b.op("Slice", flat, [0], [columns], [2]), torch.uint8, (blocks, rows, columns))
    turned = b.op("Mul", b.cast(used, torch.float32), b.constant(2.0, torch.float32))
    signed = b.op("Sub", turned, b.constant(1.0, torch.float32))
    sizes = b.op("MatMul", b.cast(left, torch.float32), b.cast(right, torch.float32))
    total = b.op("ReduceSum", b.op("Mul", signed, sizes), [0], keepdims=0)
    return b.cast(b.typed(total, torch.float32, (rows, columns)), b.result_dtype)


STACKS: dict[Callable[..., Any], Emitter] = {sign_stack: _sign_stack}
"""How a matrix is read whose blocks are stored."""
