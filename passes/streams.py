"""Residual streams: where they are summed, and matrices that part them from what they meet.

A stream is an axis that rotates and is summed with what was computed of it. A matrix that begins as
the identity changes nothing, and its two dimensions are two axes: rotating each by a basis of its
own turns it into QᵀR, the passage from one basis to the next.

Source: Ashkboos et al., "SliceGPT" (2024, section 3.3), for the matrices on skip connections.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.axes.axes import Axes, Axis
from planish.ir.axes.fold import PASSES
from planish.ir.axes.terms import resolved
from planish.ir.edit import Edit
from planish.ir.program import Program
from planish.ir.reach import Reach

aten = torch.ops.aten

SKIP = "skip"
"""What the name of a matrix on a skip connection says."""

BASIS = "basis"
"""What the name of a matrix between a tied table and the stream says."""

_LIKE = PASSES | {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten._to_copy.default}
"""What a stream may pass on its way to a sum, and still be the stream."""


def lies_along(axes: Axes, axis: Axis, node: fx.Node) -> bool:
    """Whether the last dimension of a value is an axis."""
    terms = axes.values.get(node.name, ())
    return bool(terms) and resolved(terms[-1]) is axis.leaf


def sums(program: Program, axes: Axes, axis: Axis) -> list[tuple[fx.Node, int]]:
    """Where a stream is summed with what was computed of it, and which summand is the stream.

    Args:
        program: whose graph to look at.
        axes: of it.
        axis: along which the summands lie.
    """
    reach = Reach(program.graph)
    found = []
    for node in program.nodes(aten.add.Tensor):
        both: Any = node.args[:2]
        if not all(isinstance(one, fx.Node) and lies_along(axes, axis, one) for one in both):
            continue
        for place in (0, 1):
            if reach.follows(both[1 - place], _source(both[place])):
                found.append((node, place))
                break
    return found


def _source(node: fx.Node) -> fx.Node:
    """What a value is, before it was moved or multiplied by a number."""
    while node.target in _LIKE and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def parted(program: Program, places: Iterable[tuple[fx.Node, int]]) -> Program:
    """A program that computes the same, with an identity matrix on each skip connection.

    Args:
        program: stays as it is.
        places: as `sums` gives them.
    """
    with program.edit() as edit:
        nodes = {node.name: node for node in edit.nodes()}
        for before, place in places:
            node = nodes[before.name]
            skip: Any = node.args[place]
            node.update_arg(place, _turned(edit, skip, f"{node.name}.{SKIP}.weight", node))
            edit.record(node, f"a matrix on the skip connection {skip.name}")
    return edit.program


def untied(program: Program) -> Program | None:
    """A program that computes the same, with identity matrices between tied tables and the rest.

    A table that is looked up and multiplied by then has an axis of its own, and stays one tensor
    whatever becomes of the stream. None if there is none, or something else reads one.
    """
    places: list[tuple[fx.Node, bool]] = []
    for table in program.graph.find_nodes(op="get_attr"):
        users = [user for read in _reads(program, table) for user in read.users]
        kinds = {user.target for user in users}
        if aten.embedding.default not in kinds or len(users) == 1:
            continue
        if not kinds <= {aten.embedding.default, aten.linear.default}:
            return None
        places += [(user, user.target is aten.embedding.default) for user in table.users]
    if {looked_up for _, looked_up in places} != {True, False}:
        return None
    with program.edit() as edit:
        nodes = {node.name: node for node in edit.nodes()}
        for before, looked_up in places:
            node = nodes[before.name]
            name = f"{node.name}.{BASIS}.weight"
            if looked_up:
                new = _turned(edit, node, name, node.next)
                edit.replace(node, new, "a matrix between the table and the stream")
            else:
                source: Any = node.args[0]
                node.update_arg(0, _turned(edit, source, name, node))
                edit.record(node, "a matrix between the stream and the table")
    return edit.program


def _reads(program: Program, table: fx.Node) -> list[fx.Node]:
    """Every node that reads the same tensor."""
    reads = program.graph.find_nodes(op="get_attr")
    return [node for node in reads if node.target == table.target]


def _turned(edit: Edit, value: fx.Node, name: str, before: fx.Node) -> fx.Node:
    """A value multiplied by an identity matrix."""
    shown: Tensor = value.meta["val"]
    device = next(iter(edit.tensors.values())).device  # a plan's tensors have no data
    identity = torch.eye(int(shown.shape[-1]), dtype=shown.dtype, device=device)
    matrix = edit.read(name, identity, before=before)
    return edit.call(aten.linear.default, value, matrix, before=before)


def plain(program: Program, names: Container[str]) -> Program:
    """A program without some of the matrices, which are still the identity.

    Args:
        program: stays as it is.
        names: of the tensors.
    """
    with program.edit() as edit:
        for node in edit.nodes(aten.linear.default):
            source, matrix, *_ = node.args
            if isinstance(matrix, fx.Node) and str(matrix.target) in names:
                node.replace_all_uses_with(source)  # type: ignore[arg-type]
    return edit.program
