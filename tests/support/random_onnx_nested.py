"""The moves of random ONNX graphs that hold graphs of their own: If, Loop, Scan, functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from planish.ir.flow.polynomial import Count
from support.random_onnx import B, Builder, Held, Misfit, Move, T, has_batch, is_float
from support.random_onnx_lookups import LOOKUPS
from support.random_onnx_moves import PLACES
from support.random_onnx_sums import SUMS

INNER: list[Move] = [*PLACES, *LOOKUPS, *SUMS]
OWN = "own"


def _decision(b: Builder) -> Held:
    """A truth value: of the model's, of sizes, or of what requests hold."""
    way = b.chance.randrange(2 if b.careful else 3)
    if way == 0:
        return b.constant(b.chance.random() < 0.5, np.bool_)
    if way == 1:
        size = b.call("Squeeze", b.size(b.values[0].dims[1]), dims=(), dtype="int")
        return b.call("Greater", size, b.constant(2, np.int64), dims=(), dtype="bool")
    whole = _whole(b, b.pick(is_float))
    return b.call("Greater", whole, b.constant(0.7), dims=(), dtype="bool")


def _whole(b: Builder, x: Held) -> Held:
    return b.call("ReduceMax", x, dims=(), keepdims=0)


def _public(b: Builder) -> Held:
    """A truth value that sizes decide, or a number that all requests share."""
    shared = [one for one in b.values if one.dims == (T, 4) and one.name.startswith("x")]
    if shared and b.chance.random() < 0.5:
        row = b.call("Gather", shared[0], b.constant(0, np.int64), dims=(4,), axis=0)
        number = b.call("Gather", row, b.constant(1, np.int64), dims=(), axis=0)
        return b.call("Greater", number, b.constant(0.0), dims=(), dtype="bool")
    size = b.call("Squeeze", b.size(b.chance.choice([B, T, T])), dims=(), dtype="int")
    if b.chance.random() < 0.3:
        size = b.call("Add", size, b.constant(1, np.int64), dims=(), dtype="int")
    operator = b.chance.choice(["Equal", "Equal", "Greater", "Less"])
    wanted = b.constant(b.chance.choice([1, 2, 3, 4, 5, 6]), np.int64)
    decided = b.call(operator, size, wanted, dims=(), dtype="bool")
    if b.chance.random() < 0.3:
        decided = b.call("Not", decided, dims=(), dtype="bool")
    return decided


def _other_rank(b: Builder, x: Held) -> Held:
    """The elements under a shape of another rank; the batch goes on first, or is folded."""
    parts = [[size] for size in x.dims]
    if len(parts) > 1 and b.chance.random() < 0.5:
        return b.reshape(x, [[*parts[0], *parts[1]], *parts[2:]])
    return b.reshape(x, [*parts, [1]] if b.chance.random() < 0.5 else [[1], *parts])


def ranks(b: Builder, x: Held) -> Held:
    """One of two graphs of other ranks, and back to one, perhaps by another branch.

    Exporters write so what squeezes a dimension if it is 1.
    """
    x = b.fit(x, bool)
    condition = _public(b)
    other = b.chance.randrange(2)
    bodies = []
    for way in range(2):
        inner = b.inner([])
        made = inner.moved(inner.call("Identity", x, dims=x.dims), INNER, 2)
        made = _other_rank(inner, made) if way == other else made
        bodies.append((inner, made))
    graphs = [inner.graph([], [made]) for inner, made in bodies]
    shapes = [made.dims for _, made in bodies]
    chosen = b.call("If", condition, dims=(), then_branch=graphs[0], else_branch=graphs[1])
    chosen = b.call(b.chance.choice(["Neg", "Relu", "Abs"]), chosen, dims=())
    if b.chance.random() < 0.5:
        return b.reshape(Held(chosen.name, x.dims), [[size] for size in x.dims])
    back = []
    for way in range(2):
        inner = b.inner([])
        held = inner.call("Identity", chosen, dims=shapes[way])
        if way == other:
            held = inner.reshape(held, [[size] for size in x.dims])
        back.append(inner.graph([], [inner.moved(held, INNER, 1)]))
    return b.call("If", condition, dims=x.dims, then_branch=back[0], else_branch=back[1])


def branch(b: Builder, x: Held) -> Held:
    """One of two graphs, which read what lies around them."""
    graphs = []
    condition = _decision(b)
    for _ in range(2):
        inner = b.inner([])
        start = inner.call("Identity", x, dims=x.dims)
        graphs.append(inner.graph([], [inner.moved(start, [*INNER, ranks], 2)]))
    return b.call("If", condition, dims=x.dims, then_branch=graphs[0], else_branch=graphs[1])


