"""What is known of sorted keys: how often each comes, and where those of each end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planish.ir.flow.laws import (
    Arrangement,
    Below,
    Cast,
    Histogram,
    Law,
    Picked,
    Places,
    RunningSum,
    Sorting,
)
from planish.ir.flow.vocabulary import Concat, Expression, Reads, Reshape, Slice, Value
from planish.ir.isolation.parts import same
from planish.ir.isolation.twins import Twins


@dataclass(frozen=True)
class Keys:
    """The sorted keys of an arrangement: integers below `size`, from the least up."""

    arrangement: Arrangement
    size: int


@dataclass(frozen=True)
class Tally(Keys):
    """How often each integer below `size` is a key."""


@dataclass(frozen=True)
class Ends(Keys):
    """Where among the sorted keys those of each integer below `size` end."""


@dataclass(frozen=True)
class Inverse:
    """The place of each row of the grid in an arrangement that has all of them."""

    arrangement: Arrangement


Fact = Below | Keys | Inverse


class Facts:
    """What is known of the values of a flow, besides numbers."""

    def __init__(self, twins: Twins) -> None:
        self._twins = twins
        self._facts: dict[Value, Fact] = {}

    def note(self, output: Value, fact: Fact | None) -> None:
        """Keep what is known of a value."""
        if fact is not None:
            self._facts[output] = fact

    def of(self, expression: Expression) -> Fact | None:
        """What is known of a value."""
        return self._facts.get(expression) if isinstance(expression, Value) else None

    def found(self, expression: Expression) -> Fact | None:
        """What follows for the result of an operator."""
        law = getattr(expression, "law", None)
        return self._moved(expression) if law is None else self._by_law(law)

    def _by_law(self, law: Law) -> Fact | None:
        fact: Fact | None = None
        match law:
            case Below():
                fact = law
            case Picked(arrangement=arrangement, value=key):
                fact = self._sorted(arrangement, key)
            case Places(arrangement=Arrangement(by=Sorting(key=key, ascending=True))):
                fact = self._inverse(key)
            case Cast(value=value, exact=exact):
                fact = _exact(self.of(value), exact)
            case Histogram(value=value):
                fact = _counted(law, self.of(value))
            case RunningSum(value=value):
                tally = self.of(value)
                fact = Ends(tally.arrangement, tally.size) if isinstance(tally, Tally) else None
        return fact

    def _inverse(self, key: Expression) -> Inverse | None:
        """Sorting an arrangement's places gives its inverse."""
        place = self._twins.place(key) if isinstance(key, Value) else None
        if place is None or place.arrangement.mask is not None:
            return None
        return Inverse(place.arrangement) if self._twins.counts(key) else None

    def _sorted(self, arrangement: Arrangement, key: Expression) -> Fact | None:
        """The sorted elements of a key, or those of it that a mask picks."""
        fact = self.of(key)
        if not isinstance(fact, Below):
            return None
        by = arrangement.by
        if isinstance(by, Sorting) and by.ascending and isinstance(fact.size, int):
            return Keys(arrangement, fact.size)
        return fact

    def _moved(self, expression: Expression) -> Fact | None:
        """Facts of elements stay true of the same elements; others only of the same value."""
        if isinstance(same(expression), Value):
            return self.of(same(expression))
        parts = _moved_parts(expression)
        facts = [self._moved(part) for part in parts]
        sizes = {fact.size for fact in facts if isinstance(fact, Below)}
        every = bool(facts) and all(isinstance(fact, Below) for fact in facts)
        return facts[0] if every and len(sizes) == 1 else None


def _exact(fact: Fact | None, exact: int) -> Fact | None:
    """What survives a cast to a type that holds integers up to `exact`.

    Counts are assumed to stay below 2^24, and places below 2^31.
    """
    if fact is None:
        return None
    if isinstance(fact, Inverse):
        bound = 2**31 - 1
    else:
        bound = fact.size if isinstance(fact.size, int) else exact + 1
        bound = 2**24 if isinstance(fact, Tally | Ends) else bound
    return fact if bound <= exact else None


def _counted(law: Histogram, keys: Fact | None) -> Fact | None:
    """A histogram of sorted keys with one bin for each: from 0 to the greatest one."""
    if type(keys) is not Keys or keys.size < 2:
        return None
    fits = (law.bins, law.low, law.high) == (keys.size, 0, keys.size - 1)
    return Tally(keys.arrangement, keys.size) if fits else None


def _moved_parts(expression: Expression) -> Sequence[Expression]:
    """What an expression takes its elements from, if it does no more."""
    match expression:
        case Reads(kind="copy", operands=(operand,), law=None):
            return (operand.value,)
        case Reshape(value=value) | Slice(value=value):
            return (value,)
        case Concat(operands=operands):
            return operands
    return ()
