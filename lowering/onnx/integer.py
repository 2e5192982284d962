"""Rounded activations, and products of them with rounded weights by integer kernels.

Each row has a scale of its own, found in every run, so requests in one batch stay apart; the
operators that ONNX Runtime makes for dynamic quantization take one scale for the whole tensor.
Codes are uint8 with the constant zero point 128 and weights int8: of the pairs of types that the
CPU provider multiplies, the one with the fastest kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import fx

from planish.ir.activations import INT8, ActivationScheme, fake_quantize, reach
from planish.ir.quant import QuantizedTensor, dequantize
from planish.lowering.onnx import merged, quantized
from planish.lowering.onnx.builder import Builder, Emitter
from planish.lowering.onnx.target import CONTRIB

KERNEL = "MatMulIntegerToFloat"
"""ONNX Runtime's product of integers that is scaled in the same kernel."""

MIDDLE = torch.tensor(128, dtype=torch.uint8)
"""The code of zero."""

_FLOAT = ir.DataType.FLOAT.value

_SMALLEST = 1024 * torch.finfo(torch.float32).tiny
"""What a row's largest magnitude counts as at least; a step of it is still a normal number."""


class Codes(NamedTuple):
    """An activation as codes: value = (code - 128) · step · unit.

    Attributes:
        codes: uint8 [..., K].
        step: the part of the scale that all rows share.
        unit: float32 [..., 1] or [], the other part; None where that is 1.
    """

    codes: ir.Value
    step: ir.Value
    unit: ir.Value | None


def linear(b: Builder) -> ir.Value | None:
    """The node's product by integers; None if its operands are not both rounded for it.

    The weight has to be symmetric with one scale a row; codes of fewer bits are stored as int8.
    Products of one input are made together.
    """
    x, weight, *_ = b.node.args
    if not _has_codes(x) or not _fits(b, weight):
        return None
    together = merged.alike(b, lambda other: _fits(b, other))
    stored = [QuantizedTensor.read_by(node.args[1], b.program.tensors) for node in together]  # type: ignore[arg-type]
    whole = _by_all(b, _codes(b, x), stored)  # type: ignore[arg-type]
    bias = merged.biases(b, together)
    if bias is not None:
        is_wide = b.result_dtype == torch.float32
        whole = b.op("Add", whole, bias if is_wide else b.op("Cast", bias, to=_FLOAT))
    own = merged.own_part(b, whole, together, [one.shape[0] for _, one in stored])
    return b.cast(b.typed(own, torch.float32, b.result_shape), b.result_dtype)


def experts(b: Builder, source: fx.Node) -> ir.Value | None:
    """The node's product with a stack [E, N, K] that is read transposed: [E, M, N]; see `linear`.

    Args:
        b: at the node.
        source: the node that dequantizes the stack.
    """
    x = b.node.args[0]
    if not _has_codes(x) or not _fits(b, source, rank=3):
        return None
    name, stack = QuantizedTensor.read_by(source, b.program.tensors)
    read, each = _codes(b, x), [(f"{name}.{one}", stack[one]) for one in range(stack.shape[0])]  # type: ignore[arg-type]
    count, rows, columns = b.result_shape
    if b.rank(b.values[x]) == 2:  # type: ignore[index]
        wide = b.typed(_by_all(b, read, each), torch.float32, (rows, count * columns))
        made = b.transpose(b.reshape(wide, (rows, count, columns)), [1, 0, 2])
    else:
        scheme = ActivationScheme.read_by(x)  # type: ignore[arg-type]
        by_row = scheme.dynamic and scheme.per_token
        parts = zip(_apart(b, read, len(each), by_row=by_row), each, strict=True)
        made = b.op("Concat", *(_by_all(b, own, [one]) for own, one in parts), axis=0)
    return b.cast(b.typed(made, torch.float32, b.result_shape), b.result_dtype)


def _by_all(b: Builder, read: Codes, stored: Sequence[tuple[str, QuantizedTensor]]) -> ir.Value:
    """The rows by weights below one another, float32 [..., N of all]."""
    weights = merged.joined(b, [_turned(b, *one) for one in stored], axis=1)
    scales = merged.joined(b, [_row_of_scales(b, *one) for one in stored])
    product = _product(b, read, weights, scales)
    return product if read.unit is None else b.op("Mul", product, read.unit)


def _apart(b: Builder, read: Codes, count: int, *, by_row: bool) -> list[Codes]:
    """Codes [E, M, K] as one for each expert."""

    def split(value: ir.Value) -> tuple[ir.Value, ...]:
        return b.ops(count, "Split", value, [1] * count, axis=0)

    units = split(read.unit) if by_row and read.unit is not None else (read.unit,) * count
    return [Codes(*one) for one in zip(split(read.codes), (read.step,) * count, units, strict=True)]


def _has_codes(x: Any) -> bool:
    return _is_rounded(x, fake_quantize) and ActivationScheme.read_by(x).dtype == INT8


