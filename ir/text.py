"""Programs as text: deterministic, one line a node, read by people and by golden tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from planish.ir.operators import is_operator
from planish.ir.program import Program
from planish.ir.shapes import SYMBOLIC_FUNCTIONS
from planish.ir.sizes import SymbolicShapes

_DTYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}


def program_text(program: Program) -> str:
    """The whole program: a head with the sizes, a line a node, and what is returned."""
    sizes = ", ".join(map(str, program.sizes))
    lines = [f"program {program.source.name}" + (f" for {sizes}" if sizes else "")]
    lines += [
        f"  {line}"
        for node in program.graph.nodes
        if (line := _node_line(node, program.shapes)) is not None
    ]
    returned = ", ".join(
        f"{name}={_argument(node)}"
        for name, node in zip(program.outputs, program.output_nodes, strict=True)
    )
    return "\n".join([*lines, f"  return {returned}", ""])


def _node_line(node: fx.Node, shapes: SymbolicShapes) -> str | None:
    head = f"%{node.name}: {value_text(node.meta.get('val'), shapes)}"
    if node.op == "placeholder":
        return f"{head} = input"
    if node.op != "call_function":
        return None  # tensors are written where they are read, outputs in the last line
    arguments = [_argument(argument) for argument in node.args]
    arguments += [f"{key}={_argument(value)}" for key, value in node.kwargs.items()]
    return f"{head} = {target_text(node.target)}({', '.join(arguments)})"


def value_text(value: Any, shapes: SymbolicShapes) -> str:
    """The type of a value: `f32[B, T, 576]`, `(f32[B], i64[B])`, or a size: `B*T`."""
    if isinstance(value, Tensor):
        extents = ", ".join(shapes.text(extent) for extent in value.shape)
        return f"{_DTYPES.get(value.dtype, str(value.dtype))}[{extents}]"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(value_text(part, shapes) for part in value) + ")"
    return shapes.text(value)


def target_text(target: Any) -> str:
    """An operator's name: `aten.linear`, with its overload where that is not the default."""
    if is_operator(target):
        return str(target).removesuffix(".default")
    return next(name for name, function in SYMBOLIC_FUNCTIONS.items() if function is target)


def _argument(argument: Any) -> str:
    if isinstance(argument, fx.Node):
        return f"@{argument.target}" if argument.op == "get_attr" else f"%{argument.name}"
    if isinstance(argument, (list, tuple)):
        return "[" + ", ".join(map(_argument, argument)) + "]"
    if isinstance(argument, torch.dtype):
        return _DTYPES.get(argument, str(argument))
    return str(argument) if not isinstance(argument, str) else repr(argument)
