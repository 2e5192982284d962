"""Rounding matrices to integers: the nearest codes, and the scale of each group."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from planish.ir import microscaling
from planish.ir.quant import QuantizedTensor, QuantScheme

FACTORS = tuple(sorted((0.75 + step / 40 for step in range(13)), key=lambda one: abs(one - 1)))
"""What the search multiplies the plain scale by: 0.75 to 1.05. The first of equals is taken, so the
plain scale comes first: inputs that are 0 on the samples make all of them equal."""

_TINY = torch.finfo(torch.float32).tiny

_CHUNK = 1 << 16
"""Numbers worked on at a time, few enough to stay in a core's cache."""


def round_to_nearest(
    matrix: Tensor,
    scheme: QuantScheme,
    *,
    search: bool = True,
    squares: Tensor | None = None,
) -> tuple[QuantizedTensor, float]:
    """Round a matrix [N, K], or a stack of them [..., N, K]; each row is rounded by itself.

    The plain scale fits the range of a group to that of the codes. A symmetric range of integers
    reaches one step further down than up, so the scale takes the sign that puts the largest number
    there (as llama.cpp's Q4_0 does): scales may be negative. The search tries each of `FACTORS` and
    keeps the one with the least squared error, each number's weighted by its size: large weights
    carry more of a layer's output. Smaller factors clip the largest numbers and round the others
    finer.

    Returns:
        The rounded matrix, and the relative error of what it stands for: ‖Ŵ - W‖ / ‖W‖; NaN for
        a matrix without data.
    """
    planned = matrix.is_meta  # a tensor without data has nothing to search in, only shapes
    factors = factors_of(scheme) if search and not planned else (1.0,)
    rows = matrix.detach().flatten(0, -2)
    count = len(rows) if planned else max(1, _CHUNK // rows.shape[-1])
    parts = [_round(part, scheme, factors, squares) for part in rows.split(count)]
    codes, scale, zero_point = (
        torch.cat(each).unflatten(0, matrix.shape[:-1]) for each in zip(*parts, strict=True)
    )
    zeros = None if scheme.symmetric else zero_point
    made = QuantizedTensor.from_codes(scheme, matrix.dtype, codes, scale, zeros)
    if planned:
        return made, math.nan
    wide = matrix.float()
    error = (made.dequantize().float() - wide).norm() / wide.norm().clamp_min(_TINY)
    return made, float(error)


def factors_of(scheme: QuantScheme) -> tuple[float, ...]:
    """What a search for the scale of a group multiplies the plain one by."""
    return microscaling.FACTORS if scheme.microscaled else FACTORS


def _round(
    rows: Tensor, scheme: QuantScheme, factors: tuple[float, ...], squares: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, K], scales [N, G] in the dtype of the rows, zero points int8 [N, G]."""
    groups = scheme.grouped(rows.float())
    weights = groups.abs() if squares is None else scheme.grouped(squares.float()[None])
    scale, zero_point = parameters(groups, weights, scheme, factors, rows.dtype)
    codes = scheme.nearest(groups, scale, zero_point)
    stored = scale.to(scheme.scale_dtype(rows.dtype))
    return codes.to(scheme.dtype).flatten(-2), stored, zero_point.to(torch.int8)


def parameters(
    groups: Tensor,
    weights: Tensor,
    scheme: QuantScheme,
    factors: tuple[float, ...],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The scale [N, G] and zero point [N, G] of each group with the least weighted squared error.

    Args:
        groups: float32 [N, G, K/G].
        weights: of the squared errors, of a shape that broadcasts to that of `groups`.
        scheme: of the codes.
        factors: what the plain scale is multiplied by, one after the other.
        dtype: in which scales are stored.
    """
    ends = groups.aminmax(dim=-1)
    candidates = [_parameters(*ends, scheme, factor, dtype) for factor in factors]
    errors = torch.stack([_error(groups, weights, scheme, *each) for each in candidates])
    best = errors.argmin(0, keepdim=True)
    scale, zero_point = (
        torch.stack(each).gather(0, best).squeeze(0) for each in zip(*candidates, strict=True)
    )
    return scale, zero_point


def _parameters(
    least: Tensor, largest: Tensor, scheme: QuantScheme, factor: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Scales, as they are stored in `dtype`, and zero points for groups of these ranges."""
    if scheme.microscaled:
        scale = microscaling.scale_of(torch.maximum(largest, -least), factor)
        return scale, torch.zeros_like(scale)
    if scheme.floating:
        scale = _storable(torch.maximum(largest, -least) * (factor / scheme.high), dtype)
        return scale, torch.zeros_like(scale)
    if scheme.symmetric:
        farthest = torch.where(largest > -least, largest, least)
        scale = _storable(farthest * (factor / scheme.low), dtype)
        return scale, torch.zeros_like(scale)
    bottom, top = least.clamp_max(0), largest.clamp_min(0)  # zero itself must have a code
    scale = _storable((top - bottom) * (factor / (scheme.high - scheme.low)), dtype)
    zero_point = (scheme.low - bottom * factor / scale).round_()
    return scale, zero_point.clamp_(scheme.low, scheme.high)


def _storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale after storing it; 1 where it would be 0, which makes every code 0."""
    stored = scale.to(dtype).float()
    return stored.masked_fill_(stored == 0, 1.0)


def _error(
    groups: Tensor, weights: Tensor, scheme: QuantScheme, scale: Tensor, zero_point: Tensor
) -> Tensor:
    """The weighted squared error [N, G] that rounding leaves."""
    codes = scheme.nearest(groups, scale, zero_point).sub_(zero_point.unsqueeze(-1))
    difference = codes.mul_(scale.unsqueeze(-1)).sub_(groups)
    return difference.square_().mul_(weights).sum(-1)
