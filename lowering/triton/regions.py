"""Which parts of a graph are generated kernels: found, and put in their place.

Four kinds: mixtures of experts; what is done to each row by itself (norms, gates, rounding to
codes), products of such codes, and products with weights of a few bits, with what follows them
while nothing else reads it.
Whatever does not fit stays as it is, and is told.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from planish.ir import ops
from planish.ir.activations import ActivationScheme, fake_quantize
from planish.ir.edit import Edit
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor
from planish.lowering.triton import operators
from planish.lowering.triton.fields import Epilogue, NoKernel
from planish.lowering.triton.mixture_regions import Mixtures
from planish.lowering.triton.nodes import (
    activation_of,
    added,
    alike,
    dtype_of,
    is_weight,
    node_of,
    only_user,
)
from planish.lowering.triton.plans import Product, modelled, text
from planish.lowering.triton.row_regions import ROWS, as_they_are, codes_of, rows_of
from planish.lowering.triton.specs import CodesProduct
from planish.lowering.triton.weights import kept, of_codes, packed

aten = torch.ops.aten

WIDENED_FLOATS = (
    "weights in MXFP4 lie in memory as 8-bit integers, which stand for the same numbers: no kernel "
    "reads 4-bit floats."
)


def replaced(program: Program, *, bitwise: bool) -> tuple[Program, tuple[str, ...]]:
    """A program whose regions are calls of generated kernels, and what did not become one.

    Args:
        program: after its passes.
        bitwise: whether the bits of a row may not depend on the number of rows.
    """
    with program.edit() as edit:
        mixtures = Mixtures(edit, bitwise=bitwise)
        mixtures.replace()
        found = _Regions(edit, bitwise=bitwise)
        for node in edit.nodes(fake_quantize):
            found.codes(node)
        for node in edit.nodes(aten.linear.default):
            found.product(node)
        for node in edit.nodes(*ROWS):
            found.row_wise(node)
    return edit.program, (*mixtures.notes, *found.notes)


class _Regions:
    """Rewrites a copy of a graph; products are fused with what stands before and after them."""

    def __init__(self, edit: Edit, *, bitwise: bool) -> None:
        self.notes: list[str] = []
        self._edit = edit
        self._bitwise = bitwise
        self._made: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}

    def codes(self, node: fx.Node) -> None:
        """Rounding that products of codes read: what rounds it, and before it a norm or gate."""
        scheme = ActivationScheme.read_by(node)
        readers = [user for user in node.users if self._of_codes(user, scheme)]
        if not readers:
            return
        if not (scheme.dynamic and scheme.per_token):
            self.notes.append(f"{node.name} is rounded by torch: kernels find a scale for each row")
            return
        source = node_of(node.args[0])
        kind = codes_of(node)
        fused = source if _read_once(source) and source.target in ROWS else None
        try:
            found = rows_of(fused, kind) if fused else (source, [], as_they_are(source, kind))
        except NoKernel as error:
            self.notes.append(f"{node.name} is rounded by torch: {error}")
            return
        x, operands, made = found
        pair = self._edit.call(
            operators.row_codes, x, operands, text(made), operators.KERNEL, before=node
        )
        parts = [self._edit.call(operator.getitem, pair, place, before=node) for place in (0, 1)]
        self._made[node] = (parts[0], parts[1])
        self._edit.record(node, f"codes by {made.name}")

    def _of_codes(
        self, node: fx.Node, scheme: ActivationScheme
    ) -> tuple[CodesProduct, QuantizedTensor] | None:
        """The product of codes that a node is, and its weight; None if no kernel takes it."""
        if node.target is not aten.linear.default or not is_weight(node.args[1]):
            return None
        _, weight = QuantizedTensor.read_by(node_of(node.args[1]), self._edit.tensors)
        product = of_codes(weight, scheme, dtype_of(node))
        return None if product is None else (product, weight)

    def product(self, node: fx.Node) -> None:
        """A product with a quantized weight, and what follows it."""
        if not is_weight(node.args[1]):
            return
        name, weight = QuantizedTensor.read_by(node_of(node.args[1]), self._edit.tensors)
        x = node_of(node.args[0])
        try:
            if x in self._made:
                scheme = ActivationScheme.read_by(x)
                found = self._of_codes(node, scheme)
                if found is not None:
                    self._codes_product(node, name, *found, *self._made[x])
                    return
            self._weight_only(node, name, weight)
        except NoKernel as error:
            self.notes.append(f"{name} is multiplied by torch: {error}")

    def _weight_only(self, node: fx.Node, name: str, weight: QuantizedTensor) -> None:
        if weight.scheme.microscaled and WIDENED_FLOATS not in self.notes:
            self.notes.append(WIDENED_FLOATS)
        weight, product = packed(weight, dtype_of(node))
        last, operands, epilogue = self._epilogue(node)
        product = replace(product, epilogue=epilogue)
        reads = self._stored(name, kept(weight, product), last)
        self._finish(operators.weight_only, node, last, (node.args[0],), reads, operands, product)

    def _codes_product(
        self,
        node: fx.Node,
        name: str,
        made: CodesProduct,
        weight: QuantizedTensor,
        x: fx.Node,
        scale: fx.Node,
    ) -> None:
        last, operands, epilogue = self._epilogue(node)
        product = replace(made, epilogue=epilogue)
        reads = self._stored(name, kept(weight, product), last)
        self._finish(operators.scaled_product, node, last, (x, scale), reads, operands, product)

    def _stored(self, name: str, tensors: dict[str, Tensor], before: fx.Node) -> list[fx.Node]:
        return [
            self._edit.read(f"{name}_{part}", tensor, before=before)
            for part, tensor in tensors.items()
        ]

    def _finish(
        self,
        target: Any,
        node: fx.Node,
        last: fx.Node,
        given: Sequence[Any],
        reads: list[fx.Node],
        operands: list[fx.Node],
        product: Product,
    ) -> None:
        plan = modelled(product, bitwise=self._bitwise)
        new = self._edit.call(
            target, *given, reads, operands, text(product), text(plan), before=last
        )
        self._edit.replace(last, new, f"{product.name}, epilogue {product.epilogue}, for {node}")

    def _epilogue(self, node: fx.Node) -> tuple[fx.Node, list[fx.Node], Epilogue]:
        """The last node that a product's kernel computes, what it reads besides, and how."""
        made, operands, last = Epilogue(), list[fx.Node](), node
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        if isinstance(bias, fx.Node):
            made, operands = replace(made, bias=True), [bias]
        after = only_user(last)
        if after is not None and (name := activation_of(after)):
            made, last = replace(made, activation=name), after
        elif after is not None and after.target is ops.gated and after.args[0] is last:
            gate, up, activation = after.args
            up, gate = node_of(up), node_of(gate)
            if up is not gate and alike(up, gate) and not _rounded_alone(after, self._made):
                made = replace(made, activation=str(activation), multiply=True)
                last, operands = after, [*operands, up]
        after = only_user(last)
        if after is not None and (other := added(after, last)) is not None:
            made, last, operands = replace(made, residual=True), after, [*operands, other]
        return last, operands, made

    def row_wise(self, node: fx.Node) -> None:
        """A norm or a gate by itself."""
        if not any(user.users or user not in self._made for user in node.users):
            return  # only what has become codes reads it
        try:
            x, operands, made = rows_of(node, None)
        except NoKernel as error:
            self.notes.append(f"{node.name} is computed by torch: {error}")
            return
        new = self._edit.call(
            operators.row_wise, x, operands, text(made), operators.KERNEL, before=node
        )
        self._edit.replace(node, new, f"{made.name} for {node}")


def _rounded_alone(node: fx.Node, made: Any) -> bool:
    """Whether rounding to codes, which computes the gate too, is all that reads a gate."""
    return all(user in made or user.target is operators.row_codes for user in node.users)


def _read_once(node: fx.Node) -> bool:
    return len(node.users) == 1
