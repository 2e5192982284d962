"""Contracts that were declared, tried on the operators themselves before they are believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from planish.ir.errors import PlanishError
from planish.ir.flow.call import Call
from planish.ir.flow.contracts import Contract
from planish.runtime.operators import Inputs, Operator, numbers
from planish.runtime.runnable import CannotRun
from planish.runtime.values import Array
from planish.runtime.witness import same

TRIES = 12
"""Random inputs that each call is tried on, each changed in five ways."""

CALLS = 4
"""Calls of one operator that are tried."""


class Refuted(PlanishError):
    """An operator does not do what its contract says."""


def tried(
    met: Mapping[Contract, Iterable[Call]], operator: Callable[[Call], Operator]
) -> tuple[str, ...]:
    """What may be assumed of each contract that was applied.

    Args:
        met: the calls that each was applied to.
        operator: gives a call in a form in which it can be run, or raises `CannotRun`.

    Raises:
        Refuted: if a run contradicts a contract, with the run.
    """
    return tuple(_tried(contract, list(calls)[:CALLS], operator) for contract, calls in met.items())


def _tried(contract: Contract, calls: Sequence[Call], operator: Callable[[Call], Operator]) -> str:
    runs = 0
    try:
        for call in calls:
            shapes = [numbers(one.shape) for one in contract.reads(call)]
            runs += _try(contract, operator(call), shapes)
    except CannotRun as error:
        return f"{contract} (as declared, and not tried: {error})"
    return f"{contract} (as declared; {runs} random runs do not refute it)"


def _try(contract: Contract, operator: Operator, shapes: Sequence[tuple[int, ...]]) -> int:
    """How many runs agree with a contract."""
    runs = 0
    for seed in range(TRIES):
        chance = np.random.default_rng(seed)
        first = [_random(operator, place, chance) for place in range(len(operator.inputs))]
        before, again = operator.run(first), operator.run(first)
        if not all(map(same, before, again)):
            raise Refuted(
                f"{contract.operator} gives something else when it is run again on the same "
                "inputs: it keeps a state or is random, which no contract covers."
            )
        _check_shapes(contract, before, shapes)
        for how in _WAYS:
            second, touched = _changed(contract, operator, first, how, chance)
            after = operator.run(second)
            runs += 1
            for place, (old, new) in enumerate(zip(before, after, strict=True)):
                _compare(contract, place, old, new, touched, f"{how}, seed {seed}")
    return runs


def _check_shapes(
    contract: Contract, outputs: Sequence[Array], shapes: Sequence[tuple[int, ...]]
) -> None:
    for place, (one, shape) in enumerate(zip(outputs, shapes, strict=True)):
        if one.shape != shape:
            raise Refuted(
                f"{contract.operator}: output {place} has the shape {list(one.shape)}, not "
                f"{list(shape)}, as its contract has it; say shapes."
            )


_WAYS = ("other values", "times 1000", "zeros", "infinite", "not a number")


def _random(operator: Operator, place: int, chance: np.random.Generator) -> Array | None:
    if place in operator.fixed:
        return operator.fixed[place]
    spec = operator.inputs[place]
    return None if spec is None else _values(*spec, "other values", chance)


def _values(shape: tuple[int, ...], dtype: str, how: str, chance: np.random.Generator) -> Array:
    kind = np.dtype(dtype).kind
    if kind == "b":
        return chance.integers(0, 2, shape).astype(bool)
    if kind in "iu":
        return chance.integers(0, 4, shape).astype(dtype)
    factor = {"times 1000": 1000.0, "zeros": 0.0, "infinite": np.inf, "not a number": np.nan}
    made: Array = chance.standard_normal(shape)
    with np.errstate(all="ignore"):
        scaled = (np.abs(made) + 1 if how == "infinite" else made) * factor.get(how, 1.0)
    return np.asarray(scaled, dtype)


Touched = Mapping[int, Any]
"""Where each input was changed: a truth value for each element."""


def _changed(
    contract: Contract, operator: Operator, first: Inputs, how: str, chance: np.random.Generator
) -> tuple[list[Array | None], dict[int, Any]]:
    """The inputs with one row changed; of an elementwise operator half of the elements."""
    second: list[Array | None] = list(first)
    touched: dict[int, Any] = {}
    row: int | None = None
    for place, value in enumerate(first):
        axis = contract.input_axis(place)
        if value is None or place in operator.fixed:
            continue
        if contract.elementwise:
            mask = chance.integers(0, 2, value.shape).astype(bool)
        elif axis is not None:
            row = int(chance.integers(value.shape[axis])) if row is None else row
            mask = np.zeros(value.shape, bool)
            np.moveaxis(mask, axis, 0)[row] = True
        else:
            continue
        new = _values(value.shape, str(value.dtype), how, chance)
        second[place] = np.where(mask, new, value).astype(value.dtype)
        touched[place] = mask if contract.elementwise else row
    if not touched:
        raise CannotRun("all that it reads by rows is stored in the model")
    return second, touched


def _compare(
    contract: Contract, output: int, old: Array, new: Array, touched: Touched, how: str
) -> None:
    """Whether what may not move stayed.

    Raises:
        Refuted: with what moved.
    """
    if old.shape != new.shape:
        raise Refuted(
            f"{contract.operator}: output {output} has the shape {list(old.shape)}, and "
            f"{list(new.shape)} after a change of its inputs ({how})."
        )
    axis = contract.axis(output)
    if contract.elementwise:
        kept = ~np.any([np.broadcast_to(mask, old.shape) for mask in touched.values()], axis=0)
        where = "elements whose inputs stayed as they were"
    elif axis is None:
        kept = np.ones(old.shape, bool)
        where = "an output that reads public inputs alone"
    else:
        kept = np.ones(old.shape, bool)
        np.moveaxis(kept, axis, 0)[next(iter(touched.values()))] = False
        where = "rows of others"
    if not same(old[kept], new[kept]):
        wide = (old[kept].astype(np.float64), new[kept].astype(np.float64))
        with np.errstate(all="ignore"):
            far = float(np.abs(wide[0] - wide[1]).max())
        raise Refuted(
            f"{contract}, as declared, is wrong: {where} in output {output} move by {far:.3g} "
            f"when one row of its inputs is changed ({how}). Mend the contract."
        )
