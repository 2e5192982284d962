"""Attention of com.microsoft: each sample reads its own row of everything that has rows."""

from __future__ import annotations

from planish.ir.flow.call import NotCovered, Result
from planish.ir.flow.laws import ByPlace
from planish.ir.flow.lookup import indexed
from planish.ir.flow.polynomial import Count, Polynomial, quotient
from planish.ir.flow.vocabulary import Concat, Expression, Operand, Reads, Shape
from planish.ir.rules.onnx.attention import by_head, rotated
from planish.ir.rules.onnx.call import OnnxCall, named, of_rank
from planish.ir.rules.onnx.contrib import DOMAIN

_SETTINGS = [
    "mask_filter_value",
    "scale",
    "unidirectional",
    "do_rotary",
    "rotary_embedding_dim",
    "past_present_share_buffer",
    "causal",
    "local_window_size",
    "qk_norm_epsilon",
    "rotary_interleaved",
    "smooth_softmax",
    "softcap",
    "sliding_window_cache",
    "kv_cache_bit_width",
    "k_quant_type",
    "v_quant_type",
]


def own_sample(
    shape: Shape, rows: list[Expression], weights: list[Expression], batch: int = 0
) -> Expression:
    """Each element reads its sample's part of `rows`, and all of `weights`."""
    operands = [Operand(one, (batch, *(f"r{d}" for d in range(1, len(one.shape))))) for one in rows]
    operands += [Operand(one, tuple(f"w{d}" for d in range(len(one.shape)))) for one in weights]
    return Reads(shape, tuple(operands), "contract", law=ByPlace())


def _mask(call: OnnxCall, place: int, batch: Count) -> list[Expression]:
    """A mask with a row a sample; other layouts lay samples one after another."""
    mask = call.optional(place)
    if mask is None:
        return []
    if not mask.shape or mask.shape[0] not in (batch, 1):
        raise NotCovered("a mask without a row for each sample")
    return [mask]


def multi_head(call: OnnxCall) -> Result:
    """`MultiHeadAttention(q, k, v, bias, padding, bias of positions, past key, past value)`."""
    call.ignore(*_SETTINGS)
    query = of_rank(call.input(0), 3)
    batch, length, _ = query.shape
    heads = call["num_heads"]
    key, value = (by_head(call.input(place), heads) for place in (1, 2))
    past_key, past_value = call.optional(6), call.optional(7)
    key = Concat((past_key, key), 2) if past_key is not None else key
    value = Concat((past_value, value), 2) if past_value is not None else value
    weights = [call.input(3)] if call.given(3) else []
    bias = [call.input(5)] if call.given(5) else []
    rows = [query, key, value, *_mask(call, 4, batch), *bias]
    out = own_sample((batch, length, value.shape[1] * value.shape[3]), rows, weights)
    table = own_sample((batch, heads, length, key.shape[2]), rows, weights)
    results = (
        out,
        own_sample(key.shape, [key], weights),
        own_sample(value.shape, [value], weights),
        table,
    )
    return results[: len(call.outputs)]


def packed(call: OnnxCall) -> Result:
    """`Attention(x, weights, bias, mask, past, bias of positions)`; `QAttention` with scales."""
    call.ignore(*_SETTINGS)
    quantized = call.name == "QAttention"
    value = of_rank(call.input(0), 3)
    batch, length, _ = value.shape
    heads = call["num_heads"]
    projection = call.input(1)
    sizes = call.integers("qkv_hidden_sizes")
    third = quotient(projection.shape[-1], 3)
    hidden: Count | None = sizes[2] if sizes else third
    if hidden is None or not isinstance(heads, int):
        raise NotCovered("widths that are not known")
    mask, past = (5, 8) if quantized else (3, 4)
    places = (2, 3, 4, 6, 7) if quantized else (2,)
    weights = [projection, *(call.input(place) for place in places if call.given(place))]
    rows = [value, *_mask(call, mask, batch)]
    rows += [call.input(5)] if not quantized and call.given(5) else []
    state = call.optional(past)
    held = [Operand(state, ("kv", 0, "h", "t", "d"))] if state is not None else []
    out = own_sample((batch, length, hidden), rows, weights)
    results: list[Expression] = [
        Reads(out.shape, (*_operands(out), *held), "contract", law=ByPlace())
    ]
    if len(call.outputs) > 1:
        total = length + (state.shape[3] if state is not None else 0)
        width = quotient(hidden, heads)
        if width is None:
            raise NotCovered("a width that heads do not divide")
        kept = own_sample((2, batch, heads, total, width), [value], weights, batch=1)
        before = [Operand(state, ("kv", 1, "h", "t", "d"))] if state is not None else []
        results.append(Reads(kept.shape, (*_operands(kept), *before), "contract", law=ByPlace()))
    return tuple(results)


def _operands(value: Expression) -> tuple[Operand, ...]:
    return value.operands if isinstance(value, Reads) else ()


def grouped_query(call: OnnxCall) -> Result:
    """`GroupQueryAttention(q, k, v, past key, past value, lengths, total length, tables, ...)`."""
    call.ignore(*_SETTINGS)
    if call.attribute("qk_output", 0):
        raise NotCovered("the scores as a result")
    query = of_rank(call.input(0), 3)
    heads, shared = call["num_heads"], call["kv_num_heads"]
    if not isinstance(heads, int) or not isinstance(shared, int):
        raise NotCovered("no numbers of heads")
    batch, length, wide = query.shape
    width = quotient(wide, heads if call.given(1) else heads + 2 * shared)
    if width is None:
        raise NotCovered("a width that heads do not divide")
    call.control(6)
    row_places = (1, 2, 3, 4, 5, 9, 10)
    rows = [query, *(call.input(place) for place in row_places if call.given(place))]
    weights = [call.input(place) for place in (11, 12, 13, 14, 15) if call.given(place)]
    tables = [call.input(place) for place in (7, 8) if call.given(place)]
    if call.given(9):
        # Each position names the row that it reads, so what is known of positions tells whose.
        places = call.input(9)
        rows += [
            indexed(one, (places, None), call.known, (batch, length, one.shape[1]))
            for one in tables
        ]
    else:
        weights += tables
    out = own_sample((batch, length, width * heads), rows, weights)
    kept: list[Expression] = []
    if len(call.outputs) > 1:
        # As long as the past and the new positions, or as a buffer that is shared.
        total: Count = Polynomial.symbol(f"kept({call.outputs[1].name})")
        kept = [own_sample((batch, shared, total, width), rows, weights)] * 2
    return (out, *kept)[: len(call.outputs)]


def rotary(call: OnnxCall) -> Expression:
    """`RotaryEmbedding(x, positions, cos, sin)` of [B, T, H D] or [B, H, T, D]."""
    call.ignore("interleaved", "num_heads", "rotary_embedding_dim", "scale")
    if call.attribute("is_packed_batching", 0):
        raise NotCovered("samples one after another")
    return rotated(of_rank(call.input(0), 3, 4), [call.input(2), call.input(3)], call.input(1))


RULES = (
    named(multi_head, "MultiHeadAttention", DOMAIN)
    | named(packed, "Attention QAttention", DOMAIN)
    | named(grouped_query, "GroupQueryAttention", DOMAIN)
    | named(rotary, "RotaryEmbedding", DOMAIN)
)
