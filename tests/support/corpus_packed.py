"""Packed batches: rows of several requests one after another, kept apart or not.

Each takes x [N, 8], where each request begins [S + 1], and whose each row is [N].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.attention.varlen  # registers the operator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Case = Callable[["Packed", Tensor, Tensor, Tensor], Tensor]
WIDTH, HEADS = 8, 2


class Packed(nn.Module):
    """One layer of attention over packed rows."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, cu: Tensor, ids: Tensor) -> Tensor:
        """`x` [N, 8], `cu` [S + 1] and `ids` [N] to [N, 8]."""
        return self.case(self, x, cu, ids)

    def heads(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, each [N, H, D]."""
        return [one.unflatten(-1, (HEADS, -1)) for one in self.qkv(x).chunk(3, -1)]

    def close(self, x: Tensor, y: Tensor) -> Tensor:
        """What follows on attention."""
        result: Tensor = F.layer_norm(x + self.out(y.flatten(-2)), [WIDTH])
        return result


def kernel(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor) -> Tensor:
    longest = 4
    result: Tensor
    result, _, _ = torch.ops.torch_attn._varlen_attn(q, k, v, cu_q, cu_k, longest, longest, True)
    return result


def reference(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, causal: bool) -> Tensor:
    """What the kernel computes, one request after another."""
    parts = []
    for first, last in zip(cu.tolist(), cu.tolist()[1:], strict=False):
        one, two, three = (x[first:last].transpose(0, 1) for x in (q, k, v))
        parts.append(F.scaled_dot_product_attention(one, two, three, is_causal=causal))
    return torch.cat(parts, 1).transpose(0, 1).contiguous()


def by_bounds(m: Packed, x: Tensor, cu: Tensor, ids: Tensor) -> Tensor:
    q, k, v = m.heads(x)
    return m.close(x, kernel(q, k, v, cu, cu))


def attended(m: Packed, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (one.transpose(0, 1)[None] for one in m.heads(x))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return m.close(x, y[0].transpose(0, 1))


def blocks(ids: Tensor) -> Tensor:
    return ids[:, None] == ids[None]


def grouped(m: Packed, x: Tensor, cu: Tensor, ids: Tensor) -> Tensor:
    """Four heads of queries on two of keys."""
    q, k, v = (one.unflatten(-1, (4, 2)).transpose(0, 1)[None] for one in m.qkv(x).chunk(3, -1))
    mask = blocks(ids)[None, None]
    y = F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], attn_mask=mask, enable_gqa=True)
    return m.close(x, y[0].transpose(0, 1))


def causal(x: Tensor) -> Tensor:
    places = torch.arange(x.shape[0])
    return places[:, None] >= places[None]


def shifted(m: Packed, x: Tensor, cu: Tensor, ids: Tensor) -> Tensor:
    q, k, v = m.heads(x)
    return m.close(x, kernel(q, k.roll(1, 0), v, cu, cu))


def other_bounds(m: Packed, x: Tensor, cu: Tensor, ids: Tensor) -> Tensor:
    q, k, v = m.heads(x)
    wide = torch.stack([cu[0], cu[-1]])
    return m.close(x, kernel(q, k, v, wide, wide))


def last_of_each(m: Packed, x: Tensor, cu: Tensor, ids: Tensor) -> Tensor:
    """A row of each request, repeated for all: by numbers, which nothing follows."""
    return x + x[(cu[1:] - 1)[ids]]


ISOLATED: dict[str, Case] = {
    "T05 attention by bounds": by_bounds,
    "two layers by bounds": lambda m, x, cu, ids: by_bounds(m, by_bounds(m, x, cu, ids), cu, ids),
    "attention by a mask of blocks": lambda m, x, cu, ids: attended(m, x, blocks(ids)),
    "blocks and causal": lambda m, x, cu, ids: attended(m, x, (blocks(ids) & causal(x))[None]),
    "blocks for grouped queries": grouped,
    "each row by itself": lambda m, x, cu, ids: m.close(x, m.heads(x)[0]),
}

LEAKS: dict[str, Case] = {
    "T06 attention without bounds": lambda m, x, cu, ids: attended(m, x, None),
    "a causal mask alone": lambda m, x, cu, ids: attended(m, x, causal(x)),
    "blocks or causal": lambda m, x, cu, ids: attended(m, x, blocks(ids) | causal(x)),
    "another request's block": lambda m, x, cu, ids: attended(m, x, ids[:, None] != ids[None]),
    "blocks of the request before": lambda m, x, cu, ids: attended(
        m, x, ids[:, None] == ids[None] + 1
    ),
    "blocks of other rows": lambda m, x, cu, ids: attended(m, x, blocks(ids.roll(2))),
    "shifted keys": shifted,
    "one request by its bounds": other_bounds,
    "a mean of all rows": lambda m, x, cu, ids: m.close(x - x.mean(0), m.heads(x)[0]),
    "a neighbour": lambda m, x, cu, ids: x + x.roll(1, 0),
}
