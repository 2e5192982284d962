"""Rotating an axis.

Source: SliceGPT (Ashkboos et al., 2024, section 3) for the invariance under rotation of a residual
stream whose norms have no scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from planish.ir.axes.axes import Axes, Axis, members
from planish.ir.axes.terms import Leaf, Product, Term, leaves, resolved, size_of
from planish.ir.program import Program, Sample


class CannotRotate(ValueError):
    """An axis does not allow a rotation: which one, and the site that forbids it."""


def rotate(axes: Axes, program: Program, by: Mapping[Axis, Tensor]) -> Program:
    """A program with axes rotated; the graph stays as it is.

    Every member dimension is multiplied by the matrix, producer and consumer alike: a consumer's
    weight becomes W Rᵀ in the usual notation, which is the same matrix along its dimension. Samples
    with a state, such as a cache, hold it as the new program writes it.

    Args:
        axes: of the program.
        program: stays as it is.
        by: for each axis an orthogonal matrix [n, n].

    Raises:
        CannotRotate: if an axis does not allow it.
    """
    for axis in by:
        if limits := axis.limits("rotate"):
            raise CannotRotate(f"axis {axis.number} cannot be rotated: {limits[0]}")
    matrices = {axis.leaf: matrix for axis, matrix in by.items()}
    return dataclasses.replace(
        program,
        tensors=turned(axes, program, matrices),
        samples=tuple(_fed(axes, sample, matrices) for sample in program.samples),
        calibration=tuple(_fed(axes, sample, matrices) for sample in program.calibration),
    )


def _fed(axes: Axes, sample: Sample, matrices: Mapping[Leaf, Tensor]) -> Sample:
    """Inputs multiplied along some atoms, which those of states may be made of."""
    fed = dict(sample)
    for name in sample:
        for dim, term in enumerate(axes.values[name]):
            if any(leaf in matrices for leaf in leaves(term)):
                fed[name] = _along(fed[name], dim, _matrix(term, matrices))
    return fed


def turned(axes: Axes, program: Program, matrices: Mapping[Leaf, Tensor]) -> dict[str, Tensor]:
    """The stored tensors, multiplied along some atoms by matrices [n, n]."""
    return {
        **program.tensors,
        **members(
            axes,
            program,
            matrices,
            lambda tensor, dim, term: _along(tensor, dim, _matrix(term, matrices)),
        ),
    }


def _matrix(term: Term, matrices: Mapping[Leaf, Tensor]) -> Tensor:
    """What multiplies a dimension: blocks for a sum, a Kronecker product for digits."""
    term = resolved(term)
    if isinstance(term, Leaf):
        return matrices[term].double().contiguous() if term in matrices else _identity(term)
    if isinstance(term, Product):
        whole = torch.ones(1, 1, dtype=torch.float64)
        for factor in term.factors:
            whole = torch.kron(whole, _matrix(factor, matrices))
        return whole
    blocks: Tensor = torch.block_diag(*(_matrix(part, matrices) for part in term.parts))
    return blocks


def _identity(leaf: Leaf) -> Tensor:
    size = size_of(leaf)
    if not isinstance(size, int):
        raise TypeError(f"the size {size} is not a number")
    return torch.eye(size, dtype=torch.float64)


def _along(tensor: Tensor, dim: int, matrix: Tensor) -> Tensor:
    """`tensor` multiplied along one dimension, in float64."""
    dims: Any = ([dim], [1])
    turned: Tensor = torch.tensordot(tensor.double(), matrix, dims=dims).movedim(-1, dim)
    return turned.to(tensor.dtype).contiguous()
