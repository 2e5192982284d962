"""Mixtures of experts: a forward for transformers' experts that holds for any number of tokens.

Of transformers' own forwards one loops over the experts that were chosen, which depends on data;
one sorts the tokens by expert and calls a grouped product, which ONNX does not have; and one
copies the chosen experts' weights for every token, which for 256 tokens of Mixtral-8x7B is 240 GB.
The forward here gives every token to every expert and weighs what they return, by zero where the
router chose others: E/k times the arithmetic, in ordinary products with the weights as stored, and
no more memory than E activations a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def dense_experts(model: nn.Module) -> Iterator[None]:
    """Inside the block, the model's experts run as the forward of this file."""
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "_apply_gate")]
    for module in modules:
        module.forward = MethodType(_every_expert, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _every_expert(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The weighted sum over experts, for `hidden_states` [N, H] and a router's choice [N, k]."""
    if experts.has_gate:
        inner = experts._apply_gate(_project(experts, "gate_up_proj", hidden_states))
    else:
        inner = experts.act_fn(_project(experts, "up_proj", hidden_states))
    outer = _project(experts, "down_proj", inner)  # [E, N, H]
    if getattr(experts, "has_post_expert_norm", False):
        outer = experts.post_expert_norm(outer)
    chosen = top_k_index.unsqueeze(-1) == torch.arange(outer.shape[0])  # [N, k, E]
    weights = top_k_weights.unsqueeze(-1)
    routing = (chosen.to(weights.dtype) * weights).sum(1)  # [N, E]
    mixed: Tensor = (outer * routing.transpose(0, 1).unsqueeze(-1)).sum(0)
    return mixed.to(hidden_states.dtype)


def _project(experts: Any, name: str, x: Tensor) -> Tensor:
    """`x` [N, in] or [E, N, in] through the experts' weights [E, out, in]: [E, N, out]."""
    weight = getattr(experts, name)
    result: Tensor = x @ (weight if experts.is_transposed else weight.transpose(1, 2))
    return result + getattr(experts, f"{name}_bias").unsqueeze(1) if experts.has_bias else result
