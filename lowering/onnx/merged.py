"""One product for quantized projections of the same input, such as query, key and value.

At batch 1 a product is mostly the reading of its weight, and one large product reads faster than
three small ones. The weights' blocks are stored one below the other; results are split apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from planish.lowering.onnx import quantized
from planish.lowering.onnx.builder import Builder
from planish.lowering.onnx.quantized import KERNEL, Blocks

aten = torch.ops.aten


def linear(b: Builder, x: ir.Value, weight: Blocks, bias: ir.Value | None) -> ir.Value:
    """The node's x · weightᵀ + bias, as part of a larger product where there is one."""
    together = alike(b, lambda other: _has_form(b, other, weight))
    if len(together) < 2:
        return quantized.linear(b, x, weight, bias)
    # Every one of them emits the whole; equal calls give one node.
    parts = [part for node in together if (part := quantized.blocks(b, node.args[1], KERNEL))]
    whole = quantized.linear(b, x, below_one_another(b, parts), biases(b, together))
    return own_part(b, whole, together, [part.rows for part in parts])


def _has_form(b: Builder, weight: Any, like: Blocks) -> bool:
    other = quantized.blocks(b, weight, KERNEL)
    return other is not None and other.form == like.form


def alike(b: Builder, fits: Callable[[Any], bool]) -> list[fx.Node]:
    """The products of the node's input that can be made together with it, in order.

    Args:
        b: at the node.
        fits: whether a weight has the form of the node's own.
    """
    if not b.target.merge:
        return [b.node]
    source, bias = b.node.args[0], _bias(b.node)
    assert isinstance(source, fx.Node)
    found = [
        node
        for node in source.users
        if node.target is aten.linear.default
        and node.args[0] is source
        and (_bias(node) is None) == (bias is None)
        and _is_stored(_bias(node))
        and len(_readers(node.args[1])) == 1
        and fits(node.args[1])
    ]
    return found if b.node in found else [b.node]


def own_part(
    b: Builder, whole: ir.Value, together: Sequence[fx.Node], rows: Sequence[int]
) -> ir.Value:
    """The node's part of a product of several, which have so many output features each."""
    if len(together) == 1:
        return whole
    return b.ops(len(rows), "Split", whole, list(rows), axis=-1)[together.index(b.node)]


def _bias(node: fx.Node) -> Any:
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


def _is_stored(tensor: fx.Node | None) -> bool:
    return tensor is None or tensor.op == "get_attr"


def _readers(argument: Any) -> list[fx.Node]:
    return list(argument.users)


def below_one_another(b: Builder, parts: Sequence[Blocks]) -> Blocks:
    """Weights of one form as a single one with the rows of all."""
    first = parts[0]
    return Blocks(
        rows=sum(part.rows for part in parts),
        columns=first.columns,
        bits=first.bits,
        size=first.size,
        codes=joined(b, [part.codes for part in parts]),
        scales=joined(b, [part.scales for part in parts]),
        zeros=joined(b, [part.zeros for part in parts if part.zeros is not None])
        if first.zeros is not None
        else None,
    )


def biases(b: Builder, together: Sequence[fx.Node]) -> ir.Value | None:
    """The biases of several products as one; None if they have none."""
    found = [b.values[bias] for node in together if (bias := _bias(node)) is not None]
    return joined(b, found) if found else None


def joined(b: Builder, values: Sequence[ir.Value], axis: int = 0) -> ir.Value:
    """Stored tensors beside each other, as one that is put together when the file is written."""
    if len(values) == 1:
        return values[0]
    tensors = [value.const_value for value in values if value.const_value is not None]
    shape = list(tensors[0].shape.numpy())
    shape[axis] = sum(tensor.shape.numpy()[axis] for tensor in tensors)
    name = _common_name([str(value.name) for value in values])
    lazy = ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis)),
        tensors[0].dtype,
        ir.Shape(shape),
    )
    return b.initializer(name, lazy)


def _common_name(names: Sequence[str]) -> str:
    """`a.{q,k,v}.weight` for `a.q.weight`, `a.k.weight` and `a.v.weight`."""
    parts = [name.split(".") for name in names]
    head = _common_start(parts)
    tail = _common_start([part[: len(head) - 1 if head else None : -1] for part in parts])[::-1]
    middle = (".".join(part[len(head) : len(part) - len(tail)]) for part in parts)
    return ".".join([*head, f"{{{','.join(middle)}}}", *tail])


def _common_start(parts: Sequence[Sequence[str]]) -> list[str]:
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return [column[0] for column in columns]
