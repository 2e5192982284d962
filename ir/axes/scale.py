"""Scaling along axes: which tensors take a factor, which its inverse, so that nothing changes.

A scale is no property of an axis: gate and up of a gated layer are one axis, and only up may be
scaled. `planish.ir.axes.exponents` writes down the equations; what they leave free is every legal
scaling.

The factors are positive, since relu and max pooling commute with no others. They may lie along
several axes at once: attention's values have one for each key head and each coordinate of it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, fx

from planish.ir.axes.axes import Axes, Member
from planish.ir.axes.exponents import Exponents, Place
from planish.ir.axes.linear import Form, null_space
from planish.ir.axes.terms import Leaf, Sum, Term, leaves, resolved
from planish.ir.program import Program, Sample


@dataclass(frozen=True, eq=False)
class Scaling:
    """A way to scale stored tensors against each other.

    Attributes:
        leaves: the atoms along which the factors lie.
        exponents: of each stored tensor that takes part, in the dimensions of `leaves`.
        shifted: likewise of tensors that are read through a node that adds a number, with its
            name: what that node gives is what is scaled.
        values: likewise of every value of the program, by name: what runs between them is scaled.
    """

    leaves: tuple[Leaf, ...]
    exponents: Mapping[tuple[str, Place], Fraction]
    shifted: Mapping[tuple[str, Place], tuple[Fraction, str]]
    values: Mapping[tuple[str, Place], Fraction]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the factors."""
        return tuple(int(str(leaf.size)) for leaf in self.leaves)


def scalings(axes: Axes, along: Sequence[Leaf], signed: bool = False) -> tuple[Scaling, ...]:
    """Every way to scale along some atoms together: a basis, each with few tensors.

    Two scalings of a basis may be used together, and with any factors.

    Args:
        axes: of the program.
        along: atoms; sizes have to be numbers.
        signed: factors may be negative or 0, which relu and max pooling do not commute with.
    """
    found = Exponents(axes.classes, tuple(along), signed)
    solutions = null_space(found.equations, found.unknowns)
    result = []
    for solution in solutions:
        exponents = {key: solution[n] for key, n in found.stored.items() if solution.get(n)}
        shifted = {
            key: (solution[n], node) for key, (n, node) in found.shifted.items() if solution.get(n)
        }
        values = {
            (value.name, place): exponent
            for value, forms in found.values.items()
            for place, form in forms.items()
            if (exponent := _value(form, solution))
        }
        result.append(Scaling(tuple(along), exponents, shifted, values))
    return tuple(result)


class Scales:
    """The scalings of a program, each system of equations solved once.

    Args:
        axes: of the program.
    """

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._solved: dict[tuple[Leaf, ...], tuple[Scaling, ...]] = {}

    def along(self, leaves: tuple[Leaf, ...]) -> tuple[Scaling, ...]:
        """`scalings` along some atoms."""
        if leaves not in self._solved:
            self._solved[leaves] = scalings(self._axes, leaves)
        return self._solved[leaves]

    def of(self, member: Member) -> Scaling | None:
        """How to scale one dimension of a stored tensor on its own: by the most factors possible.

        The exponent of that dimension is 1. None if it cannot be scaled at all.
        """
        term = self._axes.terms[member.tensor][member.dim]
        if not all(isinstance(leaf.size, int) for leaf in leaves(term)):
            return None
        several = sorted(dict.fromkeys(leaves(term)), key=lambda leaf: -int(str(leaf.size)))
        choices = (
            choice
            for count in range(len(several), 0, -1)
            for choice in itertools.combinations(several, count)
        )
        place = member.dim
        for choice in sorted(choices, key=_factors, reverse=True):
            for scaling in self.along(choice):
                exponent = scaling.exponents.get((member.tensor, (place,) * len(choice)))
                if exponent:
                    return _normalized(scaling, exponent)
        return None


def _value(form: Form, solution: Form) -> Fraction:
    return sum((solution.get(n, Fraction(0)) * times for n, times in form.items()), Fraction(0))


def _factors(choice: Iterable[Leaf]) -> int:
    number = 1
    for leaf in choice:
        number *= int(str(leaf.size))
    return number


def _normalized(scaling: Scaling, exponent: Fraction) -> Scaling:
    return dataclasses.replace(
        scaling,
        exponents={key: one / exponent for key, one in scaling.exponents.items()},
        shifted={key: (one / exponent, node) for key, (one, node) in scaling.shifted.items()},
        values={key: one / exponent for key, one in scaling.values.items()},
    )


