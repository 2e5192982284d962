"""Attention, with as many heads of keys as of queries or fewer."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from planish.ir.flow.call import Call, NotCovered, Result, Rule
from planish.ir.flow.laws import ByPlace, Computed, Hidden, Packed, Products, Softmax
from planish.ir.flow.vocabulary import (
    Expression,
    Fill,
    Operand,
    Reads,
    Reshape,
    Shape,
    Tag,
    along,
    contraction,
    everything,
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
    bias = mask if isinstance(mask, Expression) else None
    # Where a mask meets is_causal, not every kernel reads it.
    truths = None if call.get("is_causal") else meaning(getattr(bias, "dtype", None))
    out = attended(query, key, value, bias, call.shape, truths)
    rest = [_statistics(query, key, bias, output.shape) for output in call.outputs[1:]]
    return (out, *rest)


def meaning(dtype: object) -> bool | None:
    """Whether a mask says which positions take part, or is added to scores; None if not known."""
    name = str(dtype).removeprefix("torch.").lower()
    return (
        name == "bool" if name == "bool" or name.startswith(("float", "bfloat", "double")) else None
    )


def attended(
    query: Expression,
    key: Expression,
    value: Expression,
    mask: Expression | None,
    shape: Shape,
    truths: bool | None = None,
) -> Expression:
    """Attention of [..., H, T, D] over [..., K, S, D] and [..., K, S, V], K dividing H.

    Each position reads all of the query's width, all positions of its key head, and its row of
    the mask. A mask that forbids a position does not keep what is not finite there from being
    read. If `truths`, it says which positions take part; if not, it is added to the scores; None
    where that is not known.
    """
    rank = len(shape)
    lead = rank - 2
    query, key, value = (_ranked(one, rank) for one in (query, key, value))
    heads = query.shape[lead - 1] if lead else 1
    shared = key.shape[lead - 1] if lead else 1
    if lead and shared not in (heads, 1):
        if value.shape[lead - 1] != shared:
            raise NotCovered("keys and values of different numbers of heads")
        return _grouped(query, key, value, mask, shape, truths)
    places = tuple(range(lead))
    scores: Expression = contraction(
        (*shape[:-1], key.shape[-2]),
        (query, (*places, lead, "width")),
        (key, (*places, lead + 1, "width")),
    )
    if mask is not None:
        law = None
        if truths is not None:
            hide, add = Computed("where", (mask, scores, -inf)), Computed("add", (scores, mask))
            law = hide if truths else add
        scores = pointwise("nonlinear", scores, mask, shape=scores.shape, law=law)
    hidden = Hidden((lead, lead + 1), scores)  # it may be causal
    scores = pointwise("nonlinear", scores, law=hidden)
    return contraction(
        shape,
        (along("softmax", scores, (lead + 1,), law=Softmax(scores)), (*places, lead, "positions")),
        (value, (*places, "positions", lead + 1)),
        law=Products(),
    )


def _ranked(value: Expression, rank: int) -> Expression:
    missing = rank - len(value.shape)
    return Reshape(value, (*(1,) * missing, *value.shape)) if missing > 0 else value


def _grouped(
    query: Expression,
    key: Expression,
    value: Expression,
    mask: Expression | None,
    shape: Shape,
    truths: bool | None,
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
    return Reshape(attended(parted(query), lone(key), lone(value), mask, wide, truths), shape)


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


def packed(call: Call) -> Result:
    """Attention of rows [N, H, D] that `cu_seq_q` and `cu_seq_k` [S + 1] divide into requests.

    The kernel reads, for a query, the keys between the two bounds around it. Every head counts as
    reading every head.
    """
    query, key, value = call["query"], call["key"], call["value"]
    bounds = [call[_either(call, names)] for names in _BOUNDS]
    for name in _SETTINGS:
        call.get(name)
    given = [call.get(name) for name in ("block_table", "alibi_slopes", "bias")]
    if any(one is not None for one in (*given, *(call.get(name) for name in _USED))):
        raise NotCovered("pages, biases, or keys of which a part is used")
    if any(one is None for one in bounds):
        raise NotCovered("a batch that no bounds divide")
    lead = len(query.shape) - 3
    if lead not in (0, 1) or (lead and query.shape[0] != 1):
        raise NotCovered("more than one row of packed requests")
    first: tuple[Tag, ...] = ("row",) * lead
    law = Packed((lead,), lead, tuple(bounds), "positions")
    ends = [Operand(one, (f"bounds{n}",)) for n, one in enumerate(bounds)]
    operands = (
        Operand(query, (*first, lead, lead + 1, "width")),
        Operand(key, (*first, "positions", "heads", "width")),
        Operand(value, (*first, "positions", "heads", lead + 2)),
        *ends,
    )
    out = Reads(call.shape, operands, "contract", law=law)
    read = (query, key, value, *bounds)
    return (out, *(everything("statistic", one.shape, *read) for one in call.outputs[1:]))


def _either(call: Call, names: Sequence[str]) -> str:
    return next(name for name in names if name in call)


_BOUNDS = (
    ("cu_seq_q", "cum_seq_q", "cu_seqlens_q"),
    ("cu_seq_k", "cum_seq_k", "cu_seqlens_k"),
)
_USED = ("seqused_k", "seqlen_k")
_SETTINGS = [
    "max_q",
    "max_k",
    "max_seqlen_q",
    "max_seqlen_k",
    "is_causal",
    "scale",
    "window_size",
    "window_size_left",
    "window_size_right",
    "enable_gqa",
    "num_splits",
    "dropout_p",
    "return_debug_mask",
    "custom_mask_type",
    "compute_log_sumexp",
]

RULES: dict[str, Rule] = named(
    attention,
    """scaled_dot_product_attention.default
        _scaled_dot_product_flash_attention_for_cpu.default
        _scaled_dot_product_efficient_attention.default""",
) | {"planish.attention": attention}

RULES |= named(packed, "_flash_attention_forward.default _efficient_attention_forward.default")
RULES |= {"torch_attn._varlen_attn.default": packed}
