"""Multiple-choice questions: the answer is the choice that a model finds most probable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.ir.progress import Progress
from planish.runtime.causal import LanguageModel
from planish.runtime.eager import Against
from planish.runtime.evaluate import sides
from planish.runtime.scoring import log_likelihoods
from planish.runtime.session import Session
from planish.runtime.texts import BadFile, read_rows
from planish.runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        context: the text before the choices.
        choices: the texts to choose from.
        answer: which of them is right, counted from 0.
    """

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Accuracy:
    """How many questions a model answers right.

    Attributes:
        label: the model.
        plain: share of questions where the right choice has the highest log-likelihood.
        normalized: the same with each log-likelihood divided by the choice's bytes in UTF-8, so
            that long choices are not at a disadvantage.
        error: standard error of `plain`.
        normalized_error: standard error of `normalized`.
        questions: how many there were.
    """

    label: str
    plain: float
    normalized: float
    error: float
    normalized_error: float
    questions: int


@dataclass(frozen=True)
class Choices:
    """What `choose` found.

    Attributes:
        accuracy: of the session.
        baseline: of what it was compared with.
        recovery: the session's plain accuracy over the baseline's, in percent.
        guessing: the accuracy of guessing blindly.
        file: the questions.
    """

    accuracy: Accuracy
    baseline: Accuracy | None
    recovery: float | None
    guessing: float
    file: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def choose(
    session: Session,
    file: Path | str,
    against: Against | None = None,
    max_questions: int | None = None,
    progress: Progress | None = None,
) -> Choices:
    """Measure how many multiple-choice questions a session answers right.

    Args:
        session: a causal language model with a tokenizer.
        file: `.jsonl`, each line an object with `choices`, a list of texts; `answer`, the right
            one's place from 0, its letter from A, or the text itself; and either `context`, put
            before a choice as it is, or `question`, put there after "Question: " and before a
            line "Answer:".
        against: the baseline; see `planish.runtime.eager.opponent`.
        max_questions: take no more than so many, from the top.
        progress: called after each question.

    Raises:
        BadFile: if the file cannot be read, or a line is no question.
        planish.runtime.causal.NotCausal: if one of the models is no language model with a cache.
        planish.runtime.tokenizer.NoTokenizer: if the session's folder has none.
        planish.ir.capture.checkpoint.BadCheckpoint: if `against` cannot be loaded.
    """
    questions = read_questions(Path(file))[:max_questions]
    models = sides(session, against)
    found, *baselines = [
        accuracy(model, session.tokenizer, questions, progress) for model in models
    ]
    baseline = baselines[0] if baselines else None
    return Choices(
        accuracy=found,
        baseline=baseline,
        recovery=100 * found.plain / baseline.plain if baseline and baseline.plain else None,
        guessing=float(np.mean([1 / len(question.choices) for question in questions])),
        file=str(file),
    )


def accuracy(
    model: LanguageModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    progress: Progress | None = None,
) -> Accuracy:
    """The accuracy of a model on questions."""
    plain, normalized = [], []
    for done, question in enumerate(questions, start=1):
        likelihoods = choice_likelihoods(model, tokenizer, question)
        sizes = [len(choice.encode()) for choice in question.choices]
        plain.append(int(np.argmax(likelihoods)) == question.answer)
        normalized.append(int(np.argmax(np.divide(likelihoods, sizes))) == question.answer)
        if progress:
            progress(f"Questions to {model.label}", done, len(questions))
    return Accuracy(
        label=model.label,
        plain=float(np.mean(plain)),
        normalized=float(np.mean(normalized)),
        error=float(np.std(plain) / np.sqrt(len(plain))),
        normalized_error=float(np.std(normalized) / np.sqrt(len(normalized))),
        questions=len(questions),
    )


def choice_likelihoods(
    model: LanguageModel, tokenizer: Tokenizer, question: Question
) -> list[float]:
    """The log-likelihood of each choice after the context, all choices read in one batch.

    Context and choice are tokenized together, since a tokenizer may join their border. The batch
    is padded on the right: what is read before padding cannot see it.
    """
    context = tokenizer.encode(question.context.rstrip())
    texts = [
        tokenizer.encode(f"{question.context.rstrip()} {choice}") for choice in question.choices
    ]
    longest = max(map(len, texts))
    padded = np.array([text + [0] * (longest - len(text)) for text in texts], np.int64)
    mask = np.array([[1] * len(text) + [0] * (longest - len(text)) for text in texts], np.int64)
    logits, _ = model.extend(padded[:, :-1], mask[:, :-1])
    found = []
    for text, scores in zip(texts, logits, strict=True):
        first = max(1, _common(context, text))
        found.append(
            float(log_likelihoods(scores[first - 1 : len(text) - 1], np.array(text[first:])).sum())
        )
    return found


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens at the start are the same."""
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def read_questions(file: Path) -> list[Question]:
    """The questions of a `.jsonl` file.

    Raises:
        BadFile: if the file cannot be read or is empty, or a line is no question.
    """
    questions = [_question(row, f"{file}:{line}") for line, row in read_rows(file)]
    if not questions:
        raise BadFile(f"{file} holds no question.")
    return questions


def _question(row: dict[str, Any], where: str) -> Question:
    choices, context = row.get("choices"), row.get("context")
    if context is None and "question" in row:
        context = f"Question: {row['question']}\nAnswer:"
    if not isinstance(choices, list) or len(choices) < 2 or not all(map(str, choices)):
        raise BadFile(f"{where} has no list 'choices' of at least two texts.")
    if not isinstance(context, str) or not context.strip():
        raise BadFile(f"{where} has no text 'question' or 'context'.")
    texts = tuple(map(str, choices))
    return Question(context, texts, _answer(row.get("answer"), texts, where))


def _answer(answer: object, choices: tuple[str, ...], where: str) -> int:
    """The place of the right choice, given as place, letter or text."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
    if isinstance(answer, int) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, str) and len(answer) == 1 and answer in letters:
        return letters.index(answer)
    raise BadFile(
        f"{where}: 'answer' is {answer!r}; it must be a place from 0 to {len(choices) - 1}, a "
        f"letter from A to {letters[-1]}, or one of the choices."
    )
