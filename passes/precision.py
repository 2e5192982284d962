"""Which values of a program follow its dtype, and which are computed wider on purpose."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx


class Role(Enum):
    """What a change of the program's dtype means for a value."""

    NARROW = auto()
    """Floating-point, and follows the program's dtype."""
    WIDE = auto()
    """Floating-point, and keeps its own dtype."""
    INTEGER = auto()
    """Not floating-point."""


def roles_of(graph: fx.Graph, base: torch.dtype) -> dict[fx.Node, Role]:
    """The role of every value in a graph that computes in `base`.

    Inputs and tensors follow the program's dtype, and so does what is computed from them. Wide
    are values of a dtype above `base` (explicit upcasts, tensors stored wider), and, in a program
    that computes in float32 or float64, where upcasts leave no trace of their own:

    - results of an explicit dtype argument, such as `softmax(x, dtype=float32)`;
    - what derives from integers alone, such as angles and masks made from positions; tensors
      read for such a computation only, such as the frequencies of a rotary embedding, with it.
    """
    roles: dict[fx.Node, Role | None] = {}
    for node in graph.nodes:
        if node.op != "output":
            roles[node] = _role(node, roles, base)
    _hold_constants(graph, roles)
    _agree_on_tensors(graph, roles)
    return {node: role or _default(node) for node, role in roles.items()}


def float_dtype(node: fx.Node) -> torch.dtype | None:
    """The dtype of a node's value, or of the first of several; None if not floating-point."""
    values = node.meta.get("val")
    for value in values if isinstance(values, (list, tuple)) else (values,):
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.dtype
    return None


def _default(node: fx.Node) -> Role:
    return Role.NARROW if float_dtype(node) else Role.INTEGER


def _role(node: fx.Node, roles: dict[fx.Node, Role | None], base: torch.dtype) -> Role | None:
    """The role of a node after its operands'; None while it depends on stored tensors only."""
    dtype = float_dtype(node)
    if node.op == "placeholder":
        return _default(node)
    if dtype is not None and dtype.itemsize > base.itemsize:
        return Role.WIDE
    operands = [operand for operand in node.all_input_nodes if _holds_tensors(operand)]
    if node.op == "get_attr" or (operands and all(roles[one] is None for one in operands)):
        return None
    if dtype is None:
        return Role.INTEGER
    floats = {roles[operand] for operand in operands if float_dtype(operand)}
    derived = not floats or (Role.WIDE in floats and Role.NARROW not in floats)
    if _is_half(dtype) or not (derived or _asks_for_dtype(node)):
        return Role.NARROW
    return Role.WIDE


def _holds_tensors(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (Tensor, list, tuple))


def _is_half(dtype: torch.dtype) -> bool:
    return dtype.itemsize < 4


def _asks_for_dtype(node: fx.Node) -> bool:
    """Whether an ATen call names the dtype to compute in. Composite operators name `base`."""
    arguments: tuple[Any, ...] = (*node.args, *node.kwargs.values())
    named = any(isinstance(argument, torch.dtype) for argument in arguments)
    return named and str(node.target).startswith("aten.")


def _hold_constants(graph: fx.Graph, roles: dict[fx.Node, Role | None]) -> None:
    """Make wide what wide values are computed with, back to the tensors it is read from."""
    for node in reversed(graph.nodes):
        if roles.get(node) is Role.WIDE:
            for operand in node.all_input_nodes:
                if roles[operand] is None and float_dtype(operand) == float_dtype(node):
                    roles[operand] = Role.WIDE


def _agree_on_tensors(graph: fx.Graph, roles: dict[fx.Node, Role | None]) -> None:
    """A tensor that some node reads as wide is wide for all that read it."""
    reads = [node for node in graph.nodes if node.op == "get_attr"]
    wide = {node.target for node in reads if roles[node] is Role.WIDE}
    roles.update({node: Role.WIDE for node in reads if node.target in wide})
