"""ONNX models written by hand, and what the analysis says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from planish.ir.flow.graph import Flow
from planish.ir.flow.onnx import read_model
from planish.ir.flow.polynomial import Polynomial
from planish.ir.isolation.dependence import Dependence
from planish.ir.isolation.digits import rows
from planish.ir.isolation.interpret import Interpreter

Dims = Sequence[int | str | None]
B = Polynomial.symbol("B")


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by blanks, `-` is an input that is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(operator, names, outputs.split(), **attributes)


def value(name: str, dims: Dims | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, dims)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Dims | None],
    outputs: str = "y",
    stored: Mapping[str, Any] | None = None,
    integers: Sequence[str] = (),
    truths: Sequence[str] = (),
) -> onnx.GraphProto:
    def dtype(name: str) -> int:
        return int(
            TensorProto.INT64
            if name in integers
            else TensorProto.BOOL
            if name in truths
            else TensorProto.FLOAT
        )

    return helper.make_graph(
        list(nodes),
        "g",
        [value(name, dims, dtype(name)) for name, dims in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(one), name) for name, one in (stored or {}).items()],
    )


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Dims | None],
    outputs: str = "y",
    version: int = 21,
    functions: Sequence[onnx.FunctionProto] = (),
    **rest: Any,
) -> onnx.ModelProto:
    """A model of these nodes."""
    imports = [
        helper.make_opsetid("", version),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid("own", 1),
    ]
    return helper.make_model(
        graph(nodes, inputs, outputs, **rest),
        opset_imports=imports,
        ir_version=10,
        functions=list(functions),
    )


def dependences(flow: Flow, shared: Sequence[str] = ()) -> dict[str, Dependence]:
    """What each output depends on if rows along axis 0 of inputs belong to requests."""
    given = {one: Dependence() for one in (*flow.inputs, *flow.stored)}
    for one in flow.inputs:
        if one.name not in shared and one.shape:
            given[one] = Dependence(frozenset({rows(0, one.shape[0])}))
    interpreter = Interpreter(given)
    interpreter.run(flow)
    return {
        name: interpreter.dependences.get(one, Dependence()) for name, one in flow.outputs.items()
    }


def verdict(proto: onnx.ModelProto, output: str = "y", shared: Sequence[str] = ()) -> str:
    """`isolated`, or the kinds of the causes; `moved` where rows are another request's."""
    flow = read_model(proto)
    found = dependences(flow, shared)[output]
    if found.causes:
        return " ".join(sorted({cause.kind for cause in found.causes}))
    shape = flow.outputs[output].shape
    own = all(one == rows(0, shape[0]) for one in found.maps) if shape else not found.maps
    return "isolated" if own else "moved"
