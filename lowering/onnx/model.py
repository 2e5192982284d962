"""From a program to an ONNX model in memory: one walk over the graph."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnx_ir.tensor_adapters import from_torch_dtype
from torch import Tensor, fx

from planish.ir.errors import PlanishError
from planish.ir.program import Program
from planish.ir.text import target_text
from planish.lowering.onnx.builder import LEFT_OUT, Builder
from planish.lowering.onnx.table import EMITTERS
from planish.lowering.onnx.target import CONTRIB, IR_VERSION, OPSET, Target

PRODUCER = "planish"


class UnsupportedOperator(PlanishError):
    """An operator of the program cannot be said in ONNX."""


def build(program: Program, target: Target) -> tuple[ir.Model, list[str]]:
    """Lower a program.

    Returns:
        The model, whose large tensors are read from the program when it is written, and notes
        for the user.

    Raises:
        UnsupportedOperator: naming the node, its operator and its module.
    """
    b = Builder(program, target)
    for spec, node in zip(program.inputs, program.graph.nodes, strict=False):
        b.bind(node, b.inputs[spec.name])
    for node in program.graph.find_nodes(op="get_attr"):
        b.bind(node, b.tensor(str(node.target)))
    for node in program.graph.nodes:
        if node.op == "call_function":
            _lower(b, node)
    return _model(b), _notes(program, target)


def _notes(program: Program, target: Target) -> list[str]:
    values = (node.meta.get("val") for node in program.graph.nodes)
    found = {value.dtype for value in values if isinstance(value, Tensor)}
    return [
        f"The ONNX model stores and computes in {_dtype_name(wide)} what the program has in "
        f"{_dtype_name(narrow)}: its execution provider has no kernels for that."
        for narrow, wide in target.computes
        if narrow in found
    ]


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _lower(b: Builder, node: fx.Node) -> None:
    if not isinstance(node.meta["val"], Tensor | list | tuple):
        return  # a size: computed where it is needed
    b.enter(node)
    if node.target is operator.getitem:
        whole, place = node.args
        b.values[node] = b.values[whole][place]  # type: ignore[index]
        return
    emitter = EMITTERS.get(node.target)  # type: ignore[arg-type]
    if emitter is None:
        raise _unsupported(b, "has no counterpart in the table of emitters")
    try:
        b.bind(node, emitter(b, *_arguments(b, node)))
    except NotImplementedError as error:
        raise _unsupported(b, f"cannot be lowered here ({error})") from error


def _unsupported(b: Builder, why: str) -> UnsupportedOperator:
    return UnsupportedOperator(
        f"{b.where}: {target_text(b.node.target)} {why}. Write that part of the model with other "
        "operators, or keep the result as a checkpoint (`--target torch`)."
    )


def _arguments(b: Builder, node: fx.Node) -> Iterator[Any]:
    """The arguments of a call in the order of the operator's schema, defaults filled in."""
    for place, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name in LEFT_OUT:
            continue
        given: Any = argument.default_value
        if place < len(node.args):
            given = node.args[place]
        elif argument.name in node.kwargs:
            given = node.kwargs[argument.name]
        yield _resolved(b, given)


def _resolved(b: Builder, argument: Any) -> Any:
    if isinstance(argument, fx.Node):
        val = argument.meta["val"]
        return b.values[argument] if isinstance(val, Tensor | list | tuple) else val
    if isinstance(argument, (list, tuple)):
        return [_resolved(b, part) for part in argument]
    return argument


def _model(b: Builder) -> ir.Model:
    outputs = [_output(b, name, node) for name, node in _returned(b.program)]
    for value, (dtype, shape) in b.types():
        value.type = ir.TensorType(from_torch_dtype(dtype))
        value.shape = ir.Shape([b.name_of(extent) for extent in shape])
    graph = ir.Graph(
        list(b.inputs.values()),
        outputs,
        nodes=b.nodes,
        initializers=list(b.initializers.values()),
        opset_imports={"": OPSET, CONTRIB: 1},
        name=b.program.source.name,
    )
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name=PRODUCER)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    return model


def _returned(program: Program) -> Iterator[tuple[str, fx.Node]]:
    return zip(program.outputs, program.output_nodes, strict=True)


def _output(b: Builder, name: str, node: fx.Node) -> ir.Value:
    """The value of an output under its name; one that has a name already is passed through."""
    value: ir.Value = b.values[node]
    while value.producer() is None or value.name in b.program.outputs:
        value = b.typed(b.op("Identity", value), node.meta["val"].dtype, node.meta["val"].shape)
    value.name = name
    return value
