"""Attention and rotary embedding.

Heads come as [B, H, T, D], made by a transposition from [B, T, H, D]. ONNX's operators also take
them packed, as [B, T, H·D], which saves that transposition; so where a value is such a
transposition, these emitters read what is before it, and hand on their result in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx

from planish.ir import ops
from planish.lowering.onnx import one_token
from planish.lowering.onnx.builder import Builder, Emitter
from planish.lowering.onnx.movement import END, sliced
from planish.lowering.onnx.sizes import Extent

aten = torch.ops.aten

_SWAP = [0, 2, 1, 3]


def pack(b: Builder, heads: ir.Value) -> ir.Value | None:
    """[B, H, T, D] as [B, T, H·D], if that takes no transposition."""
    if b.transposed(heads) != _SWAP:
        return None
    batch, count, length, width = b.shape(heads)
    return b.reshape(b.transpose(heads, _SWAP), [batch, length, count * width])


def unpack(b: Builder, packed: ir.Value, count: Extent) -> ir.Value:
    """[B, T, H·D] as [B, H, T, D]."""
    batch, length, width = b.shape(packed)
    apart = b.reshape(packed, [batch, length, count, width // count])
    return b.transpose(apart, _SWAP)


def _rotary(b: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value, interleaved: bool) -> ir.Value:
    """ONNX's operator takes one angle a pair; torch's tables say each angle twice."""
    if interleaved or not all(map(_halves_equal, b.node.args[1:3])) or not _per_position(b, cos):
        return _rotary_plain(b, x, cos, sin, interleaved)
    turned, width = b.shape(cos)[-1], b.shape(x)[-1]
    tables = [_half_table(b, x, table) for table in (cos, sin)]
    packed = pack(b, x)
    heads = b.shape(x)[1] if packed is not None or turned != width else None
    made = b.op(
        "RotaryEmbedding",
        x if packed is None else packed,
        *tables,
        num_heads=heads,
        rotary_embedding_dim=turned if turned != width else None,
    )
    if packed is None:
        return made
    return unpack(b, b.typed(made, b.dtype(x), b.shape(packed)), b.shape(x)[1])


def _per_position(b: Builder, table: ir.Value) -> bool:
    """Whether all heads share a table, [B, 1, T, R] or less."""
    shape = b.shape(table)
    return (len(shape) < 4 and shape[:-2] in {(), (1,)}) or (len(shape) == 4 and shape[1] == 1)


def _half_table(b: Builder, x: ir.Value, table: ir.Value) -> ir.Value:
    """[B, T, R / 2] of a table [B or 1, 1, T, R], [1, T, R] or [T, R]."""
    shape = b.shape(table)
    batch, length, width = shape[0] if len(shape) == 4 else 1, shape[-2], shape[-1]
    flat = b.reshape(table, [batch, length, width])
    half = b.typed(sliced(b, flat, 2, 0, width // 2), b.dtype(table), [batch, length, width // 2])
    return b.expand(half, [b.shape(x)[0], length, width // 2])


def _rotary_plain(
    b: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value, interleaved: bool
) -> ir.Value:
    turned, width = b.shape(cos)[-1], b.shape(x)[-1]
    part = x if turned == width else sliced(b, x, -1, 0, turned)
    if interleaved:
        first, second = sliced(b, part, -1, 0, END, 2), sliced(b, part, -1, 1, END, 2)
        pairs = [b.op("Unsqueeze", half, [-1]) for half in (b.op("Neg", second), first)]
        other = b.op("Reshape", b.op("Concat", *pairs, axis=-1), (*b.shape(x)[:-1], turned))
    else:
        first, second = b.ops(2, "Split", part, axis=-1, num_outputs=2)
        other = b.op("Concat", b.op("Neg", second), first, axis=-1)
    made = b.op("Add", b.op("Mul", part, cos), b.op("Mul", other, sin))
    return made if turned == width else b.op("Concat", made, sliced(b, x, -1, turned, END), axis=-1)


_POINTWISE = {
    aten.cos.default,
    aten.sin.default,
    aten._to_copy.default,
    aten.type_as.default,
    aten.mul.Tensor,
    aten.div.Tensor,
}
_ELSEWHERE = {aten.unsqueeze.default, aten.slice.Tensor, aten.expand.default}


def _halves_equal(node: Any) -> bool:
    """Whether the graph shows that both halves of a tensor's last dimension are the same."""
    if not isinstance(node, fx.Node) or not isinstance(node.meta["val"], Tensor):
        return True  # a number is the same everywhere
    width = node.meta["val"].shape[-1:]
    if width == (1,):
        return True
    if node.target is aten.cat.default:
        parts: Any = node.args[0]
        last = node.args[1:] in {(-1,), (node.meta["val"].dim() - 1,)}
        return last and len(parts) == 2 and parts[0] is parts[1]
    if node.target in _POINTWISE:
        return all(map(_halves_equal, node.args))
    if node.target in _ELSEWHERE:
        source: Any = node.args[0]
        return source.meta["val"].shape[-1:] == width and _halves_equal(source)
    return False


