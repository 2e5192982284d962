"""Choices tried: models rounded as chosen, and what they lose of a text, as measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from planish.ir.program import Program, Sample
from planish.passes.choice import Choice, Trades
from planish.passes.fisher import LOGITS, requests_of
from planish.passes.inputs import spread
from planish.passes.sensitivity import TOKENS
from planish.passes.skipping import next_token_loss

TINY = 1e-12

TRIES = 5
"""How many choices are measured at most for a target of recovery."""

CLOSE = 0.9
"""A choice that meets a target of recovery is small enough if it uses up so much of what the
target allows to lose."""

Rounded = Callable[[Program, Choice], Program]
"""Rounds a program as chosen."""


class Decision(NamedTuple):
    """A choice, what to say of it, and the program rounded so if it was made on the way."""

    choice: Choice
    said: str
    program: Program | None = None


class _Try(NamedTuple):
    """A choice, the nats a token that it lost on the samples, and the program rounded so.

    Only the best try keeps its program: each is as large as the model.
    """

    choice: Choice
    lost: float
    program: Program | None = None


def _best(tried: Sequence[_Try], allowed: float) -> _Try:
    """The smallest that loses at most so much, else the one that loses least."""
    within = [one for one in tried if one.lost <= allowed]
    if within:
        return min(within, key=lambda one: one.choice.figures.size)
    return min(tried, key=lambda one: one.lost)


def is_scored(program: Program) -> bool:
    """Whether the program is a language model, whose loss on text can be measured.

    Logits of an encoder are of classes, or of the very tokens that it reads.
    """
    if program.source.task not in {"causal-lm", "module"} or LOGITS not in program.outputs:
        return False
    logits: Any = program.output_nodes[program.outputs.index(LOGITS)]
    reads_tokens = any(spec.name == "input_ids" for spec in program.inputs)
    return reads_tokens and logits.meta["val"].dim() == 3


def surprise(program: Program, samples: Sequence[Sample]) -> float:
    """The mean loss, nats a token, of a language model's next tokens in samples."""
    total = count = 0.0
    for sample in samples:
        lost, tokens = next_token_loss(program.run(**sample)[LOGITS], sample)
        total, count = total + lost, count + tokens
    return total / max(count, 1)


def least_lost(
    program: Program,
    choices: Sequence[Choice],
    samples: Sequence[Sample],
    rounded: Rounded,
    tell: Callable[[int, int], None],
) -> Decision:
    """Of several choices the one that loses least on samples that it was not made with.

    Args:
        program: a language model.
        choices: at least one; the only one is not tried.
        samples: half of some of them are rounded with, the other half are judged on.
        rounded: told a program with the samples to learn from, and a choice.
        tell: called with how many choices are tried, and of how many.
    """
    if len(choices) == 1:
        return Decision(choices[0], str(choices[0]))
    some = spread(samples, 2 * TOKENS)
    if len(some) == 1:  # one batch: each of its rows may be on either side
        some = list(requests_of(program, some[0]))
    learned, others = some[::2], some[1::2] or some
    small = dataclasses.replace(program, calibration=tuple(learned))
    lost = []
    for number, choice in enumerate(choices):
        tell(number, len(choices))
        lost.append(surprise(rounded(small, choice), others))
    least = min(lost)
    best = choices[lost.index(least)]
    least -= surprise(program, others)
    where = "other samples" if len(some) > 1 else "the one sample"
    said = f"{least:.4f} nats a token lost on {where}, the least of {len(choices)} tried"
    return Decision(best, f"{best}; {said}")


def smallest_within(
    program: Program, trades: Trades, share: float, samples: Sequence[Sample], rounded: Rounded
) -> Decision:
    """The smallest choice tried whose perplexity, measured, is at most 1 / share of what it was.

    What is lost is roughly a constant times what is estimated, so that each try tells what the
    next may lose by the estimate; it lies between what is known to do and what is not.
    """
    some = spread(samples, TOKENS)
    before = surprise(program, some)
    allowed = -math.log(share)
    tried: list[_Try] = []
    limit, does, does_not = allowed, 0.0, math.inf
    for _ in range(TRIES):
        choice = trades.choose(limit)
        if any(choice.options == one.choice.options for one in tried):
            break
        after = rounded(program, choice)
        lost = surprise(after, some) - before
        tried.append(_Try(choice, lost, after))
        best = _best(tried, allowed)
        tried = [one if one is best else one._replace(program=None) for one in tried]
        if CLOSE * allowed <= lost <= allowed or (lost > allowed and not choice.met):
            break
        if lost <= allowed:
            does = limit
        else:
            does_not = limit
        guess = choice.figures.loss * allowed / max(lost, TINY)
        middle = (does + does_not) / 2 if does_not < math.inf else 2 * does
        limit = guess if does < guess < does_not else middle
    best = _best(tried, allowed)
    choice = dataclasses.replace(best.choice, met=best.lost <= allowed)
    recovered = (
        f"recovery {math.exp(-best.lost):.4f}, measured on the samples, of {len(tried)} tried"
    )
    return Decision(choice, f"{choice}; {recovered}", best.program)
