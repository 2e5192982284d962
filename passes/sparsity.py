"""Which numbers of a matrix to set to zero, and how the others make up for them.

Sources: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (Wanda,
2023), section 3, for weights times the size of their inputs, compared within a row; Frantar and
Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (2023), section
3, for columns that make up for each other's errors; Mishra et al., "Accelerating Sparse Deep Neural
Networks" (2021), for N of every M.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planish.passes.compensation import BLOCK, Curvature


@dataclass(frozen=True)
class Sparsity:
    """How many zeros, and where they may be.

    Attributes:
        share: of all numbers.
        period: M, where of every M neighbours in a row as many are zero; None if anywhere.
    """

    share: float
    period: int | None = None

    @classmethod
    def of(cls, given: float | str) -> Sparsity:
        """A share, or `N:M`: of every M neighbours along the inputs, N stay."""
        if not isinstance(given, str):
            return cls(given)
        kept, period = map(int, given.split(":"))
        return cls(1 - kept / period, period)

    def kept(self, scores: Tensor, *, by_row: bool) -> Tensor:
        """Where numbers stay: those with the highest scores, bool [N, K].

        Args:
            scores: [N, K].
            by_row: whether each row loses as many, or the matrix as a whole; with a period each
                period does.
        """
        if self.period is not None:
            parts = scores.unflatten(-1, (-1, self.period))
        else:
            parts = scores if by_row else scores.flatten()
        count = round(parts.shape[-1] * self.share)
        lowest = parts.argsort(dim=-1, stable=True)[..., :count]
        kept = torch.ones_like(parts, dtype=torch.bool).scatter_(-1, lowest, value=False)
        return kept.view(scores.shape)


def by_size(matrix: Tensor, sparsity: Sparsity) -> Tensor:
    """A matrix [N, K] without its smallest numbers."""
    return matrix * sparsity.kept(matrix.abs(), by_row=False)


def by_inputs(matrix: Tensor, sparsity: Sparsity, squares: Tensor) -> Tensor:
    """A matrix [N, K] without those numbers of each row that give least (Wanda).

    Args:
        matrix: [N, K].
        sparsity: of each row.
        squares: of what each column is multiplied with, summed or averaged, [K].
    """
    return matrix * sparsity.kept(matrix.abs() * squares.clamp_min(0).sqrt(), by_row=True)


def compensated(matrix: Tensor, sparsity: Sparsity, curvature: Curvature) -> Tensor:
    """A matrix [N, K] with zeros that the numbers to the right of them make up for (SparseGPT).

    What goes is chosen for 128 columns at once, or for a period, by the error that it would leave
    there and then: w² / d², with d the column's entry on the diagonal of the Cholesky factor.

    Args:
        matrix: float32 [N, K].
        sparsity: of the matrix; where there is no period, of each run of 128 columns.
        curvature: of the inputs, in the order of the matrix.
    """
    columns, upper = matrix.clone(), curvature.upper
    scale = upper.diagonal()
    width = matrix.shape[1]
    at_once = BLOCK if sparsity.period is None else sparsity.period
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = torch.empty(len(matrix), stop - start)
        for first in range(start, stop, at_once):
            end = min(first + at_once, stop)
            kept = sparsity.kept((columns[:, first:end] / scale[first:end]).square(), by_row=False)
            for k in range(first, end):
                wrong = columns[:, k].masked_fill(kept[:, k - first], 0)
                errors[:, k - start] = error = wrong / scale[k]
                columns[:, k + 1 : stop].addr_(error, upper[k, k + 1 : stop], alpha=-1)
                columns[:, k] -= wrong
        columns[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    return columns
