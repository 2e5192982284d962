"""Drop what has no meaning: assertions, copies, full slices, the second of two equal nodes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from planish.ir.edit import Edit
from planish.ir.normalize.match import alike, dtype, same, shape
from planish.ir.program import Program

aten = torch.ops.aten

_ASSERTIONS = (
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
)


def cleanup(program: Program) -> Program:
    """The same function with fewer nodes; views become reshapes, which ask for no strides."""
    with program.edit() as edit:
        for node in edit.nodes(*_ASSERTIONS):
            edit.graph.erase_node(node)
        for target, rule in _RULES.items():
            for node in edit.nodes(target):
                rule(node)
        for node in edit.nodes():
            node.kwargs = {
                key: value for key, value in node.kwargs.items() if key not in _PLACEMENT
            }
        _share_sizes(edit, program)
        _share_equal_nodes(edit)
    return edit.program


def _share_sizes(edit: Edit, program: Program) -> None:
    """Let every symbolic size come from one node: the first that has it, inputs first.

    The exporter measures the same size on many tensors, since it does not know that they agree.
    """
    first: dict[str, fx.Node] = {}
    anchor = next(node for node in edit.nodes() if node.op != "placeholder")
    for node in edit.nodes():
        if node.op == "placeholder":
            for dim, extent in enumerate(node.meta["val"].shape):
                text = program.shapes.text(extent)
                if isinstance(extent, torch.SymInt) and text not in first:
                    first[text] = edit.call(aten.sym_size.int, node, dim, before=anchor)
                    first[text].meta["val"] = extent
        elif isinstance(node.meta.get("val"), torch.SymInt):
            kept = first.setdefault(program.shapes.text(node.meta["val"]), node)
            if kept is not node:
                node.replace_all_uses_with(kept)


def _share_equal_nodes(edit: Edit) -> None:
    """Common subexpressions: one node for all that call the same operator on the same values."""
    first: dict[Any, fx.Node] = {}
    for node in edit.nodes():
        if node.op == "get_attr":
            key: Any = node.target
        elif node.op == "call_function" and not _is_random(node.target):
            key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        else:
            continue
        kept = first.setdefault(key, node)
        if kept is not node:
            node.replace_all_uses_with(kept)


def _is_random(target: Any) -> bool:
    tags = getattr(target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def _hashable(argument: Any) -> Any:
    """An argument as a key that tells 1, 1.0 and True apart."""
    if isinstance(argument, (list, tuple)):
        return tuple(map(_hashable, argument))
    if isinstance(argument, dict):
        return tuple((key, _hashable(value)) for key, value in sorted(argument.items()))
    return (type(argument), argument)


_PLACEMENT = ("device", "pin_memory")
"""Arguments that say where a tensor lies, which is the business of whoever runs the graph."""


def _skip(node: fx.Node, value: fx.Node) -> None:
    """Let the readers of a node read its input, where both have one dtype and shape."""
    if alike(node, value):
        node.replace_all_uses_with(value)


def _identity(node: fx.Node) -> None:
    _skip(node, node.args[0])  # type: ignore[arg-type]


def _slice(node: fx.Node) -> None:
    defaults: list[Any] = [0, 0, 0, None, 1]
    start, end, step = [*node.args, *defaults[len(node.args) :]][2:]
    if start in (0, None) and end in (None, sys.maxsize) and step == 1:
        _identity(node)


def _multiply(node: fx.Node) -> None:
    if node.args[1] == 1 and not isinstance(node.args[1], fx.Node):
        _identity(node)


def _add(node: fx.Node) -> None:
    if node.args[1] == 0 and not isinstance(node.args[1], fx.Node):
        _identity(node)


def _reshape(node: fx.Node) -> None:
    node.target = aten.reshape.default
    _identity(node)


def _concatenate(node: fx.Node) -> None:
    """Leave out empty parts, among them the one-dimensional ones that torch lets a cat have."""
    parts: Any = node.args[0]
    kept = [part for part in parts if not any(same((extent,), (0,)) for extent in shape(part))]
    if len(kept) in {0, len(parts)}:
        return
    node.args = (kept, *node.args[1:])
    if len(kept) == 1:
        _skip(node, kept[0])


def _pad(node: fx.Node) -> None:
    widths: Any = node.args[1]
    if not any(isinstance(width, fx.Node) or width for width in widths):
        _identity(node)


def _type_as(node: fx.Node) -> None:
    other: Any = node.args[1]
    node.target, node.args, node.kwargs = (
        aten._to_copy.default,
        node.args[:1],
        {"dtype": dtype(other)},
    )
    _identity(node)


def _conjunction(node: fx.Node) -> None:
    """`true & x` is x."""
    one: Any
    other: Any
    one, other = node.args
    if one.target in _ONES:
        _skip(node, other)
    elif other.target in _ONES:
        _skip(node, one)


_ONES = (aten.ones.default, aten.new_ones.default, aten.ones_like.default)


def _layer_norm(node: fx.Node) -> None:
    node.args = node.args[:5]  # the sixth asks for cuDNN


_RULES: dict[Callable[..., Any], Callable[[fx.Node], None]] = {
    aten.clone.default: _identity,
    aten.alias.default: _identity,
    aten.detach.default: _identity,
    aten.lift_fresh_copy.default: _identity,
    aten.contiguous.default: _identity,
    aten._to_copy.default: _identity,
    aten.dropout.default: _identity,
    aten.expand.default: _identity,
    aten.slice.Tensor: _slice,
    aten.mul.Tensor: _multiply,
    aten.add.Tensor: _add,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.cat.default: _concatenate,
    aten.pad.default: _pad,
    aten.type_as.default: _type_as,
    aten.__and__.Tensor: _conjunction,
    aten.layer_norm.default: _layer_norm,
}