def loop(b: Builder, x: Held) -> Held:
    """A graph over and over: as often as a number, a size or the data say."""
    carried = Held(b.fresh(), x.dims)
    number, go = Held(b.fresh(), (), "int"), Held(b.fresh(), (), "bool")
    trips = b.constant(b.chance.choice([1, 2]), np.int64)
    stacked: Count | None = None
    way = b.chance.randrange(2 if b.careful else 3)
    if way == 1:
        stacked = b.chance.choice(x.dims) if x.dims and not b.careful else b.values[0].dims[1]
        trips = b.call("Squeeze", b.size(stacked), dims=(), dtype="int")
    elif way == 2:
        more = b.call("Greater", _whole(b, x), b.constant(0.5), dims=(), dtype="bool")
        trips = b.call("Cast", more, dims=(), dtype="int", to=7)
    inner = b.inner([number, go, carried])
    after = inner.moved(inner.call("Identity", carried, dims=x.dims), [*INNER, ranks], 2)
    on = inner.call("Identity", go, dims=(), dtype="bool")
    if not b.careful and b.chance.random() < 0.3:
        on = inner.call("Less", _whole(inner, after), inner.constant(5.0), dims=(), dtype="bool")
        stacked = None
    outputs = [on, after]
    dims = [x.dims]
    if stacked is not None and stacked in x.dims and x.rank > 1:
        dim = x.dims.index(stacked)
        rest = (*x.dims[:dim], *x.dims[dim + 1 :])
        outputs.append(inner.call("Gather", x, number, dims=rest, axis=dim))
        dims.append((stacked, *rest))
    body = inner.graph([number, go, carried], outputs)
    return b.several("Loop", [trips, "", x], dims, body=body)[-1]


def scan(b: Builder, x: Held) -> Held:
    """A running result along a dimension, and what each step gives."""
    x = b.fit(x, lambda dims: len(dims) > 1)
    dim = b.dim(x)
    rest = (*x.dims[:dim], *x.dims[dim + 1 :])
    first = b.call("Gather", x, b.constant(0, np.int64), dims=rest, axis=dim)
    start = b.call("Mul", first, b.constant(0.5), dims=rest)
    state, element = Held(b.fresh(), rest), Held(b.fresh(), rest)
    inner = b.inner([state, element])
    after = inner.moved(inner.call("Add", state, element, dims=rest), INNER, 2)
    given = inner.moved(inner.call("Mul", after, element, dims=rest), INNER, 1)
    body = inner.graph([state, element], [after, given])
    back = b.chance.randrange(x.rank) if not b.careful else 0
    sides: dict[str, Any] = {
        "scan_input_axes": [dim],
        "scan_output_axes": [back],
        "scan_input_directions": [b.chance.randrange(2)],
        "scan_output_directions": [b.chance.randrange(2)],
    }
    dims = [rest, (*rest[:back], x.dims[dim], *rest[back:])]
    last, stacked = b.several("Scan", [start, x], dims, body=body, num_scan_inputs=1, **sides)
    return last if b.chance.random() < 0.3 else stacked


def function(b: Builder, x: Held) -> Held:
    """A function of the model's own, one of whose attributes the call may set."""
    if b.closed:
        raise Misfit("functions call no functions here")
    given = [Held(b.fresh(), x.dims), Held(b.fresh(), x.dims)]
    inner = b.inner(given, closed=True)
    start = inner.call("Add", *given, dims=x.dims)
    axis = x.rank - 1 if x.dims and not (b.careful and has_batch(x.dims[-1])) else None
    attributes = []
    if axis is not None and b.version >= 13:
        start = inner.call("Softmax", start, dims=x.dims)
        chosen = onnx.AttributeProto(
            name="axis", ref_attr_name="where", type=onnx.AttributeProto.INT
        )
        inner.nodes[-1].attribute.append(chosen)
        attributes = ["where"]
    after = inner.moved(start, INNER, 2)
    name = f"F{len(b.functions)}"
    imports = [helper.make_opsetid(*one) for one in opsets(b.version).items()]
    names = [one.name for one in given]
    b.functions.append(
        helper.make_function(OWN, name, names, [after.name], inner.nodes, imports, attributes)
    )
    more: dict[str, Any] = {"where": b.dim(x)} if attributes else {}
    return b.call(name, x, b.like(x), dims=x.dims, domain=OWN, **more)


def opsets(version: int) -> dict[str, int]:
    """The versions of all operators, of onnx's own as given."""
    return {"": version, "com.microsoft": 1, "ai.onnx.ml": 3, OWN: 1}


NESTED: list[Move] = [branch, ranks, loop, scan, function]
