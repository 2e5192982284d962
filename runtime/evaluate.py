"""Perplexity in strided windows, and how much of a baseline's quality is recovered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.ir.errors import PlanishError
from planish.ir.progress import Progress
from planish.runtime.causal import LanguageModel, OneByOne, Tokens
from planish.runtime.eager import Against, EagerModel, opponent
from planish.runtime.scoring import score
from planish.runtime.session import Session
from planish.runtime.texts import read_text
from planish.runtime.tokenizer import Tokenizer


class BadWindow(PlanishError):
    """A window or stride is out of range, or the text is too short for it."""


@dataclass(frozen=True)
class Perplexity:
    """How surprised a model is by a text.

    Attributes:
        label: the model.
        value: the exponential of `loss`.
        loss: mean negative log-likelihood of the scored tokens, in nats.
        error: standard error of `loss`, taking tokens as independent.
        tokens: how many tokens were scored.
    """

    label: str
    value: float
    loss: float
    error: float
    tokens: int


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        perplexity: of the session.
        baseline: of what it was compared with, on the same tokens.
        recovery: the baseline's perplexity over the session's, in percent.
        text: the file.
        window: the most tokens a prediction can see.
        stride: how far a window lies behind the one before it.
    """

    perplexity: Perplexity
    baseline: Perplexity | None
    recovery: float | None
    text: str
    window: int
    stride: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def evaluate(
    session: Session,
    text_file: Path | str,
    window: int = 1024,
    stride: int | None = None,
    against: Against | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
    *,
    one_by_one: bool = False,
) -> Evaluation:
    """Measure a session's perplexity on a text, and what of a baseline's it keeps.

    Args:
        session: a causal language model with a tokenizer.
        text_file: `.txt`, or `.jsonl` or `.parquet` with a column `text`.
        window: the most tokens a prediction can see.
        stride: how far windows lie apart; by default `window`, so that they do not overlap. With
            a smaller stride each token is scored once, with at least `window - stride` tokens
            before it (huggingface.co/docs/transformers, "Perplexity of fixed-length models").
        against: the baseline: a session, an artifact, a checkpoint or a model.
        max_tokens: read no more than so many tokens of the text.
        progress: called after each window.
        one_by_one: let the session read the text a token at a time, as it reads what it generates:
            by the second form of a recipe with the key `decode`. Slower.

    Raises:
        BadWindow: if window, stride or text leave nothing to score.
        planish.runtime.texts.BadFile: if the text cannot be read.
        planish.runtime.causal.NotCausal: if one of the models is no language model with a cache.
        planish.runtime.tokenizer.NoTokenizer: if the session's folder has none.
        planish.runtime.scoring.NotANumber: if a model gives NaN.
        planish.ir.capture.checkpoint.BadCheckpoint: if `against` cannot be loaded.
    """
    session.check_causal()
    prefix = session.tokenizer.prefix
    tokens = np.array(_tokens(session.tokenizer, read_text(text_file), max_tokens), np.int64)
    stride = window - len(prefix) if stride is None else stride
    _check(len(tokens), len(prefix), window, stride, session.context)
    _, *others = sides(session, against)
    read: LanguageModel = OneByOne(session) if one_by_one else session
    found, *baselines = [
        perplexity(model, tokens, window, stride, prefix, progress) for model in (read, *others)
    ]
    baseline = baselines[0] if baselines else None
    return Evaluation(
        perplexity=found,
        baseline=baseline,
        recovery=100 * baseline.value / found.value if baseline else None,
        text=str(text_file),
        window=window,
        stride=stride,
    )


def sides(session: Session, against: Against | None) -> list[Session | EagerModel]:
    """The session and what it is compared with, if anything.

    Raises:
        planish.runtime.causal.NotCausal: if one is an artifact of no language model with a cache.
        planish.ir.capture.checkpoint.BadCheckpoint: if `against` cannot be loaded.
    """
    session.check_causal()
    if against is None:
        return [session]
    other = opponent(against, session.provider, session.threads)
    if isinstance(other, Session):
        other.check_causal()
    return [session, other]


def perplexity(
    model: LanguageModel,
    tokens: Tokens,
    window: int,
    stride: int,
    prefix: list[int] | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """The perplexity of a model on tokens [N].

    Args:
        model: what scores.
        tokens: the text.
        window: the most tokens a prediction can see.
        stride: how far windows lie apart.
        prefix: what each window begins with; seen, not scored.
        progress: called after each window.
    """
    start_of_text = np.array(prefix or [], np.int64)
    cuts = list(windows(len(tokens), window - len(start_of_text), stride))
    scores = []
    for done, (begin, first, end) in enumerate(cuts, start=1):
        text = np.concatenate([start_of_text, tokens[begin:end]])
        # Without a prefix nothing predicts the first token of a window.
        scores.append(score(model, text, max(1, len(start_of_text) + first - begin)))
        if progress:
            progress(f"Perplexity of {model.label}", done, len(cuts))
    losses = -np.concatenate(scores)
    return Perplexity(
        label=model.label,
        value=float(np.exp(losses.mean())),
        loss=float(losses.mean()),
        error=float(losses.std() / np.sqrt(len(losses))),
        tokens=len(losses),
    )


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows over a text: where each begins, the first token that it scores, where it ends.

    Each token is scored by one window; a window that would be one token long is left out.
    """
    scored = 0
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        if end - begin > 1:
            yield begin, scored, end
        scored = end
        if end == length:
            return


def _tokens(tokenizer: Tokenizer, text: str, count: int | None) -> list[int]:
    if count is None:
        return tokenizer.encode_plain(text)
    return tokenizer.first(text, count, plain=True)


def _check(length: int, prefix: int, window: int, stride: int, context: int | None) -> None:
    room = window - prefix
    if context is not None and window > context:
        raise BadWindow(f"The model reads {context} tokens; a window of {window} is too long.")
    if room < 2 or not 1 <= stride <= room:
        raise BadWindow(
            f"A window of {window} tokens with a stride of {stride} cannot be: the window must "
            f"hold at least {prefix + 2} tokens, and the stride be from 1 to {max(room, 1)}, or "
            "tokens would be left out."
        )
    if length < 2:
        raise BadWindow(f"The text has {length} tokens; at least 2 are needed to predict one.")
