"""The axes of a program: what moves together, what is done along each, what that allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from planish.ir.axes.classes import Classes
from planish.ir.axes.sites import ALLOWS, SYMMETRIES, Site, Symmetry
from planish.ir.axes.terms import Leaf, Product, Term, leaves, resolved, size_of
from planish.ir.carried import pairs
from planish.ir.flow.fx import read_program
from planish.ir.flow.graph import Flow
from planish.ir.flow.polynomial import Count
from planish.ir.program import Program


@dataclass(frozen=True)
class Member:
    """A dimension of a stored tensor in which an axis occurs."""

    tensor: str
    dim: int


@dataclass(frozen=True, eq=False)
class Axis:
    """A set of indices that have to move together.

    Attributes:
        number: in the order of the first member.
        size: how many indices.
        members: where it occurs among the stored tensors.
        sites: what is done along it, each kind at each place once.
        leaf: the atom that it is.
    """

    number: int
    size: Count
    members: tuple[Member, ...]
    sites: tuple[Site, ...]
    leaf: Leaf = field(repr=False)

    def limits(self, symmetry: Symmetry) -> tuple[Site, ...]:
        """The sites that forbid it; none if it is allowed."""
        return tuple(site for site in self.sites if symmetry not in ALLOWS[site.kind])

    def allows(self, symmetry: Symmetry) -> bool:
        """Whether every site allows it."""
        return not self.limits(symmetry)


@dataclass(frozen=True, eq=False)
class Axes:
    """Every axis of a program that occurs in a stored tensor.

    Attributes:
        all: in the order of their first members.
        terms: of each dimension of each stored tensor.
        values: of each dimension of each input and result, by name; of constants that the graph
            makes, `NAME for READER`.
        reasons: where the graph was not understood: node and why.
        classes: the analysis that they come from.
    """

    all: tuple[Axis, ...]
    terms: Mapping[str, tuple[Term, ...]]
    values: Mapping[str, tuple[Term, ...]]
    reasons: tuple[str, ...]
    classes: Classes = field(repr=False)


def find(program: Program) -> Axes:
    """The axes of a program.

    Inputs and outputs keep their order, but for the caches of a language model, which only the
    program itself reads.
    """
    states: dict[str, str] = {}
    if program.source.task == "causal-lm":
        states = pairs((spec.name for spec in program.inputs), program.outputs)
    return find_in(read_program(program), states)


def find_in(flow: Flow, states: Mapping[str, str] | None = None) -> Axes:
    """The axes of what was read of a program or of an ONNX model.

    Args:
        flow: what to analyse.
        states: inputs to which nothing but these outputs of an earlier call is fed. Along all other
            inputs and outputs indices keep their order.
    """
    found = Classes(flow, states)
    sites: dict[Leaf, dict[Site, None]] = {}
    for term, site in found.sites:
        for leaf in leaves(term):
            sites.setdefault(leaf, {})[site] = None
    members: dict[Leaf, dict[Member, None]] = {}
    terms: dict[str, tuple[Term, ...]] = {}
    for value in flow.stored:
        terms[value.name] = tuple(map(resolved, found.terms[value]))
        if not found.readers[value]:
            continue  # its numbers are in the graph, such as where a slice begins
        for dim, term in enumerate(terms[value.name]):
            for leaf in leaves(term):
                members.setdefault(leaf, {})[Member(value.name, dim)] = None
    axes = tuple(
        Axis(number, leaf.size, tuple(places), tuple(_sites(leaf, sites)), leaf)
        for number, (leaf, places) in enumerate(
            (leaf, places) for leaf, places in members.items() if leaf.size != 1
        )
    )
    reasons = tuple(f"%{node.name} ({node.operator}): {why}" for node, why in found.reasons)
    values = {
        value.name: tuple(map(resolved, several))
        for value, several in found.terms.items()
        if value.name not in terms
    }
    for (value, reader), several in found.uses.items():
        values[f"{value.name} for {reader}"] = tuple(map(resolved, several))
    return Axes(axes, terms, values, reasons, found)


def _sites(leaf: Leaf, sites: Mapping[Leaf, Mapping[Site, None]]) -> list[Site]:
    found = list(sites.get(leaf, {}))
    return [*found, Site("counted", "", "")] if leaf.frozen else found


def order(term: Term, moved: Mapping[Leaf, Tensor]) -> Tensor:
    """Where each index of a dimension is taken from, when some atoms are reordered or cut.

    Args:
        term: of the dimension, of sizes that are numbers.
        moved: for each atom that moves, the old index of each new one.

    Returns:
        The old index of each new one: an int64 vector.
    """
    term = resolved(term)
    if isinstance(term, Leaf):
        if not isinstance(term.size, int):
            raise TypeError(f"the size {term.size} is not a number")
        return moved[term] if term in moved else torch.arange(term.size)
    if isinstance(term, Product):
        index = torch.zeros(1, dtype=torch.int64)
        for factor in term.factors:
            inner = order(factor, moved)
            index = (index[:, None] * _number(factor) + inner).flatten()
        return index
    parts: list[Tensor] = []
    start = 0
    for part in term.parts:
        parts.append(order(part, moved) + start)
        start += _number(part)
    return torch.cat(parts)


def _number(term: Term) -> int:
    size = size_of(term)
    if not isinstance(size, int):
        raise TypeError(f"the size {size} is not a number")
    return size


def permute(axes: Axes, program: Program, moved: Mapping[Axis, Tensor]) -> dict[str, Tensor]:
    """The stored tensors with axes reordered; the graph stays as it is.

    Args:
        axes: of the program.
        program: whose tensors to take.
        moved: for each axis, the old index of each new one.

    Raises:
        ValueError: if an axis does not allow it.
    """
    for axis in moved:
        if limits := axis.limits("permute"):
            raise ValueError(f"axis {axis.number} cannot be permuted: {limits[0]}")
    atoms = {axis.leaf: index for axis, index in moved.items()}
    return {**program.tensors, **members(axes, program, atoms, partial(taken, atoms))}


def taken(atoms: Mapping[Leaf, Tensor], tensor: Tensor, dim: int, term: Term) -> Tensor:
    """The indices of one dimension that are taken, in the order in which they are."""
    return tensor.index_select(dim, order(term, atoms))


def members(
    axes: Axes,
    program: Program,
    atoms: Container[Leaf],
    change: Callable[[Tensor, int, Term], Tensor],
) -> dict[str, Tensor]:
    """The stored tensors in which some atoms occur, changed along each dimension that has them."""
    changed: dict[str, Tensor] = {}
    for name, terms in axes.terms.items():
        for dim, term in enumerate(terms):
            if any(leaf in atoms for leaf in leaves(term)):
                changed[name] = change(changed.get(name, program.tensors[name]), dim, term)
    return changed


def text(axes: Axes) -> str:
    """One axis a line: size, members, what it allows, and what limits it."""
    lines = []
    for axis in axes.all:
        hidden = {"drop"} if axis.allows("cut") else set()
        can = [one for one in SYMMETRIES if axis.allows(one) and one not in hidden]
        first = axis.members[0]
        more = f" and {len(axis.members) - 1} more" if len(axis.members) > 1 else ""
        line = f"axis {axis.number}: {axis.size}  {first.tensor}[{first.dim}]{more}"
        line += f"  {', '.join(can) or 'fixed'}"
        limit = next(iter(axis.limits("rotate") if can else axis.limits("permute")), None)
        lines.append(f"{line}  ({limit})" if limit is not None else line)
    return "\n".join(lines) + "\n"


def to_json(axes: Axes) -> dict[str, Any]:
    """The axes as JSON values, with every member and every site."""
    return {
        "axes": [
            {
                "size": axis.size if isinstance(axis.size, int) else str(axis.size),
                "members": [{"tensor": one.tensor, "dim": one.dim} for one in axis.members],
                **{symmetry: axis.allows(symmetry) for symmetry in SYMMETRIES},
                "sites": [dataclasses.asdict(site) for site in axis.sites],
            }
            for axis in axes.all
        ],
        "not_understood": list(axes.reasons),
    }
