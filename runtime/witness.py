"""Running a model on two batches that differ in one request, to see whether another's row moves.

For a leak that was found, this gives a witness that anyone can replay. For a proof, it is a check
of the proof: at fixed shapes, whatever the other requests are, a row keeps its bits.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.ir.errors import PlanishError
from planish.runtime.values import Array

Feeds = Mapping[str, Array]
Run = Callable[[Feeds], Mapping[str, Array]]
"""Evaluates a model: inputs by name to outputs by name."""

FORMAT = "planish.witness/1"

ROUNDING = 1e-5
"""A difference below this share of the row's size, however large the other rows are made, is
counted as rounding: kernels may add in another order when other rows differ."""


class BadWitness(PlanishError):
    """A file is no witness, or not one of this model."""


@dataclass(frozen=True)
class InputSpec:
    """One input as the search makes it: its shape in numbers, its dtype, its batch axis.

    Attributes:
        name: of the input.
        shape: with numbers for every size.
        dtype: as numpy names it.
        axis: along which the requests lie; None for an input that all share.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int | None


@dataclass(frozen=True)
class Witness:
    """Two batches that differ in the rows of one request, and what that moves.

    Attributes:
        first: inputs of the first batch.
        second: inputs of the second, different in `changed` alone.
        output: the output that moves.
        axis: its batch axis.
        rows: the rows of the request whose output moves.
        changed: the rows of the request that was changed.
        how: how they were changed.
        difference: the largest difference in the output's rows (infinite for NaN).
        size: the largest number in them.
        model: SHA-256 of the model's file, if it is one.
    """

    first: Feeds
    second: Feeds
    output: str
    axis: int
    rows: tuple[int, ...]
    changed: tuple[int, ...]
    how: str
    difference: float
    size: float
    model: str = ""

    @property
    def rounding(self) -> bool:
        """Whether the difference is as small as rounding makes it."""
        return self.difference <= ROUNDING * self.size

    def save(self, path: Path) -> None:
        """Write an `.npz` of plain arrays; the description is JSON."""
        told = {key: value for key, value in asdict(self).items() if key not in ("first", "second")}
        arrays: dict[str, Any] = {f"first.{name}": value for name, value in self.first.items()}
        arrays |= {f"second.{name}": value for name, value in self.second.items()}
        text = json.dumps({"format": FORMAT, **told})
        with path.open("wb") as file:
            np.savez_compressed(file, witness=np.frombuffer(text.encode(), np.uint8), **arrays)

    @staticmethod
    def load(path: Path) -> Witness:
        """Read what `save` wrote; nothing is unpickled.

        Raises:
            BadWitness: if the file is no witness.
        """
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                told = json.loads(bytes(file["witness"]).decode())
                if told.pop("format") != FORMAT:
                    raise ValueError(f"another format than {FORMAT}")
                sides: dict[str, Any] = {"first": {}, "second": {}}
                for key in file.files:
                    side, _, name = key.partition(".")
                    if side in sides:
                        sides[side][name] = file[key]
            told["rows"], told["changed"] = tuple(told["rows"]), tuple(told["changed"])
            return Witness(**sides, **told)
        except FileNotFoundError:
            raise
        except Exception as error:  # numpy and zipfile raise many kinds
            raise BadWitness(f"{path} is no witness of planish audit: {error}.") from error


def replay(witness: Witness, run: Run) -> Witness:
    """What moves when a witness is run again; its `difference` is 0 if nothing does.

    Raises:
        BadWitness: if the model has no such output.
    """
    before, after = run(witness.first), run(witness.second)
    if witness.output not in before or witness.output not in after:
        raise BadWitness(f"the model has no output {witness.output!r}, which the witness names.")
    found = _moved(before, after, witness.output, witness.axis, witness.rows)
    difference, size = found if found is not None else (0.0, 0.0)
    told = {key: getattr(witness, key) for key in witness.__dataclass_fields__}
    return Witness(**{**told, "difference": difference, "size": size})


