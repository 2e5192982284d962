"""Rounding by second moments: errors of some columns are made up for by the others.

A layer's output error is tr((W - Ŵ) H (W - Ŵ)ᵀ), H the second moments of its inputs. `compensated`
rounds column by column (GPTQ); `fitted` gives the scales that are best for given codes, and
`revisited` lets each code change once more, now that all others are known.

Sources: Frantar et al., "GPTQ" (2022), algorithm 1; Behdin et al., "QuantEase" (2023), section 3,
for the coordinate descent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from planish.ir.quant import QuantScheme

BLOCK = 128
"""Columns whose errors are collected before they are passed on to all others at once."""

DAMPENINGS = (1.0, 10.0, 100.0)
"""What the dampening is multiplied by, one after the other, where the moments are singular."""

_AT_ONCE = 1 << 24
"""Numbers that fitting scales works on at a time: 64 MB, however large the layer is."""

_RIDGE = 1e-3
"""How strongly a fitted scale is held to what it was, as a share of its own curvature."""


@dataclass(frozen=True)
class Curvature:
    """What compensation needs of second moments.

    Attributes:
        order: the columns in the order in which they are rounded, [K].
        moments: as they were dampened, in that order, [K, K].
        upper: the upper Cholesky factor of their inverse.
    """

    order: Tensor
    moments: Tensor
    upper: Tensor

    @classmethod
    def of(cls, moments: Tensor, dampening: float, by_size: bool) -> Curvature | None:
        """Invert second moments [K, K]; None if they are not finite or stay singular.

        Args:
            moments: float32, symmetric.
            dampening: what is added to the diagonal, as a share of its mean.
            by_size: whether columns with large inputs come first.
        """
        if not bool(torch.isfinite(moments).all()):
            return None
        diagonal = moments.diagonal()
        order = diagonal.argsort(descending=True) if by_size else torch.arange(len(moments))
        filled = moments + torch.diag((diagonal == 0).to(moments.dtype))
        for damped, lower in _factored(filled[order][:, order], dampening * float(diagonal.mean())):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return cls(order, damped, upper)
        return None


def _factored(moments: Tensor, added: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Moments dampened ever more where that has to be, and their lower Cholesky factors."""
    for times in DAMPENINGS:
        damped = moments + torch.eye(len(moments)) * (added * times)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            yield damped, lower


@dataclass(frozen=True)
class Rounding:
    """A matrix [N, K] while its codes and scales are sought.

    Attributes:
        matrix: float32 [N, K].
        scheme: of the codes.
        scale: as stored, float32 [N, G].
        zeros: zero points, float32 [N, G].
        codes: float32 [N, K].
    """

    matrix: Tensor
    scheme: QuantScheme
    scale: Tensor
    zeros: Tensor
    codes: Tensor

    @property
    def value(self) -> Tensor:
        """What the codes stand for, float32 [N, K]."""
        centred = self.scheme.grouped(self.codes) - self.zeros.unsqueeze(-1)
        return (centred * self.scale.unsqueeze(-1)).flatten(-2)


def drift(cross: Tensor, moments: Tensor, dampening: float) -> Tensor | None:
    """D, with which x̂ + D x̂ is the nearest there is to x, by least squares, [K, K].

    A layer W that reads x̂ where it read x gives nearly what it gave as W + W D. That the moments
    are dampened holds it to W. None where they are not finite or stay singular.

    Args:
        cross: Σ x x̂ᵀ, float32 [K, K].
        moments: Σ x̂ x̂ᵀ.
        dampening: what is added to its diagonal, as a share of its mean.
    """
    if not bool(torch.isfinite(cross).all() and torch.isfinite(moments).all()):
        return None
    for _, lower in _factored(moments, dampening * float(moments.diagonal().mean())):
        return torch.cholesky_solve((cross - moments).T, lower).T
    return None


