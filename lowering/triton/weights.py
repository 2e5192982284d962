"""Quantized weights as kernels take them, and the specifications of what multiplies by them."""

from __future__ import annotations

import torch
from torch import Tensor

from planish.ir.activations import ActivationScheme
from planish.ir.quant import FP8, QuantizedTensor
from planish.lowering.triton.fields import Dtype, NoKernel
from planish.lowering.triton.layout import stored, stored_nibbles
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


def of_codes(
    weight: QuantizedTensor, inputs: ActivationScheme, dtype: Dtype
) -> CodesProduct | None:
    """The product of codes with a weight [N, K], or a stack: of bytes, or of halves of bytes.

    None if codes of both are not of one kind, or scales or zero points not such as kernels apply.
    """
    if weight.zero_point is not None or weight.scheme.microscaled:
        return None
    if weight.scheme.floating != (inputs.dtype == FP8):
        return None
    *_, n, k = weight.shape
    if weight.scheme.bits <= NIBBLE:
        group = weight.scheme.group_size or k
        try:
            lanes = byte_lanes(k, group)
            return GroupScaled(n, k, dtype, named(weight.scale.dtype), group, lanes)
        except NoKernel:
            return None
    if weight.scale.shape[-1] != 1:
        return None
    return Scaled(n, k, dtype, "float8_e4m3fn" if weight.scheme.floating else "int8")


def kept(weight: QuantizedTensor, product: WeightOnly | CodesProduct) -> dict[str, Tensor]:
    """A weight [N, K], or a stack of them, as the kernels of a product read it."""
    if len(weight.shape) > 2:
        each = [kept(weight[number], product) for number in range(weight.shape[0])]
        return {part: torch.stack([one[part] for one in each]) for part in product.stored}
    if isinstance(product, WeightOnly):
        return stored(weight, product)
    if isinstance(product, GroupScaled):
        return stored_nibbles(weight, product)
    return {"codes": weight.codes.contiguous(), "scales": weight.scale.float().flatten()}
