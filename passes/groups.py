"""Which axes of a program may be pruned, and what each is to the model, by what is done to it.

- **Channels** are written and read as a whole, or as a segment: of an MLP, of convolutions.
- **Heads** are digits: a projection writes `heads x width`, and what lies below is written too.
- **Experts** compete: zeroing one does not silence it, so they can only be dropped.
- A **stream** is read, and what was computed of it is added to it: a transformer's width, the
  channels of a stage of residual blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from planish.ir.axes.axes import Axes, Axis, find
from planish.ir.axes.places import gathered
from planish.ir.axes.sites import Site, Symmetry
from planish.ir.axes.terms import Leaf, Product, Sum, Term, leaves, resolved
from planish.ir.constants import constant_nodes
from planish.ir.program import Program
from planish.passes.layers import matches

Kind = Literal["channels", "heads", "experts", "stream"]

KINDS: dict[Kind, str] = {
    "channels": "channels of an MLP or a convolution",
    "heads": "attention heads",
    "experts": "experts",
    "stream": "coordinates of a residual stream",
}
"""What the kinds are called in messages."""

READ = "contracted with a weight"
WRITTEN = "produced by a weight"

aten = torch.ops.aten

_SUMS = (aten.add.Tensor, aten.sub.Tensor)


@dataclass(frozen=True, eq=False)
class Group:
    """An axis that may be pruned, or that would be of a kind that may.

    Attributes:
        kind: what it is to the model.
        axis: in the axes of the program.
        readers: the nodes that multiply by a weight and sum over it, in the order of the graph.
        inner: whether it is a digit below another one of the same kind: the queries of one group.
    """

    kind: Kind
    axis: Axis
    readers: tuple[fx.Node, ...]
    inner: bool = False

    @property
    def size(self) -> int:
        """How many indices."""
        return int(str(self.axis.size))

    @property
    def how(self) -> Symmetry:
        """What is done to prune it."""
        return "drop" if self.kind == "experts" else "cut"

    @property
    def limits(self) -> tuple[Site, ...]:
        """The sites that forbid it."""
        return self.axis.limits(self.how)

    @property
    def names(self) -> tuple[str, ...]:
        """What patterns may match: the tensors it occurs in, and their modules."""
        tensors = [member.tensor for member in self.axis.members]
        modules = [name.removesuffix(".weight").removesuffix(".bias") for name in tensors]
        outer = [name.rpartition(".")[0] for name in modules]
        return tuple(dict.fromkeys([*tensors, *modules, *filter(None, outer)]))

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether one of the patterns names a tensor of it, or a module that has one."""
        return any(matches(pattern, name) for pattern in patterns for name in self.names)

    def __str__(self) -> str:
        first = self.axis.members[0]
        more = f" and {len(self.axis.members) - 1} more" if len(self.axis.members) > 1 else ""
        return f"{first.tensor}[{first.dim}]{more}"


def groups_of(program: Program, axes: Axes | None = None) -> list[Group]:
    """The groups of a program, in the order of its axes.

    Args:
        program: whose groups they are.
        axes: of the program, where they are known.
    """
    axes = axes or find(program)
    nodes = {node.name: node for node in program.graph.nodes}
    streams = _streams(axes, program)
    above = _above(axes)
    digits = {leaf for several in above.values() for leaf in several}
    found = []
    for axis in axes.all:
        kind = _kind(axis, digits, above, streams)
        if kind is None:
            continue
        sites = [site.node for site in axis.sites if site.kind == READ]
        readers = tuple(nodes[name] for name in dict.fromkeys(sites) if name in nodes)
        found.append(Group(kind, axis, readers, kind == "heads" and axis.leaf in above))
    return found


def _kind(
    axis: Axis,
    outer: set[Leaf],
    above: Mapping[Leaf, Sequence[Leaf]],
    streams: set[Leaf],
) -> Kind | None:
    kinds = {site.kind for site in axis.sites}
    if not isinstance(axis.size, int) or WRITTEN not in kinds:
        return None
    if axis.limits("cut") and axis.allows("drop"):
        return "experts"
    if axis.leaf in streams:
        return "stream"
    if axis.leaf in outer:
        return "heads"
    if axis.leaf in above or READ not in kinds:  # the width of heads; what is not read, as logits
        return None
    return "channels"


def _above(axes: Axes) -> dict[Leaf, list[Leaf]]:
    """Atoms that weights write as lower digits, and those written as digits above each.

    Where a picture is flattened, its channels are digits above its rows; but no weight wrote those.
    """
    written = {axis.leaf for axis in axes.all if any(s.kind == WRITTEN for s in axis.sites)}
    found: dict[Leaf, list[Leaf]] = {}

    def visit(term: Term, over: tuple[Leaf, ...]) -> None:
        term = resolved(term)
        match term:
            case Leaf() if term in written and over:
                found.setdefault(term, []).extend(one for one in over if one is not term)
            case Product(factors=factors):
                for factor in factors:
                    visit(factor, over)
                    over = (*over, *(one for one in leaves(factor) if one in written))
            case Sum(parts=parts):
                for part in parts:
                    visit(part, over)

    for terms in axes.terms.values():
        for term in terms:
            visit(term, ())
    return {leaf: several for leaf, several in found.items() if several}


def _streams(axes: Axes, program: Program) -> set[Leaf]:
    """Atoms of streams: something that a layer read of one comes back to it in a sum."""
    constant = constant_nodes(program.graph)
    sums = {site.node for axis in axes.all for site in axis.sites if site.kind == "add"}
    read: dict[str, list[Leaf]] = {}
    for axis in axes.all:
        for site in axis.sites:
            if site.kind == READ:
                read.setdefault(site.node, []).append(axis.leaf)
    found: set[Leaf] = set()
    seen: dict[fx.Node, frozenset[Leaf]] = {}
    for node in program.graph.nodes:
        computed = [one for one in node.all_input_nodes if one not in constant]
        before = frozenset[Leaf]().union(*(seen[one] for one in computed if one in seen))
        if node.target in _SUMS and node.name in sums and len(computed) == 2:
            along = {one for term in axes.values.get(node.name, ()) for one in leaves(term)}
            found |= along & before
        seen[node] = before | frozenset(read.get(node.name, ()))
    return found


def sizes(program: Program, axes: Axes, group: Group) -> Tensor:
    """The mean square of the weights at each index of a group, summed over tensors, float64 [n].

    Weights are the members of two dimensions and more; norms and biases say little of a channel.
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.axis.members:
        tensor = program.tensors[member.tensor]
        if tensor.dim() < 2:
            continue
        squares = tensor.detach().double().square().movedim(member.dim, 0).flatten(1).sum(1)
        total += gathered(squares, axes.terms[member.tensor][member.dim], group.axis.leaf)
    return total