def compensated(
    matrix: Tensor, curvature: Curvature, scheme: QuantScheme, scale: Tensor, zeros: Tensor
) -> Rounding:
    """Round the columns one by one, each error made up for by the columns still free (GPTQ).

    Args:
        matrix: float32 [N, K].
        curvature: of the inputs.
        scheme: of the codes.
        scale: as stored, float32 [N, G].
        zeros: zero points, float32 [N, G].
    """
    upper, width = curvature.upper, matrix.shape[1]
    columns, scales, zero_points = _in_order(matrix, curvature, scale, zeros)
    codes = torch.empty_like(columns)
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = torch.empty_like(columns[start:stop])
        for k in range(start, stop):
            code = (columns[k] / scales[k]).add_(zero_points[k])
            codes[k] = scheme.rounded_(code)
            wrong = columns[k] - (codes[k] - zero_points[k]) * scales[k]
            errors[k - start] = wrong / upper[k, k]
            columns[k + 1 : stop].addr_(upper[k, k + 1 : stop], errors[k - start], alpha=-1)
        columns[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return Rounding(matrix, scheme, scale, zeros, _put_back(codes, curvature))


def revisited(rounding: Rounding, curvature: Curvature) -> Rounding:
    """Let each code change once more, in turn, to what is best while all others stay."""
    moments, width, scheme = curvature.moments, rounding.matrix.shape[1], rounding.scheme
    wrong, scales, _ = _in_order(
        rounding.matrix - rounding.value, curvature, rounding.scale, rounding.zeros
    )
    codes = rounding.codes.T[curvature.order]
    pull = moments @ wrong  # minus half the gradient of the output error, [K, N]
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        moved = torch.empty_like(pull[start:stop])
        for k in range(start, stop):
            wanted = pull[k] / (moments[k, k] * scales[k])
            code = scheme.rounded_(wanted.add_(codes[k]))
            moved[k - start] = (code - codes[k]) * scales[k]
            codes[k] = code
            pull[k + 1 : stop].addr_(moments[k, k + 1 : stop], moved[k - start], alpha=-1)
        pull[stop:].addmm_(moments[start:stop, stop:].T, moved, alpha=-1)
    back = _put_back(codes, curvature)
    return Rounding(rounding.matrix, scheme, rounding.scale, rounding.zeros, back)


def fitted(rounding: Rounding, curvature: Curvature, dtype: torch.dtype) -> Rounding:
    """The scales with the least output error for the codes as they are, by least squares.

    Those of MXFP4 stay: of powers of two no other is near.

    Args:
        rounding: of a matrix.
        curvature: of the inputs.
        dtype: in which scales are stored.
    """
    if rounding.scheme.microscaled:
        return rounding
    place = curvature.order.argsort()
    moments = curvature.moments[place][:, place]
    codes = rounding.scheme.grouped(rounding.codes) - rounding.zeros.unsqueeze(-1)  # [N, G, S]
    wrong = rounding.matrix - rounding.value
    rows = max(1, _AT_ONCE // (codes.shape[1] * moments.shape[0]))
    parts = zip(codes.split(rows), wrong.split(rows), strict=True)
    step = torch.cat([_best_step(moments, *part) for part in parts])
    scale = (rounding.scale + step).to(dtype).float()
    usable = torch.isfinite(scale) & (scale != 0)
    scale = torch.where(usable, scale, rounding.scale)
    return Rounding(rounding.matrix, rounding.scheme, scale, rounding.zeros, rounding.codes)


def _best_step(moments: Tensor, codes: Tensor, wrong: Tensor) -> Tensor:
    """What to add to the scales of some rows, [N, G].

    Args:
        moments: [K, K].
        codes: without zero points, [N, G, S].
        wrong: what the rows are off by, [N, K].
    """
    size = codes.shape[-1]
    # For each row, what a group's codes give at every input: [N, G, K].
    given = torch.stack(
        [codes[:, group] @ rows for group, rows in enumerate(moments.split(size))], dim=1
    )
    normal = torch.einsum("nghs,nhs->ngh", given.unflatten(-1, (-1, size)), codes)
    right = torch.einsum("ngk,nk->ng", given, wrong)
    held = torch.diag_embed(normal.diagonal(dim1=1, dim2=2) * _RIDGE + torch.finfo().tiny)
    step: Tensor = torch.linalg.solve_ex(normal + held, right)[0]
    return step


def output_size(matrix: Tensor, moments: Tensor) -> float:
    """The root of the sum of squares of what a matrix gives for the samples."""
    return float(((matrix @ moments) * matrix).sum().clamp_min(0).sqrt())


def _in_order(
    matrix: Tensor, curvature: Curvature, scale: Tensor, zeros: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns, and each one's scales and zero points: [K, N], so that a column lies together."""
    group = curvature.order // (matrix.shape[1] // scale.shape[1])
    return matrix.T[curvature.order], scale.T[group], zeros.T[group]


def _put_back(codes: Tensor, curvature: Curvature) -> Tensor:
    """Codes [K, N] in the order of rounding as [N, K] in that of the matrix."""
    result = torch.empty_like(codes)
    result[curvature.order] = codes
    return result.T.contiguous()
