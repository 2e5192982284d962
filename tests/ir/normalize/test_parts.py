"""Parts of tensors: slices and selects, with bounds written out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from support.written import before_and_after

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (lambda x: x.split(3, dim=-1), ["2, 0, 3", "2, 3, 6", "2, 6, 8"]),
        (lambda x: x.split([1, 4], dim=1), ["1, 0, 1", "1, 1, 5"]),
        (lambda x: x.chunk(2, dim=2), ["2, 0, 4", "2, 4, 8"]),
        (lambda x: (x[..., -3:], x[..., :-3]), ["2, 5, 8", "2, 0, 5"]),
        (lambda x: (x[:, [3, 4]], x[:, :, [-2]]), ["1, 3, 5", "2, 6, 7"]),
    ],
    ids=["split", "split with sizes", "chunk", "negative bounds", "positions"],
)
def test_slices(function: Callable[[Tensor], tuple[Tensor, ...]], parts: list[str]) -> None:
    _, after = before_and_after(lambda _, x: torch.stack([y.sum() for y in function(x)]), X)
    slices = [line.partition("aten.slice.Tensor")[2] for line in after.splitlines()]
    assert [part for part in slices if part] == [f"(%x, {part})" for part in parts]


def test_unbind() -> None:
    _, after = before_and_after(lambda _, x: torch.relu(x.unbind(-1)[5]), X)
    assert after.startswith("%1: f32[B, 5] = aten.select.int(%x, 2, 5)")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, ::2],
        lambda x: x[:, [0, 2]],
        lambda x: x[:, [0, 1], [0, 1]],
        lambda x: x[:, [1, 0]],
        lambda x: x[1:],
    ],
    ids=["steps", "apart", "pairs", "backwards", "symbolic"],
)
def test_what_is_no_such_part_stays(function: Callable[[Tensor], Tensor]) -> None:
    before, after = before_and_after(lambda _, x: function(x) * 2, X)
    assert after == before
