"""The ranges by which a graph quantizes: where they are found, and what reads them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.flow.graph import Flow
from planish.ir.flow.vocabulary import Fill, Reads, aligned, broadcast
from planish.ir.isolation.digits import Map
from planish.ir.shapes import describe

aten = torch.ops.aten

RANGES: dict[Any, Any] = {
    aten.amax.default: aten.amax.default,
    aten.amin.default: aten.amin.default,
    aten.max.default: aten.amax.default,
    aten.min.default: aten.amin.default,
    aten.aminmax.default: None,
}
"""What finds the largest or smallest number, and what finds it along several dimensions; None
where there are two results, the smallest and the largest."""


@dataclass(frozen=True)
class Range:
    """A place where a range is found over all requests.

    Attributes:
        node: the call.
        of: the tensor whose range it is.
        over: the dimensions that lie within one request.
        rank: of that tensor.
        values: each number found, and the operator that finds it along dimensions.
    """

    node: fx.Node
    of: fx.Node
    over: tuple[int, ...]
    rank: int
    values: tuple[tuple[fx.Node, Any], ...]


def readers_by_place(node: fx.Node) -> dict[int, fx.Node]:
    """The nodes that take one of several results of a call, by its place."""
    return {int(str(user.args[1])): user for user in node.users if user.target is operator.getitem}


def pointwise(flow: Flow) -> frozenset[str]:
    """The nodes that compute each element from what lies at its place, with broadcasting."""
    return frozenset(node.name for node in flow.nodes if all(map(_by_place, node.expressions)))


def _by_place(expression: Any) -> bool:
    if isinstance(expression, Fill):
        return expression.content == "constant"  # such as ones_like, which reads a shape only
    return (
        isinstance(expression, Reads)
        and not expression.mixed
        and expression.shape == broadcast([one.value.shape for one in expression.operands])
        and all(
            one.tags == aligned(one.value, len(expression.shape)).tags
            for one in expression.operands
        )
    )


@dataclass(frozen=True)
class Spread:
    """What follows from ranges in a graph.

    Attributes:
        scales: the nodes computed from ranges alone, which take the shape that the ranges take.
        blocked: ranges that cannot be found for each request alone, by node, and why.
    """

    scales: frozenset[str]
    blocked: Mapping[str, str]


def spread(
    ranges: Sequence[Range], by_place: frozenset[str], requests: Mapping[str, frozenset[Map]]
) -> Spread:
    """Where ranges go, and which of them have to stay one number.

    What reads a scale together with a tensor has to compute element by element, and to have as
    many dimensions as the tensor that was measured, so that each row meets its own scale.

    Args:
        ranges: of one graph.
        by_place: what `pointwise` gives.
        requests: whose each element of a value is, by node.
    """
    blocked: dict[str, str] = {}
    while True:
        taken = [one for one in ranges if one.node.name not in blocked]
        walk = _Walk(by_place, requests, {v: {one} for one in taken for v, _ in one.values})
        found = walk.obstacle(taken)
        if found is None:
            return Spread(frozenset(node.name for node in walk.scales), blocked)
        blocked[found[0].node.name] = found[1]


@dataclass
class _Walk:
    """One walk through a graph, from ranges on.

    Attributes:
        by_place: nodes that compute element by element.
        requests: whose each element of a value is, by node.
        scales: nodes computed from ranges alone, and from which.
        scaled: nodes that scales are part of, and what follows element by element.
    """

    by_place: frozenset[str]
    requests: Mapping[str, frozenset[Map]]
    scales: dict[fx.Node, set[Range]]
    scaled: dict[fx.Node, set[Range]] = field(default_factory=dict)

    def obstacle(self, ranges: Sequence[Range]) -> tuple[Range, str] | None:
        """The first range with something behind it that does not fit, and what that is."""
        rounded: set[Range] = set()
        for node in ranges[0].node.graph.nodes if ranges else ():
            if node in self.scales:
                continue
            origins = self._union(self.scales, node)
            if origins and (why := self._step(node, origins)):
                return next(iter(origins)), why
            if node.name in self.by_place and (behind := self._union(self.scaled, node)):
                self.scaled.setdefault(node, set()).update(behind)
            if _rounds(node):
                rounded |= self.scaled.get(node, set())
        why = "no quantization follows, so one range a request may not be what is meant"
        return next(((one, why) for one in ranges if one not in rounded), None)

    def _union(self, known: Mapping[fx.Node, set[Range]], node: fx.Node) -> set[Range]:
        return set().union(*(known.get(one, set()) for one in node.all_input_nodes))

    def _step(self, node: fx.Node, origins: set[Range]) -> str | None:
        """Note a node that reads scales; why it does not fit, if so."""
        if node.op == "output":
            return "the program's caller is given it"
        if node.name not in self.by_place:
            return f"{describe(node)} reads it as one number"
        rank = node.meta["val"].dim()
        if all(one in self.scales or self._is_number(one) for one in node.all_input_nodes):
            self.scales[node] = origins
        elif any(one.rank != rank for one in origins):
            return f"{describe(node)}, which it scales, has {rank} dimensions"
        else:
            self.scaled[node] = origins
        return None

    def _is_number(self, node: fx.Node) -> bool:
        """Whether a value is one number, the same for all requests."""
        value = node.meta.get("val")
        return isinstance(value, Tensor) and value.numel() == 1 and not self.requests.get(node.name)


def _rounds(node: fx.Node) -> bool:
    if node.target is aten._to_copy.default:
        return not node.meta["val"].dtype.is_floating_point
    return node.target in (aten.round.default, aten.round.decimals)
