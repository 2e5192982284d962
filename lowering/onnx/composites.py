"""Planish's other composite operators: RMS norm, gated activations, the selective scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from planish.ir import ops
from planish.lowering.onnx.activations import gelu, relu, silu
from planish.lowering.onnx.builder import Builder, Emitter
from planish.lowering.onnx.selective_scan import linear_attention, standard_scan
from planish.lowering.onnx.sizes import Extent, same
from planish.lowering.onnx.target import CONTRIB

aten = torch.ops.aten

SKIP = "SkipSimplifiedLayerNormalization"
"""ONNX Runtime's RMS norm of a sum, which gives the sum, too."""

_SKIP_RANK = 3


def _rms_norm(b: Builder, x: ir.Value, weight: ir.Value | None, eps: float) -> ir.Value:
    """The operator takes weights of x's dtype; others are applied after it."""
    scale = weight if weight is not None and b.dtype(weight) == b.dtype(x) else None
    fits = scale is not None
    scale = scale or b.expand(b.constant(1, b.dtype(x)), b.shape(x)[-1:])
    normed = _added_and_normed(b, x, scale, eps) or b.op(
        "RMSNormalization", x, scale, axis=-1, epsilon=eps, stash_type=1
    )
    if fits or weight is None:
        return normed
    dtype = b.result_dtype
    wide = b.cast(b.typed(normed, b.dtype(x), b.shape(x)), dtype)
    return b.op("Mul", wide, b.cast(weight, dtype))


def _added_and_normed(b: Builder, x: ir.Value, scale: ir.Value, eps: float) -> ir.Value | None:
    """The norm of a sum that is made by the same node; None where that takes two.

    The sum, which a residual stream goes on with, is bound anew, so that nobody reads the first.
    """
    total, add = b.node.args[0], x.producer()
    if SKIP not in b.target.contrib or b.dtype(x) != torch.float32 or add is None:
        return None
    assert isinstance(total, fx.Node)
    if total.target is not aten.add.Tensor or add.op_type != "Add" or b.rank(x) != _SKIP_RANK:
        return None
    if not all(_has_shape(one, b.shape(x)) for one in total.args[:2]):
        return None  # one is repeated along a dimension
    normed, *rest, summed = b.ops(4, f"{CONTRIB}.{SKIP}", *add.inputs, scale, epsilon=eps)
    for unused in rest:
        unused.name = ""
    b.bind(total, summed)
    return normed


def _has_shape(summand: Any, shape: Sequence[Extent]) -> bool:
    if not isinstance(summand, fx.Node):
        return False
    own = summand.meta["val"].shape
    return len(own) == len(shape) and all(map(same, own, shape))


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
