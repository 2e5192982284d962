"""What linear layers read, and the factors it may be scaled by: larger weights, smaller inputs.

A layer reads channels. Where something before it can take the inverse, each channel of its weight
may take a factor; `planish.ir.axes.scale` says where, and which channels share one: under
grouped-query attention those of the query heads that read one key head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from planish.ir.axes.axes import Axes, Member, find
from planish.ir.axes.scale import Scales, Scaling, numbers, scale
from planish.ir.program import Change, Program
from planish.ir.shapes import describe
from planish.passes.contract import NotApplicable
from planish.passes.inputs import samples_of
from planish.passes.layers import LINEAR, Layer, layers_of, unmatched
from planish.passes.sequential import walk
from planish.passes.work import UNSEEN, Work

ALONG = "which this pass does not look at; scaled along with layers that read the same"
"""What a pass that scales says of the weights of experts."""

Seen = TypeVar("Seen")
"""What a pass keeps of a value that layers read."""


@dataclass(frozen=True, eq=False)
class Smoothing:
    """Linear layers whose input channels take factors together.

    Attributes:
        scaling: all the tensors that take the factors; the layers' weights with exponent 1.
        layers: in the order of the graph.
        numbers: for each of them, which of the flattened factors each channel takes: int64 [K], -1
            for none.
    """

    scaling: Scaling
    layers: tuple[Layer, ...]
    numbers: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        """The names of the layers' weights."""
        return ", ".join(layer.name for layer in self.layers)

    @property
    def first_reader(self) -> str:
        """The name of the node that reads the first of the weights."""
        return self.layers[0].first_reader.name

    def largest(self, channels: Iterable[tuple[int, Tensor]]) -> Tensor:
        """For each factor the largest number of the channels that take it, float64 [n].

        Args:
            channels: numbers that are not negative, [K], with the place of their layer.
        """
        found = torch.zeros(self.scaling.shape, dtype=torch.float64).flatten()
        for place, values in channels:
            number = self.numbers[place]
            taken = number >= 0
            found.scatter_reduce_(0, number[taken], values[taken].double(), "amax")
        return found

    def spread(self, factors: Tensor, place: int) -> Tensor:
        """The flattened factors as the channels of one layer take them, [K]; 1 where none."""
        number = self.numbers[place]
        return torch.where(number >= 0, factors[number.clamp_min(0)], 1)


def chosen(
    program: Program, called: str, targets: Iterable[str], ignore: Iterable[str]
) -> list[Layer]:
    """The linear layers that a pass is asked to see to.

    Raises:
        NotApplicable: if there are none, or a pattern matches nothing.
    """
    layers = layers_of(program.graph, program)
    if problem := unmatched((*targets, *ignore), layers) if layers else None:
        raise NotApplicable(f"{called}: {problem}")
    found = [
        layer
        for layer in layers
        if layer.roles == {LINEAR} and layer.matches(targets) and not layer.matches(ignore)
    ]
    if not found:
        raise NotApplicable(
            f"{called}: targets and ignore leave no linear layer of {program.source.name} whose "
            "weight is a tensor of its own, not of experts, not quantized yet; scale before "
            "quantizing."
        )
    return found


def _smoothings(
    axes: Axes, layers: Sequence[Layer], called: str
) -> tuple[list[Smoothing], list[Change]]:
    """The ways to scale what layers read, each once, and a record of layers where there is none."""
    scales = Scales(axes)
    ways: dict[object, tuple[Scaling, list[Layer]]] = {}
    fixed = []
    for layer in layers:
        scaling = scales.of(Member(layer.name, _input_dim(layer)))
        if scaling is None:
            source: Any = layer.first_reader.args[0]
            why = f"left as it is, since {describe(source)}, which it reads, cannot be scaled"
            fixed.append(Change(layer.first_reader.name, f"{layer.name}: {why}"))
            continue
        exponents = frozenset(scaling.exponents.items()), frozenset(scaling.shifted.items())
        ways.setdefault((scaling.leaves, exponents), (scaling, []))[1].append(layer)
    if not ways:
        raise NotApplicable(
            f"{called}: no layer that was asked for reads what can be scaled: {fixed[0].what}. "
            "Leave this pass out."
        )
    return [_smoothing(axes, *way) for way in ways.values()], fixed


def _smoothing(axes: Axes, scaling: Scaling, layers: Sequence[Layer]) -> Smoothing:
    places = [(_input_dim(layer),) * len(scaling.leaves) for layer in layers]
    found = [
        numbers(axes, scaling, layer.name, place)
        for layer, place in zip(layers, places, strict=True)
    ]
    return Smoothing(scaling, tuple(layers), tuple(found))


def _input_dim(layer: Layer) -> int:
    """The dimension of the stored tensor along which its input features lie."""
    return int(layer.node.op == "get_attr")


def smooth(
    program: Program,
    called: str,
    layers: Sequence[Layer],
    observe: Callable[[list[Tensor]], Seen],
    decide: Callable[[Smoothing, list[tuple[int, Seen]]], tuple[Tensor, str]],
    work: Work = UNSEEN,
) -> Program:
    """A program that computes the same, whose layers' input channels took factors.

    The graph is run once over the samples. On tensors without data nothing is decided or scaled.

    Args:
        program: stays as it is.
        called: the name of the pass, for errors.
        layers: what to look at, of `program`.
        observe: what to keep of a value that layers read, [..., K] for each sample.
        decide: given the layers, and the place of each among them with what was kept of what it
            reads, the flattened factors and what to say of them.
        work: is told how far the walk is.

    Raises:
        NotApplicable: if no layer can be scaled, or there are no samples.
    """
    axes = find(program)
    ways, changes = _smoothings(axes, layers, called)
    if not program.has_data:
        more = (Change(way.first_reader, f"{way.name}: to be scaled") for way in ways)
        return dataclasses.replace(program, changes=(*program.changes, *changes, *more))
    samples = samples_of(program, called)
    read_by = {
        reader: (way, place)
        for way in ways
        for place, layer in enumerate(way.layers)
        for reader in layer.node.users
    }
    missing = {way: {reader for reader in read_by if read_by[reader][0] is way} for way in ways}
    seen: dict[Smoothing, list[tuple[int, Seen]]] = {way: [] for way in ways}
    by: dict[Scaling, Tensor] = {}

    for visit in walk(program, samples, list(read_by), tell=work.tell):
        found = observe(visit.inputs)
        for reader in visit.layers:
            way, place = read_by[reader]
            seen[way].append((place, found))
            missing[way].discard(reader)
            if not missing[way]:  # what was kept can be large, so it is not kept for long
                factors, what = decide(way, seen.pop(way))
                by[way.scaling] = factors.reshape(way.scaling.shape)
                changes.append(Change(way.first_reader, f"{way.name}: {what}"))
    after = scale(axes, program, by)
    return dataclasses.replace(after, changes=(*program.changes, *changes))
