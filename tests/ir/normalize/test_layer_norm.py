"""Layer norms that models write out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.written import before_and_after, written

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 5, 8, generator=GENERATOR) + 1
W = torch.rand(8, generator=GENERATOR) + 0.5
EPS = 1e-5


def normed(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    centered = x - x.mean(dim, keepdim=True)
    return centered / torch.sqrt(centered.pow(2).mean(dim, keepdim=True) + EPS)


def test_written_out() -> None:
    before, after = before_and_after(lambda m, x: m.w * normed(x) + m.b, X, w=W, b=W - 1)
    assert before == written("""
        %1: f32[B, 5, 1] = aten.mean.dim(%x, [-1], True)
        %2: f32[B, 5, 8] = aten.sub.Tensor(%x, %1)
        %3: f32[B, 5, 8] = aten.pow.Tensor_Scalar(%2, 2)
        %4: f32[B, 5, 1] = aten.mean.dim(%3, [-1], True)
        %5: f32[B, 5, 1] = aten.add.Tensor(%4, 1e-05)
        %6: f32[B, 5, 1] = aten.sqrt(%5)
        %7: f32[B, 5, 8] = aten.div.Tensor(%2, %6)
        %8: f32[B, 5, 8] = aten.mul.Tensor(@w, %7)
        %9: f32[B, 5, 8] = aten.add.Tensor(%8, @b)
    """)
    assert after == "%1: f32[B, 5, 8] = aten.layer_norm(%x, [8], @w, @b, 1e-05)"


def by_variance(x: Tensor) -> Tensor:
    spread = x.var(-1, correction=0, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(EPS + spread)


def by_biased_variance(x: Tensor) -> Tensor:
    spread = x.var(dim=-1, unbiased=False, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) * (spread + EPS) ** -0.5


@pytest.mark.parametrize("norm", [normed, by_variance, by_biased_variance])
def test_spellings_without_weight(norm: Callable[[Tensor], Tensor]) -> None:
    _, after = before_and_after(lambda _, x: norm(x), X)
    assert after == "%1: f32[B, 5, 8] = aten.layer_norm(%x, [8], None, None, 1e-05)"


def test_weight_without_bias() -> None:
    _, after = before_and_after(lambda m, x: normed(x) * m.w, X, w=W)
    assert after == "%1: f32[B, 5, 8] = aten.layer_norm(%x, [8], @w, None, 1e-05)"


def test_the_norm_of_torch_stays() -> None:
    _, after = before_and_after(
        lambda m, x: nn.functional.layer_norm(x, (8,), m.w, m.w, EPS), X, w=W
    )
    assert after == "%1: f32[B, 5, 8] = aten.layer_norm(%x, [8], @w, @w, 1e-05)"


def test_half_precision_keeps_its_casts() -> None:
    def norm(m: Any, x: Tensor) -> Any:
        return m.w * normed(x.float()).to(x.dtype)

    _, after = before_and_after(norm, X.bfloat16(), w=W.bfloat16(), rtol=1e-2)
    assert after == written("""
        %1: f32[B, 5, 8] = aten._to_copy(%x, dtype=f32)
        %2: f32[B, 5, 8] = aten.layer_norm(%1, [8], None, None, 1e-05)
        %3: bf16[B, 5, 8] = aten._to_copy(%2, dtype=bf16)
        %4: bf16[B, 5, 8] = aten.mul.Tensor(@w, %3)
    """)


@pytest.mark.parametrize(
    "norm",
    [
        lambda x, _: normed(x, 1),
        lambda x, _: normed(x, (1, 2)),
        lambda x, y: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(y.var(-1, False, True) + EPS),
        lambda x, y: (x - y.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, False, True) + EPS),
        lambda x, _: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, True, True) + EPS),
        lambda x, _: (x - x.mean(-1, keepdim=True)) / (x.std(-1, False, True) + EPS),
        lambda x, _: (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(-1, False, True) + EPS),
        lambda x, _: x * torch.rsqrt(x.var(-1, False, True) + EPS),
    ],
    ids=[
        "another dimension",
        "two dimensions",
        "another variance",
        "another mean",
        "unbiased",
        "eps beside the root",
        "mean of another dimension",
        "not centered",
    ],
)
def test_not_a_layer_norm(norm: Callable[..., Tensor]) -> None:
    before, after = before_and_after(lambda _, x, y: norm(x, y) + y, X, X.roll(1))
    assert after == before
