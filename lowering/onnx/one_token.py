"""Attention of one new token, whose keys and values are written into the cache where it lies.

ONNX Runtime's `GroupQueryAttention` takes a cache longer than what it holds, and writes the new
position into it, if past and present are bound to the same memory (onnxruntime's documentation of
contrib operators). `Attention` makes a copy at every token. The operator masks what comes after a
position by itself, which changes nothing where the new position is the last; with several new
tokens it refuses batches, so it is used in graphs for one token only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir
import torch

from planish.lowering.onnx.builder import Builder
from planish.lowering.onnx.sizes import Extent
from planish.lowering.onnx.target import CONTRIB

OPERATOR = "GroupQueryAttention"

_MULTIPLE = 8
"""What the operator wants widths of heads to be multiples of; where it turns them, twice that. It
turns multiples of this many pairs."""


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
    width = widths.pop()
    if widths or width % _MULTIPLE:
        return None
    batch, _, before, _ = b.shape(pasts[0])
    total = b.op("Cast", b.size(before + length), to=ir.DataType.INT32)
    last = b.op("Sub", total, b.constant([1], torch.int32))
    turned = _turned(b, given, width)
    return b.ops(
        3,
        f"{CONTRIB}.{OPERATOR}",
        *(given if turned is None else (turned.product, None, None)),
        *pasts,
        b.op("Expand", last, b.size(batch)),
        b.op("Squeeze", total, [0]),
        *((None, None, None) if turned is None else _angles(b, turned, batch, before + length)),
        None if mask is None else _added(b, mask),
        num_heads=heads,
        kv_num_heads=groups,
        scale=scale,
        softcap=softcap or None,
        do_rotary=None if turned is None else 1,
    )


class _Turned(NamedTuple):
    """Parts of one product, of which query and key were turned by the same angles.

    Attributes:
        product: query, key and value beside each other, [B, 1, (H + 2 K)·D].
        tables: cosines and sines of the new positions, each [B, 1, R / 2].
    """

    product: ir.Value
    tables: tuple[ir.Value, ir.Value]


def _turned(b: Builder, given: Sequence[ir.Value], width: int) -> _Turned | None:
    """What query, key and value were before they were split and turned, if they were just that.

    The operator does both itself. Three nodes fewer a layer are a twentieth of a small model's
    step.

    Args:
        b: at the node.
        given: query, keys and values, each [B, 1, heads·D].
        width: of a head, D.
    """
    turns = [value.producer() for value in given[:2]]
    if any(turn is None or turn.op_type != "RotaryEmbedding" for turn in turns):
        return None
    (query, *tables), (key, *others) = (turn.inputs for turn in turns if turn is not None)
    cosines, sines = tables
    parts = (query, key, given[2])
    split = given[2].producer()
    if split is None or split.op_type != "Split" or parts != tuple(split.outputs):
        return None
    product = split.inputs[0]
    if product is None or cosines is None or sines is None or tables != others:
        return None
    if width % (2 * _MULTIPLE) or int(b.shape(cosines)[-1]) % _MULTIPLE:
        return None
    return _Turned(product, (cosines, sines))


def _angles(
    b: Builder, turned: _Turned, batch: Extent, total: Extent
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Tables of cosines and sines, and the row of both that each text's new position reads.

    The operator wants a row for each position of the longest text. Only the new ones are read, so
    those of the batch come first, and nothing after them.
    """
    texts = b.op("Range", b.constant(0), b.scalar(batch), b.constant(1))
    rows = [_rows(b, table, batch, total) for table in turned.tables]
    return (rows[0], rows[1], b.op("Unsqueeze", texts, [1]))


def _rows(b: Builder, table: ir.Value, batch: Extent, total: Extent) -> ir.Value:
    """[B, 1, R / 2] as [B + total, R / 2], zeros after what is given."""
    width = b.shape(table)[-1]
    nothing = b.op("Expand", b.constant(0.0, torch.float32), b.dims([total, width]))
    return b.op("Concat", b.reshape(table, [batch, width]), nothing, axis=0)


def _added(b: Builder, mask: ir.Value) -> ir.Value:
    """What a mask adds to scores: 0 where it is true, else so little that nothing is read."""
    if b.dtype(mask) != torch.bool:
        return mask
    least = torch.finfo(torch.float32).min
    numbers = (b.constant(0.0, torch.float32), b.constant(least, torch.float32))
    return b.typed(b.op("Where", mask, *numbers), torch.float32, b.shape(mask))
