"""Planish's own operators."""

from __future__ import annotations

from planish.ir.flow.call import Call, NotCovered, Rule
from planish.ir.flow.polynomial import quotient
from planish.ir.flow.vocabulary import (
    Concat,
    Expression,
    Operand,
    Reads,
    Reshape,
    Slice,
    affine,
    along,
    inserted,
    pointwise,
    reduction,
)


def rotary(call: Call) -> Expression:
    """`planish::rotary(x [..., T, D], cos, sin)`: each coordinate and its partner are turned.

    Partners are the halves of the first R coordinates, or neighbours if `interleaved`.
    """
    value, cos, sin = call["x"], call["cos"], call["sin"]
    interleaved = call["interleaved"]
    last = len(value.shape) - 1
    width, turned = value.shape[-1], cos.shape[-1]
    if not isinstance(width, int) or not isinstance(turned, int) or turned % 2:
        raise NotCovered("a width that is not an even number")

    def partners(one: Expression) -> tuple[Expression, Expression]:
        dim = len(one.shape) - 1
        half = turned // 2
        if not interleaved:
            return Slice(one, dim, 0, 1, half), Slice(one, dim, half, 1, half)
        pairs = Reshape(Slice(one, dim, 0, 1, turned), (*one.shape[:-1], half, 2))
        return tuple(  # type: ignore[return-value]
            Reshape(Slice(pairs, dim + 1, which, 1, 1), (*one.shape[:-1], half)) for which in (0, 1)
        )

    first, second = partners(value)
    sides = [
        pointwise("hadamard", one, c, other, s)
        for one, other, c, s in zip(
            (first, second), (second, first), partners(cos), partners(sin), strict=True
        )
    ]
    if interleaved:
        stacked = Concat(tuple(inserted(side, last + 1) for side in sides), last + 1)
        out: Expression = Reshape(stacked, (*value.shape[:-1], turned))
    else:
        out = Concat(tuple(sides), last)
    if turned == width:
        return out
    return Concat((out, Slice(value, last, turned, 1, width - turned)), last)


def planish_rms_norm(call: Call) -> Expression:
    """`planish::rms_norm(x, weight, eps)` over the last dimension."""
    value = call["x"]
    call["eps"]
    normed = along("rms norm", value, (len(value.shape) - 1,))
    return affine(normed, call["weight"], None)


def gated(call: Call) -> Expression:
    """`planish::gated(gate, up)`."""
    gate, up = call["gate"], call["up"]
    call.tensors()
    return pointwise("hadamard", pointwise("nonlinear", gate), up, shape=call.shape)


def selective_scan(call: Call) -> tuple[Expression, ...]:
    """`planish::selective_scan`: a recurrence over positions, each sample by itself.

    Heads are split into groups of those that share b and c.
    """
    x, dt, a, b, c, d, state = (call[name] for name in ("x", "dt", "a", "b", "c", "d", "state"))
    batch, length, heads, width = x.shape
    groups, columns = b.shape[2:]
    inner = quotient(heads, groups)
    if inner is None:
        raise NotCovered("heads that groups do not divide")
    x = Reshape(x, (batch, length, groups, inner, width))
    dt = Reshape(dt, (batch, length, groups, inner))
    a = Reshape(a, (groups, inner, a.shape[1]))
    before = Reshape(state, (batch, groups, inner, width, columns))
    skip = [Operand(Reshape(d, (groups, inner)), (2, 3))] if d is not None else []
    y = Reads(
        (batch, length, groups, inner, width),
        (
            Operand(x, (0, 1, 2, 3, 4)),
            Operand(dt, (0, 1, 2, 3)),
            Operand(a, (2, 3, "columns")),
            Operand(b, (0, 1, 2, "columns")),
            Operand(c, (0, 1, 2, "columns")),
            Operand(before, (0, 2, 3, 4, "columns")),
            *skip,
        ),
        "scan",
        frozenset({1}),
    )
    after = Reads(
        before.shape,
        (
            Operand(x, (0, "positions", 1, 2, 3)),
            Operand(dt, (0, "positions", 1, 2)),
            Operand(a, (1, 2, 4)),
            Operand(b, (0, "positions", 1, 4)),
            Operand(before, (0, 1, 2, 3, 4)),
        ),
        "scan",
    )
    return Reshape(y, call.outputs[0].shape), Reshape(after, call.outputs[1].shape)


def _whole(value: Expression) -> tuple[str, ...]:
    return tuple(f"whole{dim}" for dim in range(len(value.shape)))


def dequantize(call: Call) -> Expression:
    """`planish::dequantize` and `sign_stack`: a weight, each element out of any that is stored."""
    values = call.tensors()
    return Reads(call.shape, tuple(Operand(one, _whole(one)) for one in values), "statistic")


def fake_quantize(call: Call) -> Expression:
    """`planish::fake_quantize(x, scale, dtype, per_token)`: by a given scale, or that of a row."""
    value, scale = call["x"], call["scale"]
    per_token = call["per_token"]
    call["dtype"]
    if scale is None:
        dims = range(len(value.shape))
        size = pointwise("nonlinear", value)
        scale = reduction("extreme", size, dims[-1:] if per_token else dims, keep=True)
    rounded = pointwise("nonlinear", pointwise("ratio", value, scale, shape=value.shape))
    return pointwise("hadamard", rounded, scale, shape=value.shape)


RULES: dict[str, Rule] = {
    "planish.rotary": rotary,
    "planish.rms_norm": planish_rms_norm,
    "planish.gated": gated,
    "planish.selective_scan": selective_scan,
    "planish.dequantize": dequantize,
    "planish.sign_stack": dequantize,
    "planish.fake_quantize": fake_quantize,
}
