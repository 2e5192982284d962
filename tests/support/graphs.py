"""Small ONNX graphs."""

import onnx
from onnx import TensorProto, helper


def onnx_model(*operators: str) -> onnx.ModelProto:
    """Return a chain of operators of one operand, over x of [batch, 8]."""
    names = ["x", *(f"v{number}" for number in range(len(operators) - 1)), "y"]
    nodes = [helper.make_node(one, [names[n]], [names[n + 1]]) for n, one in enumerate(operators)]
    value = helper.make_tensor_value_info
    shape: list[str | int | None] = ["batch", 8]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
