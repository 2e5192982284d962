"""Reading torch.fx graphs as `Flow`s: programs, exported programs, nested graphs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from planish.ir.flow.call import Rule
from planish.ir.flow.fx_call import Sizes
from planish.ir.flow.fx_reader import Reader, returned
from planish.ir.flow.graph import Flow, State
from planish.ir.flow.polynomial import (
    Count,
)
from planish.ir.flow.vocabulary import Value
from planish.ir.program import Program


def read_program(program: Program, ties: Mapping[str, Count] | None = None) -> Flow:
    """The flow of a program.

    Args:
        program: what to read.
        ties: for names of sizes, what they are equal to besides.
    """
    reader = Reader(Sizes(program.shapes.names, ties), program.graph)
    inputs: list[Value] = []
    stored: dict[str, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            inputs.append(reader.enter(node, str(node.target)))
        elif node.op == "get_attr":
            name = str(node.target)
            if stored.setdefault(name, node) is node:
                reader.enter(node, name, program.tensors[name])
            reader.values[node] = reader.values[stored[name]]
        elif node.op == "call_function":
            reader.call(node)
    outputs = zip(program.outputs, program.output_nodes, strict=True)
    read = [reader.entered[node] for node in stored.values()]
    return reader.flow(inputs, read, dict(outputs))


def read_exported(
    exported: ExportedProgram,
    ties: Mapping[str, Count] | None = None,
    declared: Mapping[str, Rule] | None = None,
) -> Flow:
    """The flow of an exported program, which has to be functional (`run_decompositions`).

    What it writes to buffers and inputs are states. Nested graphs are read with it.

    Args:
        exported: what to read.
        ties: for names of sizes, what they are equal to besides.
        declared: rules for operators without one, by name: `my::op`.
    """
    reader = Reader(Sizes({}, ties), exported.graph, exported.graph_module, declared)
    signature = exported.graph_signature
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    kept = {str(spec.target) for spec in signature.output_specs if spec.kind in _WRITES}
    inputs: list[Value] = []
    stored: dict[str, Value] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind is InputKind.USER_INPUT:
                if isinstance(node.meta.get("val"), Tensor):
                    inputs.append(reader.enter(node, node.name))
                continue
            name = str(spec.target)
            # What a run writes holds other numbers from the second run on.
            tensor = _tensor(exported, name) if name not in kept else None
            stored[name] = reader.enter(node, name, tensor)
        elif node.op == "call_function":
            reader.call(node)
    results = zip(signature.output_specs, returned(exported.graph), strict=True)
    outputs: dict[str, fx.Node] = {}
    states: list[State] = []
    before = {one.name: one for one in (*inputs, *stored.values())}
    for spec, node in results:
        if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
            continue
        if spec.kind in _WRITES:
            name = str(spec.target)
            states.append(State(name, before[name], reader.values[node]))
        else:
            outputs[str(node.name)] = node
    return reader.flow(inputs, stored.values(), outputs, states)


_WRITES = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)


def _tensor(exported: ExportedProgram, name: str) -> Tensor | None:
    found = {**exported.state_dict, **exported.constants}.get(name)
    return found if isinstance(found, Tensor) else None
