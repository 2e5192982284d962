"""The choice of the next token from a model's scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.ir.errors import PlanishError
from planish.runtime.values import Array

Choice = Callable[[Array], int]
"""From the logits [V] of one position, a token."""


class BadOption(PlanishError):
    """An option of generation is outside of its range."""


@dataclass(frozen=True)
class Options:
    """How to generate.

    Attributes:
        max_new_tokens: the most tokens to generate for a prompt.
        do_sample: draw from the distribution; else always take the most probable token.
        temperature: above 1 flattens the distribution, below 1 sharpens it.
        top_k: draw among that many most probable tokens; 0 means all.
        top_p: draw among the fewest most probable tokens that together have this probability
            (Holtzman et al. 2020, "The curious case of neural text degeneration", section 3.1).
        seed: of the random numbers.
        stop: generation of a text ends before the first of these strings.
    """

    max_new_tokens: int = 64
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            BadOption: naming the option that is outside of its range.
        """
        for good, what in (
            (self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}; at least 1"),
            (
                self.temperature > 0,
                f"temperature is {self.temperature}; above 0 (greedy decoding is do_sample=False)",
            ),
            (self.top_k >= 0, f"top_k is {self.top_k}; at least 1, or 0 for all tokens"),
            (0 < self.top_p <= 1, f"top_p is {self.top_p}; above 0, at most 1"),
            (self.seed >= 0, f"seed is {self.seed}; at least 0"),
            (all(self.stop), "stop holds an empty string; each must have a character"),
        ):
            if not good:
                raise BadOption(f"The option {what} is asked for.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Options from keyword arguments; `stop` may be one string or several.

        Raises:
            BadOption: if one is unknown or outside of its range.
        """
        known = [option.name for option in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise BadOption(
                f"Generation has no option {', '.join(unknown)}; it has {', '.join(known)}."
            )
        stop = given.get("stop", ())
        return cls(**{**given, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})


def choices(options: Options, prompts: Sequence[Sequence[int]]) -> list[Choice]:
    """One choice for each prompt of a batch.

    When sampling, each prompt draws from its own stream of random numbers, seeded by its tokens
    and by how often the same prompt came before: its text does not depend on its neighbours.
    """
    if not options.do_sample:
        return [_most_probable] * len(prompts)
    keys = [tuple(prompt) for prompt in prompts]
    return [
        _Sampler(options, [options.seed, keys[:row].count(key), *key])
        for row, key in enumerate(keys)
    ]


def _most_probable(logits: Array) -> int:
    return int(logits.argmax())


class _Sampler:
    """Draws from the distribution, one random number a token."""

    def __init__(self, options: Options, entropy: list[int]) -> None:
        self._options = options
        self._random = np.random.default_rng(entropy)

    def __call__(self, logits: Array) -> int:
        """Draw a token by inverting the cumulative distribution."""
        cumulative = probabilities(logits, self._options).cumsum()
        drawn = self._random.random() * cumulative[-1]
        return int(np.searchsorted(cumulative, drawn, side="right"))


def probabilities(logits: Array, options: Options) -> NDArray[np.float64]:
    """The distribution over the vocabulary [V] after temperature, top-k and top-p, in that order.

    Equal scores at the edge of top-k are all kept.
    """
    scores = logits.astype(np.float64) / options.temperature
    if 0 < options.top_k < scores.size:
        least = np.partition(scores, -options.top_k)[-options.top_k]
        scores[scores < least] = -np.inf
    weights: NDArray[np.float64] = np.exp(scores - scores.max())
    weights /= weights.sum()
    if options.top_p < 1:
        falling = np.argsort(-weights, kind="stable")
        before = weights[falling].cumsum() - weights[falling]
        weights[falling[before >= options.top_p]] = 0
        weights /= weights.sum()
    return weights
