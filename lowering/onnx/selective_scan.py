"""`planish::selective_scan` in standard ONNX operators: a `Scan` over the positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

Emit = Callable[..., tuple[ir.Value, ...]]
"""Emits a node: `emit(outputs, operator, *inputs, **attributes)`. An input may be a list of
integers, which stands for an int64 tensor that holds them."""


def selective_scan(
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
    decays: int,
) -> tuple[ir.Value, ir.Value]:
    """The operator on float32 values.

    The channels of a group's heads become rows of one matrix a group, R = H·P / G: b and c are
    common to them, so that a step reads its state with one product of a matrix and a vector.

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
        decays: how many columns `a` has.

    Returns:
        y [B, T, H, P] and the state after the last position, [B, H, P, N].
    """

    def op(kind: str, *inputs: Any, **attributes: Any) -> ir.Value:
        return emit(1, kind, *inputs, **attributes)[0]

    members = heads // groups
    rows = members * width
    step = op("Reshape", dt, [0, 0, groups, members, 1])
    step = op("Reshape", op("Expand", step, [1, 1, 1, 1, width]), [0, 0, groups, rows, 1])
    rate = op("Expand", op("Reshape", a, [groups, members, 1, decays]), [1, 1, width, 1])
    rate = op("Reshape", rate, [groups, rows, decays])
    drive = op("Mul", op("Reshape", x, [0, 0, groups, rows, 1]), step)
    # One decay a row is as large as x. A decay for every column is as large as T states, so that
    # is left to the body, which makes one at a time.
    ready = decays == 1
    decay = op("Exp", op("Mul", step, rate)) if ready else step
    last, read = emit(
        2,
        "Scan",
        op("Reshape", state, [0, groups, rows, -1]),
        decay,
        drive,
        op("Unsqueeze", b, [3]),
        op("Unsqueeze", c, [4]),
        body=_body(None if ready else rate),
        num_scan_inputs=4,
        scan_input_axes=[1] * 4,
        scan_output_axes=[1],
    )
    y = op("Reshape", read, [0, 0, heads, width])
    if d is not None:
        y = op("Add", y, op("Mul", x, op("Unsqueeze", d, [1])))
    return y, op("Reshape", last, [0, heads, width, -1])


def _body(rate: ir.Value | None) -> ir.Graph:
    """One position: the state [B, G, R, N] decays, takes the drive in, and is read.

    The decay [B, G, R, 1] comes ready, or as dt, of which `rate` [G, R, N], a value of the graph
    around, makes it.
    """
    nodes: list[ir.Node] = []

    def op(kind: str, *inputs: ir.Value) -> ir.Value:
        nodes.append(ir.Node("", kind, inputs, name=f"step/{kind}_{len(nodes)}"))
        nodes[-1].outputs[0].name = nodes[-1].name
        return nodes[-1].outputs[0]

    inputs = [
        ir.Value(name=f"step/{name}", type=ir.TensorType(ir.DataType.FLOAT))
        for name in ("state", "decay", "drive", "b", "c")
    ]
    state, decay, drive, b, c = inputs
    if rate is not None:
        decay = op("Exp", op("Mul", decay, rate))
    after = op("Add", op("Mul", decay, state), op("Mul", drive, b))
    return ir.Graph(inputs, [after, op("MatMul", after, c)], nodes=nodes, name="step")
