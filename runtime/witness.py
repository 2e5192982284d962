"""Running a model on two batches that differ in one request, to see whether another's row moves.

For a leak that was found, this gives a witness that anyone can replay. For a proof, it is a check
of the proof: at fixed shapes, whatever the other requests are, a row keeps its bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
    found = moved(before, after, witness.output, witness.axis, witness.rows)
    difference, size = found if found is not None else (0.0, 0.0)
    told = {key: getattr(witness, key) for key in witness.__dataclass_fields__}
    return Witness(**{**told, "difference": difference, "size": size})


def moved(
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    name: str,
    axis: int,
    rows: Sequence[int],
) -> tuple[float, float] | None:
    """By how much rows of an output differ, and how large they are; None if not a bit does."""
    old, new = before[name], after[name]
    if old.ndim == 0 or old.shape != new.shape:
        return None if same(old, new) else (float("inf"), 0.0)
    old, new = old.take(rows, axis), new.take(rows, axis)
    if same(old, new):
        return None
    if old.dtype.kind not in "fiu":
        return 1.0, 1.0
    wide, other = old.astype(np.float64), new.astype(np.float64)
    if not (np.isfinite(wide).all() and np.isfinite(other).all()):
        return float("inf"), float(np.abs(wide[np.isfinite(wide)]).max(initial=0))
    return float(np.abs(wide - other).max()), float(np.abs(wide).max())


def same(one: Array, other: Array) -> bool:
    """Whether two arrays have the same bits; one NaN is like another."""
    if one.shape != other.shape:
        return False
    floating = one.dtype.kind in "fc"
    return bool(np.array_equal(one, other, equal_nan=floating))
