"""What a program costs, from shapes alone: parameters, bytes, arithmetic, memory traffic.

Nothing here reads a tensor's data, so programs without data (tensors on the meta device) have a
cost as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from planish.ir.constants import ancestry, constant_nodes
from planish.ir.ops import attention, selective_scan
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, dequantize
from planish.ir.sizes import SymbolicShapes
from planish.ir.stack import SignStack, sign_stack

aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """The tensors that one module of the model holds.

    Attributes:
        name: the module's path, e.g. `"model.layers.0.mlp.up_proj"`.
        parameters: the numbers it has, however they are stored: a matrix quantized to 4 bits
            counts as many as before.
        nbytes: the bytes it is stored in, scales and zero points included.
        form: how its largest tensor is stored: `"float32"`, `"int4 symmetric, groups of 64"`.
        shapes: of its tensors that have the most dimensions, each once.
    """

    name: str
    parameters: int
    nbytes: int
    form: str
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Cost:
    """The work of one node, or of several.

    Attributes:
        flops: floating-point operations of contractions; a multiplication and an addition are
            two. Elementwise work is not counted: its time is that of its bytes.
        nbytes: bytes read and written, if every operator reads its operands from memory once and
            writes its result there, and a weight is read in the form it is stored in.
    """

    flops: int = 0
    nbytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.nbytes + other.nbytes)


def layers(program: Program) -> tuple[Layer, ...]:
    """Every module that holds tensors, in the order in which the graph reads them."""
    reads = dict.fromkeys(str(node.target) for node in program.graph.nodes if node.op == "get_attr")
    groups: dict[str, list[str]] = {}
    for name in reads:
        groups.setdefault(layer_of(name), []).append(name)
    packed = {
        str(part.target): node
        for node in program.nodes(dequantize, sign_stack)
        for part in node.all_input_nodes
        if part.op == "get_attr"
    }
    return tuple(_layer(program, layer, names, packed) for layer, names in groups.items())


def layer_of(tensor: str) -> str:
    """The module that a tensor belongs to; its own name for a tensor of the whole model."""
    return tensor.rpartition(".")[0] or tensor


def _layer(
    program: Program, layer: str, names: Iterable[str], packed: Mapping[str, fx.Node]
) -> Layer:
    """One layer. The parts of a quantized tensor count as the one tensor they stand for."""
    plain = [program.tensors[name] for name in names if name not in packed]
    shapes = [tuple(tensor.shape) for tensor in plain]
    forms = [
        (tensor.numel(), _dtype_name(tensor.dtype))
        for tensor in plain
        if tensor.is_floating_point()
    ]
    for node in {packed[name] for name in names if name in packed}:
        shape, form = _packed(node, program.tensors)
        forms.append((math.prod(shape), form))
        shapes.append(shape)
    most = max(map(len, shapes))
    return Layer(
        name=layer,
        parameters=sum(numel for numel, _ in forms),
        nbytes=sum(program.tensors[name].nbytes for name in names),
        form=max(forms)[1] if forms else _dtype_name(plain[0].dtype),
        shapes=tuple(dict.fromkeys(shape for shape in shapes if len(shape) == most)),
    )


def _packed(node: fx.Node, tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], str]:
    """Shape and form of a tensor that is put together from others."""
    if node.target is sign_stack:
        _, stack = SignStack.read_by(node, tensors)
        return stack.shape, str(stack)
    _, quantized = QuantizedTensor.read_by(node, tensors)
    return tuple(quantized.shape), str(quantized.scheme)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def parameters(program: Program) -> int:
    """The numbers of a model, however they are stored."""
    return sum(layer.parameters for layer in layers(program))


def costs(program: Program, sizes: Mapping[str, int]) -> dict[fx.Node, Cost]:
    """The cost of each node that does work in a run, at given sizes.

    Constants cost nothing by themselves, and views move nothing: who reads them pays for the
    bytes. No fusion is assumed, so the bytes are an upper bound for what a fusing backend moves.

    Args:
        program: may be without data.
        sizes: the value of each symbolic size, e.g. `{"B": 1, "T": 128, "P": 0}`.
    """
    shapes = _Concrete(program.shapes, sizes)
    constant = constant_nodes(program.graph)
    return {
        node: Cost(_flops(node, shapes), _traffic(node, shapes, constant))
        for node in program.graph.nodes
        if node.op == "call_function" and node not in constant and not _is_free(node)
    }


def total(costs: Iterable[Cost]) -> Cost:
    """The sum."""
    return sum(costs, start=Cost())


class _Concrete:
    """Symbolic shapes at given sizes."""

    def __init__(self, shapes: SymbolicShapes, sizes: Mapping[str, int]) -> None:
        self._values = {
            shapes.extent(size.name).node.expr: sympy.Integer(sizes[size.name])
            for size in shapes.sizes
        }

    def shape(self, node: Any) -> tuple[int, ...]:
        """The shape of a node's value, which is one tensor."""
        return tuple(self._extent(extent) for extent in node.meta["val"].shape)

    def _extent(self, extent: Any) -> int:
        if isinstance(extent, torch.SymInt):
            return int(extent.node.expr.xreplace(self._values))
        return int(extent)

    def nbytes(self, node: fx.Node) -> int:
        """Bytes of a node's value: a tensor, several, or a size, which takes none."""
        value = node.meta["val"]
        parts = value if isinstance(value, (list, tuple)) else (value,)
        return sum(
            math.prod(map(self._extent, part.shape)) * part.dtype.itemsize
            for part in parts
            if isinstance(part, Tensor)
        )


