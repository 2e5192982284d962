"""Attention masks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from support.written import before_and_after, written

GENERATOR = torch.Generator().manual_seed(0)
Q = torch.randn(3, 4, 5, 8, generator=GENERATOR)
SHOWN = torch.rand(3, 5, generator=GENERATOR) < 0.7
SHOWN[:, 0] = True


def padding(q: Tensor, shown: Tensor) -> Tensor:
    """A mask as transformers makes it: a function of all indices, evaluated at once."""
    batch = torch.arange(q.shape[0])[:, None, None, None]
    queries = torch.arange(q.shape[2])[None, None, :, None]
    keys = torch.arange(q.shape[2])[None, None, None, :]
    return (queries >= 0) & shown[batch, keys]


def test_padding() -> None:
    def function(_: object, q: Tensor, shown: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, q, q, padding(q, shown))

    before, after = before_and_after(function, Q, SHOWN)
    assert before.count("aten.index") == 1
    assert after == written("""
        %1: bool[B, 1, 5] = aten.unsqueeze(%y, 1)
        %2: bool[B, 1, 1, 5] = aten.unsqueeze(%1, 2)
        %3: f32[B, 4, 5, 8] = planish.attention(%x, %x, %x, %2, False, 0.35355339059327373, 0.0)
    """)


@pytest.mark.parametrize(
    "mask",
    [
        lambda shown: (torch.arange(5) >= 0)[None, None].expand(shown.shape[0], 1, 5, 5),
        lambda _: torch.ones(5, 5, dtype=torch.bool),
        lambda shown: torch.ones_like(shown)[:, None, None],
    ],
    ids=["range", "ones", "ones like"],
)
def test_a_mask_that_hides_nothing_goes(mask: Callable[[Tensor], Tensor]) -> None:
    _, after = before_and_after(
        lambda _, q, shown: scaled_dot_product_attention(q, q, q, mask(shown)) * shown.any(),
        *(Q, SHOWN),
    )
    assert "planish.attention(%x, %x, %x, None, " in after


@pytest.mark.parametrize(
    "mask",
    [
        lambda shown: (torch.arange(5) >= 1)[None, None, None] & shown[:, None, None],
        lambda shown: shown[:, None, None] | shown[:, None, :, None],
        lambda shown: shown[:, torch.arange(4, -1, -1)][:, None, None],
        lambda shown: shown[torch.arange(5) % 3, torch.arange(5)][None, None, None],
    ],
    ids=["later positions", "either", "backwards", "diagonal"],
)
def test_masks_that_hide_something_stay(mask: Callable[[Tensor], Tensor]) -> None:
    before, after = before_and_after(
        lambda _, q, shown: scaled_dot_product_attention(q, q, q, mask(shown)), Q, SHOWN
    )
    assert before.count("\n") == after.count("\n")
