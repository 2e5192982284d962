"""Attention of one new token, whose keys and values are written into the cache where it lies.

ONNX Runtime's `GroupQueryAttention` takes a cache longer than what it holds, and writes the new
position into it, if past and present are bound to the same memory (onnxruntime's documentation of
contrib operators). `Attention` makes a copy at every token. The operator masks what comes after a
position by itself, which changes nothing where the new position is the last; with several new
tokens it refuses batches, so it is used in graphs for one token only.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch

from planish.lowering.onnx.builder import Builder
from planish.lowering.onnx.sizes import Extent
from planish.lowering.onnx.target import CONTRIB

OPERATOR = "GroupQueryAttention"

_MULTIPLE = 8
"""What the operator wants widths of heads to be multiples of."""


def attention(
    b: Builder,
    packed: Sequence[ir.Value | None],
    mask: ir.Value | None,
    pasts: Sequence[ir.Value],
    *,
    heads: int,
    groups: int,
    scale: float,
    softcap: float,
    length: Extent,
) -> tuple[ir.Value, ...] | None:
    """The result [B, 1, H·D] and the caches with the new position; None where this cannot be said.

    Args:
        b: at the node.
        packed: query, new keys and new values, each [B, 1, heads·D] if it can be had so.
        mask: [B or 1, H or 1, 1, P+1], true or 0 where a position is read; None for everywhere.
        pasts: keys and values before, [B, K, P, D].
        heads: of the query.
        groups: heads of keys and values.
        scale: factor of the scores.
        softcap: bound of the scores; 0 for none.
        length: new positions, as the program has it.
    """
    fits = b.target.one_token and OPERATOR in b.target.contrib and len(pasts) == 2
    given = [tensor for tensor in packed if tensor is not None]
    if not fits or len(given) < 3 or any(b.dtype(one) != torch.float32 for one in pasts):
        return None
    widths = {int(b.shape(past)[-1]) for past in pasts}
    if len(widths) > 1 or widths.pop() % _MULTIPLE:
        return None
    batch, _, before, _ = b.shape(pasts[0])
    total = b.op("Cast", b.size(before + length), to=ir.DataType.INT32)
    last = b.op("Sub", total, b.constant([1], torch.int32))
    return b.ops(
        3,
        f"{CONTRIB}.{OPERATOR}",
        *given,
        *pasts,
        b.op("Expand", last, b.size(batch)),
        b.op("Squeeze", total, [0]),
        *(None, None, None),  # tables of angles, and positions: what it is given is turned already
        None if mask is None else _added(b, mask),
        num_heads=heads,
        kv_num_heads=groups,
        scale=scale,
        softcap=softcap or None,
    )


def _added(b: Builder, mask: ir.Value) -> ir.Value:
    """What a mask adds to scores: 0 where it is true, else so little that nothing is read."""
    if b.dtype(mask) != torch.bool:
        return mask
    least = torch.finfo(torch.float32).min
    numbers = (b.constant(0.0, torch.float32), b.constant(least, torch.float32))
    return b.typed(b.op("Where", mask, *numbers), torch.float32, b.shape(mask))
