"""Which nodes of a graph follow from which."""

from __future__ import annotations

from functools import cached_property

from torch import fx


class Reach:
    """What each node is computed from, and what is computed from it: sets as bits of integers.

    A bit stands for a node by its place in the graph. Nodes count as before and after themselves.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = list(graph.nodes)
        self.place = {node: place for place, node in enumerate(self.nodes)}

    @cached_property
    def before(self) -> dict[fx.Node, int]:
        """What each node is computed from."""
        found: dict[fx.Node, int] = {}
        for place, node in enumerate(self.nodes):
            bits = 1 << place
            for argument in node.all_input_nodes:
                bits |= found[argument]
            found[node] = bits
        return found

    @cached_property
    def after(self) -> dict[fx.Node, int]:
        """What is computed from each node."""
        found: dict[fx.Node, int] = {}
        for place, node in reversed(list(enumerate(self.nodes))):
            bits = 1 << place
            for user in node.users:
                bits |= found[user]
            found[node] = bits
        return found

    def follows(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a node is computed from another."""
        return bool(self.before[node] >> self.place[source] & 1) and node is not source

    def between(self, source: fx.Node, end: fx.Node) -> int:
        """The nodes on ways from one to another: the latter among them, not the former."""
        return self.after[source] & self.before[end] & ~(1 << self.place[source])

    def of(self, bits: int) -> tuple[fx.Node, ...]:
        """The nodes of bits, in the order of the graph."""
        found = []
        while bits:
            lowest = bits & -bits
            found.append(self.nodes[lowest.bit_length() - 1])
            bits ^= lowest
        return tuple(found)
