"""Activations and softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from planish.lowering.onnx.builder import Builder, Emitter
from planish.lowering.onnx.elementwise import unary

aten = torch.ops.aten


def gelu(b: Builder, x: ir.Value, approximate: str = "none") -> ir.Value:
    """The Gaussian error linear unit (Hendrycks and Gimpel, 2016), exact or by tanh."""
    return b.op("Gelu", x, approximate=approximate)


def silu(b: Builder, x: ir.Value) -> ir.Value:
    """X · sigmoid(x), in the form that ONNX Runtime fuses."""
    return b.op("Mul", x, b.op("Sigmoid", x))


def relu(b: Builder, x: ir.Value) -> ir.Value:
    """The greater of x and 0. ONNX Runtime's `Relu` takes only floating-point numbers."""
    dtype = b.dtype(x)
    return b.op("Relu", x) if dtype.is_floating_point else b.op("Max", x, b.constant(0, dtype))


def _leaky_relu(b: Builder, x: ir.Value, slope: float) -> ir.Value:
    return b.op("LeakyRelu", x, alpha=float(slope))


def _elu(b: Builder, x: ir.Value, alpha: float, scale: float, _: float) -> ir.Value:
    value = b.op("Elu", x, alpha=float(alpha))
    return value if scale == 1 else b.op("Mul", value, b.constant(scale, b.result_dtype))


def _softplus(b: Builder, x: ir.Value, beta: float, threshold: float) -> ir.Value:
    """log(1 + exp(βx)) / β, and x itself above the threshold, as torch has it."""
    factor = b.constant(beta, b.result_dtype)
    scaled = x if beta == 1 else b.op("Mul", x, factor)
    soft = b.op("Softplus", scaled)
    soft = soft if beta == 1 else b.op("Div", soft, factor)
    linear = b.op("Greater", scaled, b.constant(threshold, b.result_dtype))
    return b.op("Where", linear, x, soft)


def _hardtanh(b: Builder, x: ir.Value, low: float, high: float) -> ir.Value:
    dtype = b.result_dtype
    return b.op("Clip", x, b.constant(low, dtype), b.constant(high, dtype))


def _relu6(b: Builder, x: ir.Value) -> ir.Value:
    return _hardtanh(b, x, 0, 6)


def _softmax(kind: str) -> Emitter:
    def emit(b: Builder, x: ir.Value, dim: int) -> ir.Value:
        return b.op(kind, b.cast(x, b.result_dtype), axis=dim)

    return emit


ACTIVATIONS: dict[Callable[..., Any], Emitter] = {
    aten.sigmoid.default: unary("Sigmoid"),
    aten.relu.default: relu,
    aten.relu6.default: _relu6,
    aten.gelu.default: gelu,
    aten.silu.default: silu,
    aten.mish.default: unary("Mish"),
    aten.hardswish.default: unary("HardSwish"),
    aten.hardsigmoid.default: unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    aten.hardtanh.default: _hardtanh,
    aten.leaky_relu.default: _leaky_relu,
    aten.elu.default: _elu,
    aten.softplus.default: _softplus,
    aten.softmax.int: _softmax("Softmax"),
    aten._softmax.default: _softmax("Softmax"),
    aten.log_softmax.int: _softmax("LogSoftmax"),
    aten._log_softmax.default: _softmax("LogSoftmax"),
}
"""How each activation is emitted."""
