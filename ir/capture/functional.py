"""The functional form of an exported graph, without tracing it a second time where that can be.

`ExportedProgram.run_decompositions({})` traces the whole model again, which takes as long as the
export itself, only to take apart the few operators that may alias or mutate their arguments. Where
a graph holds no others of these than `_RULES` covers, they are rewritten here instead. A test holds
that both ways give the same program.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from planish.ir.capture.quantized import decompositions
from planish.ir.operators import decomposes_implicitly, is_operator, schema
from planish.ir.shapes import SYMBOLIC_FUNCTIONS

aten = torch.ops.aten


def functional(exported: ExportedProgram) -> ExportedProgram:
    """The exported program with functional operators only."""
    graph = exported.graph
    rewritten = [node for node in graph.nodes if node.target in _RULES]
    quantized = decompositions(graph)
    if quantized or not all(map(_is_simple, graph.nodes)):
        decomposed: ExportedProgram = exported.run_decompositions(quantized)
        return decomposed
    for node in rewritten:
        with graph.inserting_before(node):
            new = _RULES[node.target](graph, node)
        new.meta = {**node.meta, **new.meta}
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    return exported


def _is_simple(node: fx.Node) -> bool:
    """Whether a node may stay as it is, or has a rule that covers its arguments."""
    if node.op != "call_function":
        return node.op in {"placeholder", "output"}
    target: Any = node.target
    if target in _RULES:
        return target not in _CONDITIONS or _CONDITIONS[target](node)
    if not is_operator(target):
        return any(target is function for function in SYMBOLIC_FUNCTIONS.values())
    return target is aten.reshape.default or not (
        schema(target).is_mutable or _would_be_taken_apart(target)
    )


def _would_be_taken_apart(target: Any) -> bool:
    """Whether the exporter decomposes an operator even when told to decompose nothing.

    It keeps operators with an implicit decomposition unless they may alias an argument; the few
    exceptions besides have rules.
    """
    aliases = any(value.alias_info is not None for value in schema(target).returns)
    return decomposes_implicitly(target) and aliases


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of a call by its name in the schema, or its default."""
    for place, argument in enumerate(schema(node.target).arguments):
        if argument.name == name:
            given = node.args[place] if place < len(node.args) else argument.default_value
            return node.kwargs.get(name, given)
    raise KeyError(name)


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _identity(_: fx.Graph, node: fx.Node) -> fx.Node:
    return _source(node)


def _contiguous(graph: fx.Graph, node: fx.Node) -> fx.Node:
    order: dict[str, Any] = {"memory_format": torch.contiguous_format}
    return graph.call_function(aten.clone.default, (_source(node),), order)


def _cast(graph: fx.Graph, node: fx.Node) -> fx.Node:
    dtype = node.meta["val"].dtype
    if dtype == _source(node).meta["val"].dtype:
        return _source(node)
    return graph.call_function(aten._to_copy.default, (_source(node),), {"dtype": dtype})


def _flatten(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Merged extents are numbers (see `_merges_numbers`); the others may be measured."""
    source, (start, end) = _source(node), _span(node)
    extents = list(source.meta["val"].shape)
    shape: list[Any] = [
        graph.call_function(aten.sym_size.int, (source, dim)) if _symbolic(extent) else extent
        for dim, extent in enumerate(extents)
    ]
    merged = 1
    for extent in extents[start : end + 1]:
        merged *= int(extent)
    for dim, extent in enumerate(extents):
        if isinstance(shape[dim], fx.Node):
            shape[dim].meta["val"] = extent
    return graph.call_function(
        aten.reshape.default, (source, [*shape[:start], merged, *shape[end + 1 :]])
    )


def _span(node: fx.Node) -> tuple[int, int]:
    rank = _source(node).meta["val"].dim()
    return _argument(node, "start_dim") % rank, _argument(node, "end_dim") % rank


def _symbolic(extent: Any) -> bool:
    return isinstance(extent, torch.SymInt)


def _merges_numbers(node: fx.Node) -> bool:
    value: Tensor = _source(node).meta["val"]
    if value.dim() == 0:
        return False
    start, end = _span(node)
    return not any(map(_symbolic, value.shape[start : end + 1]))


def _chunk(graph: fx.Graph, node: fx.Node) -> fx.Node:
    extent = _source(node).meta["val"].shape[_argument(node, "dim")]
    size = -(-extent // _argument(node, "chunks"))
    return graph.call_function(aten.split.Tensor, (_source(node), size, _argument(node, "dim")))


def _chunks_a_number(node: fx.Node) -> bool:
    return not _symbolic(_source(node).meta["val"].shape[_argument(node, "dim")])


def _batch_norm(graph: fx.Graph, node: fx.Node) -> fx.Node:
    names = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
    arguments = tuple(_argument(node, name) for name in names)
    call = graph.call_function(aten._native_batch_norm_legit_no_training.default, arguments)
    value: Tensor = node.meta["val"]
    call.meta = {**node.meta, "val": (value, value.new_empty(0), value.new_empty(0))}
    return graph.call_function(operator.getitem, (call, 0))


_RULES: dict[Any, Callable[[fx.Graph, fx.Node], fx.Node]] = {
    aten.to.dtype: _cast,
    aten.to.device: _cast,
    aten.to.dtype_layout: _cast,
    aten.to.other: _cast,
    aten.contiguous.default: _contiguous,
    aten.detach.default: _identity,
    aten.detach_.default: _identity,
    aten.lift_fresh_copy.default: _identity,
    aten.dropout.default: _identity,
    aten.flatten.using_ints: _flatten,
    aten.chunk.default: _chunk,
    aten.batch_norm.default: _batch_norm,
}

_CONDITIONS: dict[Any, Callable[[fx.Node], bool]] = {
    aten.dropout.default: lambda node: not _argument(node, "train"),
    aten.flatten.using_ints: _merges_numbers,
    aten.chunk.default: _chunks_a_number,
    aten.batch_norm.default: lambda node: not _argument(node, "training"),
}
"""Where a rule holds only for some arguments."""
