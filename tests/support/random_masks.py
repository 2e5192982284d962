"""Masks of packed batches drawn at random: most keep nothing apart, some do."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from support.corpus_masks import Case, scores
from support.corpus_packed import Packed, blocks, causal

NUMBERS = (0.0, 1.0, -1.0, 0.5, 1e-5, -1e4, -3e4, -1e9, 1e9, 1e4, float("-inf"), -3.4e38)


def truths(draw: Random, depth: int, x: Tensor, ids: Tensor) -> Tensor:
    """Truth values [N, N]."""
    kind = draw.randrange(10) if depth else draw.choice((0, 0, 0, 3, 8))
    places = torch.arange(x.shape[0])
    if kind < 3:
        found = blocks(ids) if draw.random() < 0.7 else ids[:, None] != ids[None]
    elif kind == 3:
        found = causal(x) if draw.random() < 0.5 else places[:, None] != places[None]
    elif kind < 6:
        both = (truths(draw, depth - 1, x, ids) for _ in range(2))
        found = torch.logical_and(*both) if kind == 4 else torch.logical_or(*both)
    elif kind == 6:
        found = ~truths(draw, depth - 1, x, ids)
    elif kind == 7:
        found = truths(draw, depth - 1, x, ids).tril(draw.randrange(-1, 2))
    elif kind == 8:
        found = ids[:, None] >= ids[None]
    else:
        found = numbers(draw, depth - 1, x, ids).to(torch.bool)
    return found


def numbers(draw: Random, depth: int, x: Tensor, ids: Tensor) -> Tensor:
    """Numbers [N, N], of type float32."""
    kind = draw.randrange(12) if depth else 0
    number = draw.choice(NUMBERS)
    if kind < 3:
        return torch.where(truths(draw, depth, x, ids), draw.choice((0.0, 0.0, number)), number)
    if kind == 3:
        return truths(draw, depth, x, ids).to(torch.float32) * number
    found = numbers(draw, depth - 1, x, ids)
    if kind == 4:
        found = found.masked_fill(truths(draw, depth, x, ids), number)
    elif kind == 5:
        found = draw.choice((torch.add, torch.sub, torch.mul))(found, number)
    elif kind == 6:
        found = 1 - found
    elif kind == 7:
        found = found.triu(draw.randrange(-1, 2))
    elif kind == 8:
        found = found.to(draw.choice((torch.float16, torch.int32, torch.bfloat16)))
        found = found.to(torch.float32)
    else:
        other = numbers(draw, depth - 1, x, ids)
        found = (torch.add, torch.minimum, torch.maximum)[kind - 9](found, other)
    return found


def case(seed: int) -> Case:
    """Attention written out, by a mask that is drawn."""

    def attended(m: Packed, x: Tensor, ids: Tensor) -> Tensor:
        draw = Random(seed)
        table, v = scores(m, x)
        kind = draw.randrange(3)
        if kind == 0:
            table = table + numbers(draw, 3, x, ids)
        elif kind == 1:
            table = table.masked_fill(truths(draw, 3, x, ids), draw.choice(NUMBERS))
        else:
            table = torch.where(truths(draw, 2, x, ids), table, numbers(draw, 2, x, ids))
        return m.close(x, (table.softmax(-1) @ v).transpose(0, 1))

    return attended
