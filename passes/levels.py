"""Matrices of two or three levels a group, -s, 0 and s, and a product of low rank beside them.

Sources: Rastegari et al., "XNOR-Net" (2016), section 3.1, for the scale of binary weights; Li,
Zhang and Liu, "Ternary Weight Networks" (2016), section 2.2, for the threshold of ternary ones;
Saha et al., "Compressing Large Language Models using Low Rank and Low Precision Decomposition"
(CALDERA, 2024), algorithm 1, for taking turns, with columns that make up for each other; Zhang et
al., "LQER: Low-Rank Quantization Error Reconstruction for LLMs" (2024), for a product that weighs
errors by the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from planish.ir.quant import QuantizedTensor, QuantScheme
from planish.passes.compensation import Curvature, compensated

Levels = Literal[2, 3]

THRESHOLD = 0.7
"""Numbers below this share of their group's mean size are 0 at first (TWN)."""

REFINEMENTS = 4
"""How often scales are fitted to ternary codes, and codes to scales; they settle by then."""


class _Ternary(QuantScheme):
    """Codes of 2 bits without the lowest, -2."""

    @property
    def low(self) -> float:
        return -1

    def __str__(self) -> str:
        return f"ternary{super().__str__().removeprefix('int2 symmetric')}"


def scheme_of(levels: Levels, group_size: int | None) -> QuantScheme:
    """How codes of so many levels are stored: one bit for two, two bits for three."""
    return QuantScheme(1, group_size) if levels == 2 else _Ternary(2, group_size)


@dataclass(frozen=True)
class Split:
    """A matrix as codes and, beside them, a product of low rank: W ≈ Q + A B.

    Attributes:
        codes: Q, [N, K].
        left: A, [N, r]; r may be 0.
        right: B, [r, K].
    """

    codes: QuantizedTensor
    left: Tensor
    right: Tensor

    @property
    def value(self) -> Tensor:
        """What it stands for, in the dtype of the matrix."""
        value: Tensor = self.codes.dequantize() + self.left @ self.right
        return value


@dataclass(frozen=True)
class Seen:
    """What layers read, as errors count by it.

    Attributes:
        curvature: of their inputs.
        compensate: whether columns make up for each other's errors (GPTQ).
    """

    curvature: Curvature
    compensate: bool

    def error(self, wrong: Tensor) -> float:
        """How large the output of a matrix [N, K] is: the root of the sum of its squares."""
        return float((wrong[:, self.curvature.order] @ self.root).norm())

    @cached_property
    def root(self) -> Tensor:
        """L with L Lᵀ = H, whose rows are in the order of the curvature."""
        lower: Tensor = torch.linalg.cholesky(self.curvature.moments)
        return lower

    @property
    def squares(self) -> Tensor:
        """The diagonal of H, in the order of the matrix."""
        return self.curvature.moments.diagonal()[self.curvature.order.argsort()]


def planned(matrix: Tensor, scheme: QuantScheme, rank: int) -> Split:
    """The shapes of a split, for a matrix without data."""
    rows, columns = matrix.shape
    scale = matrix.new_empty(rows, scheme.groups(columns))
    codes = QuantizedTensor.from_codes(scheme, matrix.dtype, matrix.to(torch.int8), scale)
    return Split(codes, matrix.new_empty(rows, rank), matrix.new_empty(rank, columns))


def split(
    matrix: Tensor, scheme: QuantScheme, rank: int, rounds: int, seen: Seen | None = None
) -> Split:
    """Find codes and a product of low rank in turns, each for what the other leaves.

    Args:
        matrix: [N, K].
        scheme: of the codes (`scheme_of`).
        rank: of the product.
        rounds: how many turns to take; the best of them is kept. Without a product one is enough.
        seen: what errors count by; None if all count alike.
    """
    wide, dtype = matrix.float(), matrix.dtype
    left, right = low_rank(wide, 0, seen)
    found = []
    for _ in range(rounds if rank else 1):
        codes = _codes(wide - left @ right, scheme, dtype, seen)
        left, right = low_rank(wide - codes.dequantize().float(), rank, seen)
        made = Split(codes, left.to(dtype), right.to(dtype))
        wrong = made.value.float() - wide
        found.append((seen.error(wrong) if seen else float(wrong.norm()), made))
    return min(found, key=lambda one: one[0])[1]


def _codes(
    wide: Tensor, scheme: QuantScheme, dtype: torch.dtype, seen: Seen | None
) -> QuantizedTensor:
    groups = scheme.grouped(wide)
    weights = scheme.grouped(seen.squares[None]) if seen else torch.ones(())
    scale = scales(groups, weights, scheme, dtype)
    if seen is None or not seen.compensate:
        codes = scheme.nearest(groups, scale).flatten(-2)
    else:
        rounding = compensated(wide, seen.curvature, scheme, scale, torch.zeros_like(scale))
        codes, scale = rounding.codes, rounding.scale
    return QuantizedTensor.from_codes(scheme, dtype, codes.to(scheme.dtype), scale.to(dtype))


def scales(groups: Tensor, weights: Tensor, scheme: QuantScheme, dtype: torch.dtype) -> Tensor:
    """The scale [N, G] of each group with the least weighted squared error, as stored.

    That is the weighted mean size of the numbers whose code is not 0: of all where codes are
    binary. Which ones these are depends on the scale in turn.

    Args:
        groups: float32 [N, G, K/G].
        weights: of the squared errors, of a shape that broadcasts to that of `groups`.
        scheme: of the codes.
        dtype: in which scales are stored.
    """
    size = groups.abs()
    if scheme.bits == 1:
        scale = _mean_size(size, weights, torch.zeros(()))
    else:
        scale = _mean_size(size, weights, THRESHOLD * size.mean(-1, keepdim=True))
        for _ in range(REFINEMENTS):
            scale = _mean_size(size, weights, scale.unsqueeze(-1) / 2)
    # A scale of 0 has no nearest code; the least there is stands for it.
    return scale.clamp_min(torch.finfo(dtype).tiny).to(dtype).float()


def _mean_size(size: Tensor, weights: Tensor, least: Tensor) -> Tensor:
    """The weighted mean of a group's numbers of at least this size."""
    share = weights * (size >= least)
    mean: Tensor = (size * share).sum(-1) / share.sum(-1).clamp_min(torch.finfo().tiny)
    return mean


def low_rank(residual: Tensor, rank: int, seen: Seen | None) -> tuple[Tensor, Tensor]:
    """A [N, r] and B [r, K] with the least ‖(R - A B) L‖, where L Lᵀ = H; without H, L = 1.

    A holds the first left singular vectors of R L, and B = Aᵀ R, so that L need not be inverted.
    """
    if rank == 0:
        return residual.new_zeros(len(residual), 0), residual.new_zeros(0, residual.shape[1])
    whitened = residual if seen is None else residual[:, seen.curvature.order] @ seen.root
    rows, columns = whitened.shape
    if rows <= columns:
        left = _first(whitened @ whitened.T, rank)
    else:
        left = torch.linalg.qr(whitened @ _first(whitened.T @ whitened, rank)).Q
    return left, left.T @ residual


def _first(gram: Tensor, count: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues, as columns."""
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors[:, len(gram) - count :]
