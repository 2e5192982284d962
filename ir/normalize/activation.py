"""Activations written out become the operators they are: `aten.silu`, `aten.gelu`.

GELU and its tanh approximation are those of Hendrycks and Gimpel, 2016, section 2.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from planish.ir.edit import Edit
from planish.ir.normalize.match import Found, Pattern, Rule, add, calls, div, mul, node, power, tanh

aten = torch.ops.aten

X = node("x")

_sigmoid = calls(aten.sigmoid.default)
_erf = calls(aten.erf.default)

_ROOT = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def _half_of_x_times(factor: Pattern) -> Pattern:
    """`x / 2 · factor`, multiplied in any order."""
    return mul(mul(X, 0.5), factor) | mul(mul(X, factor), 0.5) | mul(X, mul(factor, 0.5))


_tanh_argument = mul(add(X, mul(power(X, 3), _CUBIC)), _ROOT) | mul(
    mul(X, _ROOT), add(mul(mul(X, _CUBIC), X) | mul(power(X, 2), _CUBIC), 1)
)
_erf_argument = div(X, math.sqrt(2)) | mul(X, math.sqrt(0.5))


def _silu(edit: Edit, here: fx.Node, found: Found) -> fx.Node:
    return edit.call(aten.silu.default, found["x"], before=here)


def _gelu(edit: Edit, here: fx.Node, found: Found) -> fx.Node:
    return edit.call(aten.gelu.default, found["x"], before=here)


def _gelu_tanh(edit: Edit, here: fx.Node, found: Found) -> fx.Node:
    return edit.call(aten.gelu.default, found["x"], approximate="tanh", before=here)


RULES = (
    Rule(mul(X, _sigmoid(X)), _silu),
    Rule(_half_of_x_times(add(_erf(_erf_argument), 1)), _gelu),
    Rule(_half_of_x_times(add(tanh(_tanh_argument), 1)), _gelu_tanh),
)
