"""Searching for two batches that differ in one request and move another's output."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.runtime.values import Array
from planish.runtime.witness import Feeds, Run, Witness, moved, same

Slope = Callable[[Feeds, str, int, Sequence[int], int], Feeds]
"""What would raise rows of an output, or lower them: of a batch, for the name of an output, its
batch axis, rows, and a sign. By input: a gradient, or codes to put in place of those that an
embedding looks up."""

Owner = Callable[[int, int], int]
"""The request of a row, out of so many rows."""

STEPS = (0.3, 1.0, 3.0, 10.0, 30.0)
"""How far to go along a gradient, in lengths of what is changed."""


@dataclass(frozen=True)
class InputSpec:
    """One input as the search makes it: its shape in numbers, its dtype, its batch axis.

    Attributes:
        name: of the input.
        shape: with numbers for every size.
        dtype: as numpy names it.
        axis: along which the requests lie; None for an input that all share.
        codes: for integers, the first and the last of those to choose from, if that is known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int | None
    codes: tuple[int, int] | None = None

    def part(self, owner: Owner, request: int) -> tuple[Any, ...]:
        """An index of the rows that belong to a request."""
        assert self.axis is not None
        count = self.shape[self.axis]
        rows = [row for row in range(count) if owner(row, count) == request]
        return tuple(rows if dim == self.axis else slice(None) for dim in range(len(self.shape)))


@dataclass(frozen=True)
class _Trial:
    """A batch that differs from the first in one request: its number, and how it was changed."""

    feeds: Feeds
    changed: int
    how: str


def search(
    run: Run,
    inputs: Sequence[InputSpec],
    outputs: Mapping[str, int],
    owner: Owner = lambda row, _: row,
    *,
    base: Feeds | None = None,
    slope: Slope | None = None,
    tries: int = 3,
    model: str = "",
) -> Iterator[Witness]:
    """Change one request in many ways, and yield each output of another that moves, once.

    Where gradients are to be had, they are followed first. Outputs that move by no more than
    rounding come last.

    Args:
        run: the model.
        inputs: what to make.
        outputs: the batch axis of each output to watch.
        owner: gives the request of a row, out of so many rows.
        base: a batch to start from instead of a random one.
        slope: gives gradients.
        tries: random batches to start from.
        model: the hash of the model's file, for the witness.
    """
    seen: set[str] = set()
    rounded: dict[str, Witness] = {}
    for seed in range(tries):
        chance = np.random.default_rng(seed)
        first = {one.name: random_input(one, chance) for one in inputs}
        if base is not None and seed == 0:
            first |= base
        before = run(first)
        again = run(first)
        steady = [name for name in outputs if name in before and same(before[name], again[name])]
        watched = {name: outputs[name] for name in steady}
        for trial in _trials(first, inputs, owner, watched, slope if seed == 0 else None, chance):
            left = [name for name in steady if name not in seen]
            if not left:
                break
            after = run(trial.feeds)
            for name in left:
                found = _others_moved(before, after, name, outputs[name], owner, trial.changed)
                if found is None:
                    continue
                rows, far, size = found
                changed = _rows_of(trial.changed, inputs, owner)
                one = Witness(
                    first,
                    trial.feeds,
                    name,
                    outputs[name],
                    rows,
                    changed,
                    trial.how,
                    far,
                    size,
                    model,
                )
                if one.rounding:
                    rounded.setdefault(name, one)
                    continue
                seen.add(name)
                yield one
    yield from (one for name, one in rounded.items() if name not in seen)


def _trials(
    first: Feeds,
    inputs: Sequence[InputSpec],
    owner: Owner,
    outputs: Mapping[str, int],
    slope: Slope | None,
    chance: np.random.Generator,
) -> Iterator[_Trial]:
    for (name, axis), sign in itertools.product(outputs.items(), (1, -1)):
        direction = slope(first, name, axis, _rows_of(1, inputs, owner), sign) if slope else {}
        for step in STEPS if direction else ():
            feeds = _ascended(first, inputs, owner, 0, direction, step)
            if feeds is not None:
                yield _Trial(feeds, 0, f"along the gradient of {name}, by {step:g}")
    for how, changed in itertools.product(_LADDER, (0, 1)):
        feeds = _changed(first, inputs, owner, changed, how, chance)
        if feeds is not None:
            yield _Trial(feeds, changed, how)


