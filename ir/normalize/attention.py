"""Attention: torch's fused operator, or the products and softmax that it stands for.

    softmax(softcap · tanh(q kᵀ · scale / softcap) + mask) v

(Vaswani et al., *Attention Is All You Need*, 2017, section 3.2.1; the cap as in *Gemma 2*, 2024,
section 2). Keys and values that are repeated for groups of query heads (Ainslie et al., *GQA*,
2023) are read before the repetition.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from planish.ir import ops
from planish.ir.edit import Edit
from planish.ir.normalize.match import (
    ANY,
    Found,
    Pattern,
    Rule,
    add,
    anything,
    calls,
    div,
    dtype,
    matmul,
    mul,
    node,
    number,
    permute,
    reshape,
    same,
    shape,
    tanh,
    transpose,
)

aten = torch.ops.aten

QUERY, KEY, VALUE, MASK = node("query"), node("key"), node("value"), anything("mask")
CAUSAL, SCALE, CAP = anything("causal"), anything("scale"), number("softcap")

_fused = calls(aten.scaled_dot_product_attention.default)
_attention = calls(ops.attention)
_softmax = calls(aten.softmax.int, aten._softmax.default)
_cast = calls(aten._to_copy.default)
_fill = calls(aten.masked_fill.Scalar)
_where = calls(aten.where.ScalarOther)
_expand = calls(aten.expand.default)
_unsqueeze = calls(aten.unsqueeze.default)
_repeat = calls(aten.repeat_interleave.self_int)

HIDDEN = -1e9
"""From here down, a number written over a score or added to it gives the same weight: none."""


def _weights() -> Pattern:
    """Softmax over q kᵀ, scaled, capped and masked where that is written."""
    turned = transpose(KEY, -2, -1) | transpose(KEY, -1, -2) | permute(KEY, [-4, -3, -1, -2])
    product = matmul(QUERY, turned)
    scaled = mul(product, number("scale")) | div(product, number("divisor")) | product
    capped = mul(tanh(div(scaled, CAP)), CAP) | scaled
    masked = (
        add(add(capped, node("bias")), node("mask"))
        | add(capped, node("mask"))
        | _fill(capped, node("hidden"), number("fill"))
        | _where(node("shown"), capped, number("fill"))
        | capped
    )
    weights = _softmax(masked, -1, ANY)
    return weights | _cast(weights, ANY)


def _from_products(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    scale = found["scale"] if "scale" in found else 1 / found.get("divisor", 1)
    added = [found[name] for name in ("mask", "bias") if name in found]
    chosen = [found[name] for name in ("hidden", "shown") if name in found]
    if (
        not _fits(found, shared=False)
        or not all(_broadcasts(mask, found) for mask in (*added, *chosen))
        or not all(dtype(mask) == dtype(here) for mask in added)
        or found.get("fill", HIDDEN) > HIDDEN
        or dtype(here) != dtype(found["query"])
    ):
        return None
    mask = _mask(edit, here, found)
    return _call(edit, here, found, mask, False, scale, found.get("softcap", 0.0))


def _mask(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    """What is added to the scores, or a boolean mask where scores are overwritten by -inf."""
    mask, fill = found.get("mask"), found.get("fill")
    if "bias" in found:
        return edit.call(aten.add.Tensor, found["bias"], mask, before=here)
    if fill == -math.inf and "hidden" in found:
        return edit.call(aten.logical_not.default, found["hidden"], before=here)
    if fill == -math.inf:
        shown: fx.Node = found["shown"]
        return shown
    if fill is not None:
        branches = (fill, 0.0) if "hidden" in found else (0.0, fill)
        condition = found.get("hidden", found.get("shown"))
        mask = edit.call(aten.where.Scalar, condition, *branches, before=here)
        if dtype(mask) != dtype(here):
            mask = edit.call(aten._to_copy.default, mask, dtype=dtype(here), before=here)
    return mask


def _from_fused(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    scale, width = found["scale"], shape(found["query"])[-1]
    if not _fits(found, shared=found["grouped"]) or not isinstance(width, int):
        return None
    scale = 1 / math.sqrt(width) if scale is None else scale
    return _call(edit, here, found, found["mask"], found["causal"], scale, 0.0)


def _before_repetition(edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    """Head h of the repeated keys is head h // n of the keys, which is what grouping means."""
    for plain, place in (("key", 1), ("value", 2)):
        repeated: Any = here.args[place]
        batch, _, length, width = shape(repeated)
        if not same(shape(found[plain]), (batch, shape(found[plain])[1], length, width)):
            return None
    if not _fits(found, shared=True):
        return None
    mask, causal = found["mask"], found["causal"]
    return _call(edit, here, found, mask, causal, found["scale"], found["softcap"])


def _call(
    edit: Edit,
    here: fx.Node,
    found: Found,
    mask: fx.Node | None,
    causal: bool,
    scale: float,
    softcap: float,
) -> fx.Node:
    tensors = (found["query"], found["key"], found["value"], mask)
    return edit.call(ops.attention, *tensors, causal, float(scale), float(softcap), before=here)


def _fits(found: Found, *, shared: bool) -> bool:
    """Whether query, key and value are [B, heads, length, width], with heads that go together.

    Without `shared`, one head serves all query heads, or every query head has its own.
    """
    shapes = [shape(found[name]) for name in ("query", "key", "value")]
    if any(len(extents) != 4 for extents in shapes):
        return False
    query, key, value = shapes
    heads, groups = query[1], key[1]
    return (
        isinstance(heads, int)
        and isinstance(groups, int)
        and heads % groups == 0
        and (shared or groups in {1, heads})
        and same(query[:1], key[:1])
        and same(key[:3], value[:3])
    )


def _broadcasts(mask: fx.Node, found: Found) -> bool:
    """Whether a mask stretches to the scores [B, heads, T, S]."""
    query, key, extents = shape(found["query"]), shape(found["key"]), shape(mask)
    scores = (*query[:3], key[2])
    return len(extents) <= len(scores) and all(
        same((extent,), (1,)) or same((extent,), (full,))
        for extent, full in zip(reversed(extents), reversed(scores), strict=False)
    )


def _repeated(heads: Pattern) -> Pattern:
    """Keys or values of which each head stands n times in a row."""
    grouped = reshape(_expand(_unsqueeze(heads, -3), ANY), ANY)
    return grouped | _repeat(heads, ANY, -3) | _expand(heads, ANY)


RULES = (
    Rule(_fused(QUERY, KEY, VALUE, MASK, 0.0, CAUSAL, SCALE, anything("grouped")), _from_fused),
    Rule(matmul(_weights(), VALUE), _from_products),
    Rule(
        _attention(QUERY, _repeated(KEY), _repeated(VALUE), MASK, CAUSAL, SCALE, CAP),
        _before_repetition,
    ),
)
