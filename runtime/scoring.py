"""How probable a model finds a text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planish.ir.errors import PlanishError
from planish.runtime.causal import LanguageModel, Tokens
from planish.runtime.values import Array


class NotANumber(PlanishError):
    """A model's logits are NaN or infinite, so that nothing can be said about a text."""


CHUNK = 128
"""Positions whose probabilities are in memory at once: 128 x 262,144 float32 are 134 MB."""


def log_likelihoods(logits: Array, targets: Tokens) -> NDArray[np.float64]:
    """The natural log of the probability that each row of logits gives its target.

    Args:
        logits: [N, V], of any floating-point dtype. Computed in float32, summed in float64.
        targets: [N], tokens.
    """
    found = np.empty(len(targets))
    for start in range(0, len(targets), CHUNK):
        rows = slice(start, start + CHUNK)
        scores = logits[rows].astype(np.float32)
        scores -= scores.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(scores, targets[rows, None], axis=-1)[:, 0]
        total = np.exp(scores, out=scores).sum(axis=-1, dtype=np.float64)
        found[rows] = chosen.astype(np.float64) - np.log(total)
    return found


def score(model: LanguageModel, tokens: Tokens, first: int) -> NDArray[np.float64]:
    """The log-likelihoods of `tokens[first:]`, each given all tokens before it.

    Args:
        model: what scores.
        tokens: [N], one text.
        first: at least 1, since nothing predicts the first token.

    Raises:
        NotANumber: if a logit is NaN or infinite.
    """
    logits, _ = model.extend(tokens[None, :-1])
    found = log_likelihoods(logits[0, first - 1 :], tokens[first:])
    if not np.isfinite(found).all():
        raise NotANumber(
            f"{model.label} gives NaN or infinite logits; its weights are damaged, or numbers "
            "overflow in its dtype (float16 holds none above 65,504; try bfloat16 or float32)."
        )
    return found
