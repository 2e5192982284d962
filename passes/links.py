"""Sums that end branches of residual streams, and how they follow one another.

A sum is the end of a branch if all but one of what it adds is computed from the one that is left:
the stream. Sums follow one another where the stream goes from one to the next by norms, activations
and views alone, so that pre-norm and post-norm blocks, attention and MLP side by side, and the
stages of convolutional networks are all found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.ops import rms_norm
from planish.ir.program import Program
from planish.ir.reach import Reach

aten = torch.ops.aten

_CARRIES = (
    rms_norm,
    aten.layer_norm.default,
    aten.group_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
)
"""What a stream may go through between sums, besides what acts on each element by itself."""


@dataclass(frozen=True)
class Link:
    """A sum: the stream that it adds to, and what it adds.

    Attributes:
        skip: the stream.
        root: the sum.
        terms: what is added, in the order of the graph.
    """

    skip: fx.Node
    root: fx.Node
    terms: tuple[fx.Node, ...]


def chains(program: Program, reach: Reach) -> list[list[Link]]:
    """Links in sequence, each reading the stream that the one before it wrote: one list a stream.

    Args:
        program: whose sums are looked at.
        reach: of its graph.
    """
    links = [
        link for node in program.nodes(aten.add.Tensor) if (link := _link(node, program, reach))
    ]
    links = _outermost(links, reach)
    found: list[list[Link]] = []
    for link in links:
        way = _way(link.skip, links)
        mine = next((chain for chain in found if way and chain[-1] is way[0]), None)
        if mine is None:
            found.append([link])
        else:
            mine.append(link)
    return found


def end_of(chain: Sequence[Link]) -> fx.Node:
    """Where the stream leaves the last block: behind what is behind the sums before it.

    A chain of one link has none before; an activation behind its sum belongs to it if the stream
    came from one like it, as in residual networks.
    """
    if len(chain) > 1:
        way = _way(chain[1].skip, chain[:1])
        steps = way[1] if way else []
    else:
        steps, node = [], chain[0].skip
        while (before := _carried(node)) is not None and len(node.all_input_nodes) == 1:
            steps.insert(0, node)
            node = before
    end = chain[-1].root
    for step in steps:
        (user, *others) = end.users
        if others or user.target is not step.target or _carried(user) is not end:
            return chain[-1].root
        end = user
    return end


def by_layer(chain: Sequence[Link], reach: Reach) -> list[list[int]]:
    """Places of links, a list for each layer.

    A layer begins with each link that is as the first one, or ends with each that is as the last
    one, whichever makes more layers of them.
    """
    kinds = [_kind(link, reach) for link in chain]
    starts = [place for place, kind in enumerate(kinds) if kind == kinds[0]]
    ends = [place + 1 for place, kind in enumerate(kinds) if kind == kinds[-1]]
    cuts = [*starts, len(kinds)] if len(starts) >= len(ends) else [0, *ends]
    return [list(range(*pair)) for pair in pairwise(cuts)]


def _kind(link: Link, reach: Reach) -> tuple[str, ...]:
    """What a link computes: the operators, whatever the sizes."""
    return tuple(str(node.target) for node in reach.of(reach.between(link.skip, link.root)))


def shape_of(node: fx.Node, program: Program) -> tuple[str, ...] | None:
    """Dtype and extents of a floating-point tensor; None for other values."""
    value: Any = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    return (str(value.dtype), *(program.shapes.text(extent) for extent in value.shape))


def _is_sum(node: Any, program: Program) -> bool:
    """Whether a node adds two tensors of one shape, elementwise and without a factor."""
    if not isinstance(node, fx.Node) or node.target is not aten.add.Tensor or node.kwargs:
        return False
    shapes = [shape_of(one, program) for one in node.args[:2] if isinstance(one, fx.Node)]
    return len(node.args) == len(shapes) == 2 and shapes == [shape_of(node, program)] * 2


def _link(node: fx.Node, program: Program, reach: Reach) -> Link | None:
    """What a sum is, if it ends branches of a stream: terms are those of the sums in it, too."""
    shape = shape_of(node, program)
    if shape is None or len(shape) < 3 or not _is_sum(node, program) or _inner(node, program):
        return None
    terms: list[fx.Node] = []
    open_sums = [node]
    while open_sums:
        for term in open_sums.pop().all_input_nodes:
            (open_sums if _is_sum(term, program) and len(term.users) == 1 else terms).append(term)
    for skip in terms:
        others = [term for term in terms if term is not skip]
        if not others or not all(reach.follows(term, skip) for term in others):
            continue
        read = [one for term in others for one in reach.of(reach.between(skip, term))]
        if any(source.meta["val"].dim() > 1 for source in sources(read)):
            return Link(skip, node, tuple(sorted(others, key=reach.place.__getitem__)))
    return None


def _inner(node: fx.Node, program: Program) -> bool:
    """Whether a sum is but a term of another."""
    return len(node.users) == 1 and _is_sum(next(iter(node.users)), program)


def sources(region: Sequence[fx.Node]) -> Iterator[fx.Node]:
    """The nodes by which a region reads stored tensors, as they are or turned."""
    for node in region:
        for source in node.all_input_nodes:
            stored = source
            while stored.op == "call_function" and len(stored.all_input_nodes) == 1:
                (stored,) = stored.all_input_nodes
            if stored.op == "get_attr":
                yield stored


def _outermost(links: Sequence[Link], reach: Reach) -> list[Link]:
    """Links without those in branches of others, and without sums that span a chain of others."""
    kept = list(links)
    inside = {link.root: reach.of(reach.between(link.skip, link.root)) for link in links}
    for link in sorted(links, key=lambda one: len(inside[one.root])):
        within = [one for one in kept if one is not link and one.root in inside[link.root]]
        if any(_way(two.skip, [one]) for one in within for two in within):
            kept.remove(link)
        else:
            kept = [one for one in kept if one not in within]
    return kept


def _way(skip: fx.Node, links: Sequence[Link]) -> tuple[Link, list[fx.Node]] | None:
    """The link whose sum a stream came from, and the nodes that it went through since."""
    roots = {link.root: link for link in links}
    steps: list[fx.Node] = []
    node: fx.Node | None = skip
    while node is not None and node not in roots:
        steps.append(node)
        node = _carried(node)
    return None if node is None else (roots[node], steps[::-1])


def _carried(node: fx.Node) -> fx.Node | None:
    """The value that a norm, activation or view is of; None for other nodes."""
    target: Any = node.target
    tags = getattr(target, "tags", ())
    if target not in _CARRIES and torch.Tag.pointwise not in tags:
        first: Any = node.args[0] if node.args else None
        chosen = getattr(target, "__name__", "") == "getitem" and node.args[1] == 0
        return first if chosen and first.target in _CARRIES else None
    computed = [
        one
        for one in node.all_input_nodes
        if one.op != "get_attr" and isinstance(one.meta.get("val"), Tensor)
    ]
    return computed[0] if len(computed) == 1 else None
