"""Contracts: what a user declares that an operator without a rule reads.

The words are few, and all about the batch: an input is read by rows, along one of its axes, or is
public and read whole; an output lies by rows along one of its axes, or is public and reads public
inputs alone. Row `r` of an output reads row `r` of what lies by rows. `elementwise` says that each
element reads what lies at its place. Neither says that rows are treated alike: what an operator
does with a row may depend on its number (`ByPlace`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planish.ir.errors import PlanishError
from planish.ir.flow.call import Call, NotCovered, Rule
from planish.ir.flow.laws import ByPlace
from planish.ir.flow.polynomial import Count
from planish.ir.flow.vocabulary import (
    Expression,
    Operand,
    Reads,
    Shape,
    Tag,
    Unranked,
    pointwise,
)
from planish.ir.rules.onnx import RULES

PUBLIC = "public"
ROWS = "rows"
KEYS = (ROWS, "outputs", "shapes")
OURS = ("ai.onnx", "aten", "prims", "planish", "")
"""Domains and namespaces whose operators have rules, or are to get them here."""


class BadContract(PlanishError):
    """A contract that cannot be understood, or of an operator whose rule is known."""


Axis = int | None
Extent = int | str


@dataclass(frozen=True)
class Contract:
    """What an operator reads.

    Attributes:
        operator: `domain::Name` of ONNX, `namespace::name` of PyTorch.
        rows: for each input the axis along which its rows lie; None for one that is read whole,
            as those behind the last are.
        outputs: for each output the axis of its rows; None for one that reads whole inputs alone.
        shapes: for each output its extents: numbers, `rows`, or `N.D` for dimension D of input N;
            those that are not given have the shape of the first input that lies by rows.
        elementwise: each element of each output reads what lies at its place, with broadcasting.
    """

    operator: str
    rows: tuple[Axis, ...] = ()
    outputs: tuple[Axis, ...] = (0,)
    shapes: tuple[tuple[Extent, ...], ...] = ()
    elementwise: bool = False

    def __str__(self) -> str:
        if self.elementwise:
            return f"{self.operator} is elementwise"
        by_rows = ", ".join(f"{n} along axis {a}" for n, a in enumerate(self.rows) if a is not None)
        return f"{self.operator} reads inputs by rows ({by_rows}), others whole"

    def rule(self, met: Callable[[Contract, Call], None]) -> Rule:
        """The contract as a rule, which tells `met` of each call that it is applied to."""

        def rule(call: Call) -> tuple[Expression, ...]:
            made = self.reads(call)
            met(self, call)
            return made

        return rule

    def reads(self, call: Call) -> tuple[Expression, ...]:
        """What each output of a call reads.

        Raises:
            NotCovered: if the call's shapes do not fit.
        """
        operands = call.operands()
        return tuple(
            self._reads(operands, place, output.shape) for place, output in enumerate(call.outputs)
        )

    def axis(self, output: int) -> Axis:
        """The axis of an output's rows."""
        return self.outputs[output] if output < len(self.outputs) else 0

    def input_axis(self, place: int) -> Axis:
        """The axis of an input's rows."""
        return self.rows[place] if place < len(self.rows) else None

    def _reads(
        self, operands: Sequence[Expression | None], output: int, known: Shape
    ) -> Expression:
        given = [one for one in operands if one is not None]
        if self.elementwise:
            return pointwise("nonlinear", *given, law=ByPlace())
        count = self._count(operands)
        shape = self._shape(operands, output, count) if isinstance(known, Unranked) else known
        axis = self.axis(output)
        if axis is not None and not (-len(shape) <= axis < len(shape) and shape[axis] == count):
            raise NotCovered(f"output {output} has no {count} rows along axis {axis}: {shape}")
        read = []
        for place, value in enumerate(operands):
            rows = self.input_axis(place)
            if value is None or (axis is None and rows is not None):
                continue
            tags: list[Tag] = [f"{place}.{dim}" for dim in range(len(value.shape))]
            if rows is not None and axis is not None:
                tags[rows] = axis % len(shape)
            read.append(Operand(value, tuple(tags)))
        return Reads(shape, tuple(read), "statistic", law=ByPlace())

    def _count(self, operands: Sequence[Expression | None]) -> Count:
        """The number of rows, on which all inputs have to agree."""
        found: list[Count] = []
        for place, value in enumerate(operands):
            axis = self.input_axis(place)
            if value is None or axis is None:
                continue
            if not -len(value.shape) <= axis < len(value.shape):
                raise NotCovered(f"input {place} has no axis {axis}")
            found.append(value.shape[axis])
        if not found or any(one != found[0] for one in found):
            raise NotCovered(f"its inputs have different numbers of rows: {found}")
        return found[0]

    def _shape(self, operands: Sequence[Expression | None], output: int, count: Count) -> Shape:
        if output >= len(self.shapes):
            by_rows = (n for n, axis in enumerate(self.rows) if axis is not None)
            return next(one.shape for n in by_rows if (one := operands[n]) is not None)
        return tuple(_extent(one, operands, count) for one in self.shapes[output])


