"""Operators of com.microsoft on quantized tensors."""

from __future__ import annotations

from planish.ir.flow.call import NotCovered, Result
from planish.ir.flow.vocabulary import (
    Expression,
    Operand,
    Reads,
    along,
    permuted,
    pointwise,
    reduction,
)
from planish.ir.rules.onnx.call import OnnxCall, named, of_rank
from planish.ir.rules.onnx.contrib import DOMAIN
from planish.ir.rules.onnx.movement import joined_along
from planish.ir.rules.onnx.pointwise import together
from planish.ir.rules.onnx.product import convolution, qlinear_conv, times, with_numbers
from planish.ir.rules.onnx.quantization import given_scale, self_scaled
from planish.ir.rules.onnx.recurrent import layer
from planish.ir.rules.onnx.window import spatially, windows


def _settings(call: OnnxCall, *places: int) -> list[Operand]:
    """Scales and zero points of one number each."""
    values = [call.input(place) for place in places if call.given(place)]
    if any(value.shape not in ((), (1,)) for value in values):
        raise NotCovered("a scale of more than one number")
    return [Operand(value, ("number",) * len(value.shape)) for value in values]


def _with(out: Expression, settings: list[Operand]) -> Expression:
    operand = Operand(out, tuple(range(len(out.shape))))
    return Reads(out.shape, (operand, *settings), "linear")


def dynamic_matmul(call: OnnxCall) -> Expression:
    """`DynamicQuantizeMatMul(a, b, scale of b, zero of b, bias)`: one scale for all of a."""
    product = times(self_scaled(call.input(0)), call.input(1))
    right = [call.input(place) for place in (2, 3) if call.given(place)]
    out = with_numbers(product, [], right, [])
    bias = call.optional(4)
    return out if bias is None else pointwise("add", out, bias, shape=out.shape)


def integer_to_float(call: OnnxCall) -> Expression:
    """`MatMulIntegerToFloat(a, b, scales, zeros, bias)`."""
    left = [call.input(place) for place in (2, 4) if call.given(place)]
    right = [call.input(place) for place in (3, 5) if call.given(place)]
    out = with_numbers(times(call.input(0), call.input(1)), left, right, [])
    bias = call.optional(6)
    return out if bias is None else pointwise("add", out, bias, shape=out.shape)


def dynamic_lstm(call: OnnxCall) -> Result:
    """`DynamicQuantizeLSTM`: x and the states are rounded by a scale of the whole batch."""
    weights = [call.input(1), call.input(2)]
    return layer(call, self_scaled(call.input(0)), weights, call.inputs(7))


def binary(call: OnnxCall) -> Expression:
    """`QLinearAdd` and `QLinearMul(a, scale, zero, b, scale, zero, scale and zero of c)`."""
    out = together("linear", call.input(0), call.input(3))
    return _with(out, _settings(call, 1, 2, 4, 5, 6, 7))


def unary(call: OnnxCall) -> Expression:
    """`QLinearSigmoid` and `QLinearLeakyRelu(x, scale, zero, scale and zero of y)`."""
    call.ignore("alpha")
    return _with(pointwise("nonlinear", call.input(0)), _settings(call, 1, 2, 3, 4))


def selection(call: OnnxCall) -> Expression:
    """`QLinearWhere(condition, x, scale, zero, y, scale, zero, scale and zero of z)`."""
    out = together("nonlinear", call.input(0), call.input(1), call.input(4))
    return _with(out, _settings(call, 2, 3, 5, 6, 7, 8))


def concat(call: OnnxCall) -> Expression:
    """`QLinearConcat(scale and zero of y, then each x with scale and zero)`."""
    places = range(2, call.arity, 3)
    values = [_with(call.input(n), _settings(call, n + 1, n + 2)) for n in places]
    axis = call["axis"]
    if not values or not isinstance(axis, int):
        raise NotCovered("nothing to join")
    out = joined_along(values, call.place(axis, len(values[0].shape)))
    return _with(out, _settings(call, 0, 1))


def softmax(call: OnnxCall) -> Expression:
    """`QLinearSoftmax(x, ...)`: over one dimension from opset 13 on, before over all after."""
    value = call.input(0)
    rank = len(value.shape)
    opset = call["opset"]
    if not isinstance(opset, int):
        raise NotCovered("no opset")
    dim = call.place(call.attribute("axis", -1), rank)
    out = along("softmax", value, (dim,) if opset >= 13 else range(dim, rank))
    return _with(out, _settings(call, 1, 2, 3, 4))


