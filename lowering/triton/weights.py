"""Quantized weights as kernels take them, and the specifications of what multiplies by them."""

from __future__ import annotations

from planish.ir.quant import QuantizedTensor
from planish.lowering.triton.fields import Dtype, NoKernel
from planish.lowering.triton.nodes import named
from planish.lowering.triton.specs import (
    SLICES,
    CodesProduct,
    GroupScaled,
    Scaled,
    WeightOnly,
    best_lanes,
    byte_lanes,
)

NIBBLE = 4
"""Bits of the widest codes of which two lie in a byte."""


def packed(weight: QuantizedTensor, dtype: Dtype) -> tuple[QuantizedTensor, WeightOnly]:
    """A weight [N, K], or a stack of them, in bits that kernels have, and their product with x.

    Raises:
        NoKernel: if no kernel multiplies by such a weight.
    """
    if weight.scheme.microscaled:
        weight = weight.as_integers()
    if weight.scheme.floating:
        raise NoKernel(f"no kernel multiplies by {weight.scheme} without rounded activations.")
    if weight.scheme.bits not in SLICES:
        weight = weight.widened(2 if weight.scheme.bits == 1 else 8)
    *_, n, k = weight.shape
    group = weight.scheme.group_size or k
    product = WeightOnly(
        n=n,
        k=k,
        dtype=dtype,
        scale_dtype=named(weight.scale.dtype),
        bits=weight.scheme.bits,
        group=group,
        zeros=weight.zero_point is not None,
        lanes=best_lanes(k, weight.scheme.bits, group),
    )
    return weight, product


def of_codes(weight: QuantizedTensor, dtype: Dtype) -> CodesProduct:
    """The product of codes with a weight: of bytes, or of halves of bytes.

    Raises:
        NoKernel: if the weight is no matrix, or its scales are not such as kernels apply.
    """
    if len(weight.shape) != 2:
        raise NoKernel("stacks of weights are multiplied one by one.")
    n, k = weight.shape
    if weight.scheme.bits <= NIBBLE:
        group = weight.scheme.group_size or k
        return GroupScaled(n, k, dtype, named(weight.scale.dtype), group, byte_lanes(k, group))
    if weight.scale.shape[-1] != 1:
        raise NoKernel("codes of 8 bits have one scale a row.")
    return Scaled(n, k, dtype, "float8_e4m3fn" if weight.scheme.floating else "int8")
