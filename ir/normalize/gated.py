"""Gated activations: activation(gate) · up (Shazeer, *GLU Variants Improve Transformer*, 2020)."""

from __future__ import annotations

from functools import partial

import torch
from torch import fx

from planish.ir import ops
from planish.ir.edit import Edit
from planish.ir.normalize.match import Found, Rule, Sole, alike, calls, mul, node

aten = torch.ops.aten

GATE, UP = node("gate"), node("up")

_gelu = calls(aten.gelu.default)

_ACTIVATIONS = {
    "silu": calls(aten.silu.default)(GATE),
    "relu": calls(aten.relu.default)(GATE),
    "gelu": _gelu(GATE),
    "gelu_tanh": _gelu(GATE, "tanh"),
}


def _gated(activation: str, edit: Edit, here: fx.Node, found: Found) -> fx.Node | None:
    gate, up = found["gate"], found["up"]
    if not alike(gate, up):
        return None  # a scale that broadcasts, not a second branch
    return edit.call(ops.gated, gate, up, activation, before=here)


RULES = tuple(
    Rule(mul(Sole(activated), UP), partial(_gated, name))
    for name, activated in _ACTIVATIONS.items()
)
