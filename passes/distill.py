"""Healing: training what passes have changed to answer as the model did before them.

The arithmetic is in `planish.passes.healing`, with its sources. Muralidharan et al., "Compact
Language Models via Pruning and Knowledge Distillation" (2024), section 4, is where distillation
from the unpruned model is found better than training on labels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from planish.ir.program import Change, Program, Sample
from planish.ir.quant import dequantize
from planish.ir.stack import sign_stack
from planish.passes.contract import OPTIONS, Contract, LongPass, NotApplicable
from planish.passes.fisher import requests_of
from planish.passes.healing import (
    Said,
    Student,
    rate,
    restore,
    said,
    shared_states,
    states_of,
    trainable,
)
from planish.passes.inputs import samples_of
from planish.passes.layers import EMBEDDING, HEAD, layers_of
from planish.passes.work import UNSEEN, Work

CALLED = "distill"


@dataclass(frozen=True, config=OPTIONS)
class Distill(LongPass):
    """Train the weights to give what the model gave before the first pass of the recipe.

    The loss is the divergence of the predictions from those of the original on the samples; no
    labels are needed. Some of the samples are held out, and the weights that did best on them are
    kept, so that the model gets no worse there. Put it behind passes that prune and before those
    that round. Takes minutes to hours: with `--resume FOLDER` an interrupted run goes on.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    steps: int = Field(default=200, ge=1)
    """How many steps of AdamW, each on `batch` samples. The learning rate rises, then falls to a
    tenth as a cosine."""

    minutes: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Stop after so many minutes, and let the learning rate fall by then; the result then depends
    on the speed of the machine."""

    mode: Literal["full", "lora"] = "full"
    """Whether all numbers of the weights are trained, or changes of low rank, which are added to
    the weights in the end. Embeddings and the language-model head stay either way."""

    rank: int = Field(default=16, ge=1)
    """Of the changes, with `mode: lora`."""

    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The highest; 0.0001 if not said, and 0.001 with `mode: lora`."""

    batch: int = Field(default=4, ge=1)
    """How many samples a step takes: it follows the mean of their gradients."""

    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """By which logits are divided before they are compared."""

    hidden: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """What hidden states count beside the predictions: the squared change of residual streams, each
    row as a share of its size, the mean over the blocks that both models have. None where a pass
    made the stream narrower."""

    held_out: float = Field(default=0.1, gt=0, lt=1)
    """The share of the samples that weights are judged by and not trained on; one at least."""

    every: int = Field(default=25, ge=1)
    """After so many steps the weights are judged, and with `--resume` kept."""

    seed: int = Field(default=0, ge=0)
    """Of the order of the samples, and of changes of low rank."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Train, and say how much of the divergence is left.

        Raises:
            NotApplicable: if there is no original or no samples, weights are quantized, or the
                loss is no number.
        """
        _check(program)
        fixed = [
            layer.name
            for layer in layers_of(program.graph, program)
            if {EMBEDDING, HEAD} & layer.roles
        ]
        names = trainable(program, fixed, matrices=self.mode == "lora")
        if not names:
            raise NotApplicable(f"{CALLED}: {program.source.name} has no weights to train.")
        if not program.has_data:
            return _told(program, f"{len(names)} weights to be trained")
        train, judge = self._requests(program, work)
        return self._trained(program, names, train, judge, work)

    def _requests(
        self, program: Program, work: Work
    ) -> tuple[list[tuple[Sample, Sample]], list[tuple[Sample, Sample]]]:
        """Requests of one row, for the program and for the original: to train on, and to judge."""
        original = work.original
        if original is None:
            raise NotApplicable(
                f"{CALLED}: there is no original to come close to. Run it in a recipe, behind the "
                "passes whose damage it is to heal."
            )
        mine, theirs = samples_of(program, CALLED), samples_of(original, CALLED)
        pairs = [
            pair
            for one, other in zip(mine, theirs, strict=True)
            for pair in zip(requests_of(program, one), requests_of(original, other), strict=True)
        ]
        count = max(1, round(self.held_out * len(pairs)))
        if count >= len(pairs):
            raise NotApplicable(
                f"{CALLED}: {len(pairs)} rows of samples are too few to train on some and judge by "
                "others; give more samples."
            )
        held = {(2 * one + 1) * len(pairs) // (2 * count) for one in range(count)}
        train = [pair for place, pair in enumerate(pairs) if place not in held]
        return train, [pairs[place] for place in sorted(held)]

    def _trained(
        self,
        program: Program,
        names: Sequence[str],
        train: Sequence[tuple[Sample, Sample]],
        judge: Sequence[tuple[Sample, Sample]],
        work: Work,
    ) -> Program:
        original = work.original
        assert original is not None
        states, aims = self._states(program, original)
        rank = self.rank if self.mode == "lora" else None
        student = Student(program, names, rank, self.seed, self.temperature, self.hidden, states)
        expect = functools.partial(said, original, states=aims)
        optimizer = torch.optim.AdamW(
            student.parameters.values(), lr=self._rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        kept = work.journal.load("state") if work.journal else None
        if kept is None:
            first = best = self._judged(student, expect, judge, 0)
            step, spent = 0, 0.0
            best_weights = student.weights()
        else:
            restore(optimizer, student.parameters, kept)
            spent, first, best = (float(one) for one in kept["progress"][1:])
            step = int(kept["progress"][0])
            best_weights = {name: kept[f"best {name}"] for name in names}
        begun = time.monotonic() - spent
        while (done := self._done(step, begun)) < 1:
            chosen = self._batch(train, step)
            for one, other in chosen:  # by itself, a sample's activations stay in caches
                loss = student.backward(one, expect(other), 1 / len(chosen))
                _finite(loss, step, self._rate)
            torch.nn.utils.clip_grad_norm_(student.parameters.values(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = self._rate * rate(done)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            last = self._done(step, begun) >= 1
            if last or step % self.every == 0:
                found = self._judged(student, expect, judge, step)
                if found < best:
                    best = found
                    best_weights = {name: one.detach() for name, one in student.weights().items()}
                    best_weights = {name: one.clone() for name, one in best_weights.items()}
                self._keep(
                    work,
                    student,
                    optimizer,
                    best_weights,
                    (step, time.monotonic() - begun, first, best),
                )
            work.tell(round(1000 * min(self._done(step, begun), 1)), 1000)
        return self._healed(program, best_weights, step, first, best, len(judge))

    @property
    def _rate(self) -> float:
        return self.learning_rate or (1e-3 if self.mode == "lora" else 1e-4)

    def _done(self, step: int, begun: float) -> float:
        """The share of the steps, or of the time, that is over."""
        spent = 0 if self.minutes is None else (time.monotonic() - begun) / (60 * self.minutes)
        return max(step / self.steps, spent)

    def _batch(
        self, train: Sequence[tuple[Sample, Sample]], step: int
    ) -> list[tuple[Sample, Sample]]:
        """The samples of a step: each comes once before any comes again."""
        size = min(self.batch, len(train))
        round_, place = divmod(step, len(train) // size)
        chance = torch.Generator().manual_seed(self.seed + round_)
        order = torch.randperm(len(train), generator=chance)[place * size : (place + 1) * size]
        return [train[int(one)] for one in order]

    def _states(self, program: Program, original: Program) -> tuple[dict[str, str], dict[str, str]]:
        """The hidden states that are compared, by the nodes of the program and of the original."""
        if not self.hidden:
            return {}, {}
        states, aims = shared_states(program, original)
        if not states:
            raise NotApplicable(
                f"{CALLED}: no residual stream of {program.source.name} is as wide as the "
                "original's behind any block, so that no hidden states can be compared; leave out "
                "hidden."
            )
        return states, aims

    def _judged(
        self,
        student: Student,
        expect: Callable[[Sample], Said],
        judge: Sequence[tuple[Sample, Sample]],
        step: int,
    ) -> float:
        """The mean loss on what is held out."""
        losses = [student.loss(one, expect(other)) for one, other in judge]
        _finite(sum(losses), step, self._rate)
        return sum(losses) / len(losses)

    def _keep(
        self,
        work: Work,
        student: Student,
        optimizer: torch.optim.Optimizer,
        best: Mapping[str, Tensor],
        progress: tuple[float, ...],
    ) -> None:
        if work.journal is not None:
            tensors = {name: one.detach() for name, one in student.parameters.items()}
            tensors |= states_of(optimizer, student.parameters)
            tensors |= {f"best {name}": one for name, one in best.items()}
            tensors["progress"] = torch.tensor(progress, dtype=torch.float64)
            work.journal.keep("state", tensors)

    def _healed(
        self,
        program: Program,
        weights: Mapping[str, Tensor],
        steps: int,
        first: float,
        best: float,
        judged: int,
    ) -> Program:
        said = (
            f"loss on {judged} samples held out: {first:.4g} before, {best:.4g} after {steps} steps"
        )
        if best >= first:
            return _told(program, f"{said} at best, so the weights stay as they were")
        tensors = {name: one.detach() for name, one in weights.items()}
        healed = dataclasses.replace(program, tensors={**program.tensors, **tensors})
        return _told(healed, f"{len(weights)} weights trained; {said}")


def _check(program: Program) -> None:
    node = next(program.nodes(dequantize, sign_stack), None)
    if node is not None:
        raise NotApplicable(
            f"{CALLED}: weights of {program.source.name} are quantized (%{node.name}), and codes "
            "cannot be trained. Put this pass before those that round."
        )


def _told(program: Program, what: str) -> Program:
    return dataclasses.replace(program, changes=(*program.changes, Change("output", what)))


def _finite(loss: float, step: int, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise NotApplicable(
            f"{CALLED}: the loss is {loss} after {step} steps with a learning rate of "
            f"{learning_rate:g}; ask for a smaller learning_rate, a tenth for instance."
        )
