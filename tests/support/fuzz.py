"""Whether random programs keep requests apart: what the analysis says, and what runs show.

A program is drawn as ATen or as ONNX (`Drawn`). It is run on a batch, then on batches in which the
values of one request are kept and those of all others replaced. Whatever the analysis calls
isolated has to stay as it was, bit by bit.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from planish.ir.isolation.verdict import Verdict
from planish.ir.sizes import Extent, evaluate

Array = np.ndarray[Any, Any]

SIZES = ({"B": 3, "T": 5}, {"B": 4, "T": 2}, {"B": 3, "T": 3})


class NotRun(Exception):
    """A program needs more elements than a batch has, or its runtime has no kernel for it."""


@dataclass(frozen=True)
class Spec:
    """An input. Integers are 0 or 1, so that they are valid as any index.

    Attributes:
        name: of the input.
        dtype: numpy's.
        shape: numbers, or expressions over B and T.
        axis: the batch axis; None if all requests share the input.
    """

    name: str
    dtype: type[np.generic]
    shape: tuple[Extent, ...]
    axis: int | None


INPUTS: tuple[tuple[type[np.generic], tuple[Extent, ...], int | None], ...] = (
    (np.float32, ("B", "T", 4), 0),
    (np.float32, ("B", "T", 4), 0),
    (np.float32, ("B", 4), 0),
    (np.float32, ("B", "T"), 0),
    (np.float32, ("T", "B", 4), 1),
    (np.float32, ("B", 4, "T"), 0),
    (np.float32, ("T", 4), None),
    (np.int64, ("B",), 0),
    (np.int64, ("B", "T"), 0),
    (np.bool_, ("B", "T"), 0),
)
"""Dtype, shape and batch axis."""


def some_inputs(chance: random.Random) -> list[Spec]:
    """Three or four of them."""
    chosen = [INPUTS[0], INPUTS[7], *chance.choices(INPUTS[1:], k=chance.randint(1, 2))]
    return [Spec(f"x{number}", *one) for number, one in enumerate(chosen)]


@dataclass(frozen=True)
class Result:
    """What a program gives.

    Attributes:
        name: of the output, or of the state.
        axis: along which its rows lie; None for a state, which nobody's values may reach.
        final: whether it is one of the program's own results; else it is a step on the way, which
            is judged as well.
    """

    name: str
    axis: int | None
    final: bool


class Drawn(Protocol):
    """A random program."""

    @property
    def inputs(self) -> Sequence[Spec]: ...

    @property
    def results(self) -> Sequence[Result]: ...

    @property
    def operators(self) -> frozenset[str]: ...

    def verdicts(self) -> Sequence[Verdict]:
        """What the analysis says of each result."""
        ...

    def run(self, given: Sequence[Array]) -> Sequence[Array]:
        """The results, with the same random numbers each time.

        Raises:
            NotRun: if the runtime refuses.
        """
        ...


def values(
    specs: Sequence[Spec], sizes: dict[str, int], chance: np.random.Generator
) -> list[Array]:
    """Random inputs."""
    return [
        _random(spec.dtype, [evaluate(extent, dict(sizes)) for extent in spec.shape], chance)
        for spec in specs
    ]


def _random(dtype: type[np.generic], shape: Sequence[int], chance: np.random.Generator) -> Array:
    if issubclass(dtype, np.floating):
        return np.asarray(chance.standard_normal(shape), dtype)
    return np.asarray(chance.integers(0, 2, shape), dtype)


CHANGES: dict[str, Callable[[Array], Array]] = {
    "fresh": lambda fresh: fresh,
    "x100": lambda fresh: fresh * np.float32(100),
    "x10000": lambda fresh: fresh * np.float32(1e4),
    "nan": lambda fresh: np.full_like(fresh, np.nan),
    "inf": lambda fresh: np.full_like(fresh, np.inf),
    "zero": np.zeros_like,
}
"""What the others of a batch hold instead; integers and truth values are dealt anew each time."""


def flows_seen(made: Drawn) -> list[str]:
    """How each result changed when only other requests were replaced: "" if it did not.

    Raises:
        NotRun: if no batch can be run.
    """
    seen = [""] * len(made.results)
    ran = False
    for sizes in SIZES:
        chance = np.random.default_rng(1)
        given = values(made.inputs, sizes, chance)
        try:
            before = made.run(given)
        except NotRun:
            continue
        ran = True
        for row in range(sizes["B"]):
            for kind in CHANGES:
                changed = _others(made.inputs, given, row, kind, chance)
                try:
                    after = made.run(changed)
                except NotRun:
                    continue  # it refuses these values: an error is no flow of data
                for number, result in enumerate(made.results):
                    old, new = before[number], after[number]
                    if not seen[number] and not _same(old, new, result.axis, row, sizes["B"]):
                        seen[number] = f"row {row} changes ({kind}, {sizes})"
    if not ran:
        raise NotRun
    return seen


def _others(
    specs: Sequence[Spec], given: Sequence[Array], row: int, kind: str, chance: np.random.Generator
) -> list[Array]:
    """The inputs with all rows but one replaced."""
    changed = []
    for spec, one in zip(specs, given, strict=True):
        if spec.axis is None:
            changed.append(one)
            continue
        other = _random(spec.dtype, one.shape, chance)
        if issubclass(spec.dtype, np.floating):
            other = CHANGES[kind](other)
        rows = [-1 if dim == spec.axis else 1 for dim in range(one.ndim)]
        kept = (np.arange(one.shape[spec.axis]) == row).reshape(rows)
        changed.append(np.where(kept, one, other))
    return changed


def _same(old: Array, new: Array, axis: int | None, row: int, batch: int) -> bool:
    """Whether what a request is given is as it was; NaN is as NaN."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    old, new = (_own(one, axis, row, batch) for one in (old, new))
    return bool(((old == new) | ((old != old) & (new != new))).all())  # noqa: PLR0124


