"""Pages of a pool that requests share, read by disjoint rows of a table, or otherwise.

Each case takes x [B, 8], the pool [pages, 4, 8], its table [B, 2], and another table.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Case = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attended(x: Tensor, pages: Tensor) -> Tensor:
    """`x` [B, 8] over pages [B, P, 4, 8]."""
    past = pages.flatten(1, 2)
    return F.scaled_dot_product_attention(x[:, None], past, past)[:, 0]


def flat(x: Tensor, keys: Tensor, table: Tensor, other: Tensor) -> Tensor:
    """The pool's pages side by side, picked by one list of all numbers."""
    pages = keys.flatten(1).index_select(0, table.flatten()).unflatten(1, (4, 8))
    return attended(x, pages.unflatten(0, (-1, 2)))


ISOLATED: dict[str, Case] = {
    "T07 pages by a row of the table": lambda x, keys, table, other: attended(x, keys[table]),
    "the first page": lambda x, keys, table, other: attended(x, keys[table[:, :1]]),
    "pages in another order": lambda x, keys, table, other: attended(x, keys[table.flip(1)]),
    "slots of pages": lambda x, keys, table, other: x + keys[table[:, 0], other[:, 1] % 4],
    "all numbers in one list": flat,
}

LEAKS: dict[str, Case] = {
    "another table": lambda x, keys, table, other: attended(x, keys[other]),
    "the page after": lambda x, keys, table, other: attended(x, keys[table + 1]),
    "the row before": lambda x, keys, table, other: attended(x, keys[table.roll(1, 0)]),
    "the first row for all": lambda x, keys, table, other: attended(
        x, keys[table[:1].expand(x.shape[0], -1)]
    ),
    "pages that were moved": lambda x, keys, table, other: attended(x, keys.roll(1, 0)[table]),
    "slots by the table": lambda x, keys, table, other: x + keys.flatten(0, 1)[table[:, 0]],
    "numbers as slots of a page": lambda x, keys, table, other: (
        x + keys[other[:, 0], table[:, 1] % 4]
    ),
    "the first page for all": lambda x, keys, table, other: x + keys[0, 0],
    "a mean over the pool": lambda x, keys, table, other: attended(x, keys[table]) + keys.mean(),
    "rows of the inputs": lambda x, keys, table, other: x + x[table[:, 0] % 3],
}


class All(nn.Module):
    """Every case on one pool."""

    def __init__(self, cases: dict[str, Case]) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, x: Tensor, keys: Tensor, table: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        """`x` [B, 8], `keys` [pages, 4, 8], `table` and `other` [B, 2] to [B, 8] of each case."""
        return tuple(case(x, keys, table, other) for case in self.cases.values())
