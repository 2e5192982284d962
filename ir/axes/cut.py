"""Removing indices of axes: from tensors, and from the numbers in the graph that count them.

`cut` removes what might as well be zero. `drop` removes what competes, such as experts: there zero
is a score like any other, and what is never chosen has one of minus infinity.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx

from planish.ir import ops
from planish.ir.axes.axes import Axes, Axis, members, order, taken
from planish.ir.axes.terms import Leaf, Product, Term, leaves, resolved, size_of
from planish.ir.edit import Edit
from planish.ir.program import Input, Program, Sample

aten = torch.ops.aten


class CannotCut(ValueError):
    """An axis does not allow a cut: which one, and the site that forbids it."""


def cut(axes: Axes, program: Program, kept: Mapping[Axis, Tensor]) -> Program:
    """A program without some indices of some axes.

    It computes what the program does whose removed slices are all zero, exactly: an RMS norm that
    loses coordinates keeps dividing by the old count, by way of its weight and epsilon. Samples
    with a state, such as a cache, hold what the new program is given.

    Args:
        axes: of the program.
        program: stays as it is.
        kept: for each axis, the indices to keep, ascending.

    Raises:
        CannotCut: if an axis does not allow it, or nothing of it would be left.
    """
    return _without(axes, program, kept, "cut")


def drop(axes: Axes, program: Program, kept: Mapping[Axis, Tensor]) -> Program:
    """A program without some indices that compete with others, in a choice or a softmax.

    Where nothing is added up but what was chosen, or weighed by the softmax, it computes what the
    program does whose removed scores are minus infinity. Nothing is checked of that.

    Args:
        axes: of the program.
        program: stays as it is.
        kept: for each axis, the indices to keep, ascending.

    Raises:
        CannotCut: if an axis does not allow it, or fewer of it would be left than are chosen.
    """
    return _without(axes, program, kept, "drop")


def _without(
    axes: Axes, program: Program, kept: Mapping[Axis, Tensor], how: Literal["cut", "drop"]
) -> Program:
    done = {"cut": "cut", "drop": "dropped"}[how]
    for axis, indices in kept.items():
        if limits := axis.limits(how):
            raise CannotCut(f"axis {axis.number} cannot be {done}: {limits[0]}")
        if not len(indices):
            raise CannotCut(f"axis {axis.number} would lose all of its indices")
    work = _Cut(axes, {axis.leaf: indices for axis, indices in kept.items()})
    with program.edit() as edit:
        edit.inputs = tuple(work.input(spec) for spec in edit.inputs)
        edit.tensors.update(members(axes, program, work.kept, partial(taken, work.kept)))
        for node in edit.nodes():
            for reader in list(node.users):
                if work.changes(*axes.values.get(f"{node.name} for {reader.name}", ())):
                    own = work.own(node, reader, edit)
                    _BAKED.get(own.target, _nothing)(work, own, edit)
            _BAKED.get(node.target, _nothing)(work, node, edit)
    return dataclasses.replace(
        edit.program,
        samples=tuple(work.fed(sample) for sample in program.samples),
        calibration=tuple(work.fed(sample) for sample in program.calibration),
    )


def zeroed(axes: Axes, program: Program, kept: Mapping[Axis, Tensor]) -> Program:
    """What a cut is measured against: the same graph, with the removed slices set to zero."""
    atoms = {axis.leaf: indices for axis, indices in kept.items()}

    def masked(tensor: Tensor, dim: int, term: Term) -> Tensor:
        mask = torch.zeros(tensor.shape[dim], dtype=tensor.dtype)
        mask[order(term, atoms)] = 1
        return tensor * mask.view([-1 if place == dim else 1 for place in range(tensor.dim())])

    tensors = {**program.tensors, **members(axes, program, atoms, masked)}
    return dataclasses.replace(program, tensors=tensors)


@dataclass(frozen=True)
class _Cut:
    """What is kept of each atom that is cut, and the constants that were copied for a reader."""

    axes: Axes
    kept: Mapping[Leaf, Tensor]
    copies: dict[fx.Node, str] = field(default_factory=dict)

    def changes(self, *terms: Term) -> bool:
        """Whether any of these dimensions loses indices."""
        return any(leaf in self.kept for term in terms for leaf in leaves(term))

    def own(self, node: fx.Node, reader: fx.Node, edit: Edit) -> fx.Node:
        """A copy of a constant for one reader, which others may read along other axes."""
        with edit.graph.inserting_before(node):
            copy = edit.graph.node_copy(node)
        reader.replace_input_with(node, copy)
        self.copies[copy] = f"{node.name} for {reader.name}"
        return copy

    def count(self, term: Term) -> int:
        """How many indices a dimension keeps."""
        return len(order(term, self.kept))

    def input(self, spec: Input) -> Input:
        """An input, such as a cache, whose shape counts what was cut."""
        terms = self.axes.values.get(spec.name, ())
        shape = tuple(
            self.count(term) if self.changes(term) else extent
            for term, extent in zip(terms, spec.shape, strict=True)
        )
        return dataclasses.replace(spec, shape=shape)

    def fed(self, sample: Sample) -> Sample:
        """What is given to the program; of a state, such as a cache, the part that is kept."""
        fed = dict(sample)
        for name in sample:
            for dim, term in enumerate(self.axes.values.get(name, ())):
                if self.changes(term):
                    fed[name] = taken(self.kept, fed[name], dim, term)
        return fed

    def of(self, node: Any) -> tuple[Term, ...]:
        """The terms of a node's value."""
        if node in self.copies:
            return self.axes.values[self.copies[node]]
        if node.op == "get_attr":
            return self.axes.terms[str(node.target)]
        return self.axes.values[str(node.target) if node.op == "placeholder" else node.name]


