"""Mixtures of layers, heads and channels that leave a share of a model, found by shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from planish.ir.program import Program
from planish.passes.blocks import Block
from planish.passes.contract import NotApplicable
from planish.passes.depth import without
from planish.passes.goal import Goal
from planish.passes.prune import Prune, PruneChannels, PruneHeads
from planish.passes.work import UNSEEN, Work

Kind = Literal["depth", "heads", "channels"]

DEPTHS = (0.0, 0.25, 0.5, 0.75)
"""The shares of what goes that whole layers are tried to have; besides all of it."""

FIRST, STEPS, CLOSE = 0.25, 5, 0.008
"""The ratio that is tried first, how many are at most, and how much less than asked for is left."""

MOST = 0.9
"""The largest share of channels or heads that goes."""


class Mixture(NamedTuple):
    """How much goes: so many layers, and these shares of heads and channels of those left."""

    layers: int = 0
    heads: float = 0.0
    channels: float = 0.0

    def __str__(self) -> str:
        parts = [
            f"{self.layers} layers" if self.layers else "",
            f"{self.heads:.1%} of heads" if self.heads else "",
            f"{self.channels:.1%} of channels" if self.channels else "",
        ]
        return ", ".join(filter(None, parts)) or "nothing"


@dataclass(frozen=True)
class Ways:
    """What may be removed of a program, and how.

    Attributes:
        shapes: the program on tensors without data.
        order: the layers that may go, in the order in which they do.
        kinds: what may go.
        goal: tells what is counted.
        round_to: of how many channels multiples stay.
        repair: whether what stays is fitted.
    """

    shapes: Program
    order: Sequence[Block]
    kinds: tuple[Kind, ...]
    goal: Goal
    round_to: int
    repair: bool

    def made(self, program: Program, mixture: Mixture, work: Work = UNSEEN) -> Program:
        """A program of the same graph without a mixture."""
        if mixture.layers:
            program = without(program, self.order[: mixture.layers])
        for one in self._passes(mixture, program):
            program = one(program, work.part(str(one)))
        return program

    def _passes(self, mixture: Mixture, program: Program) -> Iterator[Prune]:
        learns = program.has_data
        repair = self.repair and learns
        if mixture.heads:
            yield PruneHeads(ratio=mixture.heads, repair=repair)
        if mixture.channels:
            yield PruneChannels(ratio=mixture.channels, round_to=self.round_to, repair=repair)

    def reaching(self, share: float) -> list[Mixture]:
        """Mixtures that leave at most a share; the one that leaves least where none does.

        Raises:
            planish.passes.contract.NotApplicable: if nothing of these kinds can go.
        """
        found: dict[Mixture, float] = {}
        for count in self._counts(share):
            found |= self._with(count, share)
        if not found:
            raise NotApplicable(
                f"shrink: {self.shapes.source.name} has no {' and no '.join(self.kinds)} that can "
                "go. `planish axes` says what forbids it."
            )
        met = [mixture for mixture, left in found.items() if left <= share]
        return met or [min(found, key=found.__getitem__)]

    def _counts(self, share: float) -> list[int]:
        """How many layers to try: parts of what has to go, and all of it."""
        if not self.order:
            return [0]
        each = 1 - self.goal.left(without(self.shapes, self.order[:1]), self.shapes)
        if each <= 0:
            return [0]
        wanted = (1 - share) / each
        counts = [round(part * wanted) for part in DEPTHS] + [math.ceil(wanted - 1e-9)]
        return sorted({min(count, len(self.order)) for count in counts})

    def _with(self, layers: int, share: float) -> dict[Mixture, float]:
        """Mixtures with so many layers and just as much else as has to go, and what is left."""
        alone = Mixture(layers)
        left = self._left(alone) if layers else 1.0
        if left is not None and left <= share:
            return {alone: left}
        if left is None:
            return {}
        found = {alone: left} if layers else {}
        for kinds in self._narrow():
            found |= self._narrowed(layers, kinds, left, share)
        return found

    def _narrow(self) -> list[tuple[Kind, ...]]:
        """What is narrowed together: channels alone, and heads with them."""
        found: list[tuple[Kind, ...]] = [("channels",)] if "channels" in self.kinds else []
        return (
            [*found, (*found[0], "heads")]
            if found and "heads" in self.kinds
            else (found or ([("heads",)] if "heads" in self.kinds else []))
        )

    def _narrowed(
        self, layers: int, kinds: tuple[Kind, ...], whole: float, share: float
    ) -> Mapping[Mixture, float]:
        """A ratio of these kinds that is just enough, beside so many layers; else the largest.

        What is left falls in proportion to the ratio, but for rounding, so that the first try tells
        most; the others move on by what it is off.
        """
        ratio, tried = FIRST, dict[Mixture, float]()
        for _ in range(STEPS):
            mixture = Mixture(layers, **dict.fromkeys(kinds, ratio))
            left = self._left(mixture)
            if left is not None:
                tried[mixture] = left
            if left is not None and share - CLOSE <= left <= share:
                break
            if left is None or left >= whole:  # too little to remove anything
                following = 2 * ratio
            else:
                following = ratio * (whole - share + CLOSE / 4) / (whole - left)
            following = min(following, MOST)
            if following == ratio:
                break
            ratio = following
        met = {mixture: left for mixture, left in tried.items() if left <= share}
        best = max(
            met, key=met.__getitem__, default=min(tried, key=tried.__getitem__, default=None)
        )
        return {} if best is None else {best: tried[best]}

    def _left(self, mixture: Mixture) -> float | None:
        """What share a mixture leaves; None where there is nothing of the kind to remove."""
        try:
            return self.goal.left(self.made(self.shapes, mixture), self.shapes)
        except NotApplicable:
            return None
