"""Four-choice questions for `quantization.py`: what is asked, and what the answers say.

The questions are those of MMLU's science subjects, evenly spaced over the file. They are asked
zero-shot, in this form, and what counts is how probable the model finds each letter's token next:

    The following is a multiple choice question about college biology.

    What is ...?
    A. ...
    B. ...
    C. ...
    D. ...
    Answer:

Small models find one letter most probable whatever the question (SmolLM2-135M: A), so that their
answers would all be the same, and agree. Hence each probability is divided by the letter's mean
over all questions, as in Zhou et al., "Batch Calibration", 2024; it reads no right answer. Models
of few hundred million parameters are even so little better than chance; how often a quantized one
answers as the float model does tells more of what rounding changed than how often it is right.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from planish import assets
from planish.runtime.texts import read_rows
from planish.runtime.tokenizer import Tokenizer

LETTERS = "ABCD"


def prompt(row: dict[str, Any]) -> str:
    """What is read before the letter."""
    subject = row["type"].replace("_", " ")
    choices = [f"{letter}. {text}" for letter, text in zip(LETTERS, row["choices"], strict=True)]
    opening = f"The following is a multiple choice question about {subject}.\n\n"
    return opening + "\n".join([row["question"].strip(), *choices, "Answer:"])


def evenly(count: int) -> list[dict[str, Any]]:
    """So many questions, evenly spaced over the file, which is sorted by subject."""
    rows = [row for _, row in read_rows(assets.fetch("mmlu-stem") / "test.jsonl")]
    count = min(count, len(rows))
    return [rows[n * len(rows) // count] for n in range(count)]


def as_tokens(tokenizer: Tokenizer, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `quantization_tools.py` reads: the tokens of prompts and of letters.

    A letter is what the tokenizer adds to a prompt for it, which must be one token.
    """
    asked = [tokenizer.encode(prompt(row)) for row in rows]
    letters = []
    for letter in LETTERS:
        *before, token = tokenizer.encode(f"{prompt(rows[0])} {letter}")
        assert before == asked[0], f"the tokenizer joins the letter {letter} to the prompt"
        letters.append(token)
    return {"prompts": asked, "letters": letters}


def answers(scores: Sequence[Sequence[float]]) -> list[int]:
    """The letter that each question makes likelier than it is over all of them, counted from 0."""
    likely = np.exp(np.reshape(scores, (-1, len(LETTERS))))
    likely /= likely.sum(axis=1, keepdims=True)
    found: list[int] = (likely / likely.mean(axis=0)).argmax(axis=1).tolist()
    return found


def judged(
    given: Sequence[int], rows: Sequence[dict[str, Any]], float_answers: Sequence[int]
) -> dict[str, float]:
    """Shares of answers that are right, and that are the float model's, with standard errors."""
    right = [answer == row["answer"] for answer, row in zip(given, rows, strict=True)]
    same = [answer == other for answer, other in zip(given, float_answers, strict=True)]
    shares = {"accuracy": right, "agreement": same}
    found: dict[str, float] = {"questions": len(rows)}
    for name, hits in shares.items():
        share = sum(hits) / len(hits)
        found |= {name: share, f"{name}_error": math.sqrt(share * (1 - share) / len(hits))}
    return found
