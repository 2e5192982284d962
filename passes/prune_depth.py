"""Leaving out whole layers, or attention and MLPs one by one.

Sources: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect"
(2024), for influence; Kim et al., "Shortened LLaMA: Depth Pruning for Large Language Models"
(2024), for removal by perplexity; He et al., "What Matters in Transformers? Not All Attention is
Needed" (2024), for branches by themselves; Liu et al., "Accelerating Inference in Large Language
Models with a Unified Layer Skipping Strategy" (2024), for even spacing by a target speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from planish.ir.program import Program
from planish.passes.blocks import Block, find_blocks
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.depth import without
from planish.passes.inputs import samples_of, spread
from planish.passes.skipping import Losses
from planish.passes.work import UNSEEN, Work

CALLED = "prune_depth"

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=OPTIONS)
class PruneDepth(LongPass):
    """Leave out the layers, or the branches of layers, that the model loses least without.

    A layer is a block of the residual stream: attention and MLP together, or a residual block of a
    convolutional network. Its weights and its cache go with it, and the layers left are as they
    were, so the model is smaller and faster everywhere. Whole layers left out make a plain Hugging
    Face checkpoint with fewer layers. How many go is said by one of `layers`, `ratio` and `speed`.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    layers: int | None = Field(default=None, ge=1)
    """How many layers (with `unit: branch`, branches) to leave out."""

    ratio: Share | None = None
    """The share of the model's parameters that is to go at least: layers are left out until it has,
    chosen by what they cost for each parameter."""

    speed: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    """How many times as fast the layers together are to be: of n layers, n (1 - 1 / speed) are
    left out, rounded up, as if all took the same time. Embeddings and head are not counted."""

    choose: Literal["perplexity", "influence", "even"] = "perplexity"
    """Which go: those without which the loss on the samples rises least, one after the other, each
    tried with those before it gone; those that turn the stream least, all at once; or evenly spaced
    ones, for which no samples are needed."""

    unit: Literal["block", "branch"] = "block"
    """Whether whole layers are left out, or attention and MLP each by itself. The latter often
    loses less for the same size, and has no checkpoint for transformers."""

    protected: int = Field(default=1, ge=0)
    """How many layers at the beginning, and as many at the end, are kept in any case."""

    tokens: int = Field(default=2048, ge=1)
    """With about how many tokens of the samples layers are tried, spread over all of them."""

    tries: int = Field(default=8, ge=1)
    """How many layers are tried anew for each that is left out, after the first: those that cost
    least when they were last tried."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        asked = [self.layers, self.ratio, self.speed]
        if sum(one is not None for one in asked) != 1:
            raise ValueError("say exactly one of layers, ratio and speed.")
        return self

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Choose, and leave out.

        On tensors without data evenly spaced layers are left out, since nothing can be tried.

        Raises:
            NotApplicable: if there are too few layers that may go, or no samples to choose by.
        """
        return without(program, self.order(program, work))

    def order(self, program: Program, work: Work = UNSEEN) -> list[Block]:
        """The layers or branches that are left out, those that go first before the others.

        Raises:
            NotApplicable: as for a call.
        """
        units, free = self._units(program)
        return self._chosen(program, units, free, work)

    def _units(self, program: Program) -> tuple[list[Block], list[Block]]:
        """All layers or branches, and those that may be left out."""
        blocks = find_blocks(program)
        if not blocks:
            raise NotApplicable(
                f"{CALLED}: {program.source.name} has no residual blocks: nothing in it adds to a "
                "stream of the same shape that would go on without it. Leave this pass out."
            )
        inner = blocks[self.protected : len(blocks) - self.protected]
        if self.unit == "block":
            units, free = list(blocks), list(inner)
        else:
            units = [branch for block in blocks for branch in block.branches]
            free = [branch for block in inner for branch in block.branches]
        held = [one for one in free if one.held]
        free = [one for one in free if not one.held]
        wanted = self._count(len(units)) or 1
        if wanted > len(free):
            why = f"; {held[0].name} has to stay, since {held[0].held}" if held else ""
            raise NotApplicable(
                f"{CALLED}: {wanted} of {len(units)} {self._called} are to go, and only "
                f"{len(free)} may: {self.protected} layers at either end are protected{why}. "
                "Ask for fewer, or protect fewer."
            )
        return units, free

    @property
    def _called(self) -> str:
        return "layers" if self.unit == "block" else "branches"

    def _count(self, count: int) -> int | None:
        """How many of so many units go; None if that depends on which."""
        if self.speed is not None:
            return max(1, -int(-count * (1 - 1 / self.speed) // 1))
        return self.layers

    def _chosen(
        self, program: Program, units: Sequence[Block], free: Sequence[Block], work: Work
    ) -> list[Block]:
        count = self._count(len(units))
        goal = 0 if self.ratio is None else self.ratio * program.parameters
        if self.choose == "even" or not program.has_data:
            return self._even(program, free, goal, count)
        samples = spread(samples_of(program, CALLED), self.tokens)
        if self.choose == "influence":
            scores = Losses(program, samples, work.tell).influences(free)
            ranked = sorted(zip(scores, range(len(free)), strict=True))
            return self._until(program, [free[place] for _, place in ranked], goal, count)
        return self._greedy(program, free, Losses(program, samples), goal, count, work)

    def _even(
        self, program: Program, free: Sequence[Block], goal: float, count: int | None
    ) -> list[Block]:
        """Evenly spaced units, as few as are enough."""
        for number in range(count or 1, len(free) + 1):
            chosen = [free[(2 * one + 1) * len(free) // (2 * number)] for one in range(number)]
            if sum(one.parameters(program) for one in chosen) >= goal:
                return chosen
        raise self._too_much(program, free)

    def _greedy(
        self,
        program: Program,
        free: Sequence[Block],
        losses: Losses,
        goal: float,
        count: int | None,
        work: Work,
    ) -> list[Block]:
        """One after the other, what costs least; with a goal of parameters, for each of them.

        What leaving out one costs mostly grows with what is gone already, so after the first round
        only those are tried anew that looked cheapest.
        """
        sizes = [one.parameters(program) if count is None else 1 for one in free]
        costs = torch.full((len(free),), -torch.inf, dtype=torch.float64)
        order: list[int] = []
        gone = 0
        while len(order) < (count or len(free)) and (count or gone < goal):
            kept = work.journal.load(f"step-{len(order)}") if work.journal else None
            if kept is None:
                left = [place for place in range(len(free)) if place not in order]
                left.sort(key=lambda place: (float(costs[place]) / sizes[place], place))
                tried = left[: self.tries] if order else left
                removed = [free[place] for place in order]
                base, found = losses(removed, [free[place] for place in tried])
                costs[tried] = torch.tensor(found, dtype=torch.float64) - base
                best = min(tried, key=lambda place: float(costs[place]) / sizes[place])
                kept = {"best": torch.tensor(best), "costs": costs.clone()}
                if work.journal:
                    work.journal.keep(f"step-{len(order)}", kept)
            costs = kept["costs"]
            order.append(int(kept["best"]))
            gone += free[order[-1]].parameters(program)
            share = gone / goal if count is None else len(order) / count
            work.tell(min(round(100 * share), 100), 100)
        if count is None and gone < goal:
            raise self._too_much(program, free)
        return [free[place] for place in order]

    def _until(
        self, program: Program, ranked: Sequence[Block], goal: float, count: int | None
    ) -> list[Block]:
        """The first of units that are so many, or have enough parameters."""
        if count is not None:
            return list(ranked[:count])
        gone = 0
        for number, one in enumerate(ranked, start=1):
            gone += one.parameters(program)
            if gone >= goal:
                return list(ranked[:number])
        raise self._too_much(program, ranked)

    def _too_much(self, program: Program, free: Sequence[Block]) -> NotApplicable:
        share = sum(one.parameters(program) for one in free) / program.parameters
        return NotApplicable(
            f"{CALLED}: {self.ratio} of the parameters are to go, and the {len(free)} "
            f"{self._called} that may have {share:.3f} of them. Ask for less, or protect fewer."
        )
