"""Walking one ONNX graph: names, nodes, inlined functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import onnx
from onnx import AttributeProto, NodeProto

from planish.ir.flow import onnx_proto as proto
from planish.ir.flow.call import Call, NotCovered, Rule, Undefined, apply, unknown
from planish.ir.flow.graph import Node
from planish.ir.flow.known import Known, of
from planish.ir.flow.malformed import AmbiguousGraph
from planish.ir.flow.onnx_cases import Stops, under
from planish.ir.flow.onnx_context import Context
from planish.ir.flow.vocabulary import (
    UNRANKED,
    Expression,
    Fill,
    Opaque,
    Unranked,
    Value,
)
from planish.ir.rules.onnx import LATEST, LEARN, RULES
from planish.ir.rules.onnx.call import Items, OnnxCall, OnnxRule

DEEPEST = 32
"""How many functions and graphs may lie in one another."""

_ADDED = ("LayerNormalization", "SimplifiedLayerNormalization")
"""Operators that ONNX Runtime puts into ONNX's own domain, whatever the opset."""

Held = Value | tuple[Value, ...] | None
"""What a name stands for: a tensor, a sequence of known length, an input that is left out."""


class Scope:
    """One graph or function body being read.

    Args:
        context: of the model.
        opsets: the versions that names of operators refer to here, by domain.
        path: of names, for messages.
        outer: the scope whose names this one sees too.
        nodes: where to add nodes; None starts a list, and with it a graph of its own.
        attributes: of the function call that is being inlined.
    """

    def __init__(
        self,
        context: Context,
        opsets: Mapping[str, int],
        path: str = "",
        outer: Scope | None = None,
        nodes: list[Node] | None = None,
        attributes: Mapping[str, AttributeProto] | None = None,
        depth: int = 0,
    ) -> None:
        self.context = context
        self.opsets = opsets
        self.path = path
        self.outer = outer
        self.apart = nodes is None
        self.nodes: list[Node] = [] if nodes is None else nodes
        self.attributes = attributes or {}
        self.depth = depth
        self.names: dict[str, Held] = {"": None}
        self.captured: dict[Value, None] = {}
        self.inputs: list[Value] = []
        self.results: list[Held] = []

    def look_up(self, name: str) -> Held:
        """What a name stands for here; names of enclosing graphs are noted as captured."""
        if name in self.names or self.outer is None:
            return self.names[name]
        held = self.outer.look_up(name)
        if self.apart:
            several = held if isinstance(held, tuple) else () if held is None else (held,)
            self.captured.update(dict.fromkeys(several))
        return held

    def argument(self, name: str) -> Expression | None:
        """A name as a rule sees it."""
        held = self.look_up(name)
        return Items(held) if isinstance(held, tuple) else held

    def store(self, tensor: onnx.TensorProto, name: str) -> Value:
        """A stored tensor: its shape, and its elements where it is small."""
        value = Value(name, tuple(tensor.dims), proto.dtype_name(tensor.data_type))
        self.context.stored[value] = None
        known, floats = proto.stored_numbers(tensor), proto.stored_floats(tensor)
        if known is not None:
            self.context.known[value] = known
        if floats is not None:
            self.context.floats[value] = floats
        return value

    def read(self, nodes: Iterable[NodeProto]) -> None:
        """Read nodes in order.

        Raises:
            AmbiguousGraph: if a node has an output that its graph or function does not give.
        """
        from planish.ir.flow.onnx_control import CONTROL, is_whole  # noqa: PLC0415  (it reads graphs)

        for node in nodes:
            self.context.step()
            domain = plain_domain(node.domain)
            function = self.context.functions.get((domain, node.op_type, node.overload))
            if f"{domain}::{node.op_type}" in self.context.declared:
                self._operator(node, domain)
            elif function is not None and self.depth < DEEPEST:
                self._inline(node, function)
            elif domain == "" and self.depth < DEEPEST and is_whole(node):
                this: Any = self  # type checkers may see this file under two names
                CONTROL[node.op_type](this, node)
            elif domain == "" and node.op_type == "Constant" and node.output:
                self._constant(node)
            else:
                self._operator(node, domain)
            for name in node.output:
                if name not in self.names:
                    raise AmbiguousGraph(
                        f"Node {node.name or node.op_type} is to give {name!r}, which its own "
                        "graph or function does not. Give both as many outputs."
                    )

    def given(self, node: NodeProto) -> dict[str, AttributeProto]:
        """A node's attributes, those of an enclosing function call put in."""
        found = {}
        for attribute in node.attribute:
            actual: AttributeProto | None = attribute
            if attribute.ref_attr_name:
                actual = self.attributes.get(attribute.ref_attr_name)
            if actual is not None:
                found[attribute.name] = actual
        return found

    def _inline(self, node: NodeProto, function: onnx.FunctionProto) -> None:
        attributes = {one.name: one for one in function.attribute_proto} | self.given(node)
        opsets = {plain_domain(one.domain): one.version for one in function.opset_import}
        path = f"{self.path}{node.name or node.op_type}/"
        inner = Scope(
            self.context, opsets, path, None, self.nodes, attributes, depth=self.depth + 1
        )
        actual = [self.look_up(name) for name in node.input]
        missing = len(function.input) - len(actual)
        inner.names |= dict(zip(function.input, [*actual, *[None] * missing], strict=False))
        inner.read(function.node)
        for formal, name in zip(function.output, node.output, strict=False):
            if name:
                self.names[name] = inner.look_up(formal)

    def _constant(self, node: NodeProto) -> None:
        tensor = proto.constant_tensor(self.given(node))
        if tensor is None:
            self._operator(node, "")
            return
        value = self.store(tensor, node.output[0])
        self.add(node, "ai.onnx::Constant", [Fill(value.shape)], [value])

    def _operator(self, node: NodeProto, domain: str) -> None:
        version = self.opsets.get(domain, 0 if domain in LATEST else 1)
        schema = None
        if domain in LATEST and version <= min(LATEST[domain], proto.newest(domain)):
            schema = proto.find_schema(domain, node.op_type, version)
        since = schema.since_version if schema is not None else version
        rule = RULES.get((domain, node.op_type))
        if schema is None and not self._without_schema(domain, node.op_type, version):
            rule = None
        if declared := self.context.declared.get(f"{domain}::{node.op_type}"):
            rule = cast("OnnxRule", declared)
        given = self.given(node)
        attributes = {name: proto.attribute_value(one) for name, one in given.items()}
        inputs = [self.argument(name) for name in node.input]
        dtypes = proto.output_dtypes(schema, given, inputs, len(node.output))
        outputs = tuple(
            Value(name, UNRANKED, dtype) for name, dtype in zip(node.output, dtypes, strict=True)
        )
        call = OnnxCall(
            f"{domain or 'ai.onnx'}::{node.op_type}@{since}",
            since,
            [*inputs, *self._inner(given)],
            attributes,
            outputs,
            self.context.known,
            self.context.fresh,
            self._floats,
            self.context.made,
        )
        expressions = self._apply(rule, call, inputs)
        self._finish(node, call, expressions)

    def _without_schema(self, domain: str, operator: str, version: int) -> bool:
        """Whether an operator that onnx has no schema of is one that ONNX Runtime adds."""
        if domain == "":
            return operator in _ADDED and version <= min(LATEST[""], proto.newest(""))
        return domain.startswith("com.microsoft") and version <= LATEST.get(domain, 0)

    def _inner(self, given: Mapping[str, AttributeProto]) -> list[Expression]:
        """What graphs in attributes read, so that an unknown operator reads it too."""
        graphs = [
            graph
            for one in given.values()
            for graph in (*one.graphs, *([one.g] if one.HasField("g") else []))
        ]
        return self.read_by(graphs)

    def read_by(self, graphs: Iterable[onnx.GraphProto]) -> list[Expression]:
        """The values of this scope that nested graphs read."""
        names = {name: None for graph in graphs for name in outer_names(graph)}
        found = [self.argument(name) for name in names if name]
        return [one for one in found if one is not None]

    def _floats(self, expression: Expression) -> tuple[float, ...] | None:
        return self.context.floats.get(expression) if isinstance(expression, Value) else None

    def _apply(
        self, rule: OnnxRule | None, call: OnnxCall, inputs: Sequence[Expression | None]
    ) -> tuple[Expression, ...]:
        if any(_is_unranked(one) for one in inputs):
            return unknown(call, "the number of dimensions of an input is not known")
        certain = self.nodes is self.context.nodes
        guarded = None if rule is None else cast("Rule", _guarded(rule, certain))
        expressions, why = apply(guarded, cast("Call", call))
        if why is not None:
            self.context.unknown[call.operator] += 1
        return expressions

    def _finish(self, node: NodeProto, call: OnnxCall, expressions: tuple[Expression, ...]) -> None:
        """Define a call's outputs by what they read."""
        values: list[Value] = []
        flat: list[Expression] = []
        for output, expression in zip(call.outputs, expressions, strict=True):
            several = isinstance(expression, Items)
            parts = expression.parts if isinstance(expression, Items) else (expression,)
            parts = tuple(under(part, self.context.settled(part.shape)) for part in parts)
            made = tuple(
                Value(f"{output.name}.{n}" if several else output.name, part.shape, output.dtype)
                for n, part in enumerate(parts)
            )
            if output.name:
                self.names[output.name] = made if several else made[0]
            values += made
            flat += parts
        self._learn(call, values, flat)
        if _domain_of(call.operator) == "" and len(values) == 1:
            self.context.explain(values[0], call.name, call.attributes, call.operands)
        controls = [one for one in call.controls if isinstance(one, Value)]
        self.add(node, call.operator, flat, values, controls)

    def _learn(
        self, call: OnnxCall, values: Sequence[Value], expressions: Sequence[Expression]
    ) -> None:
        learn = LEARN.get((_domain_of(call.operator), call.name))
        for place, (value, expression) in enumerate(zip(values, expressions, strict=True)):
            dtype = value.dtype
            if dtype not in proto.FOLLOWED or isinstance(expression, Opaque):
                continue
            known = _quietly(lambda e=expression: of(e, self.context.known))
            if known is None and learn is not None and place == 0:
                known = _quietly(lambda: learn(call))
            if known is not None and proto.fits(known, dtype):
                self.context.known[value] = known

    def add(
        self,
        node: NodeProto,
        operator: str,
        expressions: Sequence[Expression],
        values: Sequence[Value],
        controls: Sequence[Value] = (),
    ) -> None:
        """Add a node, and the names of its outputs if they are single tensors."""
        for value in values:
            if value.name and value.name in node.output:  # "" stands for none
                self.names[value.name] = value
        name = f"{self.path}{node.name or node.op_type}"
        self.context.made.update(zip(values, expressions, strict=True))
        kept = tuple(value for value in controls if value not in self.context.stored)
        self.nodes.append(
            Node(
                f"{name}#{len(self.nodes)}",
                operator,
                tuple(values),
                tuple(expressions),
                self.path.rstrip("/"),
                kept,
            )
        )


