"""Calibration, one layer after the other: each sees what the layers before it give once rounded.

The graph is run once over all samples, a stretch of nodes at a time: up to the first layer that is
not yet done, whose input is then known for every sample. What is kept between stretches is what
later nodes read, so memory is a few activations a sample, not a model's worth of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from planish.ir.program import Program, Sample
from planish.passes.work import UNSEEN

STRIP = 192
"""Rows of the second moments that are computed at once."""

Value = Any
"""A tensor, a size, or a tuple of them: whatever a node gives."""


def walk(
    program: Program,
    samples: Sequence[Sample],
    layers: Sequence[fx.Node],
    visit: Callable[[list[fx.Node], list[Tensor]], Mapping[fx.Node, Tensor]],
    tell: Callable[[int, int], None] = UNSEEN.tell,
) -> None:
    """Visit linear layers in the order of the graph, those that read one value together.

    Nothing after the last layer is computed; logits, which are large, usually are not.

    Args:
        program: stays as it is.
        samples: at least one.
        layers: nodes that call `aten.linear`.
        visit: given layers that read the same value, and that value, [..., K], for each sample;
            gives what the nodes of the layers' weights shall be from now on.
        tell: called after each visit, with the number of layers done and that of all.
    """
    nodes = list(program.graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    last = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    known = [{spec.name: sample[spec.name] for spec in program.inputs} for sample in samples]
    live: list[dict[fx.Node, Value]] = [{} for _ in samples]
    weights: dict[fx.Node, Tensor] = {}
    start = done = 0
    for group in _groups(layers, place):
        stop = place[group[0]]
        source: Any = group[0].args[0]
        for feeds, values in zip(known, live, strict=True):
            _run(program, nodes[start:stop], feeds, values, weights)
            for node in [one for one in values if last[one] < stop]:
                del values[node]
        weights.update(visit(group, [values[source] for values in live]))
        start = stop
        done += len(group)
        tell(done, len(layers))


def _groups(layers: Sequence[fx.Node], place: Mapping[fx.Node, int]) -> Iterator[list[fx.Node]]:
    """Layers that read one value, by the place of the first of them."""
    groups: dict[Any, list[fx.Node]] = {}
    for layer in sorted(layers, key=place.__getitem__):
        groups.setdefault(layer.args[0], []).append(layer)
    yield from groups.values()


@torch.no_grad()
def _run(
    program: Program,
    nodes: Sequence[fx.Node],
    feeds: Mapping[str, Tensor],
    values: dict[fx.Node, Value],
    weights: Mapping[fx.Node, Tensor],
) -> None:
    """Compute a stretch of nodes; what is stored is read as it is needed, not kept."""

    def value(node: fx.Node) -> Value:
        if node in weights:
            return weights[node]
        return program.tensors[str(node.target)] if node.op == "get_attr" else values[node]

    for node in nodes:
        if node.op == "placeholder":
            values[node] = feeds[str(node.target)]
        elif node.op == "call_function" and node not in weights:
            arguments = map_arg(node.args, value)
            options = map_arg(node.kwargs, value)
            values[node] = node.target(*arguments, **options)  # type: ignore[operator]


def second_moments(inputs: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Σ x xᵀ, float32 [K, K], over values [..., K], and of how many x it is the sum.

    Only what is on and above the diagonal is computed, a strip of `STRIP` rows at a time.
    """
    width = inputs[0].shape[-1]
    total = torch.zeros(width, width)
    count = 0
    for value in inputs:
        rows = value.reshape(-1, width).float()
        count += len(rows)
        for start in range(0, width, STRIP):
            strip = rows[:, start : start + STRIP]
            total[start : start + STRIP, start:].addmm_(strip.T, rows[:, start:])
    return total.triu() + total.triu(1).T, count
