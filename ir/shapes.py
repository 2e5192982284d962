"""Shapes and dtypes of every value, and the rules that every program keeps."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.utils._pytree import tree_flatten, tree_unflatten

from planish.ir.operators import is_operator, schema
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
    if is_operator(target):
        namespace, _, name = schema(target).name.partition("::")
        return namespace in NAMESPACES and name not in FORBIDDEN and not schema(target).is_mutable
    return any(target is function for function in SYMBOLIC_FUNCTIONS.values())


def propagate(program: Program) -> None:
    """Compute `meta["val"]` wherever what it follows from has changed.

    Each node keeps in `meta["from"]` what its value was computed from: the operator and its
    arguments, nodes standing for their values. A value that comes out as before stays the same
    object, so that a local change costs a local update.

    Raises:
        IllFormed: if an operator refuses the shapes or dtypes of its arguments.
        planish.ir.sizes.SpecializedSize: if an operator fixes a symbolic size.
    """
    specs = {spec.name: spec for spec in program.inputs}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            _settle(node, [specs[str(node.target)]], _fake_input, program.shapes)
        elif node.op == "get_attr":
            infer_read(node, program.tensors[str(node.target)], program.shapes)
        elif node.op == "call_function":
            infer_call(node, program.shapes)
    program.shapes.check()


def infer_read(node: fx.Node, tensor: Tensor, shapes: SymbolicShapes) -> None:
    """Set the value of a node that reads `tensor`."""
    _settle(node, [tensor], _fake_tensor, shapes)


def infer_call(node: fx.Node, shapes: SymbolicShapes) -> None:
    """Set the value of a call, all of whose arguments have one.

    Raises:
        IllFormed: if the operator refuses the shapes or dtypes of its arguments.
    """
    values = fx.map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
    leaves, structure = tree_flatten(values)
    _settle(node, [node.target, structure, *leaves], _fake_call, shapes)


def _settle(
    node: fx.Node,
    origin: list[Any],
    compute: Callable[[fx.Node, list[Any], SymbolicShapes], Any],
    shapes: SymbolicShapes,
) -> None:
    if _same_origin(node.meta.get("from"), origin):
        return
    value = compute(node, origin, shapes)
    if not _same(node.meta.get("val"), value, shapes):
        node.meta["val"] = value
    node.meta["from"] = origin


def _same_origin(old: list[Any] | None, new: list[Any]) -> bool:
    """Whether nothing changed: tensors and sizes are told apart as objects, the rest as values."""
    return (
        old is not None
        and len(old) == len(new)
        and all(
            one is other
            or (type(one) is type(other) and not isinstance(one, _OBJECTS) and one == other)
            for one, other in zip(old, new, strict=True)
        )
    )


_OBJECTS = (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)


def _fake_input(node: fx.Node, origin: list[Any], shapes: SymbolicShapes) -> Tensor:  # noqa: ARG001
    return shapes.fake(origin[0].dtype, origin[0].shape)


def _fake_tensor(node: fx.Node, origin: list[Any], shapes: SymbolicShapes) -> Tensor:  # noqa: ARG001
    with shapes.mode:
        return torch.empty_like(origin[0], device="cpu", requires_grad=False)


def _fake_call(node: fx.Node, origin: list[Any], shapes: SymbolicShapes) -> Any:
    args, kwargs = tree_unflatten(origin[2:], origin[1])
    try:
        with shapes.mode, enable_python_dispatcher(), torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        raise IllFormed(
            f"{describe(node)}: the operator refuses its arguments ({error})"
        ) from error


def _same(old: Any, new: Any, shapes: SymbolicShapes) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return (
            old.dtype == new.dtype
            and old.dim() == new.dim()
            and all(
                one is other or shapes.text(one) == shapes.text(other)
                for one, other in zip(old.shape, new.shape, strict=True)
            )
        )
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
