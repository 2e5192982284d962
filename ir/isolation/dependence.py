"""What a value may depend on: which requests, by place, and which mixings of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planish.ir.isolation.digits import Map

Kind = Literal["value", "control", "state", "shape", "unknown", "numerics"]
"""How requests meet: in values, by what runs at all, from call to call, in a size that data
decide, in an operator of which nothing is known, or in nothing but rounding."""

ADVISORY: Kind = "numerics"
"""Said for information: the proof is of exact arithmetic, and holds."""

MANY = 8
"""A value that reads this many different requests an element is counted as mixed."""


@dataclass(frozen=True)
class Cause:
    """A place where requests meet.

    Attributes:
        kind: how.
        node: the node's name.
        operator: its operator.
        why: for people.
        where: the module or source line, if known.
    """

    kind: Kind
    node: str
    operator: str
    why: str
    where: str = ""


@dataclass(frozen=True)
class Dependence:
    """What each element of a value may depend on.

    Attributes:
        maps: element `i` may depend on the requests `{map(i)}`; on none if there is no map.
        causes: mixings upstream. `maps` goes on as if each of them had been repaired, so that a
            second leak behind a first one is still seen.
    """

    maps: frozenset[Map] = frozenset()
    causes: frozenset[Cause] = frozenset()

    def __or__(self, other: Dependence) -> Dependence:
        if self is other or other is NOTHING:
            return self
        if self is NOTHING:
            return other
        return Dependence(self.maps | other.maps, self.causes | other.causes)

    @property
    def on_nothing(self) -> bool:
        """Whether no request can change the value."""
        return not self.maps and not self.causes


NOTHING = Dependence()
"""The same for all requests."""
