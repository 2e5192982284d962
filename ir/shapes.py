"""Shapes and dtypes of every value, and the rules that every program keeps."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher

from planish.ir.program import IllFormed, Program
from planish.ir.sizes import SymbolicShapes

SYMBOLIC_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "operator.add": operator.add,
    "operator.sub": operator.sub,
    "operator.mul": operator.mul,
    "operator.floordiv": operator.floordiv,
    "operator.truediv": operator.truediv,
    "operator.mod": operator.mod,
    "operator.pow": operator.pow,
    "operator.neg": operator.neg,
    "operator.eq": operator.eq,
    "operator.ne": operator.ne,
    "operator.lt": operator.lt,
    "operator.le": operator.le,
    "operator.gt": operator.gt,
    "operator.ge": operator.ge,
    "operator.getitem": operator.getitem,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
    "torch.sym_float": torch.sym_float,
    "torch.sym_int": torch.sym_int,
    "torch.sym_ite": torch.sym_ite,
    "torch.sym_max": torch.sym_max,
    "torch.sym_min": torch.sym_min,
    "torch.sym_not": torch.sym_not,
    "torch.sym_sqrt": torch._sym_sqrt,  # type: ignore[attr-defined]
    "torch.sym_sum": torch.sym_sum,
}
"""The functions besides operators of `NAMESPACES` that a graph may call: arithmetic on sizes."""

NAMESPACES = ("aten", "planish")
"""The operator namespaces that a graph may call."""

FORBIDDEN = frozenset({"from_file", "_print", "_cuda_getDeviceFlags"})
"""ATen operators that reach outside the graph."""


def is_allowed(target: Any) -> bool:
    """Whether a graph may call `target`: functional operators, and arithmetic on sizes."""
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return namespace in NAMESPACES and name not in FORBIDDEN and not target._schema.is_mutable
    return any(target is function for function in SYMBOLIC_FUNCTIONS.values())


def propagate(program: Program) -> None:
    """Compute `meta["val"]` wherever it is missing, and wherever an argument's shape changed.

    Raises:
        IllFormed: if an operator refuses the shapes or dtypes of its arguments.
        planish.ir.sizes.SpecializedSize: if an operator fixes a symbolic size.
    """
    shapes = program.shapes
    specs = {spec.name: spec for spec in program.inputs}
    changed: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        if node.op == "placeholder":
            spec = specs[str(node.target)]
            value: Any = shapes.fake(spec.dtype, spec.shape)
        elif node.op == "get_attr":
            value = _fake_tensor(program.tensors[str(node.target)], shapes)
        elif "val" in node.meta and changed.isdisjoint(node.all_input_nodes):
            continue
        else:
            value = _fake_call(node, shapes)
        if not _same(node.meta.get("val"), value, shapes):
            changed.add(node)
        node.meta["val"] = value
    shapes.check()


def _fake_tensor(tensor: Tensor, shapes: SymbolicShapes) -> Tensor:
    with shapes.mode:
        return torch.empty_like(tensor, device="cpu", requires_grad=False)


def _fake_call(node: fx.Node, shapes: SymbolicShapes) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
    try:
        with shapes.mode, enable_python_dispatcher(), torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        raise IllFormed(
            f"{describe(node)}: the operator refuses its arguments ({error})"
        ) from error


def _same(old: Any, new: Any, shapes: SymbolicShapes) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return old.dtype == new.dtype and [shapes.text(extent) for extent in old.shape] == [
            shapes.text(extent) for extent in new.shape
        ]
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return len(old) == len(new) and all(
            _same(one, other, shapes) for one, other in zip(old, new, strict=True)
        )
    return old is not None and shapes.text(old) == shapes.text(new)


def describe(node: fx.Node) -> str:
    """A node as errors name it: `%linear_3 (model.layers.0.mlp.up_proj)`."""
    module = node.meta.get("module")
    return f"%{node.name} ({module})" if module else f"%{node.name}"


def well_formed(program: Program) -> None:
    """Check the rules that every program keeps.

    Raises:
        IllFormed: naming the node that breaks one.
    """
    program.graph.lint()
    placeholders = [node.target for node in program.graph.nodes if node.op == "placeholder"]
    if placeholders != [spec.name for spec in program.inputs]:
        raise IllFormed(f"the graph reads {placeholders}, which are not the declared inputs")
    if len(program.output_nodes) != len(program.outputs):
        raise IllFormed(
            f"the graph returns {len(program.output_nodes)} values, "
            f"named are {len(program.outputs)}"
        )
    for node in program.graph.nodes:
        if node.op == "get_attr" and node.target not in program.tensors:
            raise IllFormed(f"{describe(node)}: no tensor is named {node.target!r}")
        if node.op == "call_function" and not is_allowed(node.target):
            raise IllFormed(f"{describe(node)}: {node.target} has no place in a program")
        if node.op not in {"placeholder", "get_attr", "call_function", "output"}:
            raise IllFormed(f"{describe(node)}: a program has no {node.op} nodes")
