"""Rotating an axis, and folding what stands in the way: the scales of RMS norms.

Source: SliceGPT (Ashkboos et al., 2024, section 3) for the invariance under rotation of a residual
stream whose norms have no scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir import ops
from planish.ir.axes.axes import Axes, Axis
from planish.ir.axes.terms import Leaf, Product, Term, leaves, resolved, size_of
from planish.ir.edit import Edit
from planish.ir.program import Program

aten = torch.ops.aten


class CannotRotate(ValueError):
    """An axis does not allow a rotation: which one, and the site that forbids it."""


def rotate(axes: Axes, program: Program, by: Mapping[Axis, Tensor]) -> Program:
    """A program with axes rotated; the graph stays as it is.

    Every member dimension is multiplied by the matrix, producer and consumer alike: a consumer's
    weight becomes W Rᵀ in the usual notation, which is the same matrix along its dimension.

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
    tensors = dict(program.tensors)
    for name, terms in axes.terms.items():
        for dim, term in enumerate(terms):
            if any(leaf in matrices for leaf in leaves(term)):
                tensors[name] = _along(tensors[name], dim, _matrix(term, matrices))
    return dataclasses.replace(program, tensors=tensors)


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


def fold_scales(program: Program) -> Program:
    """A program whose RMS norms have no scale wherever what reads them can take it over.

    The scale goes into the columns of every linear layer that reads the norm, on a copy: a weight
    that others read as well, such as tied embeddings, stays as it is for them.
    """
    with program.edit() as edit:
        for node in edit.nodes(ops.rms_norm):
            scale: Any = node.args[1]
            readers = list(node.users)
            if (
                scale is not None
                and scale.op == "get_attr"
                and all(_takes(reader, node) for reader in readers)
            ):
                for reader in readers:
                    _fold(edit, reader, edit.tensors[str(scale.target)])
                node.update_arg(1, None)
                edit.record(node, f"{scale.target} folded into {len(readers)} layers")
    return edit.program


def _takes(reader: fx.Node, norm: fx.Node) -> bool:
    weight: Any = reader.args[1] if len(reader.args) > 1 else None
    return (
        reader.target is aten.linear.default
        and reader.args[:1] == (norm,)
        and isinstance(weight, fx.Node)
        and weight.op == "get_attr"
    )


def _fold(edit: Edit, layer: fx.Node, scale: Tensor) -> None:
    weight: Any = layer.args[1]
    name = str(weight.target)
    folded = edit.tensors[name] * scale
    readers = [one for read in edit.nodes() if read.target == name for one in read.users]
    if len(readers) > 1:
        name = f"{name}.with_scale_of.{layer.name}"
        layer.update_arg(1, edit.read(name, folded, before=layer))
    else:
        edit.tensors[name] = folded