def _extent(extent: Extent, operands: Sequence[Expression | None], count: Count) -> Count:
    if isinstance(extent, int):
        return extent
    if extent == ROWS:
        return count
    place, _, dim = extent.partition(".")
    value = operands[int(place)] if int(place) < len(operands) else None
    if value is None or not int(dim) < len(value.shape):
        raise NotCovered(f"there is no input with the dimension {extent}")
    return value.shape[int(dim)]


def parse(given: Mapping[str, Any]) -> dict[str, Contract]:
    """Contracts as a spec file holds them, by operator.

    Raises:
        BadContract: with what is wrong, and what would be right.
    """
    return {
        name: one if isinstance(one, Contract) else _parsed(name, one)
        for name, one in given.items()
    }


def _parsed(name: str, given: Any) -> Contract:
    domain, separator, operator = name.partition("::")
    if not separator or not operator:
        raise BadContract(f"contract of {name!r}: name the operator as domain::Name.")
    if domain in OURS or (domain, operator) in RULES:
        raise BadContract(f"contract of {name}: its rule is Planish's to know, not to be declared.")
    if given == "elementwise":
        return Contract(name, elementwise=True)
    if not isinstance(given, dict) or ROWS not in given or set(given) - set(KEYS):
        raise BadContract(
            f"contract of {name}: give elementwise, or {{rows: [0, public], outputs: [0]}}: the "
            "axis of each input's and output's rows, or public; and shapes, if an output has "
            "another shape than the first input."
        )
    rows = _axes(name, ROWS, given[ROWS])
    if all(axis is None for axis in rows):
        raise BadContract(f"contract of {name}: no input lies by rows.")
    shapes = given.get("shapes", [])
    if not isinstance(shapes, list) or not all(map(_is_shape, shapes)):
        raise BadContract(
            f"contract of {name}: shapes: give a list of extents for each output, such as "
            "[[rows, 0.1, 8]]: numbers, rows, or N.D for dimension D of input N (in quotes)."
        )
    return Contract(
        name, rows, _axes(name, "outputs", given.get("outputs", [0])), tuple(map(tuple, shapes))
    )


def _axes(name: str, key: str, given: Any) -> tuple[Axis, ...]:
    several = given if isinstance(given, list) else [given]
    if not all(type(one) is int or one == PUBLIC for one in several):
        raise BadContract(f"contract of {name}: {key}: give axes, or {PUBLIC}, not {given!r}.")
    return tuple(None if one == PUBLIC else one for one in several)


def _is_shape(given: Any) -> bool:
    return isinstance(given, list) and all(
        type(one) is int or one == ROWS or (isinstance(one, str) and _is_place(one))
        for one in given
    )


def _is_place(text: str) -> bool:
    place, _, dim = text.partition(".")
    return place.isdigit() and dim.isdigit()
