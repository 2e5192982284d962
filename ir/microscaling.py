"""MXFP4: floating-point numbers of 4 bits, 32 of which share a power of two.

Source: Open Compute Project, "Microscaling Formats (MX) Specification", version 1.0 (2023):
elements E2M1 (section 5.3.3), scales E8M0 (5.4.1), conversion (6.3). Two elements lie in a byte,
the first in its low half, as compressed-tensors has them (`mxfp4-pack-quantized`).
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
"""Numbers that share a scale."""

LARGEST = 6.0
"""The largest element: ±{0, 0.5, 1, 1.5, 2, 3, 4, 6} are all there are."""

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_ELEMENTS = (*_MAGNITUDES, *(-one for one in _MAGNITUDES))
_SIGN = 8

_EXPONENT_OF_LARGEST = 2
_BIAS = 127
_LEAST, _MOST = -126, 127
"""Exponents of scales: the least normal number of float32, and the largest; 255 stands for NaN."""

FACTORS = (1.0, 2.0)
"""What a search multiplies the specification's scale by, which clips numbers above 6 scales.
Twice as large it clips nothing, and all others are rounded more coarsely."""


def round_(numbers: Tensor) -> Tensor:
    """Round to the nearest elements, in place; ties go to the even one, larger numbers to ±6."""
    sizes = numbers.clamp_(-LARGEST, LARGEST).abs()
    # Elements are 0.5 apart up to 2, 1 up to 4, then 2.
    apart = (sizes >= 2).to(numbers.dtype).mul_(0.5).add_(0.5).add_((sizes >= 4).to(numbers.dtype))
    return numbers.div_(apart).round_().mul_(apart)


def scale_of(largest: Tensor, factor: float) -> Tensor:
    """The scale of blocks whose largest magnitudes these are, a power of two; 1 for zeros.

    Args:
        largest: float32.
        factor: 1 for the specification's, or another power of two.
    """
    exponents = torch.frexp(largest).exponent - 1 - _EXPONENT_OF_LARGEST
    scale = torch.ldexp(torch.ones_like(largest), exponents.clamp(_LEAST, _MOST - 1)) * factor
    return torch.where(largest > 0, scale, 1.0)


def pack(elements: Tensor) -> Tensor:
    """Elements [..., K] of any floating-point dtype, K even, as uint8 [..., K/2]."""
    sizes = elements.float().abs()
    index = torch.where(sizes < 2, 2 * sizes, torch.where(sizes < 4, sizes + 2, sizes / 2 + 4))
    codes = index.to(torch.uint8) + (elements.float() < 0).to(torch.uint8) * _SIGN
    return codes[..., ::2] | codes[..., 1::2] << 4


def unpack(packed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The elements [..., K] of what `pack` made, in a dtype that holds them."""
    table = torch.tensor(_ELEMENTS, dtype=dtype, device=packed.device)
    halves = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
    return table[halves.int()]


def exponents_of(scale: Tensor) -> Tensor:
    """Powers of two as E8M0: uint8, the exponent plus 127."""
    return (torch.frexp(scale.float()).exponent - 1 + _BIAS).to(torch.uint8)


def powers_of(exponents: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The scales that E8M0 stands for."""
    ones = torch.ones(exponents.shape, device=exponents.device)
    return torch.ldexp(ones, exponents.int() - _BIAS).to(dtype)
