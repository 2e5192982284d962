"""Calibration, one layer after the other: each sees what the layers before it give once rounded.

The graph is run once over all samples, a stretch of nodes at a time: up to the first layer that is
not yet done, whose input is then known for every sample. What is kept between stretches is what
later nodes read, so memory is a few activations a sample, not a model's worth of them; beyond an
eighth of the machine's memory they lie in files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from planish.ir.activations import fake_quantize
from planish.ir.program import Program, Sample
from planish.passes.spill import is_spilled, memory_size, put_back, return_freed, spilled
from planish.passes.work import UNSEEN

LIMIT = memory_size() // 8
"""Bytes of activations that a run keeps in memory; more lie in unnamed temporary files. A walk may
hold two runs."""

SMALL = 1 << 16
"""Bytes of a tensor that is not worth a file."""

STRIP = 192
"""Rows of the second moments that are computed at once."""

Value = Any
"""A tensor, a size, or a tuple of them: whatever a node gives."""


@dataclass(frozen=True)
class Visit:
    """Layers that read one value, reached on a walk.

    Attributes:
        layers: nodes that call `aten.linear`, or another layer that was asked for.
        inputs: what they read, [..., K] for each sample, as the layers before them are by now.
        exact: what the first samples, as many as the walk compares, would give them in the model in
            full precision: had no layer been changed, nor what layers read been rounded.
        weights: to be filled in: what nodes of weights shall be from now on.
    """

    layers: list[fx.Node]
    inputs: list[Tensor]
    exact: list[Tensor]
    weights: dict[fx.Node, Tensor] = field(default_factory=dict)


def walk(
    program: Program,
    samples: Sequence[Sample],
    layers: Sequence[fx.Node],
    *,
    tell: Callable[[int, int], None] = UNSEEN.tell,
    compared: int = 0,
) -> Iterator[Visit]:
    """Visit linear layers in the order of the graph, those that read one value together.

    Nothing after the last layer is computed; logits, which are large, usually are not. What a visit
    holds is let go of when the next one is asked for.

    Args:
        program: stays as it is.
        samples: at least one.
        layers: nodes that call `aten.linear`, or something else that reads its first argument.
        tell: called after each visit, with the number of layers done and that of all.
        compared: over how many samples, the first ones, to run the unchanged model beside, for
            `Visit.exact`.
    """
    place = {node: number for number, node in enumerate(program.graph.nodes)}
    now = Run(program, samples)
    before = Run(program, samples[:compared], rounds=False)
    done = 0
    for group in _groups(layers, place):
        source: Any = group[0].args[0]
        for run in (now, before):
            run.until(group[0])
        visit = Visit(group, now.read(source), before.read(source))
        yield visit
        visit.inputs.clear()
        visit.exact.clear()
        now.weights.update(visit.weights)
        done += len(group)
        tell(done, len(layers))


def _groups(layers: Sequence[fx.Node], place: Mapping[fx.Node, int]) -> Iterator[list[fx.Node]]:
    """Layers that read one value, by the place of the first of them."""
    groups: dict[Any, list[fx.Node]] = {}
    for layer in sorted(layers, key=place.__getitem__):
        groups.setdefault(layer.args[0], []).append(layer)
    yield from groups.values()


class Run:
    """A program while it is run over samples, a stretch at a time.

    Attributes:
        weights: what to read instead of nodes of the graph.
        rounds: whether activations that the program rounds are rounded.
    """

    def __init__(
        self,
        program: Program,
        samples: Sequence[Sample],
        *,
        rounds: bool = True,
        kept: Iterable[fx.Node] = (),
    ) -> None:
        """Begin.

        Args:
            program: stays as it is.
            samples: each is run by itself.
            rounds: whether activations that the program rounds are rounded.
            kept: nodes whose values can be read to the end.
        """
        self.rounds = rounds
        self.weights: dict[fx.Node, Tensor] = {}
        self._program = program
        self._nodes = list(program.graph.nodes)
        self._place = place = {node: number for number, node in enumerate(self._nodes)}
        # What is only returned, such as caches, is not waited for.
        self._last = {
            node: max((place[user] for user in node.users if user.op != "output"), default=-1)
            for node in self._nodes
        } | dict.fromkeys(kept, len(self._nodes))
        self._feeds = [
            {spec.name: sample[spec.name] for spec in program.inputs} for sample in samples
        ]
        self._values: list[dict[fx.Node, Value]] = [{} for _ in samples]
        self._at = 0

    def read(self, node: fx.Node) -> list[Tensor]:
        """The value of a node, for each sample; a stored tensor is the same for all."""
        if node.op == "get_attr":
            return [self._program.tensors[str(node.target)]] * len(self._values)
        return [values[node] for values in self._values]

    def results(self, node: fx.Node) -> Iterator[Tensor]:
        """What the node that comes next gives, sample by sample; nothing of it is kept."""
        for feeds, values in zip(self._feeds, self._values, strict=True):
            known = dict(values)
            self._compute([node], feeds, known)
            yield known[node]

    def fork(self, weights: Mapping[fx.Node, Tensor]) -> Run:
        """A copy that goes on by itself, with other weights besides; this one stays as it is."""
        other = copy.copy(self)
        other.weights = {**self.weights, **weights}
        other._values = [dict(values) for values in self._values]
        return other

    def put(self, node: fx.Node, values: Sequence[Tensor]) -> None:
        """Let later nodes read other values of a node that was computed, one for each sample."""
        for known, value in zip(self._values, values, strict=True):
            known[node] = value

    def until(self, node: fx.Node) -> None:
        """Compute what comes before a node, and forget what none from there on reads."""
        stop = self._place[node]
        stretch = self._nodes[self._at : stop]
        for feeds, values in zip(self._feeds, self._values, strict=True):
            self._compute(stretch, feeds, values)
            self._forget(values, stop)
            self._share(values, stretch)
            self._spill(values)
        self._forget(self.weights, stop)
        self._at = stop
        return_freed()

    def _share(self, values: dict[fx.Node, Value], nodes: Sequence[fx.Node]) -> None:
        """Hold what is the same for the first sample once: masks and angles of equal lengths."""
        first = self._values[0]
        for node in filter(first.__contains__, nodes):
            one, other = values[node], first[node]
            if one is not other and _counts(node, one) and torch.equal(one, other):
                values[node] = other

    def _spill(self, values: dict[fx.Node, Value]) -> None:
        """Move the tensors of one sample to files, where all samples hold more than `LIMIT`."""
        held = {
            id(one): one.nbytes
            for known in self._values
            for node, one in known.items()
            if _counts(node, one)
        }
        if sum(held.values()) > LIMIT:
            first = self._values[0] if values is not self._values[0] else {}
            values |= {
                node: spilled(one)
                for node, one in values.items()
                if _counts(node, one) and one is not first.get(node)
            }
        for value in values.values():
            if isinstance(value, Tensor):
                put_back(value)

    def _forget(self, values: dict[fx.Node, Any], stop: int) -> None:
        for node in [one for one in values if self._last[one] < stop]:
            del values[node]

    @torch.no_grad()
    def _compute(
        self, nodes: Sequence[fx.Node], feeds: Mapping[str, Tensor], values: dict[fx.Node, Value]
    ) -> None:
        """Compute a stretch of nodes; what is stored is read as it is needed, not kept."""

        def value(node: fx.Node) -> Value:
            if node in self.weights:
                return self.weights[node]
            if node.op == "get_attr":
                return self._program.tensors[str(node.target)]
            return values[node]

        for node in nodes:
            if node.op == "placeholder":
                values[node] = feeds[str(node.target)]
            elif node.op == "call_function" and node not in self.weights:
                arguments = map_arg(node.args, value)
                options = map_arg(node.kwargs, value)
                if node.target is fake_quantize and not self.rounds:
                    values[node] = arguments[0]
                else:
                    values[node] = node.target(*arguments, **options)  # type: ignore[operator]


def _counts(node: fx.Node, value: Value) -> bool:
    """Whether a value is a tensor in memory, not expanded from fewer numbers, worth a file."""
    if node.op == "placeholder" or not isinstance(value, Tensor) or is_spilled(value):
        return False
    return SMALL < value.nbytes <= value.untyped_storage().nbytes()


def second_moments(inputs: Sequence[Tensor], width: int | None = None) -> tuple[Tensor, int]:
    """Σ x xᵀ, float32 [K, K], over values [..., K], and of how many x it is the sum.

    Only what is on and above the diagonal is computed, a strip of `STRIP` rows at a time. Where
    there may be no values, `width` is K.
    """
    width = inputs[0].shape[-1] if width is None else width
    total = torch.zeros(width, width)
    count = 0
    for value in inputs:
        rows = value.reshape(-1, width).float()
        count += len(rows)
        for start in range(0, width, STRIP):
            strip = rows[:, start : start + STRIP]
            total[start : start + STRIP, start:].addmm_(strip.T, rows[:, start:])
        put_back(value)
    return total.triu() + total.triu(1).T, count


def cross_moments(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Σ x yᵀ, float32 [K, K], over pairs of values x of `left` and y of `right`, both [..., K]."""
    width = left[0].shape[-1]
    total = torch.zeros(width, width)
    for one, other in zip(left, right, strict=True):
        total.addmm_(one.reshape(-1, width).float().T, other.reshape(-1, width).float())
        put_back(one)
        put_back(other)
    return total
