"""Norms, gates and rounding in a graph, as specifications of what is done to each row by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from planish.ir import ops
from planish.ir.activations import INT8, ActivationScheme
from planish.lowering.triton.fields import Codes, NoKernel
from planish.lowering.triton.nodes import alike, named, node_of, width_of
from planish.lowering.triton.row_specs import RowWise, rowwise

aten = torch.ops.aten

ROWS = (ops.rms_norm, aten.layer_norm.default, ops.gated)
"""Operators that work on each row by itself."""


def codes_of(rounding: fx.Node) -> Codes:
    """The kind of codes that a `fake_quantize` node rounds to."""
    return "int8" if ActivationScheme.read_by(rounding).dtype == INT8 else "float8_e4m3fn"


def as_they_are(node: fx.Node, codes: Codes) -> RowWise:
    """Rounding alone.

    Raises:
        NoKernel: if no kernel takes the value's rows.
    """
    return rowwise(width_of(node), dtype=named(node.meta["val"].dtype), codes=codes)


def rows_of(node: fx.Node, codes: Codes | None) -> tuple[fx.Node, list[fx.Node], RowWise]:
    """The input of one of `ROWS`, what else it reads, and its specification.

    Raises:
        NoKernel: if no kernel takes it.
    """
    x = node_of(node.args[0])
    if node.target is ops.gated:
        _, up, activation = node.args
        others, made = [node_of(up)], {"activation": str(activation)}
        fitting = alike(x, others[0])
    else:
        others, made = _rms_norm(node) if node.target is ops.rms_norm else _layer_norm(node)
        fitting = all(_is_vector_for(x, one) for one in others)
    if not fitting:
        raise NoKernel(f"{node} reads tensors of shapes or dtypes that do not fit its rows.")
    dtype = named(x.meta["val"].dtype)
    return x, others, rowwise(width_of(x), dtype=dtype, codes=codes, **made)


def _is_vector_for(x: fx.Node, one: fx.Node) -> bool:
    """Whether a value has a number for each place in the rows of x, in the dtype of x."""
    rows, vector = x.meta["val"], one.meta["val"]
    return bool(vector.dtype == rows.dtype and vector.shape == rows.shape[-1:])


def _rms_norm(node: fx.Node) -> tuple[list[fx.Node], dict[str, Any]]:
    weight, eps = node.args[1:]
    return _with_vectors("rms", eps, weight=weight)


def _layer_norm(node: fx.Node) -> tuple[list[fx.Node], dict[str, Any]]:
    given: dict[str, Any] = dict(
        zip(("shape", "weight", "bias", "eps"), node.args[1:], strict=False)
    )
    given |= node.kwargs
    if len(given["shape"]) != 1:
        raise NoKernel(f"{node} norms over more than the last dimension.")
    return _with_vectors(
        "layer", given.get("eps", 1e-5), weight=given.get("weight"), bias=given.get("bias")
    )


def _with_vectors(norm: str, eps: Any, **vectors: Any) -> tuple[list[fx.Node], dict[str, Any]]:
    """The vectors that a norm has, and its fields."""
    there = {name: one for name, one in vectors.items() if one is not None}
    return list(there.values()), {"norm": norm, "eps": float(eps), **dict.fromkeys(there, True)}
