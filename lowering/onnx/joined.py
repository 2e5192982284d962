"""One model of two graphs of a language model: one reads prompts, one reads single tokens.

What multiplies many rows fast (8-bit activations) is not what reads weights fast (4-bit weights).
`If` chooses by how many new tokens there are, so any runtime of ONNX has the choice; weights that
both graphs read are stored once.
"""

from __future__ import annotations

import onnx_ir as ir

from planish.ir.carried import IN_PLACE, TOKENS
from planish.lowering.onnx.one_token import OPERATOR
from planish.lowering.onnx.target import CONTRIB, IR_VERSION, OPSET


def joined(prompts: ir.Model, tokens: ir.Model) -> ir.Model:
    """Join two models with the same inputs and outputs; both are taken apart.

    Args:
        prompts: reads any number of new tokens.
        tokens: reads one.
    """
    inputs, outputs = list(prompts.graph.inputs), list(prompts.graph.outputs)
    names = [str(value.name) for value in outputs]
    types = [(value.type, value.shape) for value in outputs]
    in_place = _in_place(tokens.graph)
    shared = _shared(prompts.graph, tokens.graph)
    branches = [
        _branch(model.graph, inputs, what)
        for model, what in ((tokens, "token"), (prompts, "prompt"))
    ]
    length = ir.node("Shape", [_named(inputs, TOKENS)], {"start": 1, "end": 2})
    one = ir.Value(name="one", const_value=ir.tensor([1], name="one"))
    single = ir.node("Equal", [length.outputs[0], one])
    attributes = [
        ir.AttrGraph(name, graph)
        for name, graph in zip(("then_branch", "else_branch"), branches, strict=True)
    ]
    whole = ir.Node(
        "",
        "If",
        [single.outputs[0]],
        attributes,
        num_outputs=len(names),
        name="single_token",
    )
    for value, name, (kind, shape) in zip(whole.outputs, names, types, strict=True):
        value.name, value.type, value.shape = name, kind, shape
    graph = ir.Graph(
        inputs,
        whole.outputs,
        nodes=[length, single, whole],
        initializers=[one, *shared],
        opset_imports={"": OPSET, CONTRIB: 1},
        name=prompts.graph.name,
    )
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name=prompts.producer_name)
    if in_place:
        model.metadata_props[IN_PLACE] = ",".join(in_place)
    return model


def _named(values: list[ir.Value], name: str) -> ir.Value:
    return next(value for value in values if value.name == name)


def _in_place(graph: ir.Graph) -> list[str]:
    """The inputs that only an operator reads which can write into them."""
    return [
        str(value.name)
        for value in graph.inputs
        if (users := value.uses()) and all(use.node.op_type == OPERATOR for use in users)
    ]


def _shared(prompts: ir.Graph, tokens: ir.Graph) -> list[ir.Value]:
    """The tensors that both graphs store alike, taken out of both for the graph around them."""
    found = []
    for name in [*prompts.initializers.keys() & tokens.initializers.keys()]:
        one, other = prompts.initializers[name], tokens.initializers[name]
        if _alike(one.const_value, other.const_value):
            ir.convenience.replace_all_uses_with(other, one)
            del prompts.initializers[name], tokens.initializers[name]
            found.append(one)
    return sorted(found, key=lambda value: str(value.name))


def _alike(one: ir.TensorProtocol | None, other: ir.TensorProtocol | None) -> bool:
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.tobytes() == other.tobytes()


def _branch(graph: ir.Graph, inputs: list[ir.Value], what: str) -> ir.Graph:
    """A graph as a branch: it reads the inputs of the one around it, under other output names."""
    for own, outer in zip(list(graph.inputs), inputs, strict=True):
        if own is not outer:
            ir.convenience.replace_all_uses_with(own, outer)
    graph.inputs.clear()
    graph.name = what
    for value in graph.outputs:
        value.name = f"{what}/{value.name}"
    return graph
