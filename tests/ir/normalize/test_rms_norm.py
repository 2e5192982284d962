"""RMS norms: every way that models write them, and what only looks like one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.written import before_and_after, written

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 5, 8, generator=GENERATOR)
W = torch.rand(8, generator=GENERATOR) + 0.5
EPS = 1e-6


def llama(m: Any, x: Tensor) -> Any:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return m.w * wide.to(x.dtype)


def t5(m: Any, x: Tensor) -> Any:
    x = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    return m.w * x.to(m.w.dtype)


def gemma(m: Any, x: Tensor) -> Any:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return (normed * (1.0 + m.w.float())).type_as(x)


def test_written_out() -> None:
    before, after = before_and_after(llama, X, w=W)
    assert before == written("""
        %1: f32[B, 5, 8] = aten.pow.Tensor_Scalar(%x, 2)
        %2: f32[B, 5, 1] = aten.mean.dim(%1, [-1], True)
        %3: f32[B, 5, 1] = aten.add.Tensor(%2, 1e-06)
        %4: f32[B, 5, 1] = aten.rsqrt(%3)
        %5: f32[B, 5, 8] = aten.mul.Tensor(%x, %4)
        %6: f32[B, 5, 8] = aten.mul.Tensor(@w, %5)
    """)
    assert after == "%1: f32[B, 5, 8] = planish.rms_norm(%x, @w, 1e-06)"


@pytest.mark.parametrize("norm", [llama, t5])
def test_casts_before_the_weight_are_part_of_the_norm(norm: Callable[..., Tensor]) -> None:
    _, after = before_and_after(norm, X.bfloat16(), w=W.bfloat16(), rtol=0)
    assert after == "%1: bf16[B, 5, 8] = planish.rms_norm(%x, @w, 1e-06)"


def test_casts_after_the_weight_stay_around_the_norm() -> None:
    _, after = before_and_after(gemma, X.bfloat16(), w=W.bfloat16(), rtol=0)
    assert after == written("""
        %1: f32[B, 5, 8] = aten._to_copy(%x, dtype=f32)
        %2: f32[8] = aten._to_copy(@w, dtype=f32)
        %3: f32[8] = aten.add.Tensor(%2, 1.0)
        %4: f32[B, 5, 8] = planish.rms_norm(%1, %3, 1e-06)
        %5: bf16[B, 5, 8] = aten._to_copy(%4, dtype=bf16)
    """)


def test_one_plus_weight() -> None:
    _, after = before_and_after(gemma, X, w=W)
    assert after == written("""
        %1: f32[8] = aten.add.Tensor(@w, 1.0)
        %2: f32[B, 5, 8] = planish.rms_norm(%x, %1, 1e-06)
    """)


@pytest.mark.parametrize(
    "norm",
    [
        lambda m, x: x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * m.w,
        lambda m, x: x * (EPS + (x * x).mean(2, keepdim=True)).pow(-0.5) * m.w,
        lambda m, x: m.w * (x * (x.square().mean((-1,), keepdim=True) + EPS).sqrt().reciprocal()),
        lambda m, x: nn.functional.rms_norm(x, (8,), m.w, EPS),
    ],
    ids=["sqrt", "power", "reciprocal", "torch"],
)
def test_other_spellings(norm: Callable[..., Tensor]) -> None:
    _, after = before_and_after(norm, X, w=W)
    assert after == "%1: f32[B, 5, 8] = planish.rms_norm(%x, @w, 1e-06)"


@pytest.mark.parametrize(
    ("norm", "dtype", "text"),
    [
        (
            lambda _, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.5),
            torch.float32,
            "%1: f32[B, 5, 8] = planish.rms_norm(%x, None, 0.5)",
        ),
        (
            lambda _, x: nn.functional.rms_norm(x, (8,)),
            torch.float32,
            "%1: f32[B, 5, 8] = planish.rms_norm(%x, None, 1.1920928955078125e-07)",
        ),
    ],
    ids=["written", "torch"],
)
def test_without_weight(norm: Callable[..., Tensor], dtype: torch.dtype, text: str) -> None:
    assert before_and_after(norm, X.to(dtype))[1] == text


def test_a_norm_that_is_read_twice_keeps_its_weight_apart() -> None:
    def norm(m: Any, x: Tensor) -> Any:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
        return normed * m.w + normed

    _, after = before_and_after(norm, X, w=W)
    assert after == written("""
        %1: f32[B, 5, 8] = planish.rms_norm(%x, None, 1e-06)
        %2: f32[B, 5, 8] = aten.mul.Tensor(%1, @w)
        %3: f32[B, 5, 8] = aten.add.Tensor(%2, %1)
    """)


@pytest.mark.parametrize(
    "norm",
    [
        lambda _, x, y: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPS) + y,
        lambda _, x, y: x * torch.rsqrt(x.pow(2).mean((1, 2), keepdim=True) + EPS) + y,
        lambda _, x, y: x * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS),
        lambda _, x, y: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + y.abs()),
        lambda _, x, y: x * torch.rsqrt(x.pow(3).abs().mean(-1, keepdim=True) + EPS) + y,
        lambda _, x, y: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + EPS) + y,
        lambda _, x, y: x * torch.sqrt(x.pow(2).mean(-1, keepdim=True) + EPS) + y,
        lambda _, x, y: x * torch.rsqrt(torch.add(x.pow(2).mean(-1, True), EPS, alpha=2)) + y,
        lambda _, x, y: torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) / x + y,
        lambda _, x, y: nn.functional.rms_norm(x, (5, 8), eps=EPS) + y,
        lambda _, x, y: (
            (x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + EPS)).float() + y
        ),
    ],
    ids=[
        "another dimension",
        "two dimensions",
        "another tensor",
        "eps a tensor",
        "another power",
        "sum",
        "times the root",
        "alpha",
        "over x",
        "torch over two dimensions",
        "double",
    ],
)
def test_not_an_rms_norm(norm: Callable[..., Tensor]) -> None:
    before, after = before_and_after(norm, X, X.roll(1))
    assert after == before


def test_a_scale_of_another_shape_is_not_the_weight() -> None:
    def norm(m: Any, x: Tensor) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * m.w

    _, after = before_and_after(norm, X, w=torch.rand(5, 8))
    assert after == written("""
        %1: f32[B, 5, 8] = planish.rms_norm(%x, None, 1e-06)
        %2: f32[B, 5, 8] = aten.mul.Tensor(%1, @w)
    """)
