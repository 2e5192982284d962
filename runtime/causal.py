"""Causal language models: tokens in, scores of the next token out, and a cache between calls.

A cache is whatever a model takes under names that start with `past_` and gives back under the
same names with `present`: `past_key_values.3.key` comes out as `present.3.key`, `past_conv.0` as
`present_conv.0`. Nothing here knows how many there are or what they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from planish.ir.carried import carried
from planish.ir.errors import PlanishError
from planish.runtime.values import Array, BadInput, Value

Tokens = NDArray[np.int64]


class NotCausal(PlanishError):
    """A language model was needed, and the model is not one."""


@dataclass(frozen=True)
class Cache:
    """What a model remembers of a batch of texts.

    Attributes:
        mask: int64[B, P], 1 where a position holds a token and 0 where it holds padding.
        states: the keys and values, or other states, in the form of the model they belong to.
            A model may reuse their memory: give a cache to one call only.
    """

    mask: Tokens
    states: Any


class LanguageModel(Protocol):
    """What generating, scoring and timing need; sessions and models of transformers have it."""

    @property
    def label(self) -> str:
        """What it is, for people."""
        ...

    @property
    def takes_padding(self) -> bool:
        """Whether the texts of a batch may differ in length, padded where the mask is 0."""
        ...

    def extend(
        self, input_ids: Tokens, mask: Tokens | None = None, cache: Cache | None = None
    ) -> tuple[Array, Cache]:
        """Read more tokens.

        Args:
            input_ids: [B, T], the new tokens of each text.
            mask: [B, T], 0 where `input_ids` holds padding; by default nowhere.
            cache: of the tokens read so far; None at the start.

        Returns:
            The logits [B, T, V] and the cache for the next call.
        """
        ...


@dataclass(frozen=True)
class OneByOne:
    """A language model that reads a text a token at a time, as it reads what it generates.

    Models that read prompts and single tokens by different kernels, or by different weights, give
    other numbers then.
    """

    model: LanguageModel

    @property
    def label(self) -> str:
        """The model's, and how it reads."""
        return f"{self.model.label}, one token at a time"

    @property
    def takes_padding(self) -> bool:
        """As the model."""
        return self.model.takes_padding

    def extend(
        self, input_ids: Tokens, mask: Tokens | None = None, cache: Cache | None = None
    ) -> tuple[Array, Cache]:
        """As the model's `extend`."""
        logits = []
        for at in range(input_ids.shape[1]):
            new = slice(at, at + 1)
            found, cache = self.model.extend(
                input_ids[:, new], None if mask is None else mask[:, new], cache
            )
            logits.append(found)
        if cache is None:
            raise BadInput("There are no tokens to read.")
        return np.concatenate(logits, axis=1), cache


def state_names(inputs: Iterable[str], outputs: Iterable[str]) -> dict[str, str]:
    """For the name of each input that holds a state, the output that gives it back extended.

    Raises:
        NotCausal: if there is no such output.
    """
    names = {}
    for past, present in carried(inputs, outputs).items():
        if present is None:
            raise NotCausal(f"The model takes the state {past!r} but does not give it back.")
        names[past] = present
    return names


def extended_mask(input_ids: Tokens, mask: Tokens | None, cache: Cache | None) -> Tokens:
    """The mask of all tokens so far, [B, P+T].

    Raises:
        BadInput: if the tokens are no int64 matrix of numbers from 0, or the mask or cache is of
            another batch.
    """
    if input_ids.ndim != 2 or input_ids.dtype != np.int64 or not input_ids.size:
        raise BadInput(
            "Tokens are an int64 matrix, one row a text, at least one token long; given was "
            f"{input_ids.dtype} of shape {list(input_ids.shape)}."
        )
    if input_ids.min() < 0:  # which ONNX would count from the end of the vocabulary
        raise BadInput(f"Tokens are numbers from 0; given was {input_ids.min()}.")
    new = np.ones_like(input_ids) if mask is None else mask
    parts = [new] if cache is None else [cache.mask, new]
    if new.shape != input_ids.shape or len(parts[0]) != len(input_ids):
        raise BadInput(
            f"Tokens of shape {list(input_ids.shape)} do not fit a mask of shape "
            f"{list(new.shape)} and a cache of {len(parts[0])} texts."
        )
    return np.concatenate(parts, axis=1)


def positions(mask: Tokens, length: int) -> Tokens:
    """Of the last `length` columns, how many tokens each text has before them."""
    before: Tokens = (mask.cumsum(axis=1) - 1)[:, -length:]
    return np.maximum(before, 0)  # which is what padding counts as


def feeds(
    inputs: Iterable[Value], input_ids: Tokens, mask: Tokens, states: Mapping[str, Any]
) -> dict[str, Any]:
    """What a model is fed to read `input_ids`.

    Args:
        inputs: what the model takes. It may lack the mask, or the positions.
        input_ids: [B, T], the new tokens.
        mask: [B, P+T], of all tokens so far.
        states: by the names of the inputs; none of them at the start.
    """
    specs = {spec.name: spec for spec in inputs}
    length = input_ids.shape[1]
    fed: dict[str, Any] = {"input_ids": input_ids}
    for name, spec in specs.items():
        if name == "attention_mask":
            only_new = spec.shape == specs["input_ids"].shape
            fed[name] = mask[:, -length:].copy() if only_new else mask
        elif name == "position_ids":
            fed[name] = positions(mask, length)
        elif name.startswith("past_"):
            fed[name] = states[name] if states else _empty(spec, len(input_ids))
    return fed


def _empty(spec: Value, batch: int) -> Array:
    """A state before the first token: no positions yet, and zeros in what has a fixed size."""
    rest = (extent if isinstance(extent, int) else 0 for extent in spec.shape[1:])
    return np.zeros((batch, *rest), spec.array_dtype)
