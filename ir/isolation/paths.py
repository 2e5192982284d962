"""The way by which one request reaches another: from an input over a node to an output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from planish.ir.flow.graph import Flow, Node
from planish.ir.flow.vocabulary import Expression, Value
from planish.ir.isolation.dependence import Cause, Dependence
from planish.ir.isolation.digits import Map


@dataclass(frozen=True)
class Place:
    """One step of a path: a node of the graph, or an input or output of it."""

    node: str
    operator: str
    where: str = ""


class Paths:
    """Finds the way from an input over a node to an output."""

    def __init__(self, flow: Flow, found: Mapping[Value, Dependence]) -> None:
        self._found = found
        self._maker = {value: node for node in flow.nodes for value in node.outputs}
        self._number = {node.name: number for number, node in enumerate(flow.nodes)}
        self._inputs = set(flow.inputs)

    def order(self, node: str) -> int:
        """The place of a node in the graph."""
        return self._number.get(self._top(node), -1)

    def _top(self, node: str) -> str:
        """The node itself, or the one whose graphs it lies in: names may hold slashes too."""
        while node not in self._number and "/" in node:
            node = node.rpartition("/")[0]
        return node

    def origin(self, name: str, value: Value, wrong: Iterable[Map]) -> Cause:
        """The first node after which the rows of an output are not each request's own."""
        while (node := self._maker.get(value)) is not None:
            before = [
                leaf
                for leaf in leaves(node)
                if any(not _in_order(each) for each in self._maps(leaf))
            ]
            if not before:
                break
            value = before[0]
        which = ", ".join(sorted(map(str, wrong)))
        why = f"element [i0, i1, ...] of {name} holds what belongs to request {which}"
        if node is None:
            return Cause("value", value.name, "input", why)
        return Cause("value", node.name, node.operator, why, node.where)

    def _maps(self, value: Value) -> frozenset[Map]:
        found = self._found.get(value)
        return found.maps if found is not None else frozenset()

    def through(self, cause: Cause, name: str, value: Value) -> tuple[Place, ...]:
        """From an input to the cause, and on to the output `name`, which is `value`."""
        target = self._top(cause.node)
        down = self._search(
            value,
            lambda node: node.name == target,
            lambda value: self._carries(value, cause),
        )
        start = next((node for node in down if node.name == target), None)
        up: list[Node] = []
        source: Value | None = None
        if start is not None:
            source, up = self._to_input(start)
        elif cause.operator == "input":
            source = next((one for one in self._inputs if one.name == cause.node), None)
        places = [Place(source.name, "input")] if source is not None else []
        nodes = [*up, *(node for node in reversed(down) if node not in up)]
        places += [Place(node.name, node.operator, node.where) for node in nodes]
        return (*places, Place(name, "output"))

    def _carries(self, value: Value, cause: Cause) -> bool:
        found = self._found.get(value)
        if found is None:
            return False
        same = any(one.node == cause.node for one in found.causes)
        return same or any(not _in_order(one) for one in found.maps)

    def _search(
        self, value: Value, done: Callable[[Node], bool], follow: Callable[[Value], bool]
    ) -> list[Node]:
        """The shortest chain of nodes backwards from a value to one that is `done`."""
        came: dict[Node, Node | None] = {}
        first = self._maker.get(value)
        frontier = [first] if first is not None else []
        came.update((node, None) for node in frontier)
        while frontier:
            following = []
            for node in frontier:
                if done(node):
                    return _chain(node, came)
                for leaf in leaves(node):
                    maker = self._maker.get(leaf)
                    if maker is not None and maker not in came and follow(leaf):
                        came[maker] = node
                        following.append(maker)
            frontier = following
        return []

    def _to_input(self, start: Node) -> tuple[Value | None, list[Node]]:
        """The shortest chain from a node backwards to an input that it depends on."""
        came: dict[Node, Node | None] = {start: None}
        frontier = [start]
        while frontier:
            following = []
            for node in frontier:
                for leaf in leaves(node):
                    found = self._found.get(leaf)
                    if found is None or found.on_nothing:
                        continue
                    if leaf in self._inputs:
                        return leaf, list(reversed(_chain(node, came)))
                    maker = self._maker.get(leaf)
                    if maker is not None and maker not in came:
                        came[maker] = node
                        following.append(maker)
            frontier = following
        return None, [start]


def _chain(node: Node, came: Mapping[Node, Node | None]) -> list[Node]:
    """From where the search began to `node`."""
    chain: list[Node] = []
    at: Node | None = node
    while at is not None:
        chain.insert(0, at)
        at = came[at]
    return chain


def _in_order(one: Map) -> bool:
    """Whether a map numbers requests from 0 up, once each, wherever the digit lies."""
    return one.offset == 0 and len(one.digits) == 1 and next(iter(one.digits)).weight == 1


def leaves(node: Node) -> list[Value]:
    """The values that a node's expressions are made of, in order, each once."""
    found: dict[Value, None] = {}
    pending: list[Any] = [*reversed(node.controls), *reversed(node.expressions)]
    while pending:
        one = pending.pop()
        if isinstance(one, Value):
            found.setdefault(one)
        elif isinstance(one, Expression):
            pending += reversed([part for part in vars(one).values() if part is not None])
        elif isinstance(one, tuple):
            pending += reversed(one)
        elif hasattr(one, "value") and isinstance(one.value, Expression):
            pending.append(one.value)
        elif isinstance(one, Flow):
            pending += [expr for inner in one.nodes for expr in inner.expressions]
            pending += one.outputs.values()
    return list(found)
