"""What all graphs of an ONNX model share while it is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from planish.ir.errors import PlanishError
from planish.ir.flow.call import NotCovered, Rule
from planish.ir.flow.graph import Node
from planish.ir.flow.known import Known, Numbers
from planish.ir.flow.onnx_cases import PURE, Case, Formula, of_call, of_floats, of_known
from planish.ir.flow.polynomial import Count, Polynomial
from planish.ir.flow.vocabulary import Expression, Shape, Unranked, Value

_MOST_STEPS = 1_000_000


class TooLarge(PlanishError):
    """A model takes more steps to read than any model that is meant well."""


@dataclass
class Context:
    """What all graphs of a model share.

    Attributes:
        functions: the model's own, by domain, name and overload.
        known: what is known of values.
        floats: the elements of very small stored tensors of floating-point numbers.
        stored: the tensors that are part of the model, those of nested graphs too.
        declared: rules for operators without one, by name: `my.domain::Op`.
        made: what values read that nodes define.
        formulas: how public values follow from sizes and shared inputs.
        case: the outcomes of public conditions under which the model is read.
        splits: whether a further public condition makes further cases.
        nodes: those that every run executes.
        unknown: how often each operator without a rule occurs.
    """

    functions: Mapping[tuple[str, str, str], onnx.FunctionProto]
    declared: Mapping[str, Rule] = field(default_factory=dict)
    known: dict[Value, Known] = field(default_factory=dict)
    floats: dict[Value, tuple[float, ...]] = field(default_factory=dict)
    stored: dict[Value, None] = field(default_factory=dict)
    made: dict[Value, Expression] = field(default_factory=dict)
    formulas: dict[Value, Formula] = field(default_factory=dict)
    case: Case = field(default_factory=Case)
    splits: bool = False
    nodes: list[Node] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    _fresh: int = 0
    _symbols: dict[str, str] = field(default_factory=dict)

    def step(self) -> None:
        """Count one node.

        Raises:
            TooLarge: if there were too many.
        """
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise TooLarge(
                f"Reading this model takes more than {_MOST_STEPS} steps once its functions and "
                "nested graphs are unfolded, which no ordinary model does. Export it without "
                "functions that call each other many times over."
            )

    def settled(self, shape: Shape) -> Shape:
        """A shape, with what the case says of sizes put in."""
        if isinstance(shape, Unranked) or not self.case.sizes:
            return shape
        return tuple(map(self.case.settled, shape))

    def formula(self, one: Expression | None) -> Formula | None:
        """How a value follows from sizes and shared inputs; None if data may decide it."""
        if not isinstance(one, Value):
            return None
        if one in self.floats:
            return of_floats(self.floats[one], one)
        return self.formulas.get(one) or of_known(self.known.get(one))

    def explain(
        self,
        value: Value,
        operator: str,
        attributes: Mapping[str, object],
        operands: Callable[[], Sequence[Expression | None]],
    ) -> None:
        """Note how a public result comes about, and what it is in the case at hand."""
        if operator in PURE and value not in self.known:
            try:
                arguments = [self.formula(one) for one in operands()]
            except NotCovered:  # a sequence, say, in a damaged file: no number follows from it
                return
            found = of_call(operator, attributes, arguments, value.dtype == "BOOL")
            if found is not None:
                self.note(value, found)

    def note(self, value: Value, formula: Formula) -> None:
        """Note how a public value comes about, and what it is in the case at hand."""
        self.formulas[value] = formula
        outcome = self.case.truths.get(formula)
        if outcome is not None and all(size == 1 for size in value.shape):
            array = np.full((1,) * len(value.shape), outcome, dtype=object)
            self.known[value] = Numbers(array)

    def fresh(self) -> Count:
        """A symbol for a size that data decide."""
        self._fresh += 1
        return Polynomial.symbol(f"u{self._fresh - 1}")

    def symbol(self, name: str) -> Count:
        """The symbol of a named size: the same for the same name, and like no other symbol."""
        if name not in self._symbols:
            plain = re.sub(r"\W", "_", name) or "_"
            if plain[0].isdigit() or re.fullmatch(r"u\d+", plain):
                plain = f"size_{plain}"
            while plain in self._symbols.values():
                plain += "_"
            self._symbols[name] = plain
        return Polynomial.symbol(self._symbols[name])
