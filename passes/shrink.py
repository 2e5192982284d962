"""Smaller by a budget: the mixture of layers, heads and channels that goes is found by trying."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from planish.ir.program import Change, Program, Trial, Trials
from planish.passes.blocks import Block, find_blocks
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.goal import Goal
from planish.passes.inputs import samples_of, spread
from planish.passes.mixed_precision import GoalMissed
from planish.passes.mixtures import Kind, Mixture, Ways
from planish.passes.pipeline import relative_error
from planish.passes.prune_depth import PruneDepth
from planish.passes.sensitivity import TOKENS
from planish.passes.trials import is_scored, surprise
from planish.passes.work import UNSEEN, Work

CALLED = "shrink"

TRIES = 5
"""How many sizes are tried for a target of recovery."""

SMALLEST = 0.3
"""The share of the parameters below which no recovery is looked for."""


class Tried(NamedTuple):
    """A mixture, what it loses on other samples, and the share it was to leave, and leaves."""

    mixture: Mixture
    lost: float
    share: float
    left: float


@dataclass(frozen=True, config=OPTIONS)
class Shrink(LongPass):
    """Remove layers, heads and channels, in the mixture that loses least, until a goal is met.

    A few mixtures that meet the goal by their shapes are tried with a part of the samples, and
    judged on another part; the best is then made with all samples. The result is always the best
    that was found, and says whether the goal is met. Layers go in the order in which `prune_depth`
    would take them, channels by weights times inputs. Needs samples like what the model is to be
    used for.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    target: Goal
    """What is to be left: one of parameters, flops, speed and recovery."""

    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("depth", "channels")
    """What may go: whole layers (`depth`), attention heads with their keys (`heads`), `channels` of
    MLPs and convolutions."""

    round_to: int = Field(default=8, ge=1)
    """Of how many channels multiples stay."""

    repair: bool = True
    """Whether what stays is fitted by least squares to make up for what goes."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Try, choose, and remove.

        On tensors without data the first mixture that meets the goal is made; for recovery, nothing
        can be said, and half of the parameters stay.

        Raises:
            NotApplicable: if nothing of these kinds can go, there are no samples, or recovery is
                asked for of what is no language model.
        """
        if self.target.recovery and not is_scored(program):
            raise NotApplicable(
                f"{CALLED}: recovery is a ratio of perplexities, and {program.source.name} is no "
                "language model; ask for parameters instead (target: {parameters: 0.75})."
            )
        shapes = _without_data(program)
        if not program.has_data:
            ways = self._ways(shapes, self._order(shapes))
            share = 0.5 if self.target.recovery else self.target.share
            return ways.made(program, ways.reaching(share)[0])
        some = spread(samples_of(program, CALLED), 2 * TOKENS)
        learned, others = tuple(some[::2]), tuple(some[1::2] or some)
        small = dataclasses.replace(program, calibration=learned, samples=others)
        ways = self._ways(shapes, self._order(small, work))
        before = surprise(small, others) if is_scored(program) else 0.0
        if self.target.recovery:
            tried = self._within(small, ways, before, work)
        else:
            tried = self._tried(small, ways, self.target.share, before, work)
        best = self._best(tried)
        after = ways.made(program, best.mixture, work)
        said, met = self._said(program, after, best, len(tried))
        if not met:
            warnings.warn(f"{CALLED}: {said}", GoalMissed, stacklevel=2)
        made = after.changes[len(program.changes) :]
        told = Change("output", said, self._trials(program, tried, best))
        return dataclasses.replace(after, changes=(*program.changes, told, *made))

    def _ways(self, shapes: Program, order: Sequence[Block]) -> Ways:
        return Ways(shapes, order, self.kinds, self.target, self.round_to, self.repair)

    def _order(self, program: Program, work: Work = UNSEEN) -> list[Block]:
        """The layers that may go, those that cost least first: no more than might be asked for."""
        if "depth" not in self.kinds:
            return []
        blocks = find_blocks(program)
        largest = max((one.parameters(program) for one in blocks), default=0)
        wanted = 1 - (SMALLEST if self.target.recovery else self.target.share)
        count = math.ceil(wanted * program.parameters / largest) if largest else 0
        for layers in range(min(count, len(blocks) // 2), 0, -1):
            try:
                return PruneDepth(layers=layers).order(program, work.part("depth"))
            except NotApplicable:
                continue  # fewer may go
        return []

    def _tried(
        self, small: Program, ways: Ways, share: float, before: float, work: Work
    ) -> list[Tried]:
        """What mixtures that leave a share lose, on the samples that they are not made with."""
        mixtures = ways.reaching(share)
        found = []
        for number, mixture in enumerate(mixtures, start=1):
            made = ways.made(small, mixture)
            lost, left = _lost(made, small, before), self.target.left(made, small)
            found.append(Tried(mixture, lost, share, left))
            work.tell(number, len(mixtures))
        return found

    def _within(self, small: Program, ways: Ways, before: float, work: Work) -> list[Tried]:
        """Ever smaller or larger models, depending on whether the last lost too much."""
        low, high = SMALLEST, 1.0
        tried: list[Tried] = []
        for _ in range(TRIES):
            share = (low + high) / 2
            found = self._tried(small, ways, share, before, work)
            tried += found
            enough = min(one.lost for one in found) <= self._allowed
            low, high = (low, share) if enough else (share, high)
        return tried

    @property
    def _allowed(self) -> float:
        """How many nats a token may be lost."""
        return -math.log(self.target.recovery) if self.target.recovery else math.inf

    def _best(self, tried: Sequence[Tried]) -> Tried:
        """What loses least; of what recovers enough, of the smallest."""
        within = [one for one in tried if one.lost <= self._allowed]
        if self.target.recovery and within:
            return min(within, key=lambda one: (one.share, one.lost))
        return min(tried, key=lambda one: one.lost)

    def _said(self, program: Program, after: Program, best: Tried, count: int) -> tuple[str, bool]:
        """What came of it, and whether that is what was asked for."""
        share = self.target.left(after, program)
        met = best.lost <= self._allowed if self.target.recovery else share <= self.target.share
        if self.target.speed:
            left = f"{1 / share:.2f} times as fast by the model"
        else:
            left = f"{share:.3f} of the {self.target.counted} left"
        word = "met" if met else "not met, this is the nearest found"
        return (
            f"{self.target}: {word}; without {best.mixture}; {left}; {best.lost:.4f} "
            f"{_unit(program)} lost on other samples, of {count} tried",
            met,
        )

    def _trials(self, program: Program, tried: Sequence[Tried], best: Tried) -> Trials:
        """Every candidate that was measured, for the report's curve."""
        made = [Trial(f"without {one.mixture}", one.left, one.lost, one is best) for one in tried]
        return Trials(self.target.counted, _unit(program), tuple(made))


def _unit(program: Program) -> str:
    """What losses are measured in."""
    return "nats a token" if is_scored(program) else "of the outputs' size"


def _without_data(program: Program) -> Program:
    """The same program with shapes alone."""
    tensors = {name: tensor.to("meta") for name, tensor in program.tensors.items()}
    return dataclasses.replace(program, tensors=tensors)


def _lost(after: Program, small: Program, before: float) -> float:
    """Nats a token; of what is no language model, the mean relative error of its outputs."""
    if is_scored(small):
        return surprise(after, after.samples) - before
    errors = []
    for sample, moved in zip(small.samples, after.samples, strict=True):
        given, got = small.run(**sample), after.run(**moved)
        errors += [
            relative_error(got[name], value)
            for name, value in given.items()
            if value.is_floating_point() and got[name].shape == value.shape
        ]
    return sum(errors) / max(len(errors), 1)