def _attention(
    b: Builder,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    mask: ir.Value | None,
    is_causal: bool,
    scale: float,
    softcap: float,
) -> ir.Value:
    heads, groups = b.shape(query)[1], b.shape(key)[1]
    mask = _whole_mask(b, query, key, mask)
    # With a past, the operator would align the causal mask to the end, torch to the start.
    caches = [] if is_causal else _caches(b.node)
    pasts = [b.values[cache.past] for cache in caches]
    if caches:
        key, value = (b.values[cache.new] for cache in caches)
    packed = [pack(b, tensor) for tensor in (query, key, value)]
    is_packed = all(tensor is not None for tensor in packed)
    tensors = packed if is_packed else [query, key, value]
    made, *present = one_token.attention(
        b,
        packed,
        mask,
        pasts,
        heads=int(heads),
        groups=int(groups),
        scale=scale,
        softcap=softcap,
        length=b.shape(query)[2],
    ) or b.ops(
        1 + len(pasts),
        "Attention",
        *tensors,
        mask,
        *pasts,
        is_causal=int(is_causal) or None,
        scale=scale,
        softcap=softcap or None,
        q_num_heads=heads if is_packed else None,
        kv_num_heads=groups if is_packed else None,
    )
    for cache, whole in zip(caches, present, strict=True):
        b.bind(cache.whole, whole)
    if not is_packed:
        return made
    batch, _, length, width = b.result_shape
    return unpack(b, b.typed(made, b.dtype(query), [batch, length, heads * width]), heads)


@dataclass(frozen=True)
class _Cache:
    """Keys or values that are what came before, an input, joined with what is new.

    The operator joins them itself, and gives the whole as an output.
    """

    past: fx.Node
    new: fx.Node
    whole: fx.Node


def _caches(attention: fx.Node) -> list[_Cache]:
    """The caches of keys and values; none unless both are, and nothing else reads them."""
    found: list[_Cache] = []
    for argument in attention.args[1:3]:
        match argument:
            case fx.Node(
                target=aten.cat.default,
                args=([fx.Node(op="placeholder") as past, fx.Node() as new], 2 | -2),
                users=users,
            ) if all(user is attention or user.op == "output" for user in users):
                found.append(_Cache(past, new, argument))
    return found if len(found) == 2 else []


def _whole_mask(
    b: Builder, query: ir.Value, key: ir.Value, mask: ir.Value | None
) -> ir.Value | None:
    """The mask as [B or 1, H or 1, T, S]: ONNX Runtime stretches only the first two."""
    if mask is None:
        return None
    length, past_and_new = b.shape(query)[2], b.shape(key)[2]
    first = [1] * (4 - b.rank(mask)) + list(b.shape(mask))[:-2]
    return b.expand(mask, [*first, length, past_and_new])


ATTENTION: dict[Callable[..., Any], Emitter] = {
    ops.rotary: _rotary,
    ops.attention: _attention,
}
"""How attention and what prepares its inputs are emitted."""
