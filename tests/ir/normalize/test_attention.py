"""Attention: torch's operator and the products it stands for, over repeated heads as well."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from support.written import before_and_after, written

GENERATOR = torch.Generator().manual_seed(0)
Q = torch.randn(3, 4, 5, 8, generator=GENERATOR)  # [B, heads, T, D]
K = torch.randn(3, 4, 7, 8, generator=GENERATOR)  # [B, heads, S, D]
V = torch.randn(3, 4, 7, 6, generator=GENERATOR)
FEW_K, FEW_V = K[:, :2].clone(), V[:, :2].clone()
BIAS = torch.randn(3, 1, 5, 7, generator=GENERATOR)
SHOWN = torch.rand(3, 1, 5, 7, generator=GENERATOR) < 0.7
SHOWN[..., 0] = True


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.matmul(q, k.transpose(2, 3)) * 0.3 + mask
    return torch.matmul(functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), v)


def test_products_and_softmax() -> None:
    before, after = before_and_after(lambda _, *given: eager(*given), Q, K, V, BIAS)
    assert before == written("""
        %1: f32[B, 4, 8, 7] = aten.transpose.int(%y, 2, 3)
        %2: f32[B, 4, 5, 7] = aten.matmul(%x, %1)
        %3: f32[B, 4, 5, 7] = aten.mul.Tensor(%2, 0.3)
        %4: f32[B, 4, 5, 7] = aten.add.Tensor(%3, %mask)
        %5: f32[B, 4, 5, 7] = aten.softmax.int(%4, -1, f32)
        %6: f32[B, 4, 5, 6] = aten.matmul(%5, %z)
    """)
    assert after == "%1: f32[B, 4, 5, 6] = planish.attention(%x, %y, %z, %mask, False, 0.3, 0.0)"


def test_half_precision() -> None:
    half = [tensor.bfloat16() for tensor in (Q, K, V, BIAS)]
    _, after = before_and_after(lambda _, *given: eager(*given), *half, rtol=2e-2)
    assert after == "%1: bf16[B, 4, 5, 6] = planish.attention(%x, %y, %z, %mask, False, 0.3, 0.0)"


def attend(scores: Tensor, v: Tensor) -> Tensor:
    return scores.softmax(-1) @ v


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (lambda q, k, v, _: attend(q @ k.transpose(-1, -2), v), "None, False, 1.0, 0.0"),
        (lambda q, k, v, _: attend(q @ k.mT / 4.0, v), "None, False, 0.25, 0.0"),
        (
            lambda q, k, v, m: attend(q @ k.permute(0, 1, 3, 2) / math.sqrt(16) + m, v),
            "%mask, False, 0.25, 0.0",
        ),
        (
            lambda q, k, v, m: attend(50.0 * torch.tanh(q @ k.mT * 0.5 / 50.0) + m, v),
            "%mask, False, 0.5, 50.0",
        ),
        (
            functional.scaled_dot_product_attention,
            "%mask, False, 0.35355339059327373, 0.0",
        ),
        (
            lambda q, k, v, _: functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=0.2
            ),
            "None, True, 0.2, 0.0",
        ),
    ],
    ids=["bare", "divided", "masked", "capped", "torch", "torch, causal"],
)
def test_spellings(function: Callable[..., Tensor], options: str) -> None:
    _, after = before_and_after(lambda _, *given: function(*given), Q, K, V, BIAS)
    assert after == f"%1: f32[B, 4, 5, 6] = planish.attention(%x, %y, %z, {options})"


def test_two_things_added() -> None:
    def function(m: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attend(q @ k.mT + m.bias + mask, v)

    _, after = before_and_after(function, Q, K, V, BIAS, bias=torch.randn(1, 4, 5, 7))
    assert after == written("""
        %1: f32[B, 4, 5, 7] = aten.add.Tensor(@bias, %mask)
        %2: f32[B, 4, 5, 6] = planish.attention(%x, %y, %z, %1, False, 1.0, 0.0)
    """)


@pytest.mark.parametrize(
    ("function", "mask"),
    [
        (
            lambda s, m: s.masked_fill(~m, -math.inf),
            "%2: bool[B, 1, 5, 7] = aten.logical_not(%1)",
        ),
        (
            lambda s, m: s.masked_fill(~m, -1e9),
            "%2: f32[B, 1, 5, 7] = aten.where.Scalar(%1, -1000000000.0, 0.0)",
        ),
        (
            lambda s, m: torch.where(~m, s, torch.finfo(s.dtype).min),
            "%2: f32[B, 1, 5, 7] = aten.where.Scalar(%1, 0.0, -3.4028234663852886e+38)",
        ),
    ],
    ids=["infinite", "finite", "where"],
)
def test_scores_written_over(function: Callable[..., Tensor], mask: str) -> None:
    _, after = before_and_after(
        lambda _, q, k, v, m: attend(function(q @ k.mT, m), v), Q, K, V, SHOWN
    )
    assert after == written(f"""
        %1: bool[B, 1, 5, 7] = aten.bitwise_not(%mask)
        {mask}
        %3: f32[B, 4, 5, 6] = planish.attention(%x, %y, %z, %2, False, 1.0, 0.0)
    """)


def test_rows_that_see_nothing_keep_their_values() -> None:
    hidden = SHOWN.clone()
    hidden[:, :, 2] = False
    before_and_after(
        lambda _, q, k, v, m: attend((q @ k.mT).masked_fill(~m, torch.finfo(q.dtype).min), v),
        *(Q, K, V, hidden),
    )


def repeat_kv(x: Tensor, times: int) -> Tensor:
    batch, heads, length, width = x.shape
    x = x[:, :, None, :, :].expand(batch, heads, times, length, width)
    return x.reshape(batch, heads * times, length, width)


@pytest.mark.parametrize("attention", [eager, functional.scaled_dot_product_attention])
def test_grouped_queries(attention: Callable[..., Tensor]) -> None:
    def function(_: object, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attention(q, repeat_kv(k, 2), repeat_kv(v, 2), mask)

    _, after = before_and_after(function, Q, FEW_K, FEW_V, BIAS)
    assert "planish.attention(%x, %y, %z, %mask" in after
    assert len(after.splitlines()) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        lambda q, k, v: functional.scaled_dot_product_attention(
            q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        ),
        lambda q, k, v: functional.scaled_dot_product_attention(
            q, k[:, :1].expand(-1, 4, -1, -1), v[:, :1].expand(-1, 4, -1, -1)
        ),
        lambda q, k, v: functional.scaled_dot_product_attention(q, k[:, :1], v[:, :1]),
    ],
    ids=["torch", "repeat_interleave", "one head stretched", "one head"],
)
def test_other_ways_to_share_heads(function: Callable[..., Tensor]) -> None:
    _, after = before_and_after(lambda _, *given: function(*given), Q, FEW_K, FEW_V)
    assert after.count("planish.attention") == 1
    assert not any(word in after for word in ("expand", "repeat", "scaled_dot"))


def test_the_cache_stays_in_sight() -> None:
    def function(_: object, q: Tensor, past: Tensor, new: Tensor) -> Tensor:
        kept = torch.cat([past, new], dim=-2)
        return eager(q, repeat_kv(kept, 2), repeat_kv(kept, 2), torch.zeros(5, 1))

    _, after = before_and_after(function, Q, FEW_K, FEW_K[:, :, :3].clone())
    cat, _, attention = after.splitlines()
    assert cat == "%1: f32[B, 2, 10, 8] = aten.cat([%y, %z], -2)"
    assert "planish.attention(%x, %1, %1, " in attention


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v, m: (q @ k.mT + m).softmax(-2) @ v,
        lambda q, k, v, m: (q @ k.mT + m).sigmoid() @ v,
        lambda q, k, v, m: (torch.tanh(q @ k.mT / 5.0) * 4.0 + m).softmax(-1) @ v,
        lambda q, k, v, m: ((q @ k.mT + m) * 0.5).softmax(-1) @ v,
        lambda q, k, v, m: (q @ k.mT).masked_fill(m > 0, -10.0).softmax(-1) @ v,
        lambda q, k, v, m: (q @ k.mT * m).softmax(-1) @ v,
        lambda q, k, v, m: (q[:, 0] @ k[:, 0].mT + m[:, 0]).softmax(-1) @ v[:, 0],
    ],
    ids=[
        "softmax over queries",
        "no softmax",
        "two caps",
        "scale after the mask",
        "a fill that leaves weight",
        "mask multiplied",
        "no heads",
    ],
)
def test_not_attention(function: Callable[..., Tensor]) -> None:
    _, after = before_and_after(lambda _, *given: function(*given), Q, K, V, BIAS)
    assert "planish.attention" not in after


def tile(x: Tensor) -> Tensor:
    batch, heads, length, width = x.shape
    return x[:, None].expand(batch, 2, heads, length, width).reshape(batch, 4, length, width)


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v: functional.scaled_dot_product_attention(q, tile(k), tile(v)),
        lambda q, k, v: functional.scaled_dot_product_attention(q, repeat_kv(k, 2), tile(v)),
    ],
    ids=["head h of h % n", "keys and values apart"],
)
def test_heads_that_are_not_grouped_stay_repeated(function: Callable[..., Tensor]) -> None:
    _, after = before_and_after(lambda _, *given: function(*given), Q, FEW_K, FEW_V)
    assert after.count("aten.expand") == 2
