"""Recurrent layers and other recurrences over time: each sample by itself."""

from __future__ import annotations

from planish.ir.flow.call import NotCovered, Result, Undefined
from planish.ir.flow.polynomial import quotient
from planish.ir.flow.vocabulary import Expression, Operand, Reads, Shape, Tag, permuted
from planish.ir.rules.onnx.call import OnnxCall, named, of_rank

_SETTINGS = [
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "input_forget",
    "linear_before_reset",
    "output_sequence",
    "hidden_size",
]


def recurrent(call: OnnxCall) -> Result:
    """`RNN`, `GRU` and `LSTM(x [T, B, I], W, R, bias, lengths, state, cell, peepholes)`."""
    return layer(call, call.input(0), [call.input(1), call.input(2)], call.inputs(7))


def layer(
    call: OnnxCall, value: Expression, weights: list[Expression], others: list[Expression]
) -> Result:
    """A recurrent layer, both directions of which may read all of a sample's time.

    Inputs 3 to 6 are a bias, lengths, and first states; `layout` 1 puts the batch first.
    """
    call.ignore(*_SETTINGS)
    if len(value.shape) != 3:
        raise Undefined(f"a sequence of {len(value.shape)} dimensions, not 3")
    first = bool(call.attribute("layout", 0))
    value = permuted(value, (1, 0, 2)) if first else value
    hidden = call["hidden_size"] or weights[1].shape[-1]
    both = call.attribute("direction", "forward") == "bidirectional"
    directions = 2 if both else 1
    lengths = call.optional(4)
    states = [call.input(n) for n in (5, 6) if call.given(n)]
    if first:
        states = [permuted(one, (1, 0, 2)) for one in states]
    parameters = [*weights, *([call.input(3)] if call.given(3) else []), *others]
    time, batch = value.shape[:2]

    def reads(shape: Shape, direction: int, sample: int, mixed: frozenset[int]) -> Expression:
        x_time: Tag = next(iter(mixed)) if mixed else "time"
        operands = [Operand(value, (x_time, sample, "input"))]
        for one in parameters:
            rest = tuple(f"weight{d}" for d in range(1, len(one.shape)))
            operands.append(Operand(one, (direction, *rest) if one.shape else ()))
        operands += [Operand(one, (direction, sample, "hidden")) for one in states]
        if lengths is not None:
            operands.append(Operand(lengths, (sample,)))
        return Reads(shape, tuple(operands), "scan", mixed)

    results = [reads((time, directions, batch, hidden), 1, 2, frozenset({0}))]
    last = reads((directions, batch, hidden), 0, 1, frozenset())
    results += [last] * (len(call.outputs) - 1)
    if first:
        rows, *states = results
        results = [permuted(rows, (2, 0, 1, 3)), *(permuted(one, (1, 0, 2)) for one in states)]
    return tuple(results)


def own_sample(shape: Shape, values: list[Expression], kind: str = "statistic") -> Expression:
    """Each element reads all of its own sample: dimension 0 of the result and of all operands."""
    operands = [Operand(one, (0, *(f"w{d}" for d in range(1, len(one.shape))))) for one in values]
    return Reads(shape, tuple(operands), kind)


def linear_attention(call: OnnxCall) -> Result:
    """`LinearAttention(q [B, T, H D], k, v, state, decay, beta)`: a recurrence over time."""
    call.ignore("chunk_size", "scale", "update_rule")
    query, value = of_rank(call.input(0), 3), of_rank(call.input(2), 3)
    heads, shared = call["q_num_heads"], call["kv_num_heads"]
    if not isinstance(heads, int) or not isinstance(shared, int):
        raise NotCovered("no numbers of heads")
    width, depth = quotient(value.shape[2], shared), quotient(query.shape[2], heads)
    if width is None or depth is None:
        raise NotCovered("widths that heads do not divide")
    values = call.inputs()
    out = own_sample((*query.shape[:2], width * heads), values)
    state = own_sample((query.shape[0], shared, depth, width), values)
    return (out, state)[: len(call.outputs)]


def causal_conv(call: OnnxCall) -> Result:
    """`CausalConvWithState(x [B, C, T], weight [C, 1, K], bias, state [B, C, K - 1])`."""
    call.ignore("activation")
    value, weight = of_rank(call.input(0), 3), call.input(1)
    bias, state = call.optional(2), call.optional(3)
    operands = [Operand(value, (0, 1, "time")), Operand(weight, (1, "one", "tap"))]
    operands += [Operand(bias, (1,))] if bias is not None else []
    operands += [Operand(state, (0, 1, "tap"))] if state is not None else []
    shapes = (value.shape, (*value.shape[:2], weight.shape[2] - 1))
    return tuple(
        Reads(shape, tuple(operands), "contract")
        for shape, _ in zip(shapes, call.outputs, strict=False)
    )


RULES = (
    named(recurrent, "RNN GRU LSTM")
    | named(linear_attention, "LinearAttention")
    | named(linear_attention, "LinearAttention", "com.microsoft")
    | named(causal_conv, "CausalConvWithState")
)