def mean(call: OnnxCall) -> Expression:
    """`QLinearReduceMean(x, ...)`."""
    value = call.input(0)
    rank = len(value.shape)
    axes = call.integers("axes")
    dims = [call.place(axis, rank) for axis in axes] if axes else range(rank)
    out = reduction("mean", value, dims, bool(call.attribute("keepdims", 1)))
    return _with(out, _settings(call, 1, 2, 3, 4))


def _channels_first(value: Expression) -> Expression:
    rank = len(value.shape)
    return permuted(value, (0, rank - 1, *range(1, rank - 1)))


def _channels_last(value: Expression) -> Expression:
    rank = len(value.shape)
    return permuted(value, (0, *range(2, rank), 1))


def average(call: OnnxCall) -> Expression:
    """`QLinearAveragePool` and `QLinearGlobalAveragePool(x, ...)`."""
    last = bool(call.attribute("channels_last", 0))
    value = _channels_first(call.input(0)) if last else call.input(0)
    if "Global" in call.name:
        out: Expression = reduction("mean", value, range(2, len(value.shape)), keep=True)
    else:
        call.ignore("count_include_pad")
        out = _pooled(call, value)
    return _with(_channels_last(out) if last else out, _settings(call, 1, 2, 3, 4))


def _pooled(call: OnnxCall, value: Expression) -> Expression:
    kernel = call.integers("kernel_shape") or []
    ceil = bool(call.attribute("ceil_mode", 0))
    return spatially(value, (*value.shape[:2], *windows(call, value.shape[2:], kernel, ceil)))


def nhwc_pool(call: OnnxCall) -> Expression:
    """`NhwcMaxPool(x [N, H, W, C])`."""
    return _channels_last(_pooled(call, _channels_first(call.input(0))))


def nhwc_conv(call: OnnxCall) -> Expression:
    """`NhwcConv` and `NhwcFusedConv(x [N, H, W, C], weight, bias, z)`."""
    call.ignore("activation", "activation_params")
    value = _channels_first(call.input(0))
    out = _channels_last(convolution(call, value, call.input(1), call.optional(2)))
    more = call.optional(3)
    return out if more is None else pointwise("nonlinear", out, more, shape=out.shape)


def conv(call: OnnxCall) -> Expression:
    """`QLinearConv` with channels where ONNX has them."""
    if call.attribute("channels_last", 0):
        raise NotCovered("channels that come last")
    return qlinear_conv(call)


def gemm(call: OnnxCall) -> Expression:
    """`QGemm(a, scale, zero, b, scale, zero, c, scale and zero of y)`."""
    call.ignore("alpha")
    one, two = of_rank(call.input(0), 2), of_rank(call.input(3), 2)
    one = permuted(one, (1, 0)) if call.attribute("transA", 0) else one
    two = permuted(two, (1, 0)) if call.attribute("transB", 0) else two
    right = [call.input(place) for place in (4, 5) if call.given(place)]
    out = with_numbers(times(one, two), [], right, [])
    if call.given(6):
        out = pointwise("add", out, call.input(6), shape=out.shape)
    return _with(out, _settings(call, 1, 2, 7, 8))


RULES = (
    named(dynamic_matmul, "DynamicQuantizeMatMul", DOMAIN)
    | named(integer_to_float, "MatMulIntegerToFloat", DOMAIN)
    | named(dynamic_lstm, "DynamicQuantizeLSTM", DOMAIN)
    | named(binary, "QLinearAdd QLinearMul", DOMAIN)
    | named(unary, "QLinearSigmoid QLinearLeakyRelu", DOMAIN)
    | named(selection, "QLinearWhere", DOMAIN)
    | named(concat, "QLinearConcat", DOMAIN)
    | named(softmax, "QLinearSoftmax", DOMAIN)
    | named(mean, "QLinearReduceMean", DOMAIN)
    | named(average, "QLinearAveragePool QLinearGlobalAveragePool", DOMAIN)
    | named(nhwc_pool, "NhwcMaxPool", DOMAIN)
    | named(nhwc_conv, "NhwcConv NhwcFusedConv", DOMAIN)
    | named(conv, "QLinearConv", DOMAIN)
    | named(gemm, "QGemm", DOMAIN)
    | named(given_scale, "QuantizeLinear DequantizeLinear", DOMAIN)
)