Mend = Callable[[_Cut, fx.Node, Edit], None]


def _nothing(work: _Cut, node: fx.Node, edit: Edit) -> None:
    """Most operators count no indices."""


def _sizes(place: int) -> Mend:
    """Operators that are given the shape of their result."""

    def mend(work: _Cut, node: fx.Node, edit: Edit) -> None:  # noqa: ARG001
        given: Any = node.args[place]
        sizes = [
            work.count(term) if isinstance(size, int) and size >= 0 and work.changes(term) else size
            for size, term in zip(given, work.of(node), strict=True)
        ]
        node.update_arg(place, sizes)

    return mend


def _slice(work: _Cut, node: fx.Node, edit: Edit) -> None:  # noqa: ARG001
    """Where a slice begins and ends: as many indices as are kept before."""
    source: Any = node.args[0]
    terms = work.of(source)
    dim = int(node.args[1] if len(node.args) > 1 else 0) % len(terms)  # type: ignore[arg-type]
    term = terms[dim]
    if not work.changes(term):
        return
    old = order(term, work.kept)
    size = size_of(term)
    for place in (2, 3):
        given = node.args[place] if len(node.args) > place else None
        if isinstance(given, int) and isinstance(size, int):
            at = given + size if given < 0 else min(given, size)
            node.update_arg(place, int((old < at).sum()))


def _split(work: _Cut, node: fx.Node, edit: Edit) -> None:  # noqa: ARG001
    """The sizes of parts, which may differ now."""
    source: Any = node.args[0]
    dim = int(node.args[2] if len(node.args) > 2 else 0) % len(work.of(source))  # type: ignore[arg-type]
    if not work.changes(work.of(source)[dim]):
        return
    parts = [work.axes.values[f"{node.name}.{n}"][dim] for n in range(len(node.meta["val"]))]
    node.target = aten.split_with_sizes.default
    node.update_arg(1, [work.count(part) for part in parts])


def _convolution(work: _Cut, node: fx.Node, edit: Edit) -> None:  # noqa: ARG001
    """The number of groups: what is left of the outer digit of the filter's first dimension."""
    place = len(node.args) - 1
    groups = node.args[place] if len(node.args) > _GROUPS[node.target] else 1  # type: ignore[index]
    if groups == 1 or not isinstance(groups, int):
        return
    term = resolved(work.of(node.args[1])[0])
    factors = term.factors if isinstance(term, Product) else (term,)
    outer: list[Term] = []
    while size_of(Product(tuple(outer))) != groups:
        outer.append(factors[len(outer)])
    node.update_arg(place, math.prod(work.count(one) for one in outer))