def plain_domain(domain: str) -> str:
    """ONNX's own domain has two names."""
    return "" if domain == "ai.onnx" else domain


def outer_names(graph: onnx.GraphProto) -> dict[str, None]:
    """The names that a graph reads and does not define, nested graphs included."""
    defined = {one.name for one in (*graph.input, *graph.initializer)}
    used: dict[str, None] = {}
    for node in graph.node:
        for name in node.input:
            if name and name not in defined:
                used[name] = None
        for attribute in node.attribute:
            inner = (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else []))
            for one in inner:
                used |= {name: None for name in outer_names(one) if name not in defined}
        defined.update(node.output)
    used |= {one.name: None for one in graph.output if one.name not in defined}
    return used


def _domain_of(operator: str) -> str:
    return plain_domain(operator.partition("::")[0])


def _is_unranked(one: Expression | None) -> bool:
    if isinstance(one, Items):
        return any(isinstance(part.shape, Unranked) for part in one.parts)
    return one is not None and isinstance(one.shape, Unranked)


_MALFORMED = (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What a rule stumbles over in a node that does not fit its schema."""


def _guarded(rule: OnnxRule, certain: bool) -> OnnxRule:
    """A rule that covers no call that does not fit, and whose results have ordinary shapes.

    Where every run comes by (`certain`), an operator that is not defined there stops them all.
    """

    def guarded(call: OnnxCall) -> tuple[Expression, ...]:
        try:
            result = rule(call)
            several = result if isinstance(result, tuple) else (result,)
            if len(several) < len(call.outputs):
                raise NotCovered("more outputs than it knows of")
            parts = [
                part
                for one in several
                for part in (one.parts if isinstance(one, Items) else (one,))
            ]
            if not all(proto.moderate_shape(part.shape) for part in parts):
                raise NotCovered("sizes beyond measure")
            if any(isinstance(part.shape, Unranked) for part in parts):
                raise NotCovered("a result of unknown rank")
        except Undefined as problem:
            if certain:
                raise Stops(f"{call.operator} is given {problem}") from problem
            raise
        except _MALFORMED as problem:
            raise NotCovered(f"its inputs or attributes do not fit ({problem})") from problem
        return several[: len(call.outputs)]

    return guarded


def _quietly(find: Any) -> Known | None:
    try:
        return cast("Known | None", find())
    except (NotCovered, *_MALFORMED):
        return None
