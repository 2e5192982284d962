"""One product for quantized projections of the same input, such as query, key and value.

At batch 1 a product is mostly the reading of its weight, and one large product reads faster than
three small ones. The weights' blocks are stored one below the other; results are split apart.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    together = _alike(b, weight) if b.target.merge else [b.node]
    if len(together) < 2:
        return quantized.linear(b, x, weight, bias)
    # Every one of them emits the whole; equal calls give one node.
    parts = [part for node in together if (part := quantized.blocks(b, node.args[1], KERNEL))]
    whole = quantized.linear(b, x, _below_one_another(b, parts), _joined_biases(b, together))
    results = b.ops(len(parts), "Split", whole, [part.rows for part in parts], axis=-1)
    return results[together.index(b.node)]


def _alike(b: Builder, weight: Blocks) -> list[fx.Node]:
    """The products of the node's input with weights of the same form, in order."""
    source, bias = b.node.args[0], _bias(b.node)
    assert isinstance(source, fx.Node)
    return [
        node
        for node in source.users
        if node.target is aten.linear.default
        and node.args[0] is source
        and (_bias(node) is None) == (bias is None)
        and _is_stored(_bias(node))
        and len(_readers(node.args[1])) == 1
        and (other := quantized.blocks(b, node.args[1], KERNEL)) is not None
        and other.form == weight.form
    ]


def _bias(node: fx.Node) -> Any:
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


def _is_stored(tensor: fx.Node | None) -> bool:
    return tensor is None or tensor.op == "get_attr"


def _readers(argument: Any) -> list[fx.Node]:
    return list(argument.users)


def _below_one_another(b: Builder, parts: Sequence[Blocks]) -> Blocks:
    first = parts[0]
    return Blocks(
        rows=sum(part.rows for part in parts),
        columns=first.columns,
        bits=first.bits,
        size=first.size,
        codes=_joined(b, [part.codes for part in parts]),
        scales=_joined(b, [part.scales for part in parts]),
        zeros=_joined(b, [part.zeros for part in parts if part.zeros is not None])
        if first.zeros is not None
        else None,
    )


def _joined_biases(b: Builder, together: Sequence[fx.Node]) -> ir.Value | None:
    biases = [b.values[bias] for node in together if (bias := _bias(node)) is not None]
    return _joined(b, biases) if biases else None


def _joined(b: Builder, values: Sequence[ir.Value]) -> ir.Value:
    """Stored tensors one below the other, as one that is put together when the file is written."""
    tensors = [value.const_value for value in values if value.const_value is not None]
    shapes = [tensor.shape.numpy() for tensor in tensors]
    shape = [sum(rows for rows, *_ in shapes), *shapes[0][1:]]
    name = _common_name([str(value.name) for value in values])
    lazy = ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors])),
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
