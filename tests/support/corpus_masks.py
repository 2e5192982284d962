"""Masks that are added to scores, and attention written out, over a packed batch.

Each takes a layer of attention (`support.corpus_packed.Packed`), its input x [N, 8], and whose each
row is [N].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import planish.ir.ops  # noqa: F401  (registers the operators)
from support.corpus_packed import Packed, attended, blocks, causal

Case = Callable[[Packed, Tensor, Tensor], Tensor]
INF, LEAST = float("-inf"), torch.finfo(torch.float32).min


class All(nn.Module):
    """Every case on one layer."""

    def __init__(self, cases: Mapping[str, Case]) -> None:
        super().__init__()
        self.layer, self.cases = Packed(lambda *given: given[1]), cases

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """`x` [N, 8] and `ids` [N] to [N, 8] of each case."""
        return tuple(case(self.layer, x, ids) for case in self.cases.values())


def scores(m: Packed, x: Tensor) -> tuple[Tensor, Tensor]:
    """How much each row attends to each, [H, N, N], and the values [H, N, D]."""
    q, k, v = (one.transpose(0, 1) for one in m.heads(x))
    return q @ k.transpose(-1, -2) / 2, v


def written(m: Packed, x: Tensor, masked: Callable[[Tensor], Tensor]) -> Tensor:
    """Attention written out, its scores masked so."""
    table, v = scores(m, x)
    return m.close(x, (masked(table).softmax(-1) @ v).transpose(0, 1))


def low(ids: Tensor, value: float = INF) -> Tensor:
    return torch.where(blocks(ids), 0.0, value)


def hidden(ids: Tensor, value: float = LEAST) -> Tensor:
    return (1 - blocks(ids).to(torch.float32)) * value


def filled(x: Tensor, ids: Tensor) -> Tensor:
    return torch.zeros(x.shape[0], x.shape[0]).masked_fill(~blocks(ids), INF)


def later(x: Tensor) -> Tensor:
    """Minus infinity where a row comes after."""
    return torch.full((x.shape[0], x.shape[0]), INF).triu(1)


def before(x: Tensor) -> Tensor:
    """Rows that come before, but not the row itself."""
    places = torch.arange(x.shape[0])
    return places[:, None] > places[None]


def fused(m: Packed, x: Tensor, mask: Tensor, causal: bool = False, softcap: float = 0) -> Tensor:
    q, k, v = (one.transpose(0, 1)[None] for one in m.heads(x))
    y = torch.ops.planish.attention(q, k, v, mask, causal, 0.5, softcap)
    return m.close(x, y[0].transpose(0, 1))


def by_sums(m: Packed, x: Tensor, ids: Tensor) -> Tensor:
    """Einstein's notation, the mask put in place of scores, which are scaled afterwards."""
    q, k, v = m.heads(x)
    table = torch.where(blocks(ids), torch.einsum("ihd,jhd->hij", q, k), -1e6)
    return m.close(x, torch.einsum("hij,jhd->ihd", (table / 2).softmax(-1), v))


def without_softmax(m: Packed, x: Tensor, ids: Tensor) -> Tensor:
    table, v = scores(m, x)
    return m.close(x, ((table * blocks(ids)) @ v).transpose(0, 1))


def after_softmax(m: Packed, x: Tensor, ids: Tensor) -> Tensor:
    """The weights of others are cleared, but they were counted."""
    table, v = scores(m, x)
    return m.close(x, ((table.softmax(-1) * blocks(ids)) @ v).transpose(0, 1))


def values_again(m: Packed, x: Tensor, ids: Tensor) -> Tensor:
    table, v = scores(m, x)
    weights = (table + low(ids)).softmax(-1)
    return m.close(x, (weights @ v + v.mean(1, True)).transpose(0, 1))


def other_values(m: Packed, x: Tensor, ids: Tensor) -> Tensor:
    table, v = scores(m, x)
    return m.close(x, ((table + low(ids)).softmax(-1) @ v.roll(1, 1)).transpose(0, 1))


def down_columns(m: Packed, x: Tensor, ids: Tensor) -> Tensor:
    """A softmax over queries of a mask that is causal too: a mean over what is left."""
    table, v = scores(m, x)
    table = table + torch.where(causal(x), 0.0, LEAST)
    return m.close(x, ((table.softmax(-2) * blocks(ids)) @ v).transpose(0, 1))


def logarithms(m: Packed, x: Tensor, ids: Tensor) -> Tensor:
    table, v = scores(m, x)
    weights = (table + low(ids, -1e4)).log_softmax(-1)
    return m.close(x, (weights @ v).transpose(0, 1))


