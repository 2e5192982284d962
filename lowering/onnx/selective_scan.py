"""`planish::selective_scan` in ONNX: a standard `Scan`, or ONNX Runtime's `LinearAttention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

Emit = Callable[..., tuple[ir.Value, ...]]
"""Emits a node: `emit(outputs, operator, *inputs, **attributes)`. The operator is named with its
domain, unless that is the standard one; a list of integers as input stands for an int64 tensor."""


def standard_scan(
    emit: Emit,
    x: ir.Value,
    dt: ir.Value,
    a: ir.Value,
    b: ir.Value,
    c: ir.Value,
    d: ir.Value | None,
    state: ir.Value,
    *,
    heads: int,
    width: int,
    groups: int,
) -> tuple[ir.Value, ir.Value]:
    """The operator as a `Scan` over the positions, on float32 values.

    The channels of a group's heads become the R = H·P / G rows of one matrix: b and c are common
    to them, so a step reads its state with one product of matrix and vector. The decay is left to
    the body, since for all positions at once it would be as large as T states.

    Args:
        emit: adds a node to the graph under construction.
        x: [B, T, H, P].
        dt: [B, T, H].
        a: [H, N] or [H, 1].
        b: [B, T, G, N].
        c: [B, T, G, N].
        d: [H].
        state: [B, H, P, N].
        heads: H.
        width: P.
        groups: G.

    Returns:
        y [B, T, H, P] and the state after the last position, [B, H, P, N].
    """

    def op(kind: str, *inputs: Any, **attributes: Any) -> ir.Value:
        return emit(1, kind, *inputs, **attributes)[0]

    members = heads // groups
    rows = members * width
    step = op("Expand", op("Reshape", dt, [0, 0, groups, members, 1]), [1, 1, 1, 1, width])
    step = op("Reshape", step, [0, 0, groups, rows, 1])
    rate = op("Expand", op("Reshape", a, [groups, members, 1, -1]), [1, 1, width, 1])
    rate = op("Reshape", rate, [groups, rows, -1])
    last, read = emit(
        2,
        "Scan",
        op("Reshape", state, [0, groups, rows, -1]),
        step,
        op("Mul", op("Reshape", x, [0, 0, groups, rows, 1]), step),
        op("Unsqueeze", b, [3]),
        op("Unsqueeze", c, [4]),
        body=_body(rate),
        num_scan_inputs=4,
        scan_input_axes=[1] * 4,
        scan_output_axes=[1],
    )
    y = op("Reshape", read, [0, 0, heads, width])
    if d is not None:
        y = op("Add", y, op("Mul", x, op("Unsqueeze", d, [1])))
    return y, op("Reshape", last, [0, heads, width, -1])


def _body(rate: ir.Value) -> ir.Graph:
    """One position: the state [B, G, R, N] decays, takes the drive in, and is read.

    `rate` [G, R, N] or [G, R, 1] is a value of the graph around.
    """
    nodes: list[ir.Node] = []

    def op(kind: str, *inputs: ir.Value) -> ir.Value:
        node = ir.Node("", kind, inputs, name=f"step/{kind}_{len(nodes)}")
        node.outputs[0].name = node.name
        nodes.append(node)
        return node.outputs[0]

    inputs = [
        ir.Value(name=f"step/{name}", type=ir.TensorType(ir.DataType.FLOAT))
        for name in ("state", "dt", "drive", "b", "c")
    ]
    state, step, drive, b, c = inputs
    kept = op("Mul", op("Exp", op("Mul", step, rate)), state)
    after = op("Add", kept, op("Mul", drive, b))
    return ir.Graph(inputs, [after, op("MatMul", after, c)], nodes=nodes, name="step")


def linear_attention(
    emit: Emit,
    x: ir.Value,
    dt: ir.Value,
    a: ir.Value,
    b: ir.Value,
    c: ir.Value,
    d: ir.Value | None,
    state: ir.Value,
    *,
    heads: int,
    width: int,
    groups: int,
) -> tuple[ir.Value, ir.Value]:
    """The operator as ONNX Runtime's `LinearAttention`, for one decay a head (a is [H, 1]).

    Mamba-2 is gated linear attention whose keys are b, queries c and values dt·x (Dao and Gu,
    2024, section 7). The operator would take a decay for every column as well, but with heads of
    one channel, as in Mamba, it is slower than the `Scan`.

    Args and returned values are those of `standard_scan`.
    """

    def op(kind: str, *inputs: Any, **attributes: Any) -> ir.Value:
        return emit(1, kind, *inputs, **attributes)[0]

    def every_head(rows: ir.Value) -> ir.Value:
        """[B, T, G, N] to [B, T, H·N]."""
        repeated = op("Expand", op("Unsqueeze", rows, [3]), [1, 1, 1, heads // groups, 1])
        return op("Reshape", repeated, [0, 0, -1])

    read, last = emit(
        2,
        "com.microsoft.LinearAttention",
        every_head(c),
        every_head(b),
        op("Reshape", op("Mul", x, op("Unsqueeze", dt, [3])), [0, 0, -1]),
        op("Transpose", state, perm=[0, 1, 3, 2]),
        op("Mul", dt, op("Squeeze", a, [1])),
        q_num_heads=heads,
        kv_num_heads=heads,
        update_rule="gated",
        scale=1.0,
    )
    y = op("Reshape", read, [0, 0, heads, width])
    if d is not None:
        y = op("Add", y, op("Mul", x, op("Unsqueeze", d, [1])))
    return y, op("Transpose", last, perm=[0, 1, 3, 2])
