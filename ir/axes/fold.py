"""Making norms of a residual stream such that it can be rotated: no weights, biases or means.

A norm's weight goes into what reads the norm, which is a scale that takes it to 1
(`planish.ir.axes.scale`); its bias goes into the biases of the layers that read it. A layer norm
without either is an RMS norm of centred coordinates, and what writes to the stream may as well
write centred ones. Source: SliceGPT (Ashkboos et al., 2024, section 3.1 and appendix A).

What cannot be folded stays, and is named by the sites that then forbid a rotation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir import ops
from planish.ir.axes.axes import Axes, Axis, find
from planish.ir.axes.rotate import turned
from planish.ir.axes.scale import Scaling, scaled, scalings
from planish.ir.axes.terms import Leaf, Term, resolved
from planish.ir.constants import constant_nodes, evaluate_constant
from planish.ir.edit import Edit
from planish.ir.program import Program

aten = torch.ops.aten

NORMS: dict[Any, int] = {ops.rms_norm: 1, aten.layer_norm.default: 2}
"""Where a norm is given its weight."""

PASSES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.permute.default,
        aten.transpose.int,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.slice.Tensor,
        aten.select.int,
        aten.index.Tensor,
        aten.index_select.default,
        aten.expand.default,
        aten.clone.default,
    }
)
"""Operators that only move elements; none of them makes any up."""

STREAM = PASSES | {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.cat.default,
    aten._to_copy.default,
}
"""What may be done to a stream that was not normed: where the axis allows a rotation, these are
linear and the same at every index."""


def fold_norms(program: Program, *, untie: bool = True) -> Program:
    """A program that computes the same, whose norms have no weights and biases where possible.

    Args:
        program: stays as it is.
        untie: whether a tensor that is looked up and multiplied by, such as tied embeddings,
            becomes two. Else a norm whose weight would go into it keeps that.
    """
    program = _fold_biases(_untied(program) if untie else program)
    axes = find(program)
    ways = cache(lambda leaf: scalings(axes, (leaf,), signed=True))
    weights: dict[Scaling, tuple[Scaling, Tensor]] = {}
    folded: set[str] = set()
    for node in program.graph.nodes:
        weight: Any = node.args[NORMS[node.target]] if node.target in NORMS else None
        if weight is None or not isinstance(last := _last(axes, node), Leaf):
            continue
        if (found := _folding(weight, ways(last))) is not None:
            way, readers = found  # by the way: a weight that several norms read is folded once
            weights[way] = readers, evaluate_constant(program, weight)
            folded.add(node.name)
    with scaled(axes, program, dict(weights.values())).edit() as edit:
        for node in edit.nodes(*NORMS):
            if node.name in folded:
                edit.record(node, f"weight {node.args[NORMS[node.target]]} folded into its readers")
                node.update_arg(NORMS[node.target], None)
    return edit.program


def _untied(program: Program) -> Program:
    """A table that is looked up, and by which others multiply, is another tensor for these."""
    with program.edit() as edit:
        for lookup in edit.nodes(aten.embedding.default):
            table: Any = lookup.args[0]
            name = str(table.target)
            readers = [one for read in edit.nodes() if read.target == name for one in read.users]
            for reader in readers:
                if table.op == "get_attr" and reader.target is not aten.embedding.default:
                    own = edit.read(own_table(table, reader), edit.tensors[name], before=reader)
                    for read in reader.all_input_nodes:
                        if read.target == name:
                            reader.replace_input_with(read, own)
    return edit.program


def own_table(table: fx.Node, reader: fx.Node) -> str:
    """The name of the tensor that a reader of a shared table has once it is untied."""
    return f"{table.target}.of.{reader.name}"


def _folding(weight: fx.Node, ways: Sequence[Scaling]) -> tuple[Scaling, Scaling] | None:
    """The scale that takes a norm's weight to 1, and its part that is left to the readers."""
    names = {node.target for node in (weight, *weight.all_input_nodes) if node.op == "get_attr"}
    for way in ways:
        exponents = {**way.exponents, **{key: one for key, (one, _) in way.shifted.items()}}
        own = {key: exponent for key, exponent in exponents.items() if key[0] in names}
        readers = exponents.keys() - own.keys()
        power = -sum(own.values())
        if len(own) == 1 and all(exponents[key] == power for key in readers):
            once = dict.fromkeys(readers, Fraction(1))
            between = {key: exponent / power for key, exponent in way.values.items()}
            return way, dataclasses.replace(way, exponents=once, shifted={}, values=between)
    return None


