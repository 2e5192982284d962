"""Reading ONNX models as `Flow`s.

Nothing that a file says about its values is believed: every shape follows from those of the inputs
through what each operator reads. What a file says about its inputs is believed, and can be
overridden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from planish.ir.flow import onnx_proto as proto
from planish.ir.flow.call import Rule
from planish.ir.flow.graph import Flow
from planish.ir.flow.lint import check, load
from planish.ir.flow.onnx_cases import MOST, Case, Stops, Undecided, of_input
from planish.ir.flow.onnx_context import Context
from planish.ir.flow.onnx_graph import Scope, plain_domain
from planish.ir.flow.polynomial import Count
from planish.ir.flow.vocabulary import Shape, Value


def read_model(
    model: str | Path | onnx.ModelProto, shapes: Mapping[str, Shape] | None = None
) -> Flow:
    """The flow of an ONNX model.

    Weights are not loaded; external data are not opened. Sizes that are symbols count as at least
    1. Dimensions of one name have one size; those without a name have sizes of their own.

    Args:
        model: the file, or what was read from it.
        shapes: of inputs, in place of those that the model states.

    Raises:
        Malformed: if the file is no ONNX model, or one that can be understood in several ways.
        TooLarge: if it unfolds into more nodes than can be read.
    """
    return read_checked(checked(model), shapes)


def checked(model: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """A model that has passed the strict checks: the file's, or the one given.

    Raises:
        Malformed: if the file is no ONNX model, or one that can be understood in several ways.
    """
    if not isinstance(model, onnx.ModelProto):
        return load(Path(model))
    check(model)
    return model


def read_checked(
    model: onnx.ModelProto,
    shapes: Mapping[str, Shape] | None = None,
    declared: Mapping[str, Rule] | None = None,
) -> Flow:
    """As `read_model`, of a model that has passed the checks; they cost as much as the reading.

    Args:
        model: what was read from the file.
        shapes: of inputs, in place of those that the model states.
        declared: rules for operators without one, by name: `my.domain::Op`.

    Raises:
        TooLarge: if it unfolds into more nodes than can be read.
    """
    return _read(model, _context(model, declared), shapes or {}, ())


def input_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """The shapes of a model's inputs, as the model states them."""
    context = _context(model, None)
    stored = {one.name for one in model.graph.initializer}
    stored |= {one.values.name for one in model.graph.sparse_initializer}
    given = (one for one in model.graph.input if one.name not in stored)
    return {one.name: _input(context, one, None).shape for one in given}


def read_cases(
    model: onnx.ModelProto,
    shapes: Mapping[str, Shape],
    declared: Mapping[str, Rule] | None,
    shared: Sequence[str],
) -> tuple[Flow, ...]:
    """A flow for each outcome of the public conditions of a model; every run is one of them.

    Public is what follows from sizes and from what all requests share. A case in which each run
    stops at an operator that is not defined for its operands is left out (`Flow.stops`).

    Args:
        model: what was read from the file.
        shapes: of inputs, in place of those that the model states.
        declared: rules for operators without one, by name: `my.domain::Op`.
        shared: inputs that are the same for all requests.

    Raises:
        TooLarge: if it unfolds into more nodes than can be read.
    """
    flows: list[Flow] = []
    stops: list[str] = []
    pending = [Case()]
    while pending:
        case = pending.pop()
        splits = len(flows) + len(stops) + len(pending) + 2 <= MOST
        context = replace(_context(model, declared), case=case, splits=splits)
        try:
            flows.append(_read(model, context, shapes, shared))
        except Undecided as found:
            pending += case.either(found.condition)
        except Stops as problem:
            stops.append(f"where {case}: {problem}")
    if not flows:
        return (read_checked(model, shapes, declared),)
    return tuple(replace(one, stops=tuple(stops)) for one in flows)


def _context(model: onnx.ModelProto, declared: Mapping[str, Rule] | None) -> Context:
    functions = {(plain_domain(one.domain), one.name, one.overload): one for one in model.functions}
    return Context(functions, declared or {})


def _read(
    model: onnx.ModelProto, context: Context, shapes: Mapping[str, Shape], shared: Sequence[str]
) -> Flow:
    """The flow of a model in one case."""
    opsets = {plain_domain(one.domain): one.version for one in model.opset_import}
    scope = Scope(context, opsets, nodes=context.nodes)
    graph = model.graph
    stored = _stored(scope, graph)
    inputs = []
    for one in graph.input:
        if one.name not in stored:
            value = _input(context, one, shapes.get(one.name))
            if one.name in shared:
                context.note(value, of_input(one.name, value.dtype))
            scope.names[one.name] = value
            inputs.append(value)
    scope.names |= stored
    scope.read(graph.node)
    return Flow(
        tuple(inputs),
        tuple(context.stored),
        tuple(scope.nodes),
        _outputs(scope, graph),
        known=context.known,
        unknown_operators=dict(context.unknown),
        defaults=tuple(one.name for one in graph.input if one.name in stored),
        floats=context.floats,
    )


def _stored(scope: Scope, graph: onnx.GraphProto) -> dict[str, Value]:
    stored = {one.name: scope.store(one, one.name) for one in graph.initializer}
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        stored[name] = Value(name, tuple(sparse.dims), proto.dtype_name(sparse.values.data_type))
        scope.context.stored[stored[name]] = None
    return stored


def _input(context: Context, one: onnx.ValueInfoProto, given: Shape | None) -> Value:
    def symbol(name: str, number: int) -> Count:
        return context.symbol(name or f"{one.name}[{number}]")

    shape = proto.input_shape(one, symbol) if given is None else given
    tensor = one.type.HasField("tensor_type")
    dtype = proto.dtype_name(one.type.tensor_type.elem_type) if tensor else None
    return Value(one.name, context.settled(shape), dtype)


def _outputs(scope: Scope, graph: onnx.GraphProto) -> dict[str, Value]:
    """By name; the tensors of a sequence by name and number."""
    outputs: dict[str, Value] = {}
    for one in graph.output:
        held = scope.look_up(one.name)
        if isinstance(held, Value):
            outputs[one.name] = held
        elif held is not None:
            outputs |= {f"{one.name}.{number}": part for number, part in enumerate(held)}
    return outputs
