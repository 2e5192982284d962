"""Gated activations."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from support.written import before_and_after, written

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (functional.silu, "silu"),
        (torch.relu, "relu"),
        (functional.gelu, "gelu"),
        (lambda x: functional.gelu(x, approximate="tanh"), "gelu_tanh"),
        (lambda x: x * torch.sigmoid(x), "silu"),
    ],
)
def test_activations(activation: Callable[[Tensor], Tensor], name: str) -> None:
    _, after = before_and_after(lambda _, x, y: y * activation(x), X, X.roll(1))
    assert after == f"%1: f32[B, 5, 8] = planish.gated(%x, %y, '{name}')"


def test_gate_and_up_in_one_product() -> None:
    def function(_: object, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate) * up

    before, after = before_and_after(function, X)
    assert before == written("""
        %1: (f32[B, 5, 4], f32[B, 5, 4]) = aten.split.Tensor(%x, 4, -1)
        %2: f32[B, 5, 4] = operator.getitem(%1, 0)
        %3: f32[B, 5, 4] = operator.getitem(%1, 1)
        %4: f32[B, 5, 4] = aten.silu(%2)
        %5: f32[B, 5, 4] = aten.mul.Tensor(%4, %3)
    """)
    assert after == written("""
        %1: f32[B, 5, 4] = aten.slice.Tensor(%x, 2, 0, 4)
        %2: f32[B, 5, 4] = aten.slice.Tensor(%x, 2, 4, 8)
        %3: f32[B, 5, 4] = planish.gated(%1, %2, 'silu')
    """)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: functional.silu(x) * y[:, :1],
        lambda x, y: functional.silu(x[:, :1]) * y,
        lambda x, y: functional.silu(x) * y.double(),
        lambda x, y: functional.silu(x) * 2 + y,
        lambda x, y: functional.silu(x) + y,
        lambda x, y: torch.tanh(x) * y,
        lambda x, y: functional.silu(x) * y + functional.silu(x),
    ],
    ids=["scale", "broadcast gate", "another dtype", "number", "sum", "tanh", "read twice"],
)
def test_not_gated(function: Callable[..., Tensor]) -> None:
    _, after = before_and_after(lambda _, x, y: function(x, y), X, X.roll(1))
    assert "planish" not in after
