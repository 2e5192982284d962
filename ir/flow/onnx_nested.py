"""Reading the nested graphs of ONNX's control flow as graphs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from planish.ir.flow.call import NotCovered
from planish.ir.flow.graph import Flow, Node
from planish.ir.flow.onnx_cases import under
from planish.ir.flow.onnx_graph import Scope
from planish.ir.flow.polynomial import Count
from planish.ir.flow.vocabulary import (
    Expression,
    Fill,
    Shape,
    Unranked,
    Value,
)

_PASSES = 4
"""How often a loop's body is read until the sizes of what it carries no longer change."""


class Iterated:
    """The body of a loop, read until the sizes of what it carries stay the same."""

    def __init__(
        self,
        scope: Scope,
        node: onnx.NodeProto,
        graph: onnx.GraphProto,
        names: list[str],
        carried: list[Expression],
        scanned: list[Expression],
    ) -> None:
        if len(names) != len(carried) + len(scanned):
            raise NotCovered("a body with another number of inputs")
        if any(isinstance(one.shape, Unranked) for one in (*carried, *scanned)):
            raise NotCovered("the number of dimensions of an input is not known")
        self.scope, self.node, self.graph, self.names = scope, node, graph, names
        self.carried = carried
        self.shapes = [one.shape for one in carried]
        self.scanned = scanned
        self._loose: set[Count] = set()

    @property
    def initial(self) -> tuple[Expression, ...]:
        """What is carried into the first iteration, under the sizes of all iterations."""
        pairs = zip(self.carried, self.shapes, strict=True)
        return tuple(under(one, shape) for one, shape in pairs)

    def read(self, counts: bool) -> Scope:
        """Read the body; `counts`: its first input is the number of the iteration.

        Raises:
            NotCovered: if what is carried changes its rank.
        """
        before = self.scope.context.unknown.copy()
        for _ in range(_PASSES):
            self.scope.context.unknown.clear()
            self.scope.context.unknown.update(before)
            elements = [one.shape[1:] for one in self.scanned]
            dtypes = [getattr(one, "dtype", None) for one in (*self.carried, *self.scanned)]
            if counts:
                dtypes[:2] = ["INT64", "BOOL"]
            shapes = [*self.shapes, *elements]
            inputs = list(zip(shapes, dtypes, strict=True))
            body = read_body(self.scope, self.node, self.graph, inputs)
            after = [value.shape for value in tensors_of(body)]
            after = [(), *after][: len(self.shapes)] if counts else after[: len(self.shapes)]
            if not self._loosen(after):
                return body
        raise NotCovered("sizes that keep changing")

    def _loosen(self, after: list[Shape]) -> bool:
        """Give sizes that an iteration changes a symbol of their own."""
        changed = False
        for place, (old, new) in enumerate(zip(self.shapes, after, strict=True)):
            if isinstance(new, Unranked) or len(old) != len(new):
                raise NotCovered("what it carries changes its rank")
            sizes = list(old)
            for dim, (one, other) in enumerate(zip(old, new, strict=True)):
                if one != other and one not in self._loose:
                    sizes[dim] = self.scope.context.fresh()
                    self._loose.add(sizes[dim])
                    changed = True
            self.shapes[place] = tuple(sizes)
        return changed

    def flow(self, body: Scope, counts: bool) -> Flow:
        """The body as a graph of its own, its outputs under the sizes of all iterations."""
        outputs = tensors_of(body)
        shapes = self.shapes[1:] if counts else self.shapes
        rest = [value.shape for value in outputs[len(shapes) :]]
        return as_flow(body, [*shapes, *rest], next_number=counts)

    def results(
        self, scope: Scope, outputs: Sequence[Value], whole: Count, counts: bool
    ) -> list[Shape]:
        """The shapes after the last iteration, then those of what is stacked."""
        own = {size: scope.context.fresh() for size in self._loose}
        shapes = [tuple(own.get(size, size) for size in shape) for shape in self.shapes]
        start = len(self.shapes) - (1 if counts else 0)
        for value in outputs[start:]:
            if isinstance(value.shape, Unranked):
                raise NotCovered("what it stacks has no known rank")
            shapes.append((whole, *value.shape))
        return shapes


def read_body(
    scope: Scope,
    node: onnx.NodeProto,
    graph: onnx.GraphProto,
    inputs: list[tuple[Shape, Any]],
) -> Scope:
    """Read a nested graph as one of its own; its inputs come first among its names."""
    path = f"{scope.path}{node.name or node.op_type}/"
    body = Scope(
        scope.context, scope.opsets, path, scope, None, scope.attributes, depth=scope.depth + 1
    )
    for one, (shape, dtype) in zip(graph.input, inputs, strict=True):
        body.names[one.name] = Value(one.name, shape, dtype)
    body.inputs = [body.names[one.name] for one in graph.input]  # type: ignore[misc]
    fill(body, graph)
    body.results = [body.look_up(one.name) for one in graph.output]
    return body


def fill(body: Scope, graph: onnx.GraphProto) -> None:
    """Read a nested graph's stored tensors and nodes."""
    for tensor in graph.initializer:
        body.names[tensor.name] = body.store(tensor, tensor.name)
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        body.names[name] = Value(name, tuple(sparse.dims), None)
    body.read(graph.node)


def as_flow(body: Scope, shapes: Sequence[Shape], next_number: bool = False) -> Flow:
    """A nested graph, whose outputs get these shapes where they have others."""
    outputs: dict[str, Value] = {}
    if next_number:
        value = Value("next", (), "INT64")
        body.nodes.append(Node(f"{body.path}next", "next", (value,), (Fill(()),), body.path))
        outputs["next"] = value
    for number, (value, shape) in enumerate(zip(tensors_of(body), shapes, strict=True)):
        if value.shape != shape:
            shaped = Value(value.name, shape, value.dtype)
            name = f"{body.path}{value.name}#shaped{number}"
            body.nodes.append(Node(name, "shaped", (shaped,), (under(value, shape),), body.path))
            value = shaped  # noqa: PLW2901
        outputs[f"{number}:{value.name}"] = value
    return Flow(
        tuple(body.inputs),
        (),
        tuple(body.nodes),
        outputs,
        known=body.context.known,
        captured=tuple(body.captured),
    )


def tensors_of(body: Scope) -> list[Value]:
    """The results of a nested graph.

    Raises:
        NotCovered: if one of them is a sequence.
    """
    if not all(isinstance(one, Value) for one in body.results):
        raise NotCovered("a nested graph gives a sequence")
    return [one for one in body.results if isinstance(one, Value)]