def _rows_of(request: int, inputs: Sequence[InputSpec], owner: Owner) -> tuple[int, ...]:
    """The rows of a request in the inputs that have rows."""
    spec = next(one for one in reversed(inputs) if one.axis is not None)
    assert spec.axis is not None
    count = spec.shape[spec.axis]
    return tuple(row for row in range(count) if owner(row, count) == request)


def _ascended(
    first: Feeds,
    inputs: Sequence[InputSpec],
    owner: Owner,
    request: int,
    direction: Feeds,
    step: float,
) -> dict[str, Array] | None:
    """The batch with one request moved along a direction; None where that is nowhere."""
    second = dict(first)
    for spec in inputs:
        if spec.axis is None or spec.name not in direction:
            continue
        part = spec.part(owner, request)
        value, towards = first[spec.name].copy(), direction[spec.name][part]
        if value.dtype.kind == "f":
            length = float(np.linalg.norm(towards.astype(np.float64)))
            if not 0 < length < np.inf:
                continue
            size = max(float(np.linalg.norm(value[part].astype(np.float64))), 1.0)
            value[part] += (step * size / length * towards).astype(value.dtype)
        else:
            value[part] = towards
        second[spec.name] = value
    return None if all(same(first[name], second[name]) for name in first) else second


_LADDER = (
    "other values",
    "other codes",
    "times 100",
    "times 10000",
    "zeros",
    "infinite",
    "not a number",
)
"""How the changed request is changed, mildest first: a scale over the batch moves only when its
range does, and a masked value only when it is not finite."""


def random_input(spec: InputSpec, chance: np.random.Generator) -> Array:
    """Values that most models take: small codes, ones for masks, places for positions."""
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b" or "mask" in spec.name:
        return np.ones(spec.shape, dtype)
    if dtype.kind in "iu":
        if "position" in spec.name and spec.shape:
            places = np.arange(spec.shape[-1], dtype=dtype)
            return np.broadcast_to(places, spec.shape).copy()
        return chance.integers(*_codes(spec), spec.shape).astype(dtype)
    return chance.standard_normal(spec.shape).astype(dtype)


def _changed(
    first: Feeds,
    inputs: Sequence[InputSpec],
    owner: Owner,
    request: int,
    how: str,
    chance: np.random.Generator,
) -> dict[str, Array] | None:
    """The batch with one request changed; None where nothing would change."""
    second: dict[str, Array] = dict(first)
    done = False
    for spec in inputs:
        if spec.axis is None:
            continue
        part = spec.part(owner, request)
        value = first[spec.name].copy()
        new = _perturbed(value[part], spec, how, chance)
        if new is not None and new.size:
            value[part] = new
            second[spec.name] = value
            done = True
    return second if done else None


def _perturbed(
    value: Array, spec: InputSpec, how: str, chance: np.random.Generator
) -> Array | None:
    dtype = value.dtype
    if dtype.kind == "b" or dtype.kind in "iu":
        if how != "other codes" or "position" in spec.name:
            return None
        if dtype.kind == "b" or "mask" in spec.name:
            flipped = value.copy()
            flipped[..., : value.shape[-1] // 2] = 0
            return flipped
        return chance.integers(*_codes(spec), value.shape).astype(dtype)
    match how:
        case "other values" | "other codes":
            made = chance.standard_normal(value.shape)
        case "times 100" | "times 10000":
            made = chance.standard_normal(value.shape) * float(how.split()[1])
        case "zeros":
            made = np.zeros(value.shape)
        case "infinite":
            made = np.full(value.shape, np.inf)
        case _:
            made = np.full(value.shape, np.nan)
    with np.errstate(over="ignore"):
        return made.astype(dtype)


def _codes(spec: InputSpec) -> tuple[int, int]:
    """The first code to choose from, and the one behind the last."""
    if spec.codes is not None:
        return spec.codes[0], spec.codes[1] + 1
    return 0, 2 if "type" in spec.name else 100


def _others_moved(
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    name: str,
    axis: int,
    owner: Owner,
    changed: int,
) -> tuple[tuple[int, ...], float, float] | None:
    """The first other request whose rows moved, by how much, and how large they are."""
    if before[name].ndim == 0 or before[name].shape != after[name].shape:
        return (0,), float("inf"), 0.0  # a number for all, or a size that data decide
    count = before[name].shape[axis]
    requests = sorted({owner(row, count) for row in range(count)} - {changed})
    for request in requests:
        rows = tuple(row for row in range(count) if owner(row, count) == request)
        found = moved(before, after, name, axis, rows)
        if found is not None:
            return (rows, *found)
    return None
