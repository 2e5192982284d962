"""Repairing ONNX files whose requests meet: the same function as for one request at a time.

A repaired model gives each request what the original gives it alone, up to rounding: what was
computed over the whole batch is computed over one row (a token, a sample). Nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

from planish.ir.errors import PlanishError

MIDDLE = 128
"""The zero point of symmetric 8-bit codes in an unsigned type, which CPUs multiply fastest."""


class CannotRepair(PlanishError):
    """A leak has no local repair here: why, and what else would help."""


@dataclass
class Repair:
    """A graph being repaired.

    Attributes:
        graph: its initializers are added to.
        nodes: the graph's, in order, changed in place.
        opset: the version of `ai.onnx` that the model imports.
        changes: what was done, a line each.
    """

    graph: GraphProto
    nodes: list[NodeProto]
    opset: int
    changes: list[str] = field(default_factory=list)

    def readers(self, name: str) -> list[tuple[NodeProto, int]]:
        """The nodes that read a value, and at which place."""
        return [
            (node, place)
            for node in self.nodes
            for place, read in enumerate(node.input)
            if name and read == name
        ]

    def constant(self, name: str, value: np.ndarray) -> str:
        """A new initializer."""
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def replace(self, node: NodeProto, new: list[NodeProto]) -> None:
        """Put nodes where one was."""
        place = next(number for number, one in enumerate(self.nodes) if one is node)
        self.nodes[place : place + 1] = new


def repair(model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """A copy of a model with every leak that has a local repair mended, and what was done.

    Raises:
        CannotRepair: if a node that is known to leak has a form that is not covered.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    opset = next(one.version for one in copy.opset_import if one.domain in ("", "ai.onnx"))
    work = Repair(copy.graph, list(copy.graph.node), opset)
    _refuse_nested(work.nodes)
    for key, mend in REPAIRS.items():
        for node in [one for one in work.nodes if (one.domain or "", one.op_type) == key]:
            mend(work, node)
    changed = [NodeProto.FromString(node.SerializeToString()) for node in work.nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(changed)
    return copy, tuple(work.changes)


def _refuse_nested(nodes: list[NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type != AttributeProto.GRAPH:
                continue
            for one in attribute.g.node:
                if (one.domain or "", one.op_type) in REPAIRS:
                    raise CannotRepair(
                        f"{one.op_type} {one.name or one.output[0]!r} lies inside a nested graph, "
                        "where it is not repaired; export the model without control flow."
                    )


def quantize_rows(work: Repair, node: NodeProto) -> None:
    """`DynamicQuantizeLinear`: one scale a row of the product that reads it, zero point 128."""
    (x,) = node.input
    codes, scale, zero = (*node.output, "", "")[:3]
    axes = _scale_axes(work, node)
    for reader, place in work.readers(codes):
        if reader.op_type == "DequantizeLinear" and place == 0:
            _dequantize(work, reader)
    if zero:
        _check_zero_readers(work, zero)
    if scale:
        _scale_apart(work, scale)
    work.replace(node, _symmetric(work, node.name or codes, x, codes, scale, zero, axes))
    over = ", ".join(map(str, axes))
    work.changes.append(f"{node.name or codes}: one scale over axis {over} instead of over all")


def _scale_axes(work: Repair, node: NodeProto) -> tuple[int, ...]:
    """The axes that one scale may span: those that the reading product sums over."""
    found: set[tuple[int, ...]] = set()
    for reader, place in work.readers(node.output[0]):
        if reader.op_type in ("MatMulInteger", "MatMulIntegerToFloat"):
            found.add((-1,) if place == 0 else (-2,))
        elif reader.op_type == "ConvInteger" and place == 0:
            found.add(tuple(range(1, _rank_of_convolution(work, reader))))
        elif reader.op_type == "DequantizeLinear" and place == 0:
            found.add((-1,))
        else:
            raise CannotRepair(
                f"{node.name or node.output[0]}: its codes are read by {reader.op_type} "
                f"{reader.name or reader.output[0]!r}, for which no repair is known. Quantize the "
                "original model again with one scale a row."
            )
    # Read along different axes, codes have one scale over all of them.
    return tuple(sorted({axis for axes in found for axis in axes})) or (-1,)


def _scale_apart(work: Repair, scale: str) -> None:
    """`product * (scale * other)` becomes `(product * scale) * other`.

    ONNX Runtime (1.23 to 1.31) merges the first form into MatMulIntegerToFloat and reads one
    number of the scale, so that rows with scales of their own come out wrong.
    """
    for both, place in work.readers(scale):
        if both.op_type != "Mul":
            continue
        other = both.input[1 - place]
        for reader, side in work.readers(both.output[0]):
            if reader.op_type != "Mul":
                continue
            half = f"{reader.name or reader.output[0]}/row {side}"
            product = reader.input[1 - side]
            first = helper.make_node("Mul", [product, scale], [half])
            work.replace(
                reader, [first, helper.make_node("Mul", [half, other], list(reader.output))]
            )


def _rank_of_convolution(work: Repair, node: NodeProto) -> int:
    for one in work.graph.initializer:
        if one.name == node.input[1]:
            return len(one.dims)
    raise CannotRepair(f"{node.name}: the filter of this ConvInteger is computed, not stored.")


def _check_zero_readers(work: Repair, zero: str) -> None:
    takes = {"MatMulInteger", "ConvInteger", "DequantizeLinear", "MatMulIntegerToFloat"}
    for reader, _ in work.readers(zero):
        if reader.op_type not in takes:
            raise CannotRepair(
                f"the zero point {zero!r} is read by {reader.op_type} "
                f"{reader.name or reader.output[0]!r}, for which no repair is known."
            )


def _symmetric(
    work: Repair, name: str, x: str, codes: str, scale: str, zero: str, axes: tuple[int, ...]
) -> list[NodeProto]:
    """Codes 128 + round(x / scale), where scale = max |x| / 127 over `axes`."""

    def at(what: str) -> str:
        return f"{name}/{what}"

    scale = scale or at("scale")
    largest = work.constant(at("largest"), np.array(127, np.float32))
    # A row of zeros has the scale of the smallest number that does not underflow.
    smallest = work.constant(at("smallest"), np.array(1e-30, np.float32))
    middle = work.constant(at("middle"), np.array(MIDDLE, np.float32))
    low = work.constant(at("low"), np.array(0, np.float32))
    high = work.constant(at("high"), np.array(255, np.float32))
    if zero:
        work.constant(zero, np.array(MIDDLE, np.uint8))
    if work.opset >= 18:
        reduce_axes = work.constant(at("axes"), np.array(axes, np.int64))
        top = helper.make_node("ReduceMax", [at("abs"), reduce_axes], [at("max")], keepdims=1)
    else:
        top = helper.make_node("ReduceMax", [at("abs")], [at("max")], keepdims=1, axes=list(axes))
    return [
        helper.make_node("Abs", [x], [at("abs")]),
        top,
        helper.make_node("Max", [at("max"), smallest], [at("range")]),
        helper.make_node("Div", [at("range"), largest], [scale]),
        helper.make_node("Div", [x, scale], [at("scaled")]),
        helper.make_node("Round", [at("scaled")], [at("rounded")]),
        helper.make_node("Add", [at("rounded"), middle], [at("shifted")]),
        helper.make_node("Clip", [at("shifted"), low, high], [at("clipped")]),
        helper.make_node("Cast", [at("clipped")], [codes], to=2),  # TensorProto.UINT8
    ]


def _dequantize(work: Repair, node: NodeProto) -> None:
    """`DequantizeLinear` takes one scale, or one an axis: (codes - 128) * scale does for rows."""
    codes, scale = node.input[:2]
    name = node.name or node.output[0]
    middle = work.constant(f"{name}/middle", np.array(MIDDLE, np.float32))
    work.replace(
        node,
        [
            helper.make_node("Cast", [codes], [f"{name}/wide"], to=1),  # TensorProto.FLOAT
            helper.make_node("Sub", [f"{name}/wide", middle], [f"{name}/centred"]),
            helper.make_node("Mul", [f"{name}/centred", scale], list(node.output)),
        ],
    )


def product_of_rows(work: Repair, node: NodeProto) -> None:
    """`DynamicQuantizeMatMul(A, B, b_scale, b_zero, bias)`: taken apart, one scale a row of A."""
    a, b, b_scale, b_zero, bias = (*node.input, "", "", "")[:5]
    name = node.name or node.output[0]
    codes, scale, zero = (f"{name}/{what}" for what in ("codes", "scale", "zero"))
    inputs = [codes, b, zero, *([b_zero] if b_zero else [])]
    nodes = [
        *_symmetric(work, name, a, codes, scale, zero, (-1,)),
        helper.make_node("MatMulInteger", inputs, [f"{name}/sum"]),
        *_scaled(name, scale, b_scale, bias, node.output[0]),
    ]
    work.replace(node, nodes)
    work.changes.append(f"{name}: taken apart, with one scale a row")


def scaled_product(work: Repair, node: NodeProto) -> None:
    """`MatMulIntegerToFloat` takes one scale only: taken apart, so that rows can have their own."""
    a, b, a_scale, b_scale, a_zero, b_zero, bias = (*node.input, "", "", "", "")[:7]
    name = node.name or node.output[0]
    inputs = [a, b, *([a_zero] if a_zero else []), *([b_zero] if b_zero and a_zero else [])]
    nodes = [
        helper.make_node("MatMulInteger", inputs, [f"{name}/sum"]),
        *_scaled(name, a_scale, b_scale, bias, node.output[0]),
    ]
    work.replace(node, nodes)


def _scaled(name: str, scale: str, other: str, bias: str, output: str) -> list[NodeProto]:
    last = f"{name}/unbiased" if bias else output
    nodes = [
        helper.make_node("Cast", [f"{name}/sum"], [f"{name}/wide"], to=1),  # TensorProto.FLOAT
        helper.make_node("Mul", [f"{name}/wide", scale], [f"{name}/rows"]),
        helper.make_node("Mul", [f"{name}/rows", other], [last]),
    ]
    return [*nodes, helper.make_node("Add", [last, bias], [output])] if bias else nodes


def running_statistics(work: Repair, node: NodeProto) -> None:
    """`BatchNormalization` in training mode: by its running statistics, as in inference."""
    training = [one for one in node.attribute if one.name == "training_mode" and one.i]
    if not training:
        return
    for output in node.output[1:]:
        if work.readers(output) or output in {one.name for one in work.graph.output}:
            raise CannotRepair(
                f"{node.name or node.output[0]}: its updated statistics are read; export the "
                "model in evaluation mode."
            )
    for one in training:
        node.attribute.remove(one)
    del node.output[1:]
    work.changes.append(f"{node.name or node.output[0]}: running statistics, not the batch's")


def own_mean(work: Repair, node: NodeProto) -> None:
    """`MeanVarianceNormalization` over axes that include the batch: over the others."""
    axes = next((list(one.ints) for one in node.attribute if one.name == "axes"), [0, 2, 3])
    if 0 not in axes:
        return
    kept = [one for one in node.attribute if one.name != "axes"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("axes", [a for a in axes if a != 0])])
    work.changes.append(f"{node.name or node.output[0]}: mean and variance of each sample")


Mend = Callable[[Repair, NodeProto], None]

REPAIRS: dict[tuple[str, str], Mend] = {
    ("com.microsoft", "MatMulIntegerToFloat"): scaled_product,
    ("com.microsoft", "DynamicQuantizeMatMul"): product_of_rows,
    ("", "DynamicQuantizeLinear"): quantize_rows,
    ("", "BatchNormalization"): running_statistics,
    ("", "MeanVarianceNormalization"): own_mean,
}
"""What mends which operator, in this order: products are taken apart before what they read."""