def search(
    run: Run,
    inputs: Sequence[InputSpec],
    outputs: Mapping[str, int],
    owner: Callable[[int, int], int] = lambda row, _: row,
    *,
    base: Feeds | None = None,
    tries: int = 3,
    model: str = "",
) -> Iterator[Witness]:
    """Change one request in many ways, and yield each output of another that moves, once.

    Outputs that move by no more than rounding come last.

    Args:
        run: the model.
        inputs: what to make.
        outputs: the batch axis of each output to watch.
        owner: gives the request of a row, out of so many rows.
        base: a batch to start from instead of a random one.
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
        steady = [name for name in outputs if name in before and _same(before[name], again[name])]
        for how, changed in itertools.product(_LADDER, (0, 1)):
            watched = [name for name in steady if name not in seen]
            second, rows = _changed(first, inputs, owner, changed, how, chance)
            if second is None or not watched:
                continue
            after = run(second)
            for name in watched:
                axis = outputs[name]
                found = _witness(before, after, name, axis, owner, changed)
                if found is None:
                    continue
                moved, far, size = found
                one = Witness(first, second, name, axis, moved, rows, how, far, size, model)
                if one.rounding:
                    rounded.setdefault(name, one)
                    continue
                seen.add(name)
                yield one
    yield from (one for name, one in rounded.items() if name not in seen)


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
        return chance.integers(0, 2 if "type" in spec.name else 100, spec.shape).astype(dtype)
    return chance.standard_normal(spec.shape).astype(dtype)


def _changed(
    first: Feeds,
    inputs: Sequence[InputSpec],
    owner: Callable[[int, int], int],
    request: int,
    how: str,
    chance: np.random.Generator,
) -> tuple[dict[str, Array] | None, tuple[int, ...]]:
    """The batch with one request changed, and its rows; None where nothing would change."""
    second: dict[str, Array] = dict(first)
    rows: list[int] = []
    done = False
    for spec in inputs:
        if spec.axis is None:
            continue
        count = spec.shape[spec.axis]
        rows = [row for row in range(count) if owner(row, count) == request]
        value = first[spec.name].copy()
        part = tuple(rows if dim == spec.axis else slice(None) for dim in range(value.ndim))
        new = _perturbed(value[part], spec, how, chance)
        if new is not None and new.size:
            value[part] = new
            second[spec.name] = value
            done = True
    return (second if done else None), tuple(rows)


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
        top = 2 if "type" in spec.name else 100
        return chance.integers(0, top, value.shape).astype(dtype)
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


def _witness(
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    name: str,
    axis: int,
    owner: Callable[[int, int], int],
    changed: int,
) -> tuple[tuple[int, ...], float, float] | None:
    """The first other request whose rows moved, by how much, and how large they are."""
    if before[name].ndim == 0 or before[name].shape != after[name].shape:
        return (0,), float("inf"), 0.0  # a number for all, or a size that data decide
    count = before[name].shape[axis]
    requests = sorted({owner(row, count) for row in range(count)} - {changed})
    for request in requests:
        rows = tuple(row for row in range(count) if owner(row, count) == request)
        found = _moved(before, after, name, axis, rows)
        if found is not None:
            return (rows, *found)
    return None


def _moved(
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    name: str,
    axis: int,
    rows: Sequence[int],
) -> tuple[float, float] | None:
    """By how much rows of an output differ, and how large they are; None if not a bit does."""
    old, new = before[name], after[name]
    if old.ndim == 0 or old.shape != new.shape:
        return None if _same(old, new) else (float("inf"), 0.0)
    old, new = old.take(rows, axis), new.take(rows, axis)
    if _same(old, new):
        return None
    if old.dtype.kind not in "fiu":
        return 1.0, 1.0
    wide, other = old.astype(np.float64), new.astype(np.float64)
    if not (np.isfinite(wide).all() and np.isfinite(other).all()):
        return float("inf"), float(np.abs(wide[np.isfinite(wide)]).max(initial=0))
    return float(np.abs(wide - other).max()), float(np.abs(wide).max())


def _same(one: Array, other: Array) -> bool:
    """Whether two arrays have the same bits; one NaN is like another."""
    if one.shape != other.shape:
        return False
    floating = one.dtype.kind in "fc"
    return bool(np.array_equal(one, other, equal_nan=floating))
