"""Linear layers: one operator for every product with a weight."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support.written import before_and_after, written

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 5, 8, generator=GENERATOR)
W = torch.randn(6, 8, generator=GENERATOR)
B = torch.randn(6, generator=GENERATOR)


def test_conv1d_of_gpt2() -> None:
    def function(m: Any, x: Tensor) -> Any:
        return torch.addmm(m.b, x.view(-1, 8), m.w).view(*x.shape[:-1], 6)

    before, after = before_and_after(function, X, w=W.T.contiguous(), b=B)
    assert before == written("""
        %1: f32[5*B, 8] = aten.reshape(%x, [-1, 8])
        %2: f32[5*B, 6] = aten.addmm(@b, %1, @w)
        %3: f32[B, 5, 6] = aten.reshape(%2, [%sym_size, 5, 6])
    """)
    assert after == written("""
        %1: f32[6, 8] = aten.permute(@w, [1, 0])
        %2: f32[B, 5, 6] = aten.linear(%x, %1, @b)
    """)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x @ m.w.T,
        lambda m, x: x @ m.w.transpose(0, 1),
        lambda m, x: torch.matmul(x, m.w.permute(1, 0)),
        lambda m, x: (x.view(-1, 8) @ m.w.t()).view(-1, 5, 6),
    ],
    ids=["T", "transpose", "permute", "flattened"],
)
def test_products(function: Callable[..., Tensor]) -> None:
    _, after = before_and_after(function, X, w=W)
    assert after == "%1: f32[B, 5, 6] = aten.linear(%x, @w)"


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x @ m.w.T + m.b,
        lambda m, x: m.b + x @ m.w.T,
        lambda m, x: torch.addmm(m.b, x.view(-1, 8), m.w.T).view(-1, 5, 6),
    ],
    ids=["after", "before", "addmm"],
)
def test_biases(function: Callable[..., Tensor]) -> None:
    _, after = before_and_after(function, X, w=W, b=B)
    assert after == "%1: f32[B, 5, 6] = aten.linear(%x, @w, @b)"


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: torch.addmm(m.b, x[:, 0], m.w.T, beta=2),
        lambda _, x: x.transpose(1, 2) @ x,
        lambda m, x: x @ m.v,
    ],
    ids=["beta", "no weight", "a stack of weights"],
)
def test_not_linear(function: Callable[..., Tensor]) -> None:
    _, after = before_and_after(function, X, w=W, b=B, v=torch.randn(1, 8, 2))
    assert "aten.linear" not in after


def test_a_product_that_is_read_twice_keeps_its_sum_apart() -> None:
    def function(m: Any, x: Tensor) -> Any:
        product = x @ m.w.T
        return product * (product + m.b)

    _, after = before_and_after(function, X, w=W, b=B)
    assert after == written("""
        %1: f32[B, 5, 6] = aten.linear(%x, @w)
        %2: f32[B, 5, 6] = aten.add.Tensor(%1, @b)
        %3: f32[B, 5, 6] = aten.mul.Tensor(%1, %2)
    """)


def test_a_reshape_that_regroups_stays() -> None:
    def function(m: Any, x: Tensor) -> Any:
        return (x.view(-1, 8) @ m.w.T).view(-1, 3, 10)

    _, after = before_and_after(function, X, w=W)
    assert after.count("aten.reshape") == 2