def _own(one: Array, axis: int | None, row: int, batch: int) -> Array:
    """The rows of a request; everything where there are no rows for each."""
    size = one.shape[axis] if axis is not None and axis < one.ndim else 0
    each, rest = divmod(size, batch)
    return one if rest or not each else one.take(range(row * each, (row + 1) * each), axis)


@dataclass
class Count:
    """What became of many programs. The verdict on a program is the worst on its final results."""

    programs: int = 0
    isolated: int = 0
    leaks_seen: int = 0
    leaks_unseen: int = 0
    unproven_seen: int = 0
    unproven_unseen: int = 0
    not_run: int = 0
    results: int = 0
    results_isolated: int = 0
    operators: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def judge(self, name: str, made: Drawn) -> None:
        """Compare what is said of a program with its runs."""
        try:
            seen = flows_seen(made)
        except NotRun:
            self.not_run += 1
            return
        verdicts = made.verdicts()
        self.programs += 1
        self.operators.update(made.operators)
        self.results += len(verdicts)
        self.results_isolated += sum(verdict == "isolated" for verdict in verdicts)
        several = list(zip(made.results, verdicts, seen, strict=True))
        self.wrong += [
            f"{name}: {result.name} is called isolated, but {flow}\n{made}"
            for result, verdict, flow in several
            if verdict == "isolated" and flow
        ]
        said = {verdict for result, verdict, _ in several if result.final}
        moved = any(flow for result, _, flow in several if result.final)
        if "leaks" in said:
            self.leaks_seen += moved
            self.leaks_unseen += not moved
        elif "unproven" in said:
            self.unproven_seen += moved
            self.unproven_unseen += not moved
        else:
            self.isolated += 1

    def __add__(self, other: Count) -> Count:
        return Count(*(getattr(self, one) + getattr(other, one) for one in vars(self)))

    def check(self) -> None:
        """What has to hold for an analysis that is sound, and worth something."""
        assert not self.wrong, self.wrong[0]
        without_flow = self.isolated + self.leaks_unseen + self.unproven_unseen
        assert self.isolated >= 0.15 * self.programs, str(self)
        assert self.leaks_unseen <= 0.2 * without_flow, str(self)
        assert self.leaks_seen >= 0.1 * self.programs, str(self)


def judged(programs: Iterable[tuple[str, Drawn]], number: int) -> Count:
    """Judge the first so many that run."""
    count = Count()
    for name, made in programs:
        count.judge(name, made)
        if count.programs == number:
            break
    return count
