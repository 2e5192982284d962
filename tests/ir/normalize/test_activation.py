"""Activations that models write out."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from support.written import before_and_after, written

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
ROOT = math.sqrt(2 / math.pi)


def test_gpt2() -> None:
    before, after = before_and_after(
        lambda _, x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0)))), X
    )
    assert before == written("""
        %1: f32[B, 5] = aten.mul.Tensor(%x, 0.5)
        %2: f32[B, 5] = aten.pow.Tensor_Scalar(%x, 3.0)
        %3: f32[B, 5] = aten.mul.Tensor(%2, 0.044715)
        %4: f32[B, 5] = aten.add.Tensor(%x, %3)
        %5: f32[B, 5] = aten.mul.Tensor(%4, 0.7978845608028654)
        %6: f32[B, 5] = aten.tanh(%5)
        %7: f32[B, 5] = aten.add.Tensor(%6, 1.0)
        %8: f32[B, 5] = aten.mul.Tensor(%1, %7)
    """)
    assert after == "%1: f32[B, 5] = aten.gelu(%x, approximate='tanh')"


@pytest.mark.parametrize(
    ("function", "after"),
    [
        (
            lambda x: 0.5 * x * (1 + torch.tanh(x * 0.79788456 * (1 + 0.044715 * x * x))),
            "aten.gelu(%x, approximate='tanh')",
        ),
        (lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), "aten.gelu(%x)"),
        (lambda x: x * (1.0 + torch.erf(x * math.sqrt(0.5))) * 0.5, "aten.gelu(%x)"),
        (lambda x: x * torch.sigmoid(x), "aten.silu(%x)"),
    ],
    ids=["fast gelu", "gelu", "gelu, half at the end", "silu"],
)
def test_spellings(function: Callable[[Tensor], Tensor], after: str) -> None:
    assert before_and_after(lambda _, x: function(x), X)[1] == f"%1: f32[B, 5] = {after}"


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: y * torch.sigmoid(x),
        lambda x, y: x * torch.sigmoid(1.702 * x) + y,
        lambda x, y: 0.5 * x * (1 + torch.erf(y / math.sqrt(2.0))),
        lambda x, y: 0.5 * x * (1 + torch.erf(x / math.sqrt(3.0))) + y,
        lambda x, y: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.05 * torch.pow(x, 3.0)))) + y,
        lambda x, y: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 2.0)))) + y,
    ],
    ids=["gate", "quick gelu", "another x", "another root", "another factor", "square"],
)
def test_not_an_activation(function: Callable[..., Tensor]) -> None:
    before, after = before_and_after(lambda _, x, y: function(x, y), X, X.roll(1))
    assert after == before