def scale(axes: Axes, program: Program, by: Mapping[Scaling, Tensor]) -> Program:
    """A program with stored tensors scaled against each other; the graph stays as it is.

    Args:
        axes: of the program.
        program: stays as it is.
        by: for each scaling positive factors of its `shape`.

    Raises:
        ValueError: if factors are not positive and finite, or of another shape.
    """
    for scaling, factors in by.items():
        if tuple(factors.shape) != scaling.shape:
            raise ValueError(f"factors {tuple(factors.shape)} for a scale of {scaling.shape}")
        if not bool((factors > 0).all()) or not bool(factors.isfinite().all()):
            raise ValueError("factors have to be positive and finite")
    return scaled(axes, program, by)


def scaled(axes: Axes, program: Program, by: Mapping[Scaling, Tensor]) -> Program:
    """As `scale`, by factors that the caller has looked at.

    Samples with a state, such as a cache, hold it as the new program writes it.
    """
    tensors = dict(program.tensors)
    nodes = {node.name: node for node in program.graph.nodes}
    for scaling, factors in by.items():
        for (name, place), exponent in scaling.exponents.items():
            grid = _spread(axes.terms[name], place, scaling.leaves, factors.double())
            scaled = tensors[name].double() * grid ** float(exponent)
            tensors[name] = scaled.to(tensors[name].dtype)
        for (name, place), (exponent, through) in scaling.shifted.items():
            grid = _spread(axes.terms[name], place, scaling.leaves, factors.double())
            offset, slope = _straight(nodes[through])
            read = (offset + slope * tensors[name].double()) * grid ** float(exponent)
            tensors[name] = ((read - offset) / slope).to(tensors[name].dtype)
    return dataclasses.replace(
        program,
        tensors=tensors,
        samples=tuple(_fed(axes, sample, by) for sample in program.samples),
        calibration=tuple(_fed(axes, sample, by) for sample in program.calibration),
    )


def _fed(axes: Axes, sample: Sample, by: Mapping[Scaling, Tensor]) -> Sample:
    """Inputs with the factors that values take."""
    fed = dict(sample)
    for scaling, factors in by.items():
        for (name, place), exponent in scaling.values.items():
            if name in fed:
                grid = _spread(axes.values[name], place, scaling.leaves, factors.double())
                # By a factor of 0, nothing reads these numbers any more.
                grid = (grid ** float(exponent)).nan_to_num(posinf=0.0, neginf=0.0)
                fed[name] = (fed[name].double() * grid).to(fed[name].dtype)
    return fed


def numbers(axes: Axes, scaling: Scaling, tensor: str, place: Place) -> Tensor:
    """Which factor each index of a dimension takes: its number in the flattened factors.

    Args:
        axes: of the program.
        scaling: of whose factors to tell.
        tensor: a stored tensor.
        place: the same dimension for each of the scaling's atoms.

    Returns:
        int64 [n]; -1 where an index takes none.
    """
    found = torch.zeros(1, dtype=torch.int64)
    inside = torch.ones(1, dtype=torch.bool)
    for leaf, dim, size in zip(scaling.leaves, place, scaling.shape, strict=True):
        index = _indices(axes.terms[tensor][dim], leaf)
        inside = inside & (index >= 0)
        found = found * size + index
    return torch.where(inside, found, -1)


def _straight(node: fx.Node) -> tuple[Tensor, Tensor]:
    """The offset and slope of a node that adds a number to a tensor, or takes it from a number."""
    zero, one = (
        node.target(torch.tensor(x, dtype=torch.float64), *node.args[1:], **node.kwargs)  # type: ignore[operator]
        for x in (0.0, 1.0)
    )
    return zero, one - zero


def _spread(terms: Sequence[Term], place: Place, along: Sequence[Leaf], factors: Tensor) -> Tensor:
    """The factors as they lie in a tensor: 1 in segments that have not all of the atoms."""
    index: list[Tensor] = []
    inside = torch.ones((1,) * len(terms), dtype=torch.bool)
    for leaf, dim in zip(along, place, strict=True):
        places = _indices(terms[dim], leaf)
        places = places.view([-1 if n == dim else 1 for n in range(len(terms))])
        inside = inside & (places >= 0)
        index.append(places.clamp(min=0))
    inside = inside.to(factors.device)  # tensors may have no data
    return torch.where(inside, factors[tuple(index)], factors.new_ones(()))


def _indices(term: Term, leaf: Leaf) -> Tensor:
    """For each index of a dimension, that of an atom in it; -1 where the atom is not."""
    term = resolved(term)
    if isinstance(term, Leaf):
        size = int(str(term.size))
        return torch.arange(size) if term is leaf else torch.full((size,), -1)
    if isinstance(term, Sum):
        return torch.cat([_indices(part, leaf) for part in term.parts])
    index = torch.full((1,), -1)
    for factor in term.factors:
        inner = _indices(factor, leaf)
        index = torch.maximum(index[:, None], inner).flatten()
    return index
