"""Control flow: branches and loops, whose predicates decide for the whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from planish.ir.flow.polynomial import Count, Polynomial, substitute
from planish.ir.flow.vocabulary import Branch, Expression, Loop, Slice
from planish.ir.isolation import digits
from planish.ir.isolation.dependence import MANY, NOTHING, Dependence
from planish.ir.isolation.digits import Map

if TYPE_CHECKING:
    from planish.ir.isolation.interpret import Interpreter


def of(expression: Expression, interpreter: Interpreter) -> Dependence:
    """What a branch or a loop depends on."""
    match expression:
        case Branch():
            return _branch(expression, interpreter)
        case Loop():
            return _loop(expression, interpreter)
    raise TypeError(f"no way to interpret {type(expression).__name__}")


def _branch(branch: Branch, interpreter: Interpreter) -> Dependence:
    """Either result; who decides which, decides for all."""
    given = [interpreter.of(operand) for operand in branch.operands]
    result = interpreter.decided(interpreter.of(branch.predicate), "which branch all take")
    for body in branch.bodies:
        outputs = interpreter.once(body, partial(interpreter.body, body, given))
        result = result | outputs[branch.index]
    return result


def _loop(loop: Loop, interpreter: Interpreter) -> Dependence:
    """One output of a loop, whose fixed point is found once for all of them."""
    found: _Fixed = interpreter.once(loop.body, lambda: _fixed_point(loop, interpreter))
    if loop.index < len(loop.carried):
        return found.carried[loop.index] | found.stop
    return _stacked(found.outputs[loop.index], found.trip, loop, interpreter) | found.stop


@dataclass(frozen=True)
class _Fixed:
    """What holds in every iteration.

    Attributes:
        trip: the symbol of the iteration's number.
        carried: what is carried.
        outputs: what an iteration gives.
        stop: what follows from who decides how often all iterate.
    """

    trip: str
    carried: Sequence[Dependence]
    outputs: Sequence[Dependence]
    stop: Dependence


def _fixed_point(loop: Loop, interpreter: Interpreter) -> _Fixed:
    """The fixed point over the carried values; iterations are told apart by a symbol."""
    trip = f"trip of {interpreter.place}"
    number = len(loop.carried)
    fixed = [interpreter.of(operand) for operand in loop.fixed]
    elements = [_element(one, Polynomial.symbol(trip), interpreter) for one in loop.scanned]
    carried = [interpreter.of(operand) for operand in loop.carried]
    decided = interpreter.of(loop.trips) if loop.trips is not None else NOTHING
    outputs: tuple[Dependence, ...] = ()
    for _ in range(2 * MANY):
        outputs = interpreter.body(loop.body, [*carried, *elements, *fixed])
        after = [
            one | _kept(other, trip, interpreter)
            for one, other in zip(carried, outputs[:number], strict=True)
        ]
        if loop.condition is not None:
            decided = decided | outputs[loop.condition]
        if after == carried:
            break
        carried = after
    else:
        cause = interpreter.cause("unknown", "the loop was not understood within bounds")
        decided = decided | Dependence(frozenset(), frozenset({cause}))
    return _Fixed(trip, carried, outputs, interpreter.decided(decided, "how often all iterate"))


def _element(operand: Expression, trip: Count, interpreter: Interpreter) -> Dependence:
    """One element along the first dimension, by the number of the iteration."""
    first = Slice(operand, 0, trip, 1, 1)
    return interpreter.reshape(interpreter.slice(first), first.shape, operand.shape[1:])


def _kept(found: Dependence, trip: str, interpreter: Interpreter) -> Dependence:
    """A carried value: what one iteration's request wrote, the next one's reads."""
    crossing = {one for one in found.maps if trip in _symbols(one)}
    if not crossing:
        return found
    cause = interpreter.cause("value", "requests take turns in a loop, and one reads another's")
    return Dependence(found.maps - crossing, found.causes | {cause})


def _stacked(found: Dependence, trip: str, loop: Loop, interpreter: Interpreter) -> Dependence:
    """Values of every iteration along a new first dimension."""
    sizes = [operand.shape[0] for operand in loop.scanned]
    maps: set[Map] = set()
    causes = set(found.causes)
    for one in found.maps:
        start = substitute(one.offset, {trip: 0})
        weight = substitute(one.offset, {trip: 1}) - start
        shifted = [replace(digit, dim=digit.dim + 1) for digit in one.digits]
        if weight != 0 and sizes and substitute(one.offset, {trip: 2}) == start + weight * 2:
            shifted.append(digits.Digit(0, 1, sizes[0], weight))
        elif weight != 0:
            causes.add(interpreter.cause("value", "iterations read different requests"))
            continue
        maps.add(digits.make(start, shifted))
    return Dependence(frozenset(maps), frozenset(causes))


def _symbols(one: Map) -> frozenset[str]:
    return one.offset.symbols if isinstance(one.offset, Polynomial) else frozenset()
