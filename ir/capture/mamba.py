"""Selective-scan layers: forwards without mutation for transformers' Mamba mixers.

Transformers writes a mixer's state into the cache in place, takes one path for a prompt and
another for a single token, and unrolls or chunks the recurrence over the length it sees, so an
export would hold for one length. The forwards here compute the same from the same parameters for
any length: the state comes from the cache's layer and goes back as new tensors, and the recurrence
is one `planish::selective_scan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from planish.ir.ops import selective_scan


@contextmanager
def functional_mixers(model: nn.Module) -> Iterator[None]:
    """Inside the block, the model's Mamba mixers run as the forwards of this file."""
    mixers = list(mixers_of(model).values())
    for mixer in mixers:
        mixer.forward = MethodType(_FORWARDS[type(mixer).__name__], mixer)
    try:
        yield
    finally:
        for mixer in mixers:
            del mixer.forward


def mixers_of(model: nn.Module) -> dict[int, Any]:
    """The mixers that this file knows, by their layer's number."""
    known = (module for module in model.modules() if type(module).__name__ in _FORWARDS)
    return {int(module.layer_idx): module for module in known}  # type: ignore[arg-type]


def _mamba(
    mixer: Any,
    hidden_states: Tensor,
    cache_params: Any = None,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Mamba (Gu and Dao, 2023): a decay for each channel and column of the state.

    Falcon-Mamba and Jamba normalize dt, b and c as well.
    """
    layer = cache_params.layers[mixer.layer_idx]
    hidden_states = _masked(hidden_states, attention_mask)
    x, gate = mixer.in_proj(hidden_states).chunk(2, dim=-1)
    x = _masked(_causal_conv(mixer, x, layer), attention_mask)
    rank, columns = mixer.time_step_rank, mixer.ssm_state_size
    dt, b, c = mixer.x_proj(x).split([rank, columns, columns], dim=-1)
    if hasattr(mixer, "dt_layernorm"):
        dt, b, c = mixer.dt_layernorm(dt), mixer.b_layernorm(b), mixer.c_layernorm(c)
    y = _scan(
        mixer,
        layer,
        x.unsqueeze(-1),
        functional.softplus(mixer.dt_proj(dt)),
        b.unsqueeze(-2),
        c.unsqueeze(-2),
    ).squeeze(-1)
    projected: Tensor = mixer.out_proj(functional.silu(gate) * y)
    return projected


def _mamba2(
    mixer: Any,
    hidden_states: Tensor,
    cache_params: Any = None,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Mamba-2 (Dao and Gu, 2024): one decay a head, heads in groups that share b and c.

    Transformers limits dt to `time_step_limit` in a prompt but not in a one-token call. Here one
    graph does both, and it always limits it.
    """
    layer = cache_params.layers[mixer.layer_idx]
    hidden_states = _masked(hidden_states, attention_mask)
    width, groups, columns = mixer.intermediate_size, mixer.n_groups, mixer.ssm_state_size
    gate, xbc, dt = mixer.in_proj(hidden_states).split(
        [width, mixer.conv_dim, mixer.num_heads], dim=-1
    )
    xbc = _masked(_causal_conv(mixer, xbc, layer), attention_mask)
    x, b, c = xbc.split([width, groups * columns, groups * columns], dim=-1)
    dt = functional.softplus(dt + mixer.dt_bias)
    lowest, highest = mixer.time_step_limit
    if lowest > 0 or highest < math.inf:  # softplus is never below zero
        dt = dt.clamp(lowest, highest)
    y = _scan(
        mixer,
        layer,
        _heads(x, mixer.num_heads),
        dt,
        _heads(b, groups),
        _heads(c, groups),
    )
    projected: Tensor = mixer.out_proj(mixer.norm(y.flatten(-2), gate))
    return projected


def _heads(packed: Tensor, count: int) -> Tensor:
    """[B, T, H·P] as [B, T, H, P]."""
    return packed.reshape(*packed.shape[:-1], count, packed.shape[-1] // count)


def _masked(hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """Zeroes at padding, where `mask` [B, T] is 0, so that it adds nothing to the state."""
    return hidden_states if mask is None else hidden_states * mask.unsqueeze(-1).to(hidden_states)


def _causal_conv(mixer: Any, x: Tensor, layer: Any) -> Tensor:
    """The depthwise convolution over x [B, T, D] and the K - 1 positions before it."""
    conv = mixer.conv1d
    x = x.transpose(1, 2)
    past = getattr(layer, "conv", None)
    if past is None:
        past = x.new_zeros(x.shape[0], x.shape[1], conv.kernel_size[0] - 1)
    seen = torch.cat((past, x), dim=-1)
    layer.conv = seen[..., x.shape[-1] :]
    mixed = functional.conv1d(seen, conv.weight, conv.bias, groups=conv.groups)
    active: Tensor = mixer.act(mixed)
    return active.transpose(1, 2)


def _scan(mixer: Any, layer: Any, x: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence from the layer's state on; x is [B, T, H, P]. The state is float32."""
    a = -torch.exp(mixer.A_log.float())
    a = a.reshape(a.shape[0], -1)
    # Mamba's heads are single channels; its state is kept as [B, D, N], without their width.
    narrow = x.shape[-1] == 1
    past = getattr(layer, "ssm", None)
    if past is None:
        past = x.new_zeros(x.shape[0], *x.shape[2:], b.shape[-1], dtype=torch.float32)
    elif narrow:
        past = past.unsqueeze(2)
    y: Tensor
    y, state = selective_scan(x, dt, a, b, c, mixer.D, past)
    layer.ssm = state.squeeze(2) if narrow else state
    return y


_FORWARDS: dict[str, Callable[..., Tensor]] = {
    "MambaMixer": _mamba,
    "FalconMambaMixer": _mamba,
    "JambaMambaMixer": _mamba,
    "Mamba2Mixer": _mamba2,
    "BambaMixer": _mamba2,
    "GraniteMoeHybridMambaLayer": _mamba2,
}
"""The mixers of transformers that are known, by class name, and what each becomes."""
