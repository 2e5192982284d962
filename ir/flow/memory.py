"""What the calls of a torch.fx graph write in place, and where else that is seen.

Functional graphs write nothing. But some operators write running statistics that their schemas do
not mark as written, so that no decomposition takes that out; and a graph may come undecomposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from planish.ir.operators import HigherOrderOperator, decomposes_implicitly, is_operator, schema
from planish.ir.rules.aten import WRITES


class Memory:
    """Which nodes of a graph may show the same memory."""

    def __init__(self, graph: fx.Graph) -> None:
        self._families: dict[fx.Node, set[fx.Node]] = {}
        self._written: set[fx.Node] = set()
        calls = [node for node in graph.nodes if node.op == "call_function"]
        changed = [one for call in calls for several in written(call).values() for one in several]
        if not changed:
            return
        stored: dict[str, fx.Node] = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                self._join(node, stored.setdefault(str(node.target), node))
            for source in _sources(node):
                self._join(node, source)
        for node in changed:
            self._written |= self.family(node)

    def family(self, node: fx.Node) -> set[fx.Node]:
        """The nodes that may show what a node shows, itself among them."""
        return self._families.get(node, {node})

    def changes(self, node: fx.Node) -> bool:
        """Whether some call may write what a node shows."""
        return node in self._written

    def _join(self, one: fx.Node, other: fx.Node) -> None:
        family = self.family(one) | self.family(other)
        self._families.update(dict.fromkeys(family, family))


def written(call: fx.Node) -> dict[str, list[fx.Node]]:
    """What a call may write in place, by the name of the argument that it is given as.

    The arguments that the schema marks, and those of `WRITES`; of a call that takes graphs, one of
    which writes, everything (under no name).
    """
    target: Any = call.target
    if is_operator(target):
        known = WRITES.get(str(target))
        marked = (one for one in schema(target).arguments if one.alias_info is not None)
        names = (
            known.arguments if known else [one.name for one in marked if one.alias_info.is_write]
        )
        return {name: _given(call, name) for name in names}
    if isinstance(target, HigherOrderOperator) and _writes_inside(call):
        return {"": [one for one in call.all_input_nodes if one.op != "get_attr"]}
    return {}


def _writes_inside(call: fx.Node) -> bool:
    module = call.graph.owning_module
    graphs = (
        getattr(module, str(one.target), None)
        for one in call.all_input_nodes
        if one.op == "get_attr"
    )
    inner = (
        one for graph in graphs if isinstance(graph, fx.GraphModule) for one in graph.graph.nodes
    )
    return str(call.target).endswith("mutation") or any(
        written(one) for one in inner if one.op == "call_function"
    )


def _given(call: fx.Node, name: str) -> list[fx.Node]:
    """The nodes that an operator's call is given as one argument."""
    place = [one.name for one in schema(call.target).arguments].index(name)
    value = call.args[place] if place < len(call.args) else call.kwargs.get(name)
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def _sources(node: fx.Node) -> Iterator[fx.Node]:
    """The operands whose memory a call's result may be.

    An operator that is defined by others may return an operand without its schema saying so.
    """
    target: Any = node.target
    if node.op != "call_function":
        return
    if not is_operator(target) or (decomposes_implicitly(target) and str(target) not in WRITES):
        yield from node.all_input_nodes
    elif any(one.alias_info is not None for one in schema(target).returns):
        for one in schema(target).arguments:
            if one.alias_info is not None:
                yield from _given(node, one.name)
