"""Telling cases apart: an ONNX model read once for each outcome of the conditions that are public.

`If` has branches whose results differ in shape, even in rank: exporters write `squeeze` so. Where
the condition follows from sizes and shared inputs alone, every run has one outcome of it, and so
have two runs that differ in what one request holds. So the model is read once with either outcome,
what that says of sizes put in, and is as safe as the worst of those readings. (Splitting the paths
of a program on a public guard, and joining the answers: trace partitioning, Mauborgne and Rival,
ESOP 2005.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from planish.ir.flow.known import Known, Numbers
from planish.ir.flow.polynomial import Count, Polynomial, substitute
from planish.ir.flow.vocabulary import Expression, Reads, Shape, Value, aligned
from planish.ir.rules.onnx.sizes import by_data, least

MOST = 16
"""A model is read as this many cases at most; further conditions are left open."""

_LISTED = 8
_LONGEST = 1000

_COMPARED = {
    "Equal": "is",
    "Greater": ">",
    "GreaterOrEqual": ">=",
    "Less": "<",
    "LessOrEqual": "<=",
}
_OTHERS = """
    Abs Add And Cast Concat Div Flatten Gather Identity Max Min Mod Mul Neg Not Or Reshape Shape
    Size Slice Squeeze Sub Unsqueeze Where Xor
"""

PURE = frozenset([*_COMPARED, *_OTHERS.split()])
"""Operators whose result is the same wherever their operands and attributes are the same."""


@dataclass(frozen=True)
class Formula:
    """How a public value follows from sizes, shared inputs and stored numbers.

    Attributes:
        text: equal only for values that are equal in every run; two formulas are the same by it.
        truth: whether it is a truth value.
        operator: its last one, None for a number, a truth value or an input.
        arguments: of that.
        number: the one number that it is, perhaps of symbols.
        name: of the input, or of the stored numbers, that it is.
    """

    text: str
    truth: bool = field(default=False, compare=False)
    operator: str | None = field(default=None, compare=False)
    arguments: tuple[Formula, ...] = field(default=(), compare=False)
    number: Count | None = field(default=None, compare=False)
    name: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """As people read it."""
        if self.number is not None:
            return str(self.number)
        if self.operator in _COMPARED:
            one, other = self.arguments
            return f"{one} {_COMPARED[self.operator]} {other}"
        if self.operator == "Not":
            return f"not {self.arguments[0]}"
        return self.name or self.text


def of_input(name: str, dtype: str | None) -> Formula:
    """An input that all requests share; quoted, so that no name looks like a formula."""
    return Formula(repr(name), dtype == "BOOL", "input", name=name)


def of_known(known: Known | None) -> Formula | None:
    """Numbers that data do not decide."""
    if not isinstance(known, Numbers) or known.array.size > _LISTED:
        return None
    elements = list(known.array.flat)
    if any(by_data(one) for one in elements):
        return None
    one = elements[0] if len(elements) == 1 else None
    listed = ", ".join(map(str, elements))
    text = listed if known.array.ndim == 0 else f"[{listed}]{list(known.array.shape)}"
    return Formula(text, number=None if isinstance(one, bool) else one)


def of_floats(elements: tuple[float, ...], stored: Value) -> Formula | None:
    """A few stored numbers that are no integers."""
    if len(elements) > _LISTED:
        return None
    listed = ", ".join(map(repr, elements))
    return Formula(f"[{listed}]{list(stored.shape)} {stored.dtype}", name=listed)


def of_call(
    operator: str,
    attributes: Mapping[str, object],
    arguments: Sequence[Formula | None],
    truth: bool,
) -> Formula | None:
    """What an operator makes of public values, if it is always the same."""
    given = tuple(one for one in arguments if one is not None)
    if operator not in PURE or not given or len(given) < len(arguments):
        return None
    if operator in _COMPARED and len(given) != 2:  # in a damaged file
        return None
    settings = [f"{name}={value!r}" for name, value in sorted(attributes.items())]
    text = f"{operator}({', '.join([*(one.text for one in given), *settings])})"
    return Formula(text, truth, operator, given) if len(text) <= _LONGEST else None


def atom(condition: Formula) -> Formula:
    """The first truth value that a condition is made of, and which is made of none itself."""
    inner = (one for one in condition.arguments if one.truth and one.operator is not None)
    first = next(inner, None)
    return condition if first is None else atom(first)


@dataclass(frozen=True)
class Case:
    """One outcome of some conditions.

    Attributes:
        truths: by the condition's formula.
        sizes: numbers that follow from them, by symbol.
    """

    truths: Mapping[Formula, bool] = field(default_factory=dict)
    sizes: Mapping[str, Count] = field(default_factory=dict)

    def settled(self, size: Count) -> Count:
        """A size, with what is known of it put in."""
        return substitute(size, self.sizes) if self.sizes else size

    def either(self, condition: Formula) -> list[Case]:
        """The cases that this one splits into; what would contradict itself is left out."""
        truths = [{**self.truths, condition: outcome} for outcome in (False, True)]
        cases = [Case(one, self.sizes) for one in truths]
        solved = _solved(condition)
        if solved is None:
            return cases
        symbol, value = solved
        bound = least(Polynomial.symbol(symbol))
        if bound is not None and value < bound:
            return cases[:1]
        return [cases[0], Case(truths[1], {**self.sizes, symbol: value})]

    def __str__(self) -> str:
        said = (str(one) if outcome else f"not {one}" for one, outcome in self.truths.items())
        return " and ".join(said)


class Undecided(Exception):
    """A public condition has to be decided before a model can be read on."""

    def __init__(self, condition: Formula) -> None:
        super().__init__(str(condition))
        self.condition = condition


class Stops(Exception):
    """In this case every run stops, at an operator that is not defined for its operands."""


def under(value: Expression, shape: Shape) -> Expression:
    """A value whose sizes are known to be these, however they are written."""
    if value.shape == shape:
        return value
    return Reads(shape, (aligned(value, len(shape)),), "copy")


def _solved(condition: Formula) -> tuple[str, int] | None:
    """The symbol and its number, where a condition says that two sizes are equal."""
    if condition.operator != "Equal" or len(condition.arguments) != 2:
        return None
    one, other = (argument.number for argument in condition.arguments)
    if one is None or other is None:
        return None
    difference = one - other
    if isinstance(difference, int) or len(difference.symbols) != 1:
        return None
    (symbol,) = difference.symbols
    terms = dict(difference.terms)
    constant = terms.pop((), 0)
    factor = terms.get(((symbol, 1),), 0)
    if len(terms) != 1 or abs(factor) != 1:
        return None
    return symbol, -constant * factor
