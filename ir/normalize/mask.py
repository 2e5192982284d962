"""Attention masks in fewer steps.

Transformers writes a mask as a function of indices and evaluates it at all of them: padding arrives
as `attention_mask[arange(B), arange(S)]`, and a mask that hides nothing as `arange(T) >= 0`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import fx

from planish.ir import ops
from planish.ir.edit import Edit
from planish.ir.normalize.match import (
    Found,
    Rule,
    anything,
    calls,
    dtype,
    node,
    same,
    shape,
)

aten = torch.ops.aten

X, INDICES = node("x"), anything("indices")
QUERY, KEY, VALUE, MASK = node("query"), node("key"), node("value"), node("mask")
OPTIONS = anything("causal"), anything("scale"), anything("softcap")

_index = calls(aten.index.Tensor)
_attention = calls(ops.attention)

_ONES = frozenset({aten.ones.default, aten.new_ones.default, aten.ones_like.default})
_STRETCHES = (aten.unsqueeze.default, aten.expand.default)


def _unstretched(value: fx.Node) -> fx.Node:
    """What a value repeats along new or longer dimensions."""
    while value.target in _STRETCHES:
        value = value.all_input_nodes[0]
    return value


def _everywhere(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    """`x[i, j]`, where i and j run over all of x, is x with new dimensions between."""
    x: fx.Node = found["x"]
    indices = found["indices"]
    places = [_place(index, len(shape(here))) for index in indices]
    if any(left >= right for left, right in pairwise((-1, *places))):
        return None
    if not same([shape(here)[place] for place in places], shape(x)):
        return None
    for dim in range(len(shape(here))):
        if dim not in places:
            x = edit.call(aten.unsqueeze.default, x, dim, before=here)
    return x


def _place(index: fx.Node | None, rank: int) -> int:
    """The dimension along which an index counts from 0, constant along all others; or -1."""
    if index is None or len(shape(index)) != rank:
        return -1
    long = [dim for dim, extent in enumerate(shape(index)) if not same((extent,), (1,))]
    counter = _unstretched(index)
    if counter.target is not aten.arange.default or len(long) != 1:
        return -1
    return long[0] if same(shape(counter), (shape(index)[long[0]],)) else -1


def _smaller(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    """Attention stretches its mask itself, and needs none that is true everywhere."""
    query, key, value, mask = (found[name] for name in ("query", "key", "value", "mask"))
    smaller = _without_true(mask)
    if dtype(mask) != torch.bool or smaller is mask:
        return None
    if smaller is not None and len(shape(smaller)) < 2:
        return None  # torch's operator asks for two dimensions
    options = (found["causal"], found["scale"], found["softcap"])
    return edit.call(ops.attention, query, key, value, smaller, *options, before=here)


def _without_true(mask: fx.Node) -> fx.Node | None:
    """The part of a mask that hides something, if there is any."""
    if _is_true(mask):
        return None
    if mask.target is aten.expand.default:
        return mask.all_input_nodes[0]
    if mask.target is aten.__and__.Tensor:
        one, other = mask.all_input_nodes[0], mask.all_input_nodes[-1]
        return other if _is_true(one) else one if _is_true(other) else mask
    return mask


def _is_true(value: fx.Node) -> bool:
    value = _unstretched(value)
    if value.target is not aten.ge.Scalar:
        return value.target in _ONES
    compared: Any
    bound: Any
    compared, bound = value.args
    return _unstretched(compared).target is aten.arange.default and bool(bound == 0)


RULES = (
    Rule(_index(X, INDICES), _everywhere),
    Rule(_attention(QUERY, KEY, VALUE, MASK, *OPTIONS), _smaller),
)
