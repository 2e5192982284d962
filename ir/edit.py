"""`Edit`: the few verbs with which a pass rewrites a copy of a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor, fx

from planish.ir.program import Change, IllFormed, Program
from planish.ir.shapes import infer_call, infer_read, propagate, well_formed


class Edit:
    """A copy of a program's graph, to be rewritten. Made by `Program.edit`.

    Attributes:
        program: the result, once the `with` block is left.
        graph: the copy. Use it where the verbs below do not reach.
        tensors: the tensors by name; add to it freely, never write into a tensor.
        inputs: what the program takes, which has to agree with the placeholders on leaving.
        outputs: the names of what it returns, which have to be as many as the output node's.
    """

    program: Program

    def __init__(self, before: Program) -> None:
        self._before = before
        self._changes: list[Change] = []
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = dict(before.tensors)
        self.inputs = before.inputs
        self.outputs = before.outputs
        self.aliases = dict(before.aliases)
        returned = self.graph.graph_copy(before.graph, {})
        self.graph.output(returned)

    def nodes(self, *targets: Callable[..., Any]) -> Iterator[fx.Node]:
        """The nodes that call one of `targets` (without any, all), as they stand now.

        Safe to rewrite while iterating: nodes die only on leaving.
        """
        for node in list(self.graph.nodes):
            if not targets or (node.op == "call_function" and node.target in targets):
                yield node

    def call(
        self, target: Callable[..., Any], *args: Any, before: fx.Node, **kwargs: Any
    ) -> fx.Node:
        """A new call of an operator, placed before a node."""
        with self.graph.inserting_before(before):
            name = getattr(target, "overloadpacket", target).__name__
            node = self.graph.create_node("call_function", target, args, kwargs, name)
        if "module" in before.meta:
            node.meta["module"] = before.meta["module"]
        self._infer(node)
        return node

    def _infer(self, node: fx.Node) -> None:
        """Set `meta["val"]` where it follows already; what does not yet fit, may on leaving."""
        if all("val" in argument.meta for argument in node.all_input_nodes):
            with suppress(IllFormed):
                infer_call(node, self._before.shapes)

    def read(self, name: str, tensor: Tensor | None = None, *, before: fx.Node) -> fx.Node:
        """A new node that reads the tensor `name`, which is added first when given."""
        if tensor is not None:
            self.tensors[name] = tensor
        if name not in self.tensors:
            raise IllFormed(f"no tensor is named {name!r}")
        with self.graph.inserting_before(before):
            # The graph has no module that owns it, so it cannot look the name up itself.
            node = self.graph.create_node("get_attr", name, name=name.replace(".", "_"))
        infer_read(node, self.tensors[name], self._before.shapes)
        return node

    def replace(self, node: fx.Node, new: fx.Node, what: str) -> None:
        """Let every reader of `node` read `new` instead, and record it as one change.

        `new` may itself read `node`. A node that nothing reads any more goes on leaving.
        """
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self.record(node, what)

    def record(self, node: fx.Node, what: str) -> None:
        """Count a change that `replace` did not make, such as a tensor set to a new value."""
        self._changes.append(Change(node.name, what))

    def finish(self) -> None:
        """Drop what nothing reads, lint, propagate shapes, and set `program`."""
        drop_dead_nodes(self.graph)
        read = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in read}
        self.program = dataclasses.replace(
            self._before,
            graph=self.graph,
            tensors=tensors,
            inputs=self.inputs,
            outputs=self.outputs,
            aliases={other: name for other, name in self.aliases.items() if name in tensors},
            changes=(*self._before.changes, *self._changes),
        )
        propagate(self.program)
        well_formed(self.program)


def drop_dead_nodes(graph: fx.Graph) -> None:
    """Erase calls and reads without readers. All of them are functional, so none has effects."""
    for node in reversed(graph.nodes):
        if not node.users and node.op in {"call_function", "get_attr"}:
            graph.erase_node(node)