def _rms_norm(work: _Cut, node: fx.Node, edit: Edit) -> None:
    """Over n' of n coordinates: weight times sqrt(n / n'), epsilon times n / n'.

    The mean over what is left is n / n' times the mean over all, the rest being zero; so
    x / sqrt(mean + eps) = sqrt(n / n') x / sqrt(n / n' (mean + eps)), whose denominator is that of
    the shorter norm with n / n' times the epsilon.
    """
    source: Any = node.args[0]
    term = work.of(source)[-1]
    if not work.changes(term):
        return
    ratio = int(size_of(term)) / work.count(term)  # type: ignore[arg-type]
    node.update_arg(2, float(node.args[2]) * ratio)  # type: ignore[arg-type]
    weight: Any = node.args[1]
    if weight is not None and weight.op == "get_attr" and len(weight.users) == 1:
        name = str(weight.target)
        edit.tensors[name] = edit.tensors[name] * math.sqrt(ratio)
    elif weight is not None:  # computed from what is stored, or read by others too
        node.update_arg(1, edit.call(aten.mul.Tensor, weight, math.sqrt(ratio), before=node))
    else:
        after = edit.call(aten.mul.Tensor, node, math.sqrt(ratio), before=node.next)
        edit.replace(node, after, f"divides by {size_of(term)} as before")


def _end(place: int) -> Mend:
    """Operators that count from 0 up to a number."""

    def mend(work: _Cut, node: fx.Node, edit: Edit) -> None:  # noqa: ARG001
        term = work.of(node)[-1]
        if work.changes(term):
            node.update_arg(place, work.count(term))

    return mend


def _histogram(work: _Cut, node: fx.Node, edit: Edit) -> None:  # noqa: ARG001
    """As many bins as there are places, up to the last one."""
    (term,) = work.of(node)
    if work.changes(term):
        node.update_arg(1, work.count(term))
        node.update_arg(3, work.count(term) - 1)


def _top(work: _Cut, node: fx.Node, edit: Edit) -> None:  # noqa: ARG001
    """A choice, from which enough has to be left."""
    source: Any = node.args[0]
    terms = work.of(source)
    _, number, dim, *_ = (*node.args, -1)
    term = terms[int(dim)]  # type: ignore[arg-type]
    if work.changes(term) and work.count(term) < int(number):  # type: ignore[arg-type]
        raise CannotCut(
            f"{work.count(term)} are left where %{node.name} chooses {number}: keep as many"
        )


def _layer_norm(work: _Cut, node: fx.Node, edit: Edit) -> None:  # noqa: ARG001
    terms = work.of(node)
    inner: Any = node.args[1]
    node.update_arg(1, [work.count(term) for term in terms[len(terms) - len(inner) :]])


_GROUPS = {
    aten.conv1d.default: 6,
    aten.conv2d.default: 6,
    aten.conv3d.default: 6,
    aten.convolution.default: 8,
}
"""Where convolutions are given the number of groups."""

_BAKED: dict[Any, Mend] = {
    aten.view.default: _sizes(1),
    aten.reshape.default: _sizes(1),
    aten.expand.default: _sizes(1),
    aten.zeros.default: _sizes(0),
    aten.ones.default: _sizes(0),
    aten.full.default: _sizes(0),
    aten.new_zeros.default: _sizes(1),
    aten.new_ones.default: _sizes(1),
    aten.new_full.default: _sizes(1),
    aten.arange.default: _end(0),
    aten.arange.start: _end(1),
    aten.arange.start_step: _end(1),
    aten.one_hot.default: _end(1),
    aten.histc.default: _histogram,
    aten.topk.default: _top,
    aten.slice.Tensor: _slice,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    **dict.fromkeys(_GROUPS, _convolution),
    ops.rms_norm: _rms_norm,
    aten.layer_norm.default: _layer_norm,
}
"""The numbers in a graph that count indices, by operator."""
