"""Attention and rotary embeddings of ai.onnx."""

from __future__ import annotations

from planish.ir.flow.call import NotCovered, Result
from planish.ir.flow.laws import ByPlace
from planish.ir.flow.polynomial import Count, quotient
from planish.ir.flow.vocabulary import (
    Concat,
    Expression,
    Operand,
    Reads,
    Reshape,
    Tag,
    aligned,
    permuted,
)
from planish.ir.rules.aten.attention import attended, meaning
from planish.ir.rules.onnx.call import OnnxCall, named, of_rank


def by_head(value: Expression, heads: object) -> Expression:
    """[B, T, H D] as [B, H, T, D]; what has four dimensions is that already."""
    if len(value.shape) == 4:
        return value
    batch, time, wide = of_rank(value, 3).shape
    if not isinstance(heads, int) or heads < 1:
        raise NotCovered("no number of heads")
    width = quotient(wide, heads)
    if width is None:
        raise NotCovered("a width that heads do not divide")
    return permuted(Reshape(value, (batch, time, heads, width)), (0, 2, 1, 3))


def side_by_side(value: Expression) -> Expression:
    """[B, H, T, D] as [B, T, H D]."""
    batch, heads, time, width = value.shape
    return Reshape(permuted(value, (0, 2, 1, 3)), (batch, time, heads * width))


def attend(
    query: Expression,
    key: Expression,
    value: Expression,
    mask: Expression | None,
    truths: bool | None = None,
) -> Expression:
    """Attention of [B, H, T, D] over [B, K, S, D] and [B, K, S, V]; of masks see `attended`."""
    return attended(query, key, value, mask, (*query.shape[:3], value.shape[3]), truths)


def scores(
    query: Expression, key: Expression, mask: Expression | None, positions: Count
) -> Expression:
    """How much each position attends to each: [B, H, T, S], every number out of its whole row."""
    row = attended(query, key, key, mask, query.shape)
    operand = Operand(row, (0, 1, 2, "width"))
    return Reads((*query.shape[:3], positions), (operand,), "statistic", law=ByPlace())


_SETTINGS = [
    "is_causal",
    "scale",
    "softcap",
    "softmax_precision",
    "qk_matmul_output_mode",
    "left_window_size",
    "right_window_size",
]


def attention(call: OnnxCall) -> Result:
    """`Attention(q, k, v, mask, past key, past value, lengths)`."""
    call.ignore(*_SETTINGS)
    flat = len(call.input(0).shape) == 3
    query = by_head(call.input(0), call["q_num_heads"])
    key, value = (by_head(call.input(place), call["kv_num_heads"]) for place in (1, 2))
    past_key, past_value = call.optional(4), call.optional(5)
    key = Concat((past_key, key), 2) if past_key is not None else key
    value = Concat((past_value, value), 2) if past_value is not None else value
    mask, lengths = call.optional(3), call.optional(6)
    # A cap on scores behind the mask lifts what it hides; where it lies depends on the version.
    capped = call.attribute("softcap", 0.0) != 0
    truths = None if capped else meaning(getattr(mask, "dtype", None))
    out = attend(query, key, value, mask, truths)
    table = scores(query, key, mask, key.shape[2])
    if lengths is not None:
        out, table = (
            Reads(one.shape, (aligned(one, 4), Operand(lengths, (0,))), "contract", law=ByPlace())
            for one in (out, table)
        )
    results = (side_by_side(out) if flat else out, key, value, table)
    return results[: len(call.outputs)]


def rotary(call: OnnxCall) -> Expression:
    """`RotaryEmbedding(x, cos, sin, positions)` of [B, T, H D] or [B, H, T, D]."""
    call.ignore("interleaved", "rotary_embedding_dim", "num_heads")
    return rotated(call.input(0), [call.input(1), call.input(2)], call.optional(3))


def rotated(
    value: Expression, tables: list[Expression], positions: Expression | None
) -> Expression:
    """`value` turned by angles of its positions, looked up in tables or given one by one."""
    rank = len(value.shape)
    time = 1 if rank == 3 else 2
    operands = [aligned(value, rank)]
    for table in tables:
        place: tuple[Tag, ...] = (0, time) if len(table.shape) == 3 else ("position",)
        operands.append(Operand(table, (*place, "angle")))
    if positions is not None:
        if len(positions.shape) == 2:
            operands.append(Operand(positions, (0, time)))
        else:
            operands.append(Operand(positions, ("offset",) * len(positions.shape)))
    return Reads(value.shape, tuple(operands), "window", frozenset({rank - 1}))


RULES = named(attention, "Attention") | named(rotary, "RotaryEmbedding")
