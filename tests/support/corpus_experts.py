"""Rows that are sorted by expert, or picked by a mask, worked on and put back; and ways to err.

Each takes x [B, 8], of which the first four numbers choose among four experts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from support.corpus import ROWS, Model

EXPERTS, CHOSEN = 4, 2
Case = tuple[tuple[int, ...], Callable[..., Any]]

Product: Any = torch.ops.transformers


def experts(m: Model) -> Tensor:
    """A matrix for each expert, [E, 8, 8]."""
    return torch.stack([m.weight * (n + 1) for n in range(EXPERTS)])


def routed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the weights and the numbers of its experts, both [B, k]."""
    weights, chosen = torch.topk(x[:, :EXPERTS].softmax(-1), CHOSEN)
    return weights, chosen


def grouped(
    m: Model,
    x: Tensor,
    *,
    descending: bool = False,
    least: int = 0,
    shift: int = 0,
    between: Callable[[Tensor, Tensor], Tensor] = lambda y, p: y,
    back: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ends_of: Callable[[Tensor, Tensor], Tensor] = lambda keys, p: keys,
) -> Tensor:
    """A mixture of experts by sorting, counting and one product of groups; options are mistakes."""
    from transformers.integrations import moe  # noqa: F401, PLC0415  (registers the product)

    weights, chosen = routed(x)
    numbers = chosen.reshape(-1) + shift if shift else chosen.reshape(-1)
    keys, p = torch.sort(numbers, descending=descending)
    rows, w = x[p // CHOSEN], weights.reshape(-1)[p]
    counts = torch.histc(ends_of(keys, p).float(), EXPERTS, least, EXPERTS - 1)
    ends = torch.cumsum(counts, 0, dtype=torch.int32)
    y = Product.grouped_mm_fallback(rows, experts(m), ends)
    y = between(F.silu(y) * w[:, None], p)
    if back is not None:
        return back(y, p, x)
    inverse = torch.empty_like(p)
    inverse[p] = torch.arange(p.size(0))
    return y[inverse].view(-1, CHOSEN, 8).sum(1)


def added(y: Tensor, p: Tensor, x: Tensor) -> Tensor:
    return x.index_add(0, p // CHOSEN, y)


def sorted_back(y: Tensor, p: Tensor, x: Tensor) -> Tensor:
    return y[p.argsort()].view(-1, CHOSEN, 8).sum(1)


def written_back(y: Tensor, p: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(y).index_put((p,), y).view(-1, CHOSEN, 8).sum(1)


def permuted_again(y: Tensor, p: Tensor, x: Tensor) -> Tensor:
    return y[p].view(-1, CHOSEN, 8).sum(1)


def never_back(y: Tensor, p: Tensor, x: Tensor) -> Tensor:
    return y.view(-1, CHOSEN, 8).sum(1)


def eager(
    m: Model,
    x: Tensor,
    between: Callable[[Tensor], Tensor] = lambda y: y,
    elsewhere: bool = False,
) -> Tensor:
    """A mixture of experts by picking each one's rows, as transformers does it by default."""
    weights, chosen = routed(x)
    mask = F.one_hot(chosen, EXPERTS).permute(2, 1, 0)  # [E, k, B]
    out = torch.zeros_like(x)
    for number, matrix in enumerate(experts(m)):
        position, row = torch.where(mask[number])
        y = F.silu(x[row] @ matrix) * weights[row, position, None]
        if elsewhere:
            row = row.flip(0)
        out = out.index_add(0, row, between(y))
    return out


def picked(x: Tensor) -> Tensor:
    return x[:, 0] > 0


def compact(
    m: Model, x: Tensor, work: Callable[[Tensor], Tensor], base: Callable[[Tensor], Tensor]
) -> Tensor:
    """Rows that a mask picks, worked on and written back over a base."""
    (at,) = torch.where(picked(x))
    return base(x).index_put((at,), work(x[at] @ m.weight))


def masked(m: Model, x: Tensor) -> Tensor:
    mask = picked(x)
    return x.index_put((mask,), torch.tanh(x[mask]))


def other_mask(m: Model, x: Tensor) -> Tensor:
    """As many rows are written as are picked, by the mask of other rows."""
    mask = picked(x)[:, None].expand_as(x)
    return x.masked_scatter(mask.flip(0), x.masked_select(mask))


def mask_as_index(m: Model, x: Tensor) -> Tensor:
    """Rows where numbers are not zero, written where the numbers say: 1, 2, 2."""
    numbers = (torch.arange(x.shape[0]) + 1).clamp(max=2) + (x[:, 0] * 0).nan_to_num().long()
    (at,) = torch.where(numbers)
    return x.index_put((numbers,), x[at])


def sorted_and_back(
    m: Model, x: Tensor, between: Callable[[Tensor, Tensor], Tensor] = lambda y, p: y * 2
) -> Tensor:
    p = x[:, 0].argsort()
    return between(x[p], p)[p.argsort()]


def in_two_parts(m: Model, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out[:, :3] = x[:, :3] * 2
    out[:, 3:] = x[:, 3:]
    return out


def row_by_row(m: Model, x: Tensor) -> Tensor:
    out = torch.empty(x.shape[0], 3)
    for number in range(3):
        out[:, number] = x[:, number] * number
    return out


def almost_whole(m: Model, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out[:, :3] = x[:, :3]
    out[:, 4:] = x[:, 4:]
    return out


def capacity(y: Tensor, p: Tensor) -> Tensor:
    """Only the first rows in the order of the sort are kept."""
    return torch.where((torch.arange(y.shape[0]) < 2)[:, None], y, torch.zeros(()))


ISOLATED: dict[str, Case] = {
    "S16 experts by sorting": (ROWS, grouped),
    "experts by sorting, added back": (ROWS, lambda m, x: grouped(m, x, back=added)),
    "experts by sorting, sorted back": (ROWS, lambda m, x: grouped(m, x, back=sorted_back)),
    "experts by sorting, written back": (ROWS, lambda m, x: grouped(m, x, back=written_back)),
    "a norm of each sorted row": (
        ROWS,
        lambda m, x: grouped(m, x, between=lambda y, p: F.layer_norm(y, [8])),
    ),
    "T13 experts by picking": (ROWS, eager),
    "picked and written back": (ROWS, lambda m, x: compact(m, x, torch.tanh, torch.clone)),
    "masked and written back": (ROWS, masked),
    "sorted and back": (ROWS, sorted_and_back),
    "memory written in two parts": (ROWS, in_two_parts),
    "memory written row by row": (ROWS, row_by_row),
    "memory written whole": (
        ROWS,
        lambda m, x: torch.empty_like(x).index_put((torch.arange(x.shape[0]),), x),
    ),
}

UNLIKE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "capacity": capacity,
    "a running sum of sorted rows": lambda y, p: y.cumsum(0),
    "a softmax of sorted rows": lambda y, p: y.softmax(0),
    "the place after the sort": lambda y, p: y + torch.arange(y.shape[0])[:, None],
    "a triangle of sorted rows": lambda y, p: y.tril(),
    "sorted rows one further": lambda y, p: y.roll(1, 0),
    "a neighbour in the sort": lambda y, p: F.pad(y, (0, 0, 1, -1)),
}
"""What does not treat sorted rows alike."""

LEAKS: dict[str, Case] = {
    "numbers as a mask and as an index": (ROWS, mask_as_index),
    "memory written but for a column": (ROWS, almost_whole),
    "sorted downwards": (ROWS, lambda m, x: grouped(m, x, descending=True)),
    "no bin for the least key": (ROWS, lambda m, x: grouped(m, x, least=1)),
    "keys below zero": (ROWS, lambda m, x: grouped(m, x, shift=-1)),
    "groups of other keys": (
        ROWS,
        lambda m, x: grouped(m, x, ends_of=lambda keys, p: (keys + 1) % EXPERTS),
    ),
    "permuted twice": (ROWS, lambda m, x: grouped(m, x, back=permuted_again)),
    "never put back": (ROWS, lambda m, x: grouped(m, x, back=never_back)),
    "put back by another sort": (
        ROWS,
        lambda m, x: grouped(
            m, x, back=lambda y, p, x: y[p.flip(0).argsort()].view(-1, CHOSEN, 8).sum(1)
        ),
    ),
    "sorted": (ROWS, lambda m, x: x[x[:, 0].argsort()]),
    "a running sum of picked rows": (
        ROWS,
        lambda m, x: compact(m, x, lambda y: y.cumsum(0), torch.clone),
    ),
    "how many were picked": (
        ROWS,
        lambda m, x: compact(m, x, lambda y: y * y.shape[0], torch.clone),
    ),
    "a mean of picked rows": (
        ROWS,
        lambda m, x: compact(m, x, lambda y: y - y.mean(0), torch.clone),
    ),
    "picked rows written elsewhere": (ROWS, lambda m, x: eager(m, x, elsewhere=True)),
    "a base of other rows": (
        ROWS,
        lambda m, x: compact(m, x, torch.tanh, lambda x: x.flip(0)),
    ),
    "dealt out by another mask": (ROWS, other_mask),
    **{name: (ROWS, partial(sorted_and_back, between=one)) for name, one in UNLIKE.items()},
}

LONG: dict[str, Case] = {
    f"experts: {name}": (ROWS, partial(grouped, between=one)) for name, one in UNLIKE.items()
}
"""Leaks by the same, of rows that experts worked on; their export takes longer."""
