"""What all graphs of an ONNX model share while it is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from planish.ir.errors import PlanishError
from planish.ir.flow.call import Rule
from planish.ir.flow.known import Known
from planish.ir.flow.polynomial import Count, Polynomial
from planish.ir.flow.vocabulary import Expression, Value

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
        unknown: how often each operator without a rule occurs.
    """

    functions: Mapping[tuple[str, str, str], onnx.FunctionProto]
    declared: Mapping[str, Rule] = field(default_factory=dict)
    known: dict[Value, Known] = field(default_factory=dict)
    floats: dict[Value, tuple[float, ...]] = field(default_factory=dict)
    stored: dict[Value, None] = field(default_factory=dict)
    made: dict[Value, Expression] = field(default_factory=dict)
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
