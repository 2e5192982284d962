"""The composite operators of the `planish::` namespace.

Exporters take models apart: an RMS norm arrives as six nodes, a rotary embedding as eight.
Normalization (`planish.ir.normalize`) puts them together again as the operators declared here,
which passes and lowerings speak of. Each is an ordinary torch operator with an eager
implementation and a shape function, so a program that holds them still runs and exports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.nn import functional

_LIBRARY = Library("planish", "DEF")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}
"""The activations that `planish::gated` knows, by name."""


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    narrow = normed.to(x.dtype)
    return narrow if weight is None else narrow * weight


def _rms_norm_fake(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:  # noqa: ARG001
    dtype = x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _rotate(x: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    turned = turned * cos + _rotate(turned, interleaved) * sin
    return torch.cat((turned, rest), dim=-1) if x.shape[-1] > width else turned


def _rotary_fake(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:  # noqa: ARG001
    dtype = torch.promote_types(x.dtype, cos.dtype)
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float = 0.0,
) -> Tensor:
    if softcap == 0.0:
        return functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=is_causal, scale=scale, enable_gqa=True
        )
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = softcap * torch.tanh((query @ key.transpose(-1, -2)) * (scale / softcap))
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        allowed = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, float("-inf")) if allowed else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def _attention_fake(
    query: Tensor,
    key: Tensor,  # noqa: ARG001
    value: Tensor,
    mask: Tensor | None,  # noqa: ARG001
    is_causal: bool,  # noqa: ARG001
    scale: float,  # noqa: ARG001
    softcap: float = 0.0,  # noqa: ARG001
) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation](gate) * up


def _gated_fake(gate: Tensor, up: Tensor, activation: str) -> Tensor:  # noqa: ARG001
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


def _selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide, dt, a, b, c, kept = (tensor.to(wide) for tensor in (x, dt, a, b, c, state))
    batch, length, heads, width = x.shape
    groups, columns = b.shape[-2:]
    # Heads as [groups, heads of a group], so that b and c broadcast instead of being repeated.
    split = (batch, length, groups, heads // groups)
    a = a.reshape(groups, heads // groups, 1, -1)
    kept = kept.reshape(batch, groups, heads // groups, width, columns)
    steps = zip(
        (x_wide * dt[..., None]).reshape(*split, width, 1).unbind(1),
        dt.reshape(*split, 1, 1).unbind(1),
        b[..., None, None, :].unbind(1),
        c[..., None, :, None].unbind(1),
        strict=True,
    )
    read = []
    for drive, step, write_row, read_column in steps:
        kept = torch.addcmul(drive * write_row, torch.exp(step * a), kept)
        read.append(kept @ read_column)
    y = torch.stack(read, dim=1).reshape(x.shape)
    if d is not None:
        y = y + d.to(wide)[:, None] * x_wide
    return y.to(x.dtype), kept.reshape(state.shape).to(state.dtype)


def _selective_scan_fake(
    x: Tensor,
    dt: Tensor,  # noqa: ARG001
    a: Tensor,  # noqa: ARG001
    b: Tensor,  # noqa: ARG001
    c: Tensor,  # noqa: ARG001
    d: Tensor | None,  # noqa: ARG001
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=contiguous),
        torch.empty_like(state, memory_format=contiguous),
    )


_OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor": (_rms_norm, _rms_norm_fake),
    "rotary(Tensor x, Tensor cos, Tensor sin, bool interleaved=False) -> Tensor": (
        _rotary,
        _rotary_fake,
    ),
    "attention(Tensor query, Tensor key, Tensor value, Tensor? mask, bool is_causal, float scale, "
    "float softcap=0.0) -> Tensor": (_attention, _attention_fake),
    "gated(Tensor gate, Tensor up, str activation) -> Tensor": (_gated, _gated_fake),
    "selective_scan(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor? d, Tensor state) "
    "-> (Tensor y, Tensor final_state)": (_selective_scan, _selective_scan_fake),
}

for _schema, (_eager, _fake) in _OPERATORS.items():
    _name = _schema.partition("(")[0]
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_name, _eager, "CompositeExplicitAutograd")
    torch.library.register_fake(f"planish::{_name}", _fake, lib=_LIBRARY)

EAGER: dict[Callable[..., Any], Callable[..., Any]] = {
    getattr(torch.ops.planish, schema.partition("(")[0]).default: eager
    for schema, (eager, _) in _OPERATORS.items()
}
"""What each operator computes, by operators that have derivatives; the composite ones have none of
their own."""

rms_norm = torch.ops.planish.rms_norm.default
"""`rms_norm(x, weight?, eps)`: x / sqrt(mean(x²) + eps) · weight over the last dimension,
normalized in float32 (or wider, if x is) and rounded to x's dtype before the weight (Zhang and
Sennrich, 2019)."""

rotary = torch.ops.planish.rotary.default
"""`rotary(x [B,H,T,D], cos [..., T, R], sin [..., T, R], interleaved)`: turns the first R ≤ D
coordinates by position, as halves or as interleaved pairs (RoFormer, Su et al., 2021)."""

attention = torch.ops.planish.attention.default
"""`attention(query [B,H,T,D], key [B,K,S,D], value [B,K,S,V], mask?, is_causal, scale, softcap)`:
softmax attention where each of the K key heads serves H / K query heads. `mask` is boolean (true
takes part) or additive and broadcasts to [B,H,T,S]; `softcap` 0 means none."""

gated = torch.ops.planish.gated.default
"""`gated(gate, up, activation)`: activation(gate) · up, as in GLU variants (Shazeer, 2020)."""

selective_scan = torch.ops.planish.selective_scan.default
"""`selective_scan(x [B,T,H,P], dt [B,T,H], a [H,N] or [H,1], b [B,T,G,N], c [B,T,G,N], d? [H],
state [B,H,P,N])`: the state space recurrence of Mamba, computed in float32. Each head's state
follows `h = exp(dt·a)·h + dt·x⊗b` from `state` on and gives `y = h·c + d·x`; H / G heads share one
b and c. Returns y [B,T,H,P] and the state after the last step.

Mamba (Gu and Dao, 2023, section 3) is the case of heads one channel wide (P = 1, G = 1) with a
row of `a` a channel; Mamba-2 (Dao and Gu, 2024, section 7) that of one decay a head (`a` [H,1])."""
