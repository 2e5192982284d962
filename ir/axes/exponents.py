"""The equations that say which scales along some atoms leave a program's results as they are.

Every stored tensor in which the atoms lie has an unknown exponent e: it is multiplied by `s ** e`.
A value's exponent is a sum of unknowns, by what it is computed of. Products add exponents, sums
want them equal, and whatever is not linear, or not understood, wants them to be 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from fractions import Fraction

from planish.ir.axes.classes import Classes
from planish.ir.axes.expressions import inside, is_segment, is_whole
from planish.ir.axes.linear import Form, combined
from planish.ir.axes.terms import Leaf, Product, Sum, Term, leaves, resolved
from planish.ir.flow.graph import Flow, Node
from planish.ir.flow.vocabulary import Concat, Expression, Reads, Reshape, Slice, Value

Place = tuple[int, ...]
"""For each atom of a scale, the dimension in which it lies."""

Forms = dict[Place, Form]


class Exponents:
    """The system of equations for one set of atoms.

    Attributes:
        unknowns: how many there are.
        equations: forms that have to be 0.
        stored: the unknown of each stored tensor and place.
        shifted: likewise of tensors that are read by way of a number added to them, as the weights
            of norms that multiply by `1 + weight`; with the name of the node that adds.
        values: the exponents of every value where they may be other than 0.
    """

    def __init__(self, classes: Classes, along: tuple[Leaf, ...], signed: bool = False) -> None:
        self.unknowns = 0
        self.equations: list[Form] = []
        self.stored: dict[tuple[str, Place], int] = {}
        self.shifted: dict[tuple[str, Place], tuple[int, str]] = {}
        self.values: dict[Value, Forms] = {}
        self._classes = classes
        self._along = along
        self._signed = signed
        self._ends = {value for pair in classes.carried for value in pair}
        self._begin(classes.flow)
        for node in classes.flow.nodes:
            self._node(node)
        self._end(classes.flow)

    def _begin(self, flow: Flow) -> None:
        """Exponents of what is stored, and of states; inputs have none."""
        for value in (*flow.stored, *flow.inputs):
            self.values[value] = self._fresh(value)
        for value in flow.stored:
            for place, form in self.values[value].items():
                for unknown in form:
                    self.stored[value.name, place] = unknown
        for value in flow.inputs:
            if value not in self._ends:
                self._rest(self.values[value])

    def _node(self, node: Node) -> None:
        for output, expression in zip(node.outputs, node.expressions, strict=True):
            if not any(self.values[value] for value in self._classes.inputs[expression]):
                self.values[output] = {}  # no operand has the atoms
                continue
            forms, places = self._of(expression), self._places(self._classes.terms[output])
            if (name := self._shifted(expression)) is not None:
                # The tensor itself has to stay for other readers; what this one reads need not.
                self._rest(forms)
                forms = self._fresh(output)
                for place, form in forms.items():
                    for unknown in form:
                        self.shifted[name, place] = unknown, node.name
            self._rest(forms, apart_from=places)
            self.values[output] = {place: forms.get(place, {}) for place in places}
        for control in node.controls:
            self._rest(self._of(control))

    def _shifted(self, expression: Expression) -> str | None:
        """The stored tensor to which a number is added, if it has no other reader."""
        if not isinstance(expression, Reads) or expression.kind != "shift":
            return None
        value = expression.operands[0].value
        if not isinstance(value, Value) or value not in self._classes.flow.stored:
            return None
        return value.name if self._classes.readers[value] == 1 else None

    def _end(self, flow: Flow) -> None:
        for value in flow.outputs.values():
            if value not in self._ends:
                self._rest(self.values[value])
        for before, after in self._classes.carried:
            self._same(self.values[before], self.values[after])
        for state in flow.states:
            self._rest(self.values[state.before])
            self._rest(self.values[state.after])

    def _fresh(self, value: Value) -> Forms:
        """Unknown exponents for every place at which the atoms lie in a value."""
        forms: Forms = {}
        terms = self._classes.terms[value]
        for place in self._places(terms):
            if any(_times(terms[d], leaf) > 1 for d, leaf in zip(place, self._along, strict=True)):
                forms[place] = {}  # an atom times itself, which no factor along one of them fits
                continue
            forms[place] = {self.unknowns: Fraction(1)}
            self.unknowns += 1
        return forms

    def _places(self, terms: Sequence[Term]) -> list[Place]:
        """Where all atoms lie, in the dimensions of a value."""
        inside = [self._classes.atoms(term) for term in terms]
        dims = [
            [dim for dim, several in enumerate(inside) if leaf in several] for leaf in self._along
        ]
        return [place for place in itertools.product(*dims) if self._together(terms, place)]

    def _together(self, terms: Sequence[Term], place: Place) -> bool:
        """Whether there are elements that have all of the atoms: not so in different segments."""
        inside: dict[int, set[Leaf]] = {}
        for leaf, dim in zip(self._along, place, strict=True):
            inside.setdefault(dim, set()).add(leaf)
        return all(_all_in(terms[dim], several) for dim, several in inside.items())

    def _rest(self, forms: Forms, apart_from: Iterable[Place] = ()) -> None:
        """No scale along these atoms gets through here."""
        spared = set(apart_from)
        self.equations += [form for place, form in forms.items() if form and place not in spared]

    def _same(self, one: Forms, other: Forms) -> None:
        """Exponents are equal, and 0 where only one of two has the atoms."""
        for place in one.keys() | other.keys():
            difference = combined(one.get(place, {}), other.get(place, {}), -1)
            self.equations.append(difference)

    def _of(self, expression: Expression) -> Forms:
        """The exponents of an expression, by place."""
        match expression:
            case Value():
                return self.values[expression]
            case Reads() if expression in self._classes.parts:
                return self._reads(expression)
            case Reshape(value=value) if expression in self._classes.parts:
                return self._moved(self._of(value), self._classes.parts[expression])
            case Slice() if expression in self._classes.parts:
                return self._slice(expression)
            case Concat() if expression in self._classes.parts:
                return self._concat(expression)
        # Whatever is not followed: no scale comes in, and none goes out.
        for inner in inside(expression):
            self._rest(self._of(inner))
        return {}

    def _moved(self, forms: Forms, terms: Sequence[Term]) -> Forms:
        """After a reshape: the atoms keep their order."""
        places = self._places(terms)
        if len(places) == len(forms) == 1:
            return {places[0]: next(iter(forms.values()))}
        self._rest(forms)
        return {}

    def _slice(self, part: Slice) -> Forms:
        forms = self._of(part.value)
        if is_whole(part):
            return forms
        if not is_segment(part):
            self._rest(forms, apart_from=(place for place in forms if part.dim not in place))
        places = self._places(self._classes.parts[part])
        return {place: form for place, form in forms.items() if place in places}

    def _concat(self, joined: Concat) -> Forms:
        several = [self._of(one) for one in joined.operands]
        result: Forms = {}
        for place in {place for forms in several for place in forms}:
            given = [forms[place] for forms in several if place in forms]
            if joined.dim not in place and len(given) < len(several):
                given.append({})  # where one of them has not the atoms, none may be scaled
            result[place] = given[0]
            self.equations += [combined(given[0], other, -1) for other in given[1:]]
        return result

    def _reads(self, reads: Reads) -> Forms:
        """What an operator does: exponents of what lies along the result, and of what is read."""
        along: dict[Place, list[Form | None]] = {}
        whole: dict[tuple[object, ...], list[Form]] = {}
        for number, operand in enumerate(reads.operands):
            for place, form in self._of(operand.value).items():
                tags = tuple(operand.tags[dim] for dim in place)
                if all(isinstance(tag, int) for tag in tags):
                    key: Place = tuple(tag for tag in tags if isinstance(tag, int))
                    slots = along.setdefault(key, [None] * len(reads.operands))
                    slots[number] = form
                else:
                    whole.setdefault(tags, []).append(form)
        for group in whole.values():
            self.equations += [_sum(group)] if reads.kind == "contract" else group
        return {place: self._one(reads, place, slots) for place, slots in along.items()}

    def _one(self, reads: Reads, place: Place, slots: Sequence[Form | None]) -> Form:
        """The exponent of the result where these operands lie along it."""
        given = [form for form in slots if form is not None]
        kind = "nonlinear" if reads.mixed.intersection(place) else reads.kind
        if self._signed and kind in _POSITIVE:
            kind = "nonlinear"
        if kind in ("hadamard", "contract"):
            return _sum(given)
        if kind == "ratio":
            over = slots[1] if len(slots) > 1 else None
            return combined(slots[0] or {}, over or {}, -1)
        alone = len(slots) == 1 and kind in _ALONE
        together = len(given) == len(slots) and kind in _TOGETHER
        looked_up = kind == "gather" and slots[0] is not None and len(given) == 1
        if alone or together or looked_up:
            self.equations += [combined(given[0], other, -1) for other in given[1:]]
            return given[0]
        self.equations += given
        return {}


def _sum(forms: Iterable[Form]) -> Form:
    total: Form = {}
    for form in forms:
        total = combined(total, form, 1)
    return total


def _all_in(term: Term, several: set[Leaf]) -> bool:
    """Whether some index of a dimension has all of these atoms."""
    term = resolved(term)
    if isinstance(term, Leaf):
        return several <= {term}
    if isinstance(term, Sum):
        return any(_all_in(part, several) for part in term.parts)
    shares = [(factor, several.intersection(leaves(factor))) for factor in term.factors]
    covered = {leaf for _, share in shares for leaf in share}
    return covered == several and all(_all_in(factor, share) for factor, share in shares)


def _times(term: Term, leaf: Leaf) -> int:
    """How many factors an index of a dimension would get from a scale along an atom."""
    term = resolved(term)
    if isinstance(term, Leaf):
        return int(term is leaf)
    if isinstance(term, Product):
        return sum(_times(factor, leaf) for factor in term.factors)
    return max((_times(part, leaf) for part in term.parts), default=0)


_POSITIVE = {"homogeneous", "extreme", "window"}
"""What commutes with positive factors only, or may."""

_ALONE = {"copy", "linear", "homogeneous", "sum", "mean", "extreme", "window"}
"""What is done to one operand alone and commutes with a positive factor."""

_TOGETHER = {"add", "homogeneous"}
"""What is done to several operands and commutes with a positive factor of all of them."""
