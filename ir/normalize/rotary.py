"""Rotary position embeddings (Su et al., *RoFormer*, 2021, section 3.4.2).

    x · cos + rotate(x) · sin, where rotate((a, b)) = (-b, a)

with a and b the two halves of the last dimension, or its even and odd coordinates. Where only the
first coordinates are turned, the rest is cut off before and put back after.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import fx

from planish.ir import ops
from planish.ir.edit import Edit
from planish.ir.normalize.match import (
    ANY,
    Found,
    Rule,
    add,
    anything,
    calls,
    cat,
    cut,
    mul,
    neg,
    node,
    number,
    reshape,
    same,
    shape,
)

aten = torch.ops.aten

X, COS, SIN, HALF, WIDTH = node("x"), node("cos"), node("sin"), number("half"), number("width")

_rotary = calls(ops.rotary)
_stack = calls(aten.stack.default)

_halves = cat([neg(cut(X, -1, HALF, WIDTH)), cut(X, -1, 0, HALF)], -1)
_pairs = reshape(
    _stack([neg(cut(X, -1, 1, ANY, 2)), cut(X, -1, 0, ANY, 2)], -1),
    ANY,
)


def _turned(interleaved: bool, edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    x, cos, sin = found["x"], found["cos"], found["sin"]
    width = shape(x)[-1]
    fits = (
        same(shape(here), shape(x))
        and found.get("width", width) == width
        and found.get("half", width // 2) * 2 == width
        and all(_is_angle(angle, x) for angle in (cos, sin))
    )
    return edit.call(ops.rotary, x, cos, sin, interleaved, before=here) if fits else None


def _is_angle(angle: fx.Node, x: fx.Node) -> bool:
    """Whether a factor has one number a coordinate, the same for all heads of x [B, H, T, D]."""
    extents = shape(angle)
    return same(extents[-1:], shape(x)[-1:]) and (len(extents) < 3 or same(extents[-3:-2], (1,)))


def _partial(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    x, width = found["x"], found["width"]
    if not same(shape(here), shape(x)) or not same(shape(found["cos"])[-1:], (width,)):
        return None
    arguments = (found["cos"], found["sin"], found["interleaved"])
    return edit.call(ops.rotary, x, *arguments, before=here)


RULES = (
    Rule(add(mul(X, COS), mul(_halves, SIN)), partial(_turned, False)),
    Rule(add(mul(X, COS), mul(_pairs, SIN)), partial(_turned, True)),
    Rule(
        cat(
            [
                _rotary(cut(X, -1, 0, WIDTH), COS, SIN, anything("interleaved")),
                cut(X, -1, WIDTH, ANY),
            ],
            -1,
        ),
        _partial,
    ),
)
