"""Homogeneous linear equations over few unknowns each, solved exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

Form = Mapping[int, Fraction]
"""A sum of unknowns, by their numbers; those that are not listed have the coefficient 0."""


def combined(one: Form, other: Form, times: Fraction | int) -> Form:
    """`one + times * other`."""
    result = dict(one)
    for unknown, coefficient in other.items():
        result[unknown] = result.get(unknown, Fraction(0)) + times * coefficient
        if result[unknown] == 0:
            del result[unknown]
    return result


def null_space(equations: Iterable[Form], unknowns: int) -> list[Form]:
    """A basis of what solves `form = 0` for all of them, by Gauss-Jordan elimination.

    Short equations go first, and each basis vector has one unknown that no other has, so that the
    vectors have few entries where the equations fall apart into independent ones.
    """
    solved: dict[int, Form] = {}
    occurs: dict[int, set[int]] = {}
    for equation in sorted(equations, key=len):
        row: Form = dict(equation)
        for unknown in equation:
            if unknown in solved:
                row = combined(row, solved[unknown], -row[unknown])
        if not row:
            continue
        pivot = min(row, key=lambda unknown: (len(occurs.get(unknown, ())), unknown))
        row = {unknown: c / row[pivot] for unknown, c in row.items()}
        for other in occurs.pop(pivot, set()):
            before = solved[other]
            solved[other] = combined(before, row, -before[pivot])
            _note(occurs, other, before, solved[other])
        solved[pivot] = row
        _note(occurs, pivot, {pivot: row[pivot]}, row)
    basis: list[Form] = []
    for free in (unknown for unknown in range(unknowns) if unknown not in solved):
        touched = occurs.get(free, set())
        basis.append({free: Fraction(1)} | {one: -solved[one][free] for one in sorted(touched)})
    return basis


def _note(occurs: dict[int, set[int]], pivot: int, before: Form, after: Form) -> None:
    """Keep track of the rows in which an unknown that is not solved for occurs."""
    for unknown in before.keys() - after.keys():
        occurs.get(unknown, set()).discard(pivot)
    for unknown in after.keys() - before.keys():
        occurs.setdefault(unknown, set()).add(pivot)
