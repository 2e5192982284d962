"""The moves of random ATen graphs that hold graphs of their own, or keep something."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from support.random_graphs import Builder, Misfit, Move, aten, is_float
from support.random_lookups import LOOKUPS
from support.random_moves import MOVES

higher_order = torch.ops.higher_order


class Inner(Builder):
    """Makes a nested graph, which reads nothing but what it is given."""

    def stored(self, tensor: Tensor) -> fx.Node:
        raise Misfit(f"a constant of {tuple(tensor.shape)} in a nested graph")

    def moved(self, x: fx.Node, most: int = 3) -> fx.Node:
        """Some moves that keep the shape."""
        wanted = self.texts(x)
        for _ in range(4 * most):
            try:
                made = self.chance.choice([*MOVES, *LOOKUPS])(self, x)
            except Misfit:
                continue
            if is_float(made) and self.texts(made) == wanted:
                self.values.append(made)
                x = made
                most -= 1
                if not most:
                    break
        return x


def _inner(b: Builder, given: Sequence[Any]) -> Inner:
    inner = Inner(b.chance, b.shapes, b.careful)
    for number, meta in enumerate(given):
        inner.given(f"arg{number}", meta)
    return inner


def _nested(b: Builder, inner: Inner, outputs: Any) -> fx.Node:
    """A node that names a finished graph."""
    inner.graph.output(outputs)
    inner.graph.eliminate_dead_code()
    name = f"graph{len(b.graphs)}"
    b.graphs[name] = fx.GraphModule({}, inner.graph)
    return b.graph.get_attr(name)


def _higher(b: Builder, target: Any, results: Sequence[Any], *args: Any) -> list[fx.Node]:
    """A call that gives as many results, of which we know what they are like."""
    node = b.graph.call_function(target, args)
    node.meta["val"] = tuple(results)
    taken = []
    for number, meta in enumerate(results):
        one = b.graph.call_function(operator.getitem, (node, number))
        one.meta["val"] = meta
        taken.append(one)
    return taken


def _meta(*nodes: fx.Node) -> list[Any]:
    return [node.meta["val"] for node in nodes]


def _decision(b: Builder) -> fx.Node:
    """A truth value: of the model's, of what all share, or of what requests hold."""
    if b.careful or b.chance.random() < 0.4:
        source = b.stored(torch.tensor([b.chance.choice([1.0, -1.0])]))
    else:
        source = b.pick(is_float)
    return b.call(aten.gt.Scalar, b.call(aten.sum.default, source), 0)


def branch(b: Builder, x: fx.Node) -> fx.Node:
    """One of two graphs, by a truth value."""
    predicate = _decision(b)
    given = (x, b.like(x))
    graphs = []
    for _ in range(2):
        inner = _inner(b, _meta(*given))
        graphs.append(_nested(b, inner, (_fresh(inner, inner.moved(inner.values[0])),)))
    (result,) = _higher(b, higher_order.cond, _meta(x), predicate, *graphs, given)
    return result


def _fresh(inner: Inner, x: fx.Node) -> fx.Node:
    """A result that is none of the graph's inputs, as control flow wants it."""
    return inner.call(aten.clone.default, x)


def loop(b: Builder, x: fx.Node) -> fx.Node:
    """A graph over and over, as often as a counter or the data say."""
    if b.careful or b.chance.random() < 0.5:
        start = b.stored(torch.tensor(0.0))
    else:
        start = b.call(aten.sum.default, b.call(aten.sign.default, x))
    other = b.like(x)
    metas = _meta(start, x, other)
    condition = _inner(b, metas)
    decided = _nested(b, condition, condition.call(aten.lt.Scalar, condition.values[0], 2))
    body = _inner(b, metas)
    count = body.call(aten.add.Tensor, body.values[0], 1.0)
    after = _fresh(body, body.moved(body.values[1]))
    nested = _nested(b, body, (count, after))
    args = (decided, nested, (start, x), (other,))
    return _higher(b, higher_order.while_loop, metas[:2], *args)[1]


def _elements(b: Builder, x: fx.Node) -> tuple[fx.Node, Any]:
    """A value to take apart along its first dimension, and what one of its parts is like."""
    x = b.fit(x, lambda texts: len(texts) > 1 and not (b.careful and "B" in texts[0]))
    first = b.call(aten.select.int, x, 0, 0)
    return x, first


def scanned(b: Builder, x: fx.Node) -> fx.Node:
    """A running result along the first dimension, and what each step gives."""
    x, first = _elements(b, x)
    start = b.call(aten.mul.Tensor, first, 0.5)
    inner = _inner(b, _meta(start, first))
    state, element = inner.values
    after = inner.moved(inner.call(aten.add.Tensor, state, element))
    given = inner.moved(inner.call(aten.mul.Tensor, after, element), 1)
    graph = _nested(b, inner, [_fresh(inner, after), _fresh(inner, given)])
    results = _meta(start, x)
    last, stacked = _higher(b, higher_order.scan, results, graph, [start], [x], [])
    return last if b.chance.random() < 0.3 else stacked


def mapped(b: Builder, x: fx.Node) -> fx.Node:
    """A graph for each element along the first dimension."""
    x, first = _elements(b, x)
    inner = _inner(b, _meta(first, first))
    joined = inner.call(aten.add.Tensor, *inner.values)
    graph = _nested(b, inner, (_fresh(inner, inner.moved(joined)),))
    (result,) = _higher(b, higher_order.map_impl, _meta(x), graph, [x], [first])
    return result


def wrapped(b: Builder, x: fx.Node) -> fx.Node:
    """A graph once, as it is."""
    inner = _inner(b, _meta(x, b.like(x)))
    graph = _nested(b, inner, (_fresh(inner, inner.moved(inner.values[0])),))
    args = (False, graph, x, b.like(x))
    (result,) = _higher(b, higher_order.wrap_with_set_grad_enabled, _meta(x), *args)
    return result


def kept(b: Builder, x: fx.Node) -> fx.Node:
    """A buffer that is read, and then written: a counter, or something of what was given."""
    buffer = b.weight(4)
    result = b.call(aten.add.Tensor, b.fit(x, lambda texts: texts[-1:] == ["4"]), buffer)
    after = b.call(aten.mul.Tensor, buffer, 0.5)
    if not b.careful and b.chance.random() < 0.5:
        flat = b.call(aten.mean.dim, result, list(range(len(b.texts(result)) - 1)))
        after = b.call(aten.add.Tensor, after, flat)
    b.written[str(buffer.target)] = after
    return result


def written_in_place(b: Builder, x: fx.Node) -> fx.Node:
    """An input that a run leaves changed, as a cache is."""
    given = {spec.name for spec in b.inputs if spec.axis is not None} - b.written.keys()
    place = b.pick(lambda one: one.name in given and is_float(one) and b.texts(one) == b.texts(x))
    if place is x:
        raise Misfit("itself")
    b.written[place.name] = b.call(aten.add.Tensor, place, x)
    return b.call(aten.mul.Tensor, b.written[place.name], 2)


NESTED: list[Move] = [branch, loop, scanned, mapped, wrapped, kept, written_in_place]