def in_bytes(ids: Tensor) -> Tensor:
    """-20,000 wraps around to -32 in eight bits."""
    return ((1 - blocks(ids).to(torch.int32)) * -20_000).to(torch.int8).to(torch.float32)


ISOLATED: dict[str, Case] = {
    "added, minus infinity": lambda m, x, ids: attended(m, x, low(ids)),
    "added, the least number": lambda m, x, ids: attended(m, x, low(ids, LEAST)),
    "added, -10,000": lambda m, x, ids: attended(m, x, low(ids, -10_000.0)[None, None]),
    "one less blocks, times the least number": lambda m, x, ids: attended(m, x, hidden(ids)),
    "zeros filled with minus infinity": lambda m, x, ids: attended(m, x, filled(x, ids)),
    "blocks that are causal, added": lambda m, x, ids: attended(
        m, x, torch.where(blocks(ids) & causal(x), 0.0, LEAST)
    ),
    "blocks, then a causal mask": lambda m, x, ids: attended(m, x, low(ids) + later(x)),
    "the least numbers, then a causal mask": lambda m, x, ids: attended(
        m, x, hidden(ids) + later(x)
    ),
    "the lesser of two masks": lambda m, x, ids: attended(
        m, x, torch.minimum(low(ids, LEAST), torch.where(causal(x), 0.0, LEAST))
    ),
    "before a row, or nothing": lambda m, x, ids: attended(
        m, x, torch.where(blocks(ids) & causal(x) & (x[:, :1] > -9), 0.0, INF)
    ),
    "written out, added": lambda m, x, ids: written(m, x, lambda s: s + low(ids, -1e9)),
    "written out, filled": lambda m, x, ids: written(
        m, x, lambda s: s.masked_fill(~blocks(ids), INF)
    ),
    "written out, filled where they differ": lambda m, x, ids: written(
        m, x, lambda s: s.masked_fill(ids[:, None] != ids[None], LEAST)
    ),
    "written out, chosen": lambda m, x, ids: written(
        m, x, lambda s: torch.where(blocks(ids)[None], s, torch.tensor(-1e30)) * 0.5
    ),
    "written out by sums": by_sums,
    "without a softmax": without_softmax,
    "planish::attention, truth values": lambda m, x, ids: fused(m, x, blocks(ids)),
    "planish::attention, added": lambda m, x, ids: fused(m, x, hidden(ids), softcap=20.0),
}

LEAKS: dict[str, Case] = {
    "a mask that is not low": lambda m, x, ids: attended(m, x, low(ids, -1.0)),
    "a mask that is scaled up to 0": lambda m, x, ids: attended(m, x, low(ids, -1e4) * 1e-4),
    "a mask that is lost in rounding": lambda m, x, ids: attended(
        m, x, (low(ids, -1e4) + 1e13) - 1e13
    ),
    "a mask that wraps around": lambda m, x, ids: attended(m, x, in_bytes(ids)),
    "requests up to one's own": lambda m, x, ids: attended(
        m, x, torch.where(ids[:, None] >= ids[None], 0.0, INF)
    ),
    "blocks of another tensor": lambda m, x, ids: attended(m, x, low((ids * 0).cumsum(0))),
    "blocks, hidden": lambda m, x, ids: attended(m, x, torch.where(blocks(ids), INF, 0.0)),
    "the first row sees nothing, so all": lambda m, x, ids: attended(
        m, x, torch.where(blocks(ids) & before(x), 0.0, LEAST)
    ),
    "the first row sees nothing, by a triangle": lambda m, x, ids: attended(
        m, x, low(ids, LEAST) + torch.full((x.shape[0], x.shape[0]), LEAST).triu(0)
    ),
    "the greater of two masks": lambda m, x, ids: attended(
        m, x, torch.maximum(low(ids, LEAST), torch.where(causal(x), 0.0, LEAST))
    ),
    "a softmax over queries": down_columns,
    "a mask after the softmax": after_softmax,
    "values again without a mask": values_again,
    "values of other rows": other_values,
    "scores held above": lambda m, x, ids: written(m, x, lambda s: torch.tanh(s + low(ids))),
    "scores of which little is hidden": lambda m, x, ids: written(
        m, x, lambda s: s.masked_fill(~blocks(ids), 0.0)
    ),
    "the logarithm of a softmax": logarithms,
    "a mask that a kernel leaves out": lambda m, x, ids: fused(m, x, blocks(ids), True, 20.0),
}
