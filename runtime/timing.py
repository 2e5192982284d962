"""Timing models round by round, on random inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter, sleep
from typing import Any, Literal

import numpy as np

from planish.runtime.causal import LanguageModel, Tokens
from planish.runtime.config import setting
from planish.runtime.session import Session
from planish.runtime.values import Array, Value

Phase = Literal["prefill", "decode", "forward"]
Round = Callable[[], dict[Phase, float]]
"""Runs a model once through its phases; gives the seconds of each."""

ENOUGH = 0.1
"""Seconds that a round of a small model takes at least, so that no single hiccup decides it."""

SETTLING = 0.1
"""Seconds before each round: threads of the side before look for work that long after its end
(ONNX Runtime's some 40 ms on a virtual machine), and take a core from the next."""

PIXELS = 224
"""Height and width of images for a model that takes any."""


def in_turns(
    sides: Sequence[Round], rounds: int, tick: Callable[[], None]
) -> list[list[dict[Phase, float]]]:
    """For each side its rounds, the first of which is left out as a warm-up.

    The sides take turns, and every other time in reverse, so that none of them always has the
    warmer machine. Each begins when the threads of the one before are asleep.
    """
    times: list[list[dict[Phase, float]]] = [[] for _ in sides]
    for turn in range(rounds + 1):
        order = list(range(len(sides)))
        for side in reversed(order) if turn % 2 else order:
            sleep(SETTLING)
            times[side].append(sides[side]())
        tick()
    return [found[1:] for found in times]


def language_round(model: LanguageModel, tokens: Tokens, prompt: int) -> dict[Phase, float]:
    """Seconds to read the first `prompt` of tokens [B, N], and then the others one by one."""
    model.extend(tokens[:, :1])  # wakes threads that went to sleep while the other side ran
    started = perf_counter()
    cache = model.extend(tokens[:, :prompt])[1]
    read = perf_counter()
    for at in range(prompt, tokens.shape[1]):
        cache = model.extend(tokens[:, at : at + 1], cache=cache)[1]
    return {"prefill": read - started, "decode": perf_counter() - read}


def forward_round(call: Callable[[], object], enough: float = ENOUGH) -> dict[Phase, float]:
    """Seconds of one call: the mean of as many as `enough` seconds hold, after one not timed."""
    call()
    started, calls = perf_counter(), 0
    while perf_counter() - started < enough or not calls:
        call()
        calls += 1
    return {"forward": (perf_counter() - started) / calls}


def random_tokens(session: Session, batch: int, length: int) -> Tokens:
    """Tokens [batch, length] of the session's vocabulary, the same ones each time."""
    drawn = np.random.default_rng(0).integers(_vocabulary(session.config), size=(batch, length))
    return drawn.astype(np.int64)


def random_inputs(session: Session, batch: int, length: int) -> dict[str, Array]:
    """Inputs of any model: tokens, masks of ones, normal numbers; the same ones each time."""
    rng = np.random.default_rng(0)
    vocabulary = _vocabulary(session.config)
    return {spec.name: _random(spec, rng, batch, length, vocabulary) for spec in session.inputs}


def _random(
    spec: Value, rng: np.random.Generator, batch: int, length: int, vocabulary: int
) -> Array:
    floating = spec.array_dtype.kind == "f"
    free = PIXELS if floating else length
    shape = tuple(
        extent if isinstance(extent, int) else (batch if axis == 0 else free)
        for axis, extent in enumerate(spec.shape)
    )
    if floating:
        return rng.standard_normal(shape).astype(spec.array_dtype)
    if "mask" in spec.name:
        return np.ones(shape, spec.array_dtype)
    if spec.name.endswith("input_ids"):
        return rng.integers(vocabulary, size=shape).astype(spec.array_dtype)
    return np.zeros(shape, spec.array_dtype)  # token types, positions, flags


def _vocabulary(config: Mapping[str, Any]) -> int:
    """How many tokens there are; few, where the config does not say."""
    return setting(config, "vocab_size") or 2
