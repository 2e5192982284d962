"""Layer norms written out become `aten.layer_norm` over the last dimension.

(x - mean(x)) / sqrt(var(x) + eps) · weight + bias, where the variance is the mean square of the
centered values (Ba, Kiros and Hinton, *Layer Normalization*, 2016, equation 3).
"""

from __future__ import annotations

import torch
from torch import fx

from planish.ir.edit import Edit
from planish.ir.normalize.match import (
    Found,
    Rule,
    Sole,
    add,
    anything,
    calls,
    dtype,
    mean,
    mul,
    node,
    number,
    same,
    shape,
    sub,
)
from planish.ir.normalize.rms_norm import mean_square, over_root

aten = torch.ops.aten

X, WEIGHT, BIAS, EPS, SHAPE = (
    node("x"),
    node("weight"),
    node("bias"),
    number("eps"),
    anything("shape"),
)

_norm = calls(aten.layer_norm.default)
_centered = sub(X, mean(X, [-1], True))
_var = calls(aten.var.correction)
_var_dim = calls(aten.var.dim)
_variance = mean_square(_centered) | _var(X, [-1], 0, True) | _var_dim(X, [-1], False, True)


def _bare(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    width = shape(found["x"])[-1]
    if not isinstance(width, int):
        return None
    return edit.call(
        aten.layer_norm.default, found["x"], [width], None, None, found["eps"], before=here
    )


def _affine(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    x, weight, bias = found["x"], found["weight"], found.get("bias")
    for scale in (weight, bias):
        if scale is not None and not (
            same(shape(scale), shape(x)[-1:]) and dtype(scale) == dtype(x)
        ):
            return None
    return edit.call(
        aten.layer_norm.default, x, found["shape"], weight, bias, found["eps"], before=here
    )


RULES = (
    Rule(over_root(_centered, add(_variance, EPS)), _bare),
    Rule(mul(Sole(_norm(X, SHAPE, None, None, EPS)), WEIGHT), _affine),
    Rule(add(Sole(_norm(X, SHAPE, WEIGHT, None, EPS)), BIAS), _affine),
)
