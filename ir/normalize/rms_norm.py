"""RMS norms: x / sqrt(mean(x²) + eps) · weight, over the last dimension.

Zhang and Sennrich, *Root Mean Square Layer Normalization*, 2019, section 3. Models in half
precision normalize in float32 and go back before the weight (Llama, T5) or after it (Gemma, whose
weight is 1 + w); the first is what `planish::rms_norm` does, the second keeps its casts around it.
"""

from __future__ import annotations

import torch
from torch import fx

from planish.ir import ops
from planish.ir.edit import Edit
from planish.ir.normalize.match import (
    Found,
    Pattern,
    Rule,
    Sole,
    Widened,
    add,
    anything,
    calls,
    div,
    dtype,
    mean,
    mul,
    node,
    number,
    power,
    same,
    shape,
)

aten = torch.ops.aten

X, WEIGHT, EPS = node("x"), node("weight"), number("eps")

_square = calls(aten.square.default)
_rsqrt = calls(aten.rsqrt.default)
_sqrt = calls(aten.sqrt.default)
_reciprocal = calls(aten.reciprocal.default)
_norm = calls(ops.rms_norm)
_cast = calls(aten._to_copy.default)
_aten_norm = calls(aten.rms_norm.default)


def mean_square(value: Pattern) -> Pattern:
    """The mean of the squares of `value` over the last dimension."""
    return mean(power(value, 2) | mul(value, value) | _square(value), [-1], True)


def over_root(value: Pattern, square: Pattern) -> Pattern:
    """`value / sqrt(square)`, however it is written."""
    root = _sqrt(square) | power(square, 0.5)
    inverse = _rsqrt(square) | power(square, -0.5) | _reciprocal(root)
    return mul(value, inverse) | div(value, root)


def _bare(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    x = found["x"]
    if dtype(here) not in {torch.float32, torch.bfloat16, torch.float16}:
        return None  # the composite computes in float32, which would lose digits
    if dtype(x) != dtype(here):
        x = edit.call(aten._to_copy.default, x, dtype=dtype(here), before=here)
    return edit.call(ops.rms_norm, x, None, found["eps"], before=here)


def _narrowed(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    """The cast back to x's dtype right after the norm is part of the composite."""
    if found["dtype"] != dtype(found["x"]):
        return None
    return edit.call(ops.rms_norm, found["x"], None, found["eps"], before=here)


def _weighted(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    x, weight = found["x"], found["weight"]
    if not same(shape(weight), shape(x)[-1:]):
        return None
    return edit.call(ops.rms_norm, x, weight, found["eps"], before=here)


def _native(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    x, weight, eps = found["x"], found["weight"], found["eps"]
    if len(found["shape"]) != 1:
        return None
    eps = torch.finfo(dtype(x)).eps if eps is None else eps
    return edit.call(ops.rms_norm, x, weight, eps, before=here)


RULES = (
    Rule(over_root(Widened(X), add(mean_square(Widened(X)), EPS)), _bare),
    Rule(_cast(Sole(_norm(Widened(X), None, EPS)), anything("dtype")), _narrowed),
    Rule(mul(Sole(_norm(X, None, EPS)), WEIGHT), _weighted),
    Rule(
        _aten_norm(X, anything("shape"), anything("weight"), anything("eps")),
        _native,
    ),
)
