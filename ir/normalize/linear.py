"""One kind of linear layer: products with a weight become `aten.linear`.

    x Wᵀ, x Wᵀ + b, addmm(b, x, W)   →   linear(x, W, b)

A weight that is stored as [in, out], as in GPT-2, is read through a `permute`.
"""

from __future__ import annotations

import torch
from torch import fx

from planish.ir.edit import Edit
from planish.ir.normalize.match import (
    ANY,
    Found,
    Rule,
    Sole,
    add,
    anything,
    calls,
    matmul,
    node,
    permute,
    reshape,
    same,
    shape,
    transpose,
)

aten = torch.ops.aten

X, WEIGHT, BIAS = node("x"), node("weight"), node("bias")

_linear = calls(aten.linear.default)
_addmm = calls(aten.addmm.default)
_transposed = (
    calls(aten.t.default)(WEIGHT)
    | permute(WEIGHT, [-1, -2])
    | transpose(WEIGHT, -2, -1)
    | transpose(WEIGHT, -1, -2)
)


def _product(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    """`x @ Wᵀ`, with or without a bias."""
    weight, bias = found["weight"], found.get("bias")
    if weight.op != "get_attr" or len(shape(weight)) != 2:
        return None
    if bias is not None and len(shape(bias)) != 1:
        return None
    bias = () if bias is None else (bias,)
    return edit.call(aten.linear.default, found["x"], weight, *bias, before=here)


def _transposed_product(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    """`x @ W`, where W is stored the other way round."""
    weight = found["weight"]
    if weight.op != "get_attr" or len(shape(weight)) != 2:
        return None
    turned = edit.call(aten.permute.default, weight, [1, 0], before=here)
    bias = (found["bias"],) if "bias" in found else ()
    return edit.call(aten.linear.default, found["x"], turned, *bias, before=here)


def _with_bias(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    x, weight, bias = found["x"], found["weight"], found["bias"]
    if bias.op != "get_attr" or not same(shape(bias), shape(weight)[:1]):
        return None
    return edit.call(aten.linear.default, x, weight, bias, before=here)


def _unflattened(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    """Without the reshape to two dimensions and back."""
    x, weight = found["x"], found["weight"]
    if not same((*shape(x)[:-1], shape(weight)[0]), shape(here)) or not same(
        shape(x)[-1:], shape(weight)[1:]
    ):
        return None
    bias = () if found["bias"] is None else (found["bias"],)
    return edit.call(aten.linear.default, x, weight, *bias, before=here)


_flat = reshape(X, ANY)

RULES = (
    Rule(matmul(X, _transposed) | _addmm(BIAS, X, _transposed), _product),
    Rule(matmul(X, WEIGHT) | _addmm(BIAS, X, WEIGHT), _transposed_product),
    Rule(add(Sole(_linear(X, WEIGHT)), BIAS), _with_bias),
    Rule(
        reshape(Sole(_linear(_flat, WEIGHT, anything("bias"))), ANY),
        _unflattened,
    ),
)
