"""Rotary embeddings: halves, pairs, and the first coordinates only."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from support.written import before_and_after, written

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 2, 5, 8, generator=GENERATOR)  # [B, heads, T, D]
COS = torch.randn(3, 5, 8, generator=GENERATOR)
SIN = torch.randn(3, 5, 8, generator=GENERATOR)


def rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rotate_pairs(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos.unsqueeze(1) + rotate_half(x) * sin.unsqueeze(1)


def test_halves() -> None:
    before, after = before_and_after(lambda _, *given: rotary(*given), X, COS, SIN)
    assert before == written("""
        %1: f32[B, 1, 5, 8] = aten.unsqueeze(%y, 1)
        %2: f32[B, 2, 5, 8] = aten.mul.Tensor(%x, %1)
        %3: f32[B, 2, 5, 4] = aten.slice.Tensor(%x, 3, 4, 9223372036854775807)
        %4: f32[B, 2, 5, 4] = aten.neg(%3)
        %5: f32[B, 2, 5, 4] = aten.slice.Tensor(%x, 3, 0, 4)
        %6: f32[B, 2, 5, 8] = aten.cat([%4, %5], -1)
        %7: f32[B, 1, 5, 8] = aten.unsqueeze(%z, 1)
        %8: f32[B, 2, 5, 8] = aten.mul.Tensor(%6, %7)
        %9: f32[B, 2, 5, 8] = aten.add.Tensor(%2, %8)
    """)
    assert after == written("""
        %1: f32[B, 1, 5, 8] = aten.unsqueeze(%y, 1)
        %2: f32[B, 1, 5, 8] = aten.unsqueeze(%z, 1)
        %3: f32[B, 2, 5, 8] = planish.rotary(%x, %1, %2, False)
    """)


def by_chunks(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=3) * sin[:, None] + cos[:, None] * x


def pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos[:, None] + rotate_pairs(x) * sin[:, None]


@pytest.mark.parametrize(
    ("function", "interleaved"), [(by_chunks, False), (pairs, True)], ids=["chunks", "pairs"]
)
def test_spellings(function: Callable[..., Tensor], interleaved: bool) -> None:
    _, after = before_and_after(lambda _, *given: function(*given), X, COS, SIN)
    assert after.endswith(f"= planish.rotary(%x, %1, %2, {interleaved})") or after.endswith(
        f"= planish.rotary(%x, %2, %1, {interleaved})"
    )
    assert len(after.splitlines()) == 3


def partly(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned, rest = x[..., :4], x[..., 4:]
    return torch.cat((rotary(turned, cos, sin), rest), dim=-1)


def test_the_first_coordinates() -> None:
    _, after = before_and_after(lambda _, *given: partly(*given), X, COS[..., :4], SIN[..., :4])
    assert after == written("""
        %1: f32[B, 1, 5, 4] = aten.unsqueeze(%y, 1)
        %2: f32[B, 1, 5, 4] = aten.unsqueeze(%z, 1)
        %3: f32[B, 2, 5, 8] = planish.rotary(%x, %1, %2, False)
    """)


def test_angles_that_all_rows_share() -> None:
    def function(m: object, x: Tensor) -> Tensor:  # noqa: ARG001
        angles = torch.arange(5.0)[:, None] * torch.ones(8)
        return x * angles.cos() + rotate_half(x) * angles.sin()

    _, after = before_and_after(function, X)
    assert "planish.rotary(%x, " in after.splitlines()[-1]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, c, s: x * c + torch.cat((-x[..., :4], x[..., 4:]), -1) * s,
        lambda x, c, s: x * c + torch.cat((x[..., 4:], -x[..., :4]), -1) * s,
        lambda x, c, s: x * c + torch.cat((-x[..., 3:], x[..., :3]), -1) * s,
        lambda x, c, s: x * c - rotate_half(x) * s,
        lambda x, c, s: x * c + rotate_half(c * x) * s,
        lambda x, c, s: x * c + torch.stack((-x[..., ::2], x[..., 1::2]), -1).flatten(-2) * s,
        lambda x, c, s: x * c[..., :1] + rotate_half(x) * s,
        lambda x, c, s: x * c + torch.cat((-x[:, :, 3:], x[:, :, :3]), 2) * s,
    ],
    ids=[
        "wrong half negated",
        "halves in order",
        "not halves",
        "turned back",
        "another x",
        "wrong pairs",
        "one cosine",
        "another dimension",
    ],
)
def test_not_rotary(function: Callable[..., Tensor]) -> None:
    _, after = before_and_after(lambda _, x, y, z: function(x, y[:, None], z[:, None]), X, COS, SIN)
    assert "planish" not in after


def test_positions_before_heads_are_left_alone() -> None:
    def function(_: object, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos.unsqueeze(2) + rotate_half(x) * sin.unsqueeze(2)

    _, after = before_and_after(function, X.transpose(1, 2), COS, SIN)
    assert "planish" not in after


@pytest.mark.parametrize("start", [2, 4])
def test_a_part_that_is_not_the_rest(start: int) -> None:
    def function(_: object, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return torch.cat((rotary(x[..., :4], cos, sin), x[..., start:][..., -2:]), dim=-1)

    _, after = before_and_after(function, X, COS[..., :4], SIN[..., :4])
    assert after.splitlines()[-1].split(" = ")[1].startswith("aten.cat")
