"""Reading ONNX's control flow: If, Loop, Scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx

from planish.ir.flow import onnx_proto as proto
from planish.ir.flow.call import NotCovered
from planish.ir.flow.known import Numbers, one_number
from planish.ir.flow.onnx_cases import Formula, Undecided, atom
from planish.ir.flow.onnx_context import Context
from planish.ir.flow.onnx_graph import Held, Scope
from planish.ir.flow.onnx_nested import Iterated, as_flow, fill, read_body, tensors_of
from planish.ir.flow.polynomial import Count
from planish.ir.flow.vocabulary import (
    UNRANKED,
    Branch,
    Expression,
    Fill,
    Loop,
    Opaque,
    Shape,
    Slice,
    Unranked,
    Value,
    permuted,
)


def read_if(scope: Scope, node: onnx.NodeProto) -> None:
    """`If(condition)`: one branch where the condition is known, else either.

    Raises:
        Undecided: if the condition is public, and the model may be read once for each outcome.
    """
    graphs = [scope.given(node)[name].g for name in ("then_branch", "else_branch")]
    predicate = _tensor(scope, node.input[0])
    known = scope.context.known.get(predicate) if isinstance(predicate, Value) else None
    if isinstance(known, Numbers) and known.array.size == 1:
        _splice(scope, node, graphs[0 if known.array.flat[0] else 1])
        return
    if scope.context.splits and (condition := _open(scope.context, predicate)) is not None:
        raise Undecided(condition)
    try:
        bodies = [read_body(scope, node, graph, []) for graph in graphs]
        columns = list(zip(*(tensors_of(one) for one in bodies), strict=True))
        shapes = [_common(scope, [value.shape for value in column]) for column in columns]
    except (NotCovered, ValueError) as problem:
        _unknown(scope, node, graphs, str(problem))
        return
    flows = tuple(as_flow(body, shapes) for body in bodies)
    expressions = [
        Branch(shape, predicate, flows, place)
        for place, (shape, _) in enumerate(zip(shapes, node.output, strict=False))
    ]
    _define(scope, node, "If", expressions, [column[0].dtype for column in columns])


def read_loop(scope: Scope, node: onnx.NodeProto) -> None:
    """`Loop(trips, condition, carried...)`."""
    graph = scope.given(node)["body"].g
    trips, condition, *initial = (_optional(scope, name) for name in node.input)
    names = [one.name for one in graph.input]
    try:
        carried: list[Expression] = [Fill(()), condition or Fill(()), *_all(initial)]
        reader = Iterated(scope, node, graph, names, carried, [])
        body = reader.read(counts=True)
        outputs = tensors_of(body)
        whole = _trips(scope, trips, condition, outputs[0])
        expressions = [
            Loop(shape, flow, reader.initial, (), 1, trips, place)
            for flow in [reader.flow(body, counts=True)]
            for place, shape in enumerate(reader.results(scope, outputs, whole, counts=True))
        ]
    except (NotCovered, ValueError) as problem:
        _unknown(scope, node, [graph], str(problem))
        return
    controls = [condition] if isinstance(condition, Value) else []
    dtypes = [one.dtype for one in outputs[1:]]
    _define(scope, node, "Loop", expressions[2:], dtypes, controls)


def read_scan(scope: Scope, node: onnx.NodeProto) -> None:
    """`Scan(states..., scanned...)` of opset 9 and later."""
    given = scope.given(node)
    graph = given["body"].g
    settings = {name: proto.attribute_value(one) for name, one in given.items()}
    try:
        if scope.opsets.get("", 0) < 9:
            raise NotCovered("a scan of opset 8, whose batch comes first")
        number = settings["num_scan_inputs"]
        values = _all([_optional(scope, name) for name in node.input])
        states, scanned = values[: len(values) - number], values[len(values) - number :]
        scanned = [_first(one, settings, "input", place) for place, one in enumerate(scanned)]
        reader = Iterated(scope, node, graph, [one.name for one in graph.input], states, scanned)
        body = reader.read(counts=False)
        outputs = tensors_of(body)
        whole = scanned[0].shape[0]
        flow = reader.flow(body, counts=False)
        expressions: list[Expression] = []
        for place, shape in enumerate(reader.results(scope, outputs, whole, counts=False)):
            one: Expression = Loop(shape, flow, reader.initial, tuple(scanned), None, None, place)
            if place >= len(states):
                one = _back(one, settings, place - len(states))
            expressions.append(one)
    except (NotCovered, ValueError, KeyError, IndexError, TypeError) as problem:
        _unknown(scope, node, [graph], str(problem))
        return
    _define(scope, node, "Scan", expressions, [one.dtype for one in outputs])


CONTROL: Mapping[str, Callable[[Scope, onnx.NodeProto], None]] = {
    "If": read_if,
    "Loop": read_loop,
    "Scan": read_scan,
}


_GRAPHS = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}
_INPUTS = {"If": 1, "Loop": 2, "Scan": 1}


def is_whole(node: onnx.NodeProto) -> bool:
    """Whether a node is control flow, with the graphs and inputs that it needs."""
    held = {one.name for one in node.attribute if one.HasField("g")}
    return (
        node.op_type in CONTROL
        and held.issuperset(_GRAPHS[node.op_type])
        and len(node.input) >= _INPUTS[node.op_type]
    )


def _trips(
    scope: Scope, trips: Expression | None, condition: Expression | None, after: Value
) -> Count:
    """How many iterations there are, a symbol where data decide."""
    known = scope.context.known
    number = one_number(known.get(trips)) if isinstance(trips, Value) else None
    begins = condition is None or _is_true(scope, condition)
    if number is None or not begins or not _is_true(scope, after):
        return scope.context.fresh()
    return scope.context.fresh() if isinstance(number, int) and number < 0 else number


def _is_true(scope: Scope, value: Expression) -> bool:
    known = scope.context.known.get(value) if isinstance(value, Value) else None
    return isinstance(known, Numbers) and known.array.size == 1 and known.array.flat[0] is True


def _splice(scope: Scope, node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
    """Read a branch that is taken for certain in place of its node."""
    path = f"{scope.path}{node.name or node.op_type}/"
    inner = Scope(
        scope.context, scope.opsets, path, scope, scope.nodes, scope.attributes, scope.depth + 1
    )
    fill(inner, graph)
    for one, name in zip(graph.output, node.output, strict=False):
        if name:
            scope.names[name] = inner.look_up(one.name)


def _open(context: Context, predicate: Expression) -> Formula | None:
    """What a public predicate follows from that is not yet decided."""
    formula = context.formula(predicate)
    condition = None if formula is None else atom(formula)
    return None if condition in context.case.truths else condition


def _common(scope: Scope, shapes: Sequence[Shape]) -> Shape:
    """The shape of either branch; sizes in which they differ are for data to decide."""
    if any(isinstance(shape, Unranked) for shape in shapes):
        raise NotCovered("the number of dimensions of a branch is not known")
    sizes: list[Count] = []
    for several in zip(*shapes, strict=True):
        alike = all(one == several[0] for one in several)
        sizes.append(several[0] if alike else scope.context.fresh())
    return tuple(sizes)


def _tensor(scope: Scope, name: str) -> Expression:
    one = _optional(scope, name)
    return Fill(()) if one is None else one


def _optional(scope: Scope, name: str) -> Expression | None:
    held: Held = scope.look_up(name)
    if isinstance(held, tuple):
        return Opaque(UNRANKED, held, "a sequence")
    return held


def _all(values: Sequence[Expression | None]) -> list[Expression]:
    if any(one is None for one in values):
        raise NotCovered("an input is left out")
    return [one for one in values if one is not None]


def _first(value: Expression, settings: Mapping[str, Any], side: str, place: int) -> Expression:
    """What is scanned, its scanned dimension first and in order."""
    rank = len(value.shape)
    axis = _axis(settings, side, place, rank)
    value = permuted(value, [axis, *(dim for dim in range(rank) if dim != axis)])
    return _reversed(value, settings, side, place)


def _back(value: Expression, settings: Mapping[str, Any], place: int) -> Expression:
    """What is stacked, its stacked dimension where it belongs."""
    rank = len(value.shape)
    axis = _axis(settings, "output", place, rank)
    value = _reversed(value, settings, "output", place)
    return permuted(value, [*range(1, axis + 1), 0, *range(axis + 1, rank)])


def _axis(settings: Mapping[str, Any], side: str, place: int, rank: int) -> int:
    axes = settings.get(f"scan_{side}_axes") or []
    axis: int = axes[place] if place < len(axes) else 0
    if not -rank <= axis < rank:
        raise NotCovered(f"axis {axis} of a tensor of {rank} dimensions")
    return axis % rank


def _reversed(value: Expression, settings: Mapping[str, Any], side: str, place: int) -> Expression:
    directions = settings.get(f"scan_{side}_directions") or []
    if place >= len(directions) or not directions[place]:
        return value
    size = value.shape[0]
    return Slice(value, 0, size - 1, -1, size)


def _define(
    scope: Scope,
    node: onnx.NodeProto,
    operator: str,
    expressions: Sequence[Expression],
    dtypes: Sequence[Any],
    controls: Sequence[Value] = (),
) -> None:
    values = [
        Value(name, expression.shape, dtype)
        for name, expression, dtype in zip(node.output, expressions, dtypes, strict=False)
    ]
    version = scope.opsets.get("", 0)
    scope.add(node, f"ai.onnx::{operator}@{version}", expressions[: len(values)], values, controls)


def _unknown(
    scope: Scope, node: onnx.NodeProto, graphs: Sequence[onnx.GraphProto], why: str
) -> None:
    """Nothing is claimed: the results may read every input and whatever the graphs read."""
    operator = f"ai.onnx::{node.op_type}@{scope.opsets.get('', 0)}"
    scope.context.unknown[operator] += 1
    inputs = [_optional(scope, name) for name in node.input]
    read = tuple(one for one in (*inputs, *scope.read_by(graphs)) if one is not None)
    expressions = [Opaque(UNRANKED, read, f"{operator}: {why}") for _ in node.output]
    values = [Value(name, UNRANKED, None) for name in node.output]
    scope.add(node, operator, expressions, values)
