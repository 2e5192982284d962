"""The constant part of a program: what is computed from tensors alone, whatever the inputs.

A weight need not be a stored tensor. It may be read through `planish::dequantize`, permuted, or
multiplied from two factors: a subgraph without inputs, whose value a layer consumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.program import Program


def constant_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose value no input reaches and no random number."""
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function"
            and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
            and all(argument in constant for argument in node.all_input_nodes)
        ):
            constant.add(node)
    return constant


def weights(graph: fx.Graph) -> Iterator[tuple[fx.Node, tuple[str, ...]]]:
    """The constants that the rest of the graph consumes, and the tensors each is made from.

    Constants made from no tensor, such as a mask of fixed size, are left out.
    """
    constant = constant_nodes(graph)
    for node in graph.nodes:
        if node in constant and any(user not in constant for user in node.users):
            names = tuple(str(part.target) for part in ancestry(node) if part.op == "get_attr")
            if names:
                yield node, names


def ancestry(node: fx.Node) -> list[fx.Node]:
    """A node and everything it is computed from, in an order in which it can be computed."""
    found: dict[fx.Node, None] = {}
    _visit(node, found)
    return list(found)


def _visit(node: fx.Node, found: dict[fx.Node, None]) -> None:
    if node not in found:
        for argument in node.all_input_nodes:
            _visit(argument, found)
        found[node] = None


def evaluate_constant(program: Program, node: fx.Node) -> Tensor:
    """The value of a constant node; a stored tensor itself, without a copy."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for part in ancestry(node):
            if part.op == "get_attr":
                values[part] = program.tensors[str(part.target)]
            else:
                args, kwargs = fx.map_arg((part.args, part.kwargs), values.__getitem__)
                values[part] = part.target(*args, **kwargs)  # type: ignore[operator]
    value: Tensor = values[node]
    return value
