"""Caches with room: ONNX Runtime writes the next position into them where they lie.

A model says in its metadata which inputs it can do that with (`planish.lowering.onnx.joined`). A
cache that grows by a copy at each token costs as much as reading some of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime

from planish.ir.carried import IN_PLACE, TOKENS, pairs
from planish.runtime.values import Array

LENGTH = 2
"""The axis of a cache, [B, K, P, D], that grows by a position a token."""

ROOM = 128
"""The least number of positions that caches get room for when they are full."""


@dataclass(frozen=True)
class Rooms:
    """All caches of a batch that are written in place, in memory longer than what they hold.

    Attributes:
        values: float32[B, K, capacity, D] by the input's name.
        length: the positions that are filled.
        capacity: those that there is memory for.
        binding: in which each is bound as the model's input and as its output: to bind them anew at
            each token would take a tenth of a small model's step.
    """

    values: Mapping[str, onnxruntime.OrtValue]
    length: int
    capacity: int
    binding: onnxruntime.IOBinding

    def exact(self, name: str) -> Array:
        """A copy of what is filled of one, which any graph reads."""
        return np.ascontiguousarray(self.values[name].numpy()[:, :, : self.length])

    def longer(self) -> Rooms:
        """The caches after a position was written into each."""
        return replace(self, length=self.length + 1)


def in_place(metadata: Mapping[str, str], outputs: Sequence[str]) -> dict[str, str]:
    """For each input that a model writes a new position into, the output that it is then."""
    named = metadata.get(IN_PLACE, "")
    return pairs(named.split(",") if named else [], outputs)


def reads_one(feeds: Mapping[str, Any]) -> bool:
    """Whether a single new token is read of each text."""
    tokens = feeds.get(TOKENS)
    return tokens is not None and bool(tokens.shape[1] == 1)


def with_room(
    session: onnxruntime.InferenceSession, names: Mapping[str, str], feeds: Mapping[str, Any]
) -> Rooms:
    """The caches as they were fed, with room for at least one more position.

    Args:
        session: of the model.
        names: as `in_place` gives them; not empty.
        feeds: what the model is fed.
    """
    held = {id(feeds[past]): feeds[past] for past in names}
    first = next(iter(held.values()))
    if isinstance(first, Rooms) and len(held) == 1 and first.length < first.capacity:
        return first
    before = {past: exact(past, feeds[past]) for past in names}
    length = next(iter(before.values())).shape[LENGTH]
    capacity = length + max(ROOM, length // 2)
    binding, values = session.io_binding(), {}
    for past, present in names.items():
        values[past] = onnxruntime.OrtValue.ortvalue_from_numpy(_longer(before[past], capacity))
        binding.bind_ortvalue_input(past, values[past])
        binding.bind_ortvalue_output(present, values[past])
    return Rooms(values, length, capacity, binding)


def exact(name: str, fed: Any) -> Any:
    """A cache as it was fed, as an array of what is filled."""
    if isinstance(fed, Rooms):
        return fed.exact(name)
    return fed if isinstance(fed, np.ndarray) else fed.numpy()


def _longer(cache: Array, capacity: int) -> Array:
    shape = list(cache.shape)
    shape[LENGTH] = capacity
    made = np.zeros(shape, cache.dtype)
    made[:, :, : cache.shape[LENGTH]] = cache
    return made
