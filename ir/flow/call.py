"""What a rule sees of an operator's call, whichever format the graph came in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planish.ir.flow.known import Known, of
from planish.ir.flow.polynomial import Count, Polynomial
from planish.ir.flow.vocabulary import Expression, Opaque, Shape, Unranked, Value


class Call(ABC):
    """An operator's call: arguments by name, shapes of the results, known integers.

    A rule has to ask for every argument that matters; what it did not ask for and is not known to
    be harmless makes the call unknown. So a new argument of a later version cannot slip past a
    rule that was written before it.

    Attributes:
        operator: with its overload or version.
        outputs: the values that the call defines, shapes and dtypes included where known.
    """

    operator: str
    outputs: tuple[Value, ...]
    known_values: Mapping[Value, Known]

    @abstractmethod
    def __getitem__(self, name: str) -> Any:
        """An argument: expressions for tensors, `Count`s for sizes, else the plain value."""

    @abstractmethod
    def __contains__(self, name: str) -> bool:
        """Whether the operator has an argument of this name, given or not."""

    def get(self, name: str, default: Any = None) -> Any:
        """An argument that only some of the operators that a rule serves have."""
        return self[name] if name in self else default  # noqa: SIM401  (that calls this)

    @abstractmethod
    def tensors(self) -> tuple[Expression, ...]:
        """All tensor operands; asks for every argument."""

    def operands(self) -> tuple[Expression | None, ...]:
        """The tensor operands in order, None for those left out; asks for every argument."""
        return self.tensors()

    @abstractmethod
    def unread(self) -> tuple[str, ...]:
        """The arguments given and never asked for, harmless ones left out."""

    def in_row_major_order(self, name: str) -> bool:  # noqa: ARG002
        """Whether an operand lies in memory of its own, in row-major order, for certain."""
        return False

    @property
    def shape(self) -> Shape:
        """The shape of the first result."""
        return self.outputs[0].shape

    def known(self, expression: Expression | None) -> Known | None:
        """What is known of an operand."""
        return None if expression is None else of(expression, self.known_values)

    def dims(self, given: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
        """Dimensions counted from the front, all for none given."""
        if given is None:
            return tuple(range(rank))
        several = [given] if isinstance(given, int) else given
        return tuple(sorted(dim % rank if rank else 0 for dim in several))

    def dim(self, given: int, rank: int) -> int:
        """One dimension counted from the front."""
        return given % rank if rank else 0


Result = Expression | tuple[Expression, ...]

Rule = Callable[[Call], Result]
"""Says what each output of a call reads. Raises `NotCovered` for arguments it does not cover."""

Learn = Callable[[Call], Known | None]
"""Says what is known of the first output of a call."""


@dataclass(frozen=True)
class Writes:
    """What an operator writes in place.

    Attributes:
        arguments: those that it may write.
        after: says of a call what those hold then that it does write, by name.
    """

    arguments: tuple[str, ...]
    after: Callable[[Call], Mapping[str, Expression]]


class NotCovered(Exception):
    """A rule does not cover these arguments; the call is treated as unknown."""


class Undefined(NotCovered):
    """The operator is not defined for such operands: whatever runs the graph stops there."""


def unknown(call: Call, why: str) -> tuple[Expression, ...]:
    """What a call reads of which nothing is claimed: all of every operand."""
    return tuple(Opaque(output.shape, call.tensors(), why) for output in call.outputs)


def apply(rule: Rule | None, call: Call) -> tuple[tuple[Expression, ...], str | None]:
    """The expressions of a call's outputs, and why nothing is claimed of it if so."""
    if rule is None:
        why = f"there is no rule for {call.operator}"
        return unknown(call, why), why
    try:
        result = rule(call)
    except NotCovered as problem:
        why = f"the rule for {call.operator} does not cover this call: {problem}"
        return unknown(call, why), why
    if unread := call.unread():
        why = f"the rule for {call.operator} does not know its argument {', '.join(unread)}"
        return unknown(call, why), why
    expressions = result if isinstance(result, tuple) else (result,)
    for expression, output in zip(expressions, call.outputs, strict=True):
        if not _agree(expression.shape, output.shape):
            why = f"the rule for {call.operator} expects another shape than {output.shape}"
            return unknown(call, why), why
    return expressions, None


def _agree(said: Shape, real: Shape) -> bool:
    """Whether two shapes may be the same; sizes that are written differently may."""
    if isinstance(said, Unranked) or isinstance(real, Unranked):
        return True
    return len(said) == len(real) and all(
        one == other or not (isinstance(one, int) and isinstance(other, int))
        for one, other in zip(said, real, strict=True)
    )


def count(given: Any) -> Count:
    """`given` as a size.

    Raises:
        NotCovered: if it is not one.
    """
    if isinstance(given, bool) or not isinstance(given, int | Polynomial):
        raise NotCovered(f"{given!r} is not a size known beforehand")
    return given
