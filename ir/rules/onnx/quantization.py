"""Quantization: scales and zero points that are given, or taken from the tensor itself."""

from __future__ import annotations

from planish.ir.flow.call import NotCovered, Result
from planish.ir.flow.vocabulary import Expression, Operand, Reads, aligned, along, everything
from planish.ir.rules.onnx.call import OnnxCall, named


def given_scale(call: OnnxCall) -> Expression:
    """`QuantizeLinear` and `DequantizeLinear(x, scale, zero, axis, block_size)`."""
    call.ignore("saturate", "output_dtype", "precision")
    value, parameters = call.input(0), call.inputs(1)
    block = call.attribute("block_size", 0)
    axis = call.attribute("axis", 1)
    rank = len(value.shape)
    operands = [aligned(value, rank), *(scale_of(one, rank, axis, block) for one in parameters)]
    return Reads(value.shape, tuple(operands), "linear")


def scale_of(scale: Expression, rank: int, axis: int, block: int = 0) -> Operand:
    """How a scale or a zero point is read: one number, one an index of `axis`, or blocks of it.

    Raises:
        NotCovered: if it has another shape.
    """
    if len(scale.shape) == 0 or scale.shape == (1,):
        return Operand(scale, ("number",) * len(scale.shape))
    if rank == 0 or not -rank <= axis < rank:
        raise NotCovered(f"axis {axis} of a tensor of {rank} dimensions")
    dim = axis % rank
    if len(scale.shape) == 1 and not block:
        return Operand(scale, (dim,))
    if len(scale.shape) != rank:
        raise NotCovered("a scale of another rank")
    return Operand(scale, tuple("block" if block and d == dim else d for d in range(rank)))


def own_scale(call: OnnxCall) -> Result:
    """`DynamicQuantizeLinear(x)`: one scale from the extremes of the whole tensor."""
    value = call.input(0)
    statistic = everything("statistic", (), value)
    return (self_scaled(value), statistic, statistic)[: len(call.outputs)]


def self_scaled(value: Expression) -> Expression:
    """`value` rounded by a scale that all of it decides."""
    return along("statistic", value, range(len(value.shape)))


RULES = named(given_scale, "QuantizeLinear DequantizeLinear") | named(
    own_scale, "DynamicQuantizeLinear"
)