def _last(axes: Axes, norm: fx.Node) -> Term:
    return resolved(axes.values[norm.name][-1])


def _fold_biases(program: Program) -> Program:
    """The bias b of a norm becomes W b in the bias of every linear layer that reads it."""
    with program.edit() as edit:
        constant = constant_nodes(edit.graph)
        for norm in edit.nodes(aten.layer_norm.default):
            bias: Any = norm.args[3] if len(norm.args) > 3 else None
            layers = _layers(norm, constant)
            if bias is None or layers is None:
                continue
            for layer in layers:
                _shift(edit, program, layer, evaluate_constant(program, bias))
            norm.update_arg(3, None)
            edit.record(norm, f"bias {bias} folded into {len(layers)} layers")
    return edit.program


def _layers(norm: fx.Node, constant: Container[object]) -> list[fx.Node] | None:
    """The linear layers that read a norm; None if something else does."""
    found: list[fx.Node] = []
    for user in norm.users:
        if user.target is aten.linear.default and user.args[1] in constant:
            found.append(user)
            continue
        rows = isinstance(norm.meta["val"], Tensor) and user.target in PASSES
        same = rows and user.meta["val"].shape[-1:] == norm.meta["val"].shape[-1:]
        further = _layers(user, constant) if same and user.args[0] is norm else None
        if further is None:
            return None
        found += further
    return found


def _shift(edit: Edit, program: Program, layer: fx.Node, by: Tensor) -> None:
    """Add W times `by` to the bias of a layer."""
    source, matrix, *rest = layer.args
    weight = evaluate_constant(program, matrix)  # type: ignore[arg-type]
    more = (weight.double() @ by.double()).to(weight.dtype)
    old: Any = rest[0] if rest else None
    bias = more if old is None else evaluate_constant(program, old) + more
    layer.args = (source, matrix, edit.read(f"{layer.name}.bias_with_norm", bias, before=layer))


def center(axes: Axes, program: Program, axis: Axis) -> Program:
    """A program whose layer norms along an axis are RMS norms, of coordinates that are centred.

    Everything along the axis is multiplied by I - 11ᵀ / n: what writes to the stream writes
    centred coordinates, and what reads a norm of them does not see the difference.

    Raises:
        ValueError: if something other than layer norms forbids a rotation of the axis, or reads
            it without a norm.
    """
    limits = [site for site in axis.limits("rotate") if site.kind != "layer norm"]
    if limits:
        raise ValueError(f"axis {axis.number} cannot be centred: {limits[0]}")
    norms = [node for node in program.graph.nodes if _is_norm_along(axes, axis, node)]
    if raw := _read_raw(axes, program, axis, {node.name for node in norms}):
        raise ValueError(f"axis {axis.number} cannot be centred: %{raw} reads it without a norm")
    n = int(str(axis.size))
    projection = torch.eye(n, dtype=torch.float64) - 1 / n
    program = dataclasses.replace(program, tensors=turned(axes, program, {axis.leaf: projection}))
    with program.edit() as edit:
        for node in edit.nodes(aten.layer_norm.default):
            if any(node.name == norm.name for norm in norms):
                epsilon = node.args[4] if len(node.args) > 4 else 1e-5
                source = next(iter(node.args))
                rms = edit.call(ops.rms_norm, source, None, epsilon, before=node)
                edit.replace(node, rms, "centred where it is written")
    return edit.program


def _is_norm_along(axes: Axes, axis: Axis, node: fx.Node) -> bool:
    return node.target is aten.layer_norm.default and _last(axes, node) is axis.leaf


def _read_raw(axes: Axes, program: Program, axis: Axis, norms: set[str]) -> str | None:
    """What reads an axis where no norm along it was applied, other than to add to the stream."""
    centred = set(norms)
    constant = constant_nodes(program.graph)
    for node in program.graph.nodes:
        along = [
            one
            for one in node.all_input_nodes
            if one not in constant and _lies_along(axes, axis, one)
        ]
        if along and all(one.name in centred for one in along):
            if node.target in PASSES:
                centred.add(node.name)
        elif along and node.target not in STREAM and node.name not in norms:
            return str(node.name)
    return None


def _lies_along(axes: Axes, axis: Axis, node: fx.Node) -> bool:
    terms = axes.values.get(node.name, ())
    return any(resolved(term) is axis.leaf for term in terms)