def _is_free(node: fx.Node) -> bool:
    """Whether a call moves no data: a size, one of several results, a view."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not isinstance(node.meta["val"], (Tensor, list, tuple)):
        return True
    return any(result.alias_info is not None for result in schema.returns)


def _traffic(node: fx.Node, shapes: _Concrete, constant: set[fx.Node]) -> int:
    operands = list(node.all_input_nodes)
    moved = shapes.nbytes(node)
    if node.target is aten.embedding.default:  # it reads only the rows it returns
        table = operands.pop(0)
        rows = math.prod(shapes.shape(table)[:1])
        moved += _stored(table, shapes, constant) * math.prod(shapes.shape(node)[:-1]) // rows
    return moved + sum(_stored(operand, shapes, constant) for operand in operands)


def _stored(operand: fx.Node, shapes: _Concrete, constant: set[fx.Node]) -> int:
    """Bytes read to get at an operand: for a constant, those of the tensors it is made from."""
    if operand not in constant:
        return shapes.nbytes(operand)
    return sum(shapes.nbytes(part) for part in ancestry(operand) if part.op == "get_attr")


def _flops(node: fx.Node, shapes: _Concrete) -> int:
    formula = _FORMULAS.get(node.target)  # type: ignore[arg-type]
    return 0 if formula is None else formula(node, shapes)


def _contraction(operand: int) -> Callable[[fx.Node, _Concrete], int]:
    """2 · outputs · K, where K is the last extent of the operand in this place."""

    def flops(node: fx.Node, shapes: _Concrete) -> int:
        return 2 * math.prod(shapes.shape(node)) * shapes.shape(node.args[operand])[-1]

    return flops


def _convolution(node: fx.Node, shapes: _Concrete) -> int:
    """2 · outputs · (input channels of a group) · window, for weights [O, I/groups, ...]."""
    return 2 * math.prod(shapes.shape(node)) * math.prod(shapes.shape(node.args[1])[1:])


def _transposed_convolution(node: fx.Node, shapes: _Concrete) -> int:
    """2 · inputs · (output channels of a group) · window, for weights [I, O/groups, ...]."""
    return 2 * math.prod(shapes.shape(node.args[0])) * math.prod(shapes.shape(node.args[1])[1:])


def _any_convolution(node: fx.Node, shapes: _Concrete) -> int:
    transposed = node.args[6]
    return (_transposed_convolution if transposed else _convolution)(node, shapes)


def _attention(node: fx.Node, shapes: _Concrete) -> int:
    """2 · B · H · T · S · (D + V): scores, then the weighted sum of values.

    Masked pairs count, as in kernels that do not skip them.
    """
    *rows, width = shapes.shape(node.args[0])
    positions, value_width = shapes.shape(node.args[2])[-2:]
    return 2 * math.prod(rows) * positions * (width + value_width)


def _selective_scan(node: fx.Node, shapes: _Concrete) -> int:
    """6 for each step and entry of the state: decay, drive, and the product with c."""
    columns = shapes.shape(node.args[3])[-1]
    return 6 * math.prod(shapes.shape(node.args[0])) * columns


_FORMULAS: dict[Callable[..., Any], Callable[[fx.Node, _Concrete], int]] = {
    aten.linear.default: _contraction(0),
    aten.matmul.default: _contraction(0),
    aten.mm.default: _contraction(0),
    aten.bmm.default: _contraction(0),
    aten.addmm.default: _contraction(1),
    aten.baddbmm.default: _contraction(1),
    aten.convolution.default: _any_convolution,
    **dict.fromkeys(
        (
            aten.conv1d.default,
            aten.conv1d.padding,
            aten.conv2d.default,
            aten.conv2d.padding,
            aten.conv3d.default,
            aten.conv3d.padding,
        ),
        _convolution,
    ),
    **dict.fromkeys(
        (
            aten.conv_transpose1d.default,
            aten.conv_transpose2d.input,
            aten.conv_transpose3d.input,
        ),
        _transposed_convolution,
    ),
    aten.scaled_dot_product_attention.default: _attention,
    attention: _attention,
    selective_scan: _selective_scan,
}
"""Operators that contract, and how many operations each takes."""