def _fits(b: Builder, weight: Any, rank: int = 2) -> bool:
    """Whether an integer kernel takes a weight, or a stack: symmetric, with one scale a row."""
    if not _is_rounded(weight, dequantize):
        return False
    name, stored = QuantizedTensor.read_by(weight, b.program.tensors)
    if name in b.target.dense:
        return False
    per_row = stored.scale.shape[-1] == 1 and len(stored.shape) == rank
    return per_row and stored.zero_point is None and not stored.scheme.floating


def _is_rounded(argument: Any, by: Callable[..., Any]) -> bool:
    return isinstance(argument, fx.Node) and argument.target is by


def _product(b: Builder, read: Codes, weight: ir.Value, scale: ir.Value) -> ir.Value:
    """(codes - 128) · step · weight · scale, float32."""
    if KERNEL in b.target.contrib:
        return b.op(f"{CONTRIB}.{KERNEL}", read.codes, weight, read.step, scale, MIDDLE)
    whole = b.op("Cast", b.op("MatMulInteger", read.codes, weight, MIDDLE), to=_FLOAT)
    return b.op("Mul", whole, b.op("Mul", scale, read.step))


def _turned(b: Builder, name: str, stored: QuantizedTensor) -> ir.Value:
    """The codes of a weight [N, K] as int8 [K, N]."""
    shape = stored.shape[::-1]
    return quantized.stored(b, f"{name}_packed.int8.T", lambda: stored.codes.mT, shape, bits=8)


def _row_of_scales(b: Builder, name: str, stored: QuantizedTensor) -> ir.Value:
    return b.initializer(f"{name}_scale.T", TorchTensor(stored.scale.float().flatten()))


def _codes(b: Builder, node: fx.Node) -> Codes:
    """What a `fake_quantize` node reads, as codes. Equal calls give one node.

    With scales found in each run, a row is divided by its largest magnitude, and the step to codes
    is a constant. When one token is decoded, each small node costs as much as a tenth of a product.
    A stored scale is the step, so that nothing is divided before.
    """
    source, stored, *_ = node.args
    scheme = ActivationScheme.read_by(node)
    x = b.cast(b.values[source], torch.float32)  # type: ignore[index]
    if stored is not None:
        step = b.cast(b.values[stored], torch.float32)  # type: ignore[index]
        return Codes(b.op("QuantizeLinear", x, step, MIDDLE), step, None)
    unit, step = _largest(b, x, scheme), b.constant(1 / reach(scheme.dtype), torch.float32)
    return Codes(b.op("QuantizeLinear", b.op("Div", x, unit), step, MIDDLE), step, unit)


def _largest(b: Builder, x: ir.Value, scheme: ActivationScheme) -> ir.Value:
    """The largest magnitude of each row, or of the whole; by that of zeros nothing is divided."""
    axes = [-1] if scheme.per_token else None
    largest = b.op("ReduceMax", b.op("Abs", x), axes, keepdims=int(scheme.per_token))
    return b.op("Max", largest, b.constant(_SMALLEST, torch.float32))


def _scale(b: Builder, x: ir.Value, stored: ir.Value | None, scheme: ActivationScheme) -> ir.Value:
    """A stored scale, or the scale of each row or of the whole."""
    if stored is not None:
        return b.cast(stored, torch.float32)
    step = b.constant(1 / reach(scheme.dtype), torch.float32)
    return b.op("Mul", _largest(b, x, scheme), step)


def _fake_quantize(b: Builder, x: ir.Value, stored: ir.Value | None, _: bool) -> ir.Value:
    """The rounded value in floating point, for those who read no codes."""
    if all(_is_dense(b, user) for user in b.node.users):
        return x  # rounding costs time, and buys nothing where no kernel reads codes
    scheme = ActivationScheme.read_by(b.node)
    wide = b.cast(x, torch.float32)
    scale = _scale(b, wide, stored, scheme)
    divided = b.op("Div", wide, scale)
    if scheme.dtype == INT8:
        ends = (b.constant(end, torch.float32) for end in (-128.0, 127.0))
        rounded = b.op("Clip", b.op("Round", divided), *ends)
    else:
        limit = torch.finfo(scheme.dtype).max
        ends = (b.constant(end, torch.float32) for end in (-limit, limit))
        narrow = b.op("Cast", b.op("Clip", divided, *ends), to=ir.DataType.FLOAT8E4M3FN.value)
        rounded = b.op("Cast", narrow, to=_FLOAT)
    made = b.typed(b.op("Mul", rounded, scale), torch.float32, b.result_shape)
    return b.cast(made, b.result_dtype)


def _is_dense(b: Builder, reader: fx.Node) -> bool:
    """Whether a product is by a weight that is dense against the program's word."""
    weight = reader.args[1] if reader.target is torch.ops.aten.linear.default else None
    if not _is_rounded(weight, dequantize):
        return False
    name, _ = QuantizedTensor.read_by(weight, b.program.tensors)  # type: ignore[arg-type]
    return name in b.target.dense


ROUNDED: dict[Callable[..., Any], Emitter] = {fake_quantize: _fake_quantize}
"""How a rounded activation is emitted where no kernel takes its codes."""
