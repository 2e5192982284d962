"""Planish's other composite operators: RMS norm, gated activations, the selective scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from planish.ir import ops
from planish.lowering.onnx.activations import gelu, relu, silu
from planish.lowering.onnx.builder import Builder, Emitter
from planish.lowering.onnx.selective_scan import linear_attention, standard_scan


def _rms_norm(b: Builder, x: ir.Value, weight: ir.Value | None, eps: float) -> ir.Value:
    """The operator takes weights of x's dtype; others are applied after it."""
    fits = weight is not None and b.dtype(weight) == b.dtype(x)
    scale = weight if fits else b.expand(b.constant(1, b.dtype(x)), b.shape(x)[-1:])
    normed = b.op("RMSNormalization", x, scale, axis=-1, epsilon=eps, stash_type=1)
    if fits or weight is None:
        return normed
    dtype = b.result_dtype
    wide = b.cast(b.typed(normed, b.dtype(x), b.shape(x)), dtype)
    return b.op("Mul", wide, b.cast(weight, dtype))


def _gated(b: Builder, gate: ir.Value, up: ir.Value, activation: str) -> ir.Value:
    return b.op("Mul", _ACTIVATIONS[activation](b, gate), up)


_ACTIVATIONS: dict[str, Callable[[Builder, ir.Value], ir.Value]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": lambda b, x: gelu(b, x, "tanh"),
    "relu": relu,
}


def _selective_scan(
    b: Builder,
    x: ir.Value,
    dt: ir.Value,
    a: ir.Value,
    rows: ir.Value,
    columns: ir.Value,
    skip: ir.Value | None,
    state: ir.Value,
) -> list[ir.Value]:
    """Computed in float32 whatever the dtypes are, as the operator says."""
    heads, width, groups = map(int, (*b.shape(x)[2:], b.shape(rows)[2]))
    one_decay = b.shape(a)[-1] == 1 and "LinearAttention" in b.target.contrib
    emit = linear_attention if one_decay else standard_scan

    def wide(tensor: ir.Value) -> ir.Value:
        return b.cast(tensor, torch.float32)

    made = emit(
        b.ops,
        *(wide(x), wide(dt), wide(a), wide(rows), wide(columns)),
        skip if skip is None else wide(skip),
        wide(state),
        heads=heads,
        width=width,
        groups=groups,
    )
    results = zip(made, b.node.meta["val"], (x, state), strict=True)
    return [
        b.cast(b.typed(value, torch.float32, val.shape), b.dtype(like))
        for value, val, like in results
    ]


COMPOSITES: dict[Callable[..., Any], Emitter] = {
    ops.rms_norm: _rms_norm,
    ops.gated: _gated,
    ops.selective_scan: _selective_scan,
}
"""How each of these is emitted."""
