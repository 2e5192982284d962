"""Attention, with as many heads of keys as of queries or fewer."""

from __future__ import annotations

from planish.ir.flow.call import Call, NotCovered, Result, Rule
from planish.ir.flow.laws import ByPlace
from planish.ir.flow.vocabulary import (
    Expression,
    Fill,
    Operand,
    Reads,
    Reshape,
    Shape,
    along,
    contraction,
    pointwise,
)
from planish.ir.rules.aten.table import named


def attention(call: Call) -> Result:
    """`scaled_dot_product_attention` in all its forms, and `planish::attention`."""
    query, key, value = call["query"], call["key"], call["value"]
    mask = None
    for name in ("attn_mask", "mask", "attn_bias"):
        mask = mask if mask is not None else call.get(name)
    for name in (
        "is_causal",
        "dropout_p",
        "scale",
        "enable_gqa",
        "softcap",
        "compute_log_sumexp",
        "return_debug_mask",
    ):
        call.get(name)
    shape = call.shape
    bias = mask if isinstance(mask, Expression) else None
    out = attended(query, key, value, bias, shape)
    rest = [_statistics(query, key, bias, output.shape) for output in call.outputs[1:]]
    return (out, *rest)


def attended(
    query: Expression,
    key: Expression,
    value: Expression,
    mask: Expression | None,
    shape: Shape,
) -> Expression:
    """Attention of [..., H, T, D] over [..., K, S, D] and [..., K, S, V], K dividing H.

    Each position reads all of the query's width, all positions of its key head, and its row of
    the mask. A mask that forbids a position does not keep what is not finite there from being
    read, so it does not keep requests apart.
    """
    rank = len(shape)
    lead = rank - 2
    query, key, value = (_ranked(one, rank) for one in (query, key, value))
    heads = query.shape[lead - 1] if lead else 1
    shared = key.shape[lead - 1] if lead else 1
    if lead and shared not in (heads, 1):
        if value.shape[lead - 1] != shared:
            raise NotCovered("keys and values of different numbers of heads")
        return _grouped(query, key, value, mask, shape)
    places = tuple(range(lead))
    scores: Expression = contraction(
        (*shape[:-1], key.shape[-2]),
        (query, (*places, lead, "width")),
        (key, (*places, lead + 1, "width")),
    )
    if mask is not None:
        scores = pointwise("nonlinear", scores, mask, shape=scores.shape)
    causal = ByPlace((lead, lead + 1))  # it may be
    weights = along("softmax", scores, (lead + 1,), law=causal)
    return contraction(
        shape,
        (weights, (*places, lead, "positions")),
        (value, (*places, "positions", lead + 1)),
    )


def _ranked(value: Expression, rank: int) -> Expression:
    missing = rank - len(value.shape)
    return Reshape(value, (*(1,) * missing, *value.shape)) if missing > 0 else value


def _grouped(
    query: Expression, key: Expression, value: Expression, mask: Expression | None, shape: Shape
) -> Expression:
    """Grouped queries: H heads as K groups of H / K, which broadcast over their key head."""
    lead = len(shape) - 3
    heads, shared = query.shape[lead], key.shape[lead]
    if not (isinstance(heads, int) and isinstance(shared, int)) or heads % shared:
        raise NotCovered("query heads that key heads do not divide")
    split = (shared, heads // shared)

    def parted(one: Expression) -> Expression:
        return Reshape(one, (*one.shape[:lead], *split, *one.shape[lead + 1 :]))

    def lone(one: Expression) -> Expression:
        return Reshape(one, (*one.shape[:lead], shared, 1, *one.shape[lead + 1 :]))

    if mask is not None and len(mask.shape) > 2:
        own = mask.shape[-3]
        parts = split if own == heads else (own, 1)
        mask = Reshape(mask, (*mask.shape[:-3], *parts, *mask.shape[-2:]))
    wide = (*shape[:lead], *split, *shape[lead + 1 :])
    return Reshape(attended(parted(query), lone(key), lone(value), mask, wide), shape)


def _statistics(
    query: Expression, key: Expression, mask: Expression | None, shape: Shape
) -> Expression:
    """What fused kernels return beside the result: one number a query row, or a seed."""
    if len(shape) != len(query.shape) - 1:
        return Fill(shape, "random")
    lead = len(shape) - 1
    q = Operand(query, (*range(lead + 1), "width"))
    k = Operand(key, (*range(lead - 1), "heads", "positions", "width"))
    operands = [q, k]
    if mask is not None:
        first = lead + 2 - len(mask.shape)
        operands.append(Operand(mask, (*range(first, lead + 1), "positions")))
    return Reads(shape, tuple(operands), "statistic", law=ByPlace())


RULES: dict[str, Rule] = named(
    attention,
    """scaled_dot_product_attention.default
        _scaled_dot_product_flash_attention_for_cpu.default
        _scaled_dot_product_efficient_attention.default""",
) | {"planish.attention": attention}
