"""What a rule sees of a call in an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from planish.ir.flow.call import Call, NotCovered, Result
from planish.ir.flow.known import Counting, Known, Numbers
from planish.ir.flow.polynomial import Count, Polynomial
from planish.ir.flow.vocabulary import UNRANKED, Expression, Shape, Value

T = TypeVar("T")

_SIZES = 1024
"""More sizes or axes than this are not listed."""


@dataclass(frozen=True, eq=False)
class Items(Expression):
    """A sequence of tensors whose length is known. Never an operand: front ends unpack it."""

    parts: tuple[Expression, ...]
    shape: Shape = UNRANKED


Argument = Expression | None
"""An input; None where an optional one is left out."""


class OnnxCall(Call):
    """A node's call. Inputs go by position, for their names differ from version to version.

    What a rule takes for a size or an axis (`numbers`, `sizes`, `integer`) becomes a control of
    the node: should data have decided it, requests meet there.

    Args:
        operator: for people, `ai.onnx::Softmax@13`.
        version: the opset in which the schema of this call appeared.
        inputs: by position.
        attributes: by name, as Python values.
        outputs: names and dtypes; the shapes are for rules to derive.
        known: what is known of values.
        fresh: makes a symbol for a size that data decide.
        floats: the elements of a small stored tensor of floating-point numbers, if it is one.
        made: what values read that earlier nodes define.
    """

    def __init__(
        self,
        operator: str,
        version: int,
        inputs: Sequence[Argument],
        attributes: Mapping[str, Any],
        outputs: tuple[Value, ...],
        known: Mapping[Value, Known],
        fresh: Callable[[], Count],
        floats: Callable[[Expression], tuple[float, ...] | None],
        made: Mapping[Value, Expression],
    ) -> None:
        self.operator = operator
        self.version = version
        self.outputs = outputs
        self.known_values = known
        self.fresh = fresh
        self.made = made
        self.controls: list[Expression] = []
        self._floats = floats
        self._inputs = tuple(inputs)
        self._attributes = attributes
        self._asked: set[int | str] = set()

    @property
    def name(self) -> str:
        """The operator's name alone."""
        return self.operator.partition("::")[2].partition("@")[0]

    @property
    def arity(self) -> int:
        """The number of inputs, trailing ones that are left out not counted."""
        present = [place for place, one in enumerate(self._inputs) if one is not None]
        return present[-1] + 1 if present else 0

    def __contains__(self, name: str) -> bool:
        return name in self._attributes

    def __getitem__(self, name: str) -> Any:
        self._asked.add(name)
        return self._attributes.get(name)

    def attribute(self, name: str, default: T) -> T:
        """An attribute, `default` where it is not given.

        Raises:
            NotCovered: if it is of another type than `default`.
        """
        value = self[name]
        if value is None:
            return default
        if default is not None and not isinstance(value, type(default)):
            raise NotCovered(f"attribute {name} is not of type {type(default).__name__}")
        return cast(T, value)

    def integers(self, name: str) -> list[int] | None:
        """A list of integers, None where it is not given."""
        value = self[name]
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, int) for one in value):
            raise NotCovered(f"attribute {name} is no list of integers")
        return value

    def ignore(self, *names: str) -> None:
        """Ask for attributes that do not change what is read."""
        self._asked |= set(names)

    def given(self, place: int) -> bool:
        """Whether an input is given."""
        return place < len(self._inputs) and self._inputs[place] is not None

    def optional(self, place: int) -> Expression | None:
        """A tensor, None where it is left out."""
        self._asked.add(place)
        one = self._inputs[place] if place < len(self._inputs) else None
        if isinstance(one, Items):
            raise NotCovered(f"input {place} is a sequence")
        return one

    def input(self, place: int) -> Expression:
        """A tensor.

        Raises:
            NotCovered: if it is left out.
        """
        one = self.optional(place)
        if one is None:
            raise NotCovered(f"input {place} is missing")
        return one

    def inputs(self, start: int = 0) -> list[Expression]:
        """All tensors from a position on, those left out left out."""
        several = (self.optional(place) for place in range(start, len(self._inputs)))
        return [one for one in several if one is not None]

    def sequence(self, place: int) -> tuple[Expression, ...]:
        """The tensors of a sequence.

        Raises:
            NotCovered: if its length is not known.
        """
        self._asked.add(place)
        one = self._inputs[place] if place < len(self._inputs) else None
        if not isinstance(one, Items):
            raise NotCovered("a sequence whose length is not known")
        return one.parts

    def control(self, place: int) -> Known | None:
        """What is known of an input that says how to compute, None where it is left out."""
        one = self.optional(place)
        if one is None:
            return None
        self.controls.append(one)
        return self.known(one)

    def numbers(self, place: int) -> list[Count]:
        """The elements of an integer input.

        Raises:
            NotCovered: if they are not known beforehand.
        """
        known = self.control(place)
        if isinstance(known, Numbers):
            return list(known.array.flat)
        (size,) = self.input(place).shape or (1,)
        if isinstance(known, Counting) and isinstance(size, int) and size <= _SIZES:
            step = known.steps[0] if known.steps else 0
            return [known.base + step * index for index in range(size)]
        raise NotCovered(f"input {place} is not known beforehand")

    def axes(self, place: int) -> list[int]:
        """The elements of an integer input, which have to be plain numbers."""
        return [plain(number) for number in self.numbers(place)]

    def integer(self, place: int) -> int:
        """The one element of an integer input, which has to be a plain number."""
        numbers = self.axes(place)
        if len(numbers) != 1:
            raise NotCovered(f"input {place} is not one number")
        return numbers[0]

    def floats(self, place: int) -> tuple[float, ...] | None:
        """The elements of a small stored input of floating-point numbers."""
        one = self.optional(place)
        return None if one is None else self._floats(one)

    def tensors(self) -> tuple[Expression, ...]:
        """All tensor operands; asks for every argument."""
        self._asked |= set(range(len(self._inputs))) | self._attributes.keys()
        found: list[Expression] = []
        for one in self._inputs:
            found += one.parts if isinstance(one, Items) else [] if one is None else [one]
        return tuple(found)

    def operands(self) -> tuple[Expression | None, ...]:
        """The inputs by position, None for those left out; asks for every argument.

        Raises:
            NotCovered: if one is a sequence, or an attribute is a graph, which reads more.
        """
        self.tensors()
        if None in self._attributes.values():
            raise NotCovered("an attribute that is a graph")
        return tuple(self.optional(place) for place in range(len(self._inputs)))

    @property
    def attributes(self) -> Mapping[str, Any]:
        """All attributes, as Python values."""
        return self._attributes

    def unread(self) -> tuple[str, ...]:
        """The inputs and attributes given and never asked for."""
        places = (n for n, one in enumerate(self._inputs) if one is not None)
        unasked = tuple(f"input {place}" for place in places if place not in self._asked)
        return unasked + tuple(name for name in self._attributes if name not in self._asked)

    def place(self, axis: int, rank: int) -> int:
        """An axis counted from the front.

        Raises:
            NotCovered: if there is no such axis.
        """
        if not -rank <= axis < rank:
            raise NotCovered(f"axis {axis} of a tensor of {rank} dimensions")
        return axis % rank


OnnxRule = Callable[[OnnxCall], Result]
OnnxLearn = Callable[[OnnxCall], Known | None]


def plain(number: Count) -> int:
    """A number that is no symbol.

    Raises:
        NotCovered: if it is one.
    """
    if isinstance(number, Polynomial):
        raise NotCovered(f"{number} is not a plain number")
    return int(number)


def named(rule: OnnxRule, operators: str, domain: str = "") -> dict[tuple[str, str], OnnxRule]:
    """A part of the table: one rule for several operators."""
    return {(domain, operator): rule for operator in operators.split()}


def of_rank(value: Expression, *ranks: int) -> Expression:
    """`value`, which has to have one of these ranks.

    Raises:
        NotCovered: if it has another.
    """
    if len(value.shape) not in ranks:
        raise NotCovered(f"a tensor of {len(value.shape)} dimensions")
    return value
