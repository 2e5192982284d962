"""What is asked of a graph's nodes where regions for kernels are looked for."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor, fx

from planish.ir.quant import dequantize
from planish.lowering.triton.fields import Dtype, NoKernel

aten = torch.ops.aten

DTYPES: dict[torch.dtype, Dtype] = {getattr(torch, name): name for name in get_args(Dtype)}


ACTIVATIONS: dict[Any, str] = {
    aten.silu.default: "silu",
    aten.relu.default: "relu",
    aten.gelu.default: "gelu",
}
"""Operators that an epilogue has, by its names."""


def activation_of(node: fx.Node) -> str | None:
    """The name of the activation that a node is; None if it is none that an epilogue has."""
    tanh = "_tanh" if node.kwargs.get("approximate") == "tanh" else ""
    return ACTIVATIONS[node.target] + tanh if node.target in ACTIVATIONS else None


def node_of(argument: Any) -> fx.Node:
    """An argument that is known to be a node."""
    assert isinstance(argument, fx.Node)
    return argument


def is_weight(argument: Any) -> bool:
    """Whether an argument is a quantized weight."""
    return isinstance(argument, fx.Node) and argument.target is dequantize


def only_user(node: fx.Node) -> fx.Node | None:
    """What alone reads a node; None if it is not alone."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def added(node: fx.Node, one: fx.Node) -> fx.Node | None:
    """What a node adds to `one`, if it is a tensor of the same shape and dtype."""
    if node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    other = second if first is one else first
    if not isinstance(other, fx.Node) or other is one:
        return None
    return other if alike(other, one) else None


def alike(one: fx.Node, other: fx.Node) -> bool:
    """Whether two values have the same shape and dtype, so that nothing is stretched."""
    forms = [
        (str(value.shape), value.dtype) if isinstance(value, Tensor) else None
        for value in (one.meta.get("val"), other.meta.get("val"))
    ]
    return forms[0] is not None and forms[0] == forms[1]


def dtype_of(node: fx.Node) -> Dtype:
    """The dtype that a node reads and gives.

    Raises:
        NoKernel: if they differ, or no kernel computes in it.
    """
    value, given = node.meta["val"], node_of(node.args[0]).meta["val"]
    if given.dtype != value.dtype:
        raise NoKernel(f"{node} reads {given.dtype} and gives {value.dtype}.")
    return named(value.dtype)


def named(dtype: torch.dtype) -> Dtype:
    """A dtype by its name.

    Raises:
        NoKernel: if no kernel computes in it.
    """
    if dtype not in DTYPES:
        raise NoKernel(f"no kernel computes in {dtype}.")
    return DTYPES[dtype]


def width_of(node: fx.Node) -> int:
    """How long the rows of a value are.

    Raises:
        NoKernel: if that is not fixed.
    """
    width = node.meta["val"].shape[-1] if node.meta["val"].dim() else 0
    if not isinstance(width, int):
        raise NoKernel(f"the width of {node} is not fixed.")
    return width
