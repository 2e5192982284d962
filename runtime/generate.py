"""Generating text: prompts of any lengths in one batch, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from planish.ir.errors import PlanishError
from planish.runtime.causal import LanguageModel, Tokens
from planish.runtime.detokenize import TextStream
from planish.runtime.sampling import BadOption, Choice, Options, choices
from planish.runtime.tokenizer import Tokenizer

Finish = Literal["end", "stop", "length"]
"""Why generation ended: an end-of-text token, a stop string, or the most tokens allowed."""


class BadPrompt(PlanishError):
    """A prompt is empty or too long."""


@dataclass(frozen=True)
class Piece:
    """One more token of one text.

    Attributes:
        row: which prompt it continues.
        token: the token's number.
        text: the text that became certain with it; may be empty.
        finish: why the text ends here; None if it goes on.
    """

    row: int
    token: int
    text: str
    finish: Finish | None


@dataclass(frozen=True)
class Completion:
    """What was generated for one prompt.

    Attributes:
        text: without special tokens and stop string; empty if there is no tokenizer.
        tokens: their numbers, with the end-of-text token if one came.
        finish: why it ended.
        prompt_tokens: how many tokens the prompt has.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    prompt_tokens: int

    def __str__(self) -> str:
        return self.text


@dataclass
class _Row:
    """A text being generated."""

    index: int
    choose: Choice
    text: TextStream
    left: int
    finish: Finish | None = None
    last: int = 0

    def take(self, token: int, ends: frozenset[int]) -> Piece:
        """Append a token, and see whether the text ends with it."""
        self.last, self.left = token, self.left - 1
        shown = "" if token in ends else self.text.push(token)
        if token in ends:
            self.finish = "end"
        elif self.text.stopped:
            self.finish = "stop"
        elif not self.left:
            self.finish = "length"
        if self.finish:
            shown += self.text.finish()
        return Piece(self.index, token, shown, self.finish)


def stream(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    options: Options,
    *,
    tokenizer: Tokenizer | None = None,
    ends: frozenset[int] = frozenset(),
    context: int | None = None,
) -> Iterator[Piece]:
    """Generate, giving each token as soon as it is known.

    Prompts are padded on the left to one batch; where the model takes no padding, prompts of
    equal length make a batch each, one batch after another.

    Args:
        model: what scores the next token.
        prompts: the tokens of each.
        options: how to choose and when to end.
        tokenizer: makes the text; without one it stays empty.
        ends: tokens that end a text.
        context: the most tokens, prompt and all, that the model can read, if known.

    Raises:
        BadPrompt: if a prompt is empty, or as long as the context.
        BadOption: if stop strings are given and no tokenizer.
    """
    _check(prompts, context)
    if options.stop and tokenizer is None:
        raise BadOption("stop needs a tokenizer, and there is none beside the model.")
    decode = tokenizer.decode if tokenizer else lambda _: ""
    rows = [
        _Row(
            index,
            choose,
            TextStream(decode, options.stop),
            min([options.max_new_tokens, *([context - len(prompt)] if context else [])]),
        )
        for index, (prompt, choose) in enumerate(
            zip(prompts, choices(options, prompts), strict=True)
        )
    ]
    for batch in _batches(rows, prompts, model.takes_padding):
        yield from _generate(model, batch, [prompts[row.index] for row in batch], ends)


def collect(pieces: Iterator[Piece], prompts: Sequence[Sequence[int]]) -> list[Completion]:
    """Drain a stream into one completion for each prompt."""
    texts: list[list[Piece]] = [[] for _ in prompts]
    for piece in pieces:
        texts[piece.row].append(piece)
    return [
        Completion(
            "".join(piece.text for piece in text),
            tuple(piece.token for piece in text),
            text[-1].finish or "length",
            len(prompt),
        )
        for text, prompt in zip(texts, prompts, strict=True)
    ]


def _check(prompts: Sequence[Sequence[int]], context: int | None) -> None:
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise BadPrompt(
                f"Prompt {index} is empty; a model needs at least one token to go on from."
            )
        if context is not None and len(prompt) >= context:
            raise BadPrompt(
                f"Prompt {index} has {len(prompt)} tokens; the model reads {context}, the "
                "generated ones included. Shorten the prompt."
            )


def _batches(
    rows: list[_Row], prompts: Sequence[Sequence[int]], padding: bool
) -> Iterator[list[_Row]]:
    """The rows that are generated together."""
    if padding:
        yield from [rows] if rows else []
        return

    def length(row: _Row) -> int:
        return len(prompts[row.index])

    for _, group in groupby(sorted(rows, key=length), key=length):
        yield list(group)


def _generate(
    model: LanguageModel,
    rows: list[_Row],
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
) -> Iterator[Piece]:
    """One batch. Finished texts stay in it and go unread: taking them out would copy the cache."""
    tokens, mask = left_padded(prompts)
    logits, cache = model.extend(tokens, mask)
    while True:
        for row, scores in zip(rows, logits[:, -1], strict=True):
            if not row.finish:
                yield row.take(row.choose(scores), ends)
        if all(row.finish for row in rows):
            return
        logits, cache = model.extend(np.array([[row.last] for row in rows]), cache=cache)


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tokens, Tokens]:
    """Tokens [B, T], zeros before the shorter ones, and their mask."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return tokens, mask
