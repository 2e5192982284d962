"""The choice of a format for each layer: what is on offer, what is asked for, what it comes to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from planish.ir.program import Program
from planish.ir.quant import QuantScheme
from planish.passes.budget import front
from planish.passes.contract import OPTIONS
from planish.passes.one_of import OneOf
from planish.passes.sensitivity import Option, Sensitivity, decode_bytes

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, config=OPTIONS)
class Target(OneOf):
    """What is asked of the choice: one of these."""

    bits: Positive | None = None
    """At most so many bits a weight of the layers chosen among, on average, with their scales and
    zero points, as a checkpoint stores them."""

    size: Share | None = None
    """All tensors of the model in at most this share of their bytes, as a checkpoint stores
    them."""

    speed: Positive | None = None
    """A step of decoding at least so many times as fast, by a model: its time is that of the bytes
    it moves, one request and one token at a time."""

    loss: Positive | None = None
    """An estimated loss of at most so many nats a token; of a model without logits, half the
    squared change of its outputs as a share of their square."""

    recovery: Share | None = None
    """A perplexity of at most 1 / recovery times what it was, measured on the samples; for
    language models."""


class Figures(NamedTuple):
    """What a choice comes to.

    Attributes:
        bits: stored for each weight of the layers, on average.
        size: share of the bytes of all tensors that is left.
        speed: how many times as fast a step of decoding is, by the bytes it moves.
        loss: estimated.
    """

    bits: float
    size: float
    speed: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Choice:
    """A format for each layer.

    Attributes:
        target: what was asked for.
        met: whether the choice gives it, by the estimate.
        figures: what the choice comes to.
        options: the one chosen of each layer, by the layer's name, in the order of the graph.
    """

    target: Target
    met: bool
    figures: Figures
    options: Mapping[str, Option]

    def by_scheme(self) -> dict[QuantScheme, list[str]]:
        """The names of the layers that are rounded, by how; finer schemes first."""
        found: dict[QuantScheme, list[str]] = {}
        for name, option in self.options.items():
            if option.scheme is not None:
                found.setdefault(option.scheme, []).append(name)
        return dict(sorted(found.items(), key=lambda item: (-item[0].bits, str(item[0]))))

    def __str__(self) -> str:
        """In words, what was asked for and what it comes to."""
        word = "met" if self.met else "not met, this is the nearest there is"
        found = self.figures
        return (
            f"{self.target}: {word}; {found.bits:.3f} bits a weight with scales, "
            f"{found.size:.3f} of the model's bytes, decoding {found.speed:.2f} times as fast "
            f"(modelled), estimated loss {found.loss:.4g}"
        )


class Trades:
    """Every best trade of bytes against loss for layers that were measured.

    Args:
        program: whose layers they are.
        layers: with their options.
        target: what will be asked for. It decides which bytes count: those of a checkpoint or,
            for speed, those that are read in a run.
        together: whether layers that read the same value take the same format, so that kernels
            may compute them as one.
    """

    def __init__(
        self,
        program: Program,
        layers: Sequence[Sensitivity],
        target: Target,
        *,
        together: bool = True,
    ) -> None:
        self._layers = layers
        self._target = target
        self._stored = program.nbytes
        self._moved = decode_bytes(program)
        groups: dict[str, list[Sensitivity]] = {}
        for layer in layers:
            groups.setdefault(layer.group if together else layer.name, []).append(layer)
        self._parts = [(members, _ways(members)) for members in groups.values()]
        self._front = front(
            [[self._weighed(members, way) for way in ways] for members, ways in self._parts]
        )

    def _weighed(self, members: list[Sensitivity], way: _Way) -> tuple[float, float]:
        """The bytes that count, and the loss, of layers stored in these ways."""
        runs = [layer.readers if self._target.kind == "speed" else 1 for layer in members]
        nbytes = sum(run * option.nbytes for run, option in zip(runs, way, strict=True))
        return nbytes, sum(option.loss for option in way)

    def choose(self, loss: float | None = None) -> Choice:
        """What was asked for, or the nearest there is.

        Args:
            loss: for a target of recovery, the estimated loss to allow; by default that of a
                perplexity as much higher.
        """
        target, found = self._target, self._front
        if target.kind in ("loss", "recovery"):
            allowed = target.value if target.kind == "loss" else -math.log(target.value)
            return self._choice(*found.within_value(allowed if loss is None else loss))
        if target.kind == "bits":
            limit = target.value * sum(layer.numbers for layer in self._layers) / 8
        elif target.kind == "size":
            rest = self._stored - sum(layer.nbytes for layer in self._layers)
            limit = target.value * self._stored - rest
        else:
            rest = self._moved - sum(layer.nbytes * layer.readers for layer in self._layers)
            limit = self._moved / target.value - rest
        return self._choice(*found.within_weight(limit))

    def figures(self, most: int) -> list[Figures]:
        """What the trades come to, the smallest first; so many at most, evenly spaced."""
        count = len(self._front.weights)
        points = sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})
        return [self._choice(point, True).figures for point in points]

    def _choice(self, point: int, met: bool) -> Choice:
        chosen: dict[str, Option] = {}
        for (members, ways), pick in zip(self._parts, self._front.picks(point), strict=True):
            chosen |= {layer.name: way for layer, way in zip(members, ways[pick], strict=True)}
        options = {layer.name: chosen[layer.name] for layer in self._layers}
        return Choice(self._target, met, self._figures(options), options)

    def _figures(self, options: Mapping[str, Option]) -> Figures:
        kept = sum(option.nbytes for option in options.values())
        numbers = sum(layer.numbers for layer in self._layers)
        saved = sum(layer.nbytes for layer in self._layers) - kept
        unread = sum(
            layer.readers * (layer.nbytes - options[layer.name].nbytes) for layer in self._layers
        )
        return Figures(
            bits=8 * kept / numbers,
            size=(self._stored - saved) / self._stored,
            speed=self._moved / (self._moved - unread),
            loss=sum(option.loss for option in options.values()),
        )


_Way = tuple[Option, ...]
"""An option for each layer of a group."""


def _ways(members: Sequence[Sensitivity]) -> list[_Way]:
    """The ways to store layers that read one value, which are equally wide, all alike."""
    by_scheme = [{option.scheme: option for option in layer.options} for layer in members]
    common = [scheme for scheme in by_scheme[0] if all(scheme in one for one in by_scheme)]
    return [tuple(one[scheme] for one in by_scheme) for scheme in common]
