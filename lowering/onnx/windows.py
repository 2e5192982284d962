"""Operators of images and signals: convolutions, pooling, resizing; and the norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from planish.lowering.onnx.builder import Builder, Emitter
from planish.lowering.onnx.sizes import Extent

aten = torch.ops.aten

Amounts = Sequence[int]
"""One number a spatial dimension, or a single one for all of them."""


def _spread(amounts: Amounts, dimensions: int) -> list[int]:
    return list(amounts) * (dimensions if len(amounts) == 1 else 1)


def _conv(
    b: Builder,
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None,
    stride: Amounts,
    padding: Amounts | str,
    dilation: Amounts,
    groups: int,
) -> ir.Value:
    spatial = b.rank(weight) - 2
    dilations = _spread(dilation, spatial)
    if isinstance(padding, str):  # ONNX Runtime pads by itself only where nothing is dilated
        reach = zip(b.shape(weight)[2:], dilations, strict=True)
        total = [(int(size) - 1) * step * (padding == "same") for size, step in reach]
        pads = [amount // 2 for amount in total] + [amount - amount // 2 for amount in total]
    else:
        pads = _spread(padding, spatial) * 2
    return b.op(
        "Conv",
        x,
        weight,
        bias,
        strides=_spread(stride, spatial),
        pads=pads,
        dilations=dilations,
        group=groups,
    )


def _conv_transposed(
    b: Builder,
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None,
    stride: Amounts,
    padding: Amounts,
    output_padding: Amounts,
    groups: int,
    dilation: Amounts,
) -> ir.Value:
    spatial = b.rank(weight) - 2
    return b.op(
        "ConvTranspose",
        x,
        weight,
        bias,
        strides=_spread(stride, spatial),
        pads=_spread(padding, spatial) * 2,
        output_padding=_spread(output_padding, spatial),
        dilations=_spread(dilation, spatial),
        group=groups,
    )


def _convolution(
    b: Builder,
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None,
    stride: Amounts,
    padding: Amounts,
    dilation: Amounts,
    transposed: bool,
    output_padding: Amounts,
    groups: int,
) -> ir.Value:
    if transposed:
        return _conv_transposed(
            b, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return _conv(b, x, weight, bias, stride, padding, dilation, groups)


def _max_pool(
    b: Builder,
    x: ir.Value,
    kernel: Amounts,
    stride: Amounts,
    padding: Amounts,
    dilation: Amounts,
    ceil_mode: bool,
) -> Any:
    spatial = b.rank(x) - 2
    pooled = b.op(
        "MaxPool",
        x,
        kernel_shape=_spread(kernel, spatial),
        strides=_spread(stride or kernel, spatial),
        pads=_spread(padding, spatial) * 2,
        dilations=_spread(dilation, spatial),
        ceil_mode=int(ceil_mode),
    )
    return [pooled, None] if isinstance(b.node.meta["val"], (list, tuple)) else pooled


def _average_pool(
    b: Builder,
    x: ir.Value,
    kernel: Amounts,
    stride: Amounts,
    padding: Amounts,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None = None,
) -> ir.Value:
    if divisor is not None:
        raise NotImplementedError("average pooling with a divisor of its own")
    spatial = b.rank(x) - 2
    return b.op(
        "AveragePool",
        x,
        kernel_shape=_spread(kernel, spatial),
        strides=_spread(stride or kernel, spatial),
        pads=_spread(padding, spatial) * 2,
        ceil_mode=int(ceil_mode),
        count_include_pad=int(count_include_pad),
    )


def _adaptive_average_pool(b: Builder, x: ir.Value, size: Sequence[int]) -> ir.Value:
    """Windows of equal size, which is what it comes to where the sizes divide."""
    if all(extent == 1 for extent in size):
        return b.op("GlobalAveragePool", x)
    extents: Sequence[Extent] = b.shape(x)[-len(size) :]
    if any(
        isinstance(have, torch.SymInt) or have % want
        for have, want in zip(extents, size, strict=True)
    ):
        raise NotImplementedError("adaptive pooling into windows of unequal sizes")
    kernel = [int(have) // want for have, want in zip(extents, size, strict=True)]
    return b.op("AveragePool", x, kernel_shape=kernel, strides=kernel)


def _resize(mode: str) -> Emitter:
    def emit(b: Builder, x: ir.Value, *arguments: Any) -> ir.Value:
        corners = mode != "nearest" and any(argument is True for argument in arguments)
        coordinates = "align_corners" if corners else "half_pixel"
        return b.op(
            "Resize",
            x,
            None,
            None,
            b.result_shape,
            mode=mode,
            coordinate_transformation_mode="asymmetric" if mode == "nearest" else coordinates,
            nearest_mode="floor",
            cubic_coeff_a=-0.75,
        )

    return emit


# Norms


def _ones(b: Builder, dtype: torch.dtype, shape: Sequence[Extent]) -> ir.Value:
    return b.expand(b.constant(1, dtype), shape)


def _zeros(b: Builder, dtype: torch.dtype, shape: Sequence[Extent]) -> ir.Value:
    return b.expand(b.constant(0, dtype), shape)


def _batch_norm(
    b: Builder,
    x: ir.Value,
    weight: ir.Value | None,
    bias: ir.Value | None,
    mean: ir.Value,
    variance: ir.Value,
    eps: float,
) -> ir.Value:
    dtype, channels = b.dtype(mean), b.shape(mean)
    scale = _ones(b, dtype, channels) if weight is None else weight
    shift = _zeros(b, dtype, channels) if bias is None else bias
    return b.op("BatchNormalization", x, scale, shift, mean, variance, epsilon=eps)


def _batch_norm_eval(
    b: Builder,
    x: ir.Value,
    weight: Any,
    bias: Any,
    mean: ir.Value,
    variance: ir.Value,
    eps: float,
) -> list[ir.Value | None]:
    return [_batch_norm(b, x, weight, bias, mean, variance, eps), None, None]


def _batch_norm_plain(
    b: Builder,
    x: ir.Value,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    eps: float,
) -> ir.Value:
    if training:
        raise NotImplementedError("batch norm in training mode")
    return _batch_norm(b, x, weight, bias, mean, variance, eps)


def _layer_norm(
    b: Builder,
    x: ir.Value,
    shape: Sequence[int],
    weight: ir.Value | None,
    bias: ir.Value | None,
    eps: float,
) -> Any:
    scale = _ones(b, b.dtype(x), shape) if weight is None else weight
    made = b.op("LayerNormalization", x, scale, bias, axis=-len(shape), epsilon=eps)
    return [made, None, None] if isinstance(b.node.meta["val"], (list, tuple)) else made


def _group_norm(
    b: Builder,
    x: ir.Value,
    groups: int,
    weight: ir.Value | None,
    bias: ir.Value | None,
    eps: float,
) -> ir.Value:
    dtype, channels = b.dtype(x), b.shape(x)[1:2]
    scale = _ones(b, dtype, channels) if weight is None else weight
    shift = _zeros(b, dtype, channels) if bias is None else bias
    return b.op("GroupNormalization", x, scale, shift, num_groups=groups, epsilon=eps)


WINDOWS: dict[Callable[..., Any], Emitter] = {
    aten.conv1d.default: _conv,
    aten.conv2d.default: _conv,
    aten.conv3d.default: _conv,
    aten.conv1d.padding: _conv,
    aten.conv2d.padding: _conv,
    aten.conv3d.padding: _conv,
    aten.conv_transpose1d.default: _conv_transposed,
    aten.conv_transpose2d.input: _conv_transposed,
    aten.conv_transpose3d.input: _conv_transposed,
    aten.convolution.default: _convolution,
    aten.max_pool1d.default: _max_pool,
    aten.max_pool2d.default: _max_pool,
    aten.max_pool3d.default: _max_pool,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool1d.default: _average_pool,
    aten.avg_pool2d.default: _average_pool,
    aten.avg_pool3d.default: _average_pool,
    aten.adaptive_avg_pool1d.default: _adaptive_average_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_average_pool,
    aten._adaptive_avg_pool2d.default: _adaptive_average_pool,
    aten.adaptive_avg_pool3d.default: _adaptive_average_pool,
    aten.upsample_nearest1d.vec: _resize("nearest"),
    aten.upsample_nearest2d.vec: _resize("nearest"),
    aten.upsample_nearest2d.default: _resize("nearest"),
    aten.upsample_linear1d.vec: _resize("linear"),
    aten.upsample_bilinear2d.vec: _resize("linear"),
    aten.upsample_bilinear2d.default: _resize("linear"),
    aten.upsample_bicubic2d.vec: _resize("cubic"),
    aten.upsample_bicubic2d.default: _resize("cubic"),
    aten._native_batch_norm_legit_no_training.default: _batch_norm_eval,
    aten.batch_norm.default: _batch_norm_plain,
    aten.layer_norm.default: _layer_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
}
"""How each operator over windows, and each norm, is emitted."""
