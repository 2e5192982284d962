"""Which axes passes made shorter, and what each couples: the dimensions that had to go together.

Found by comparing what went in with what came out, so that it holds whatever passes were run.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from planish.ir.compare import successors
from planish.ir.constants import weights
from planish.ir.program import Program
from planish.passes.groups import Group, Kind, groups_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Dimension:
    """A dimension of a stored tensor along which an axis lies.

    Attributes:
        tensor: its name before.
        dim: which dimension.
        shapes: of the tensor, before and after; empty after where the tensor is gone.
    """

    tensor: str
    dim: int
    shapes: tuple[Shape, Shape]

    @property
    def share(self) -> float | None:
        """How much of it is left; None where the tensor is gone."""
        before, after = self.shapes
        return after[self.dim] / before[self.dim] if after else None


@dataclass(frozen=True)
class Coupled:
    """An axis that became shorter.

    Attributes:
        kind: what it is to the model.
        size: how many indices it had.
        left: how many there are now; the least and the most, where one axis became several.
        members: everything that it runs through, whether shortened or not.
    """

    kind: Kind
    size: int
    left: tuple[int, int]
    members: tuple[Dimension, ...]


def coupled(before: Program, after: Program) -> tuple[Coupled, ...]:
    """The prunable axes of a program that are shorter in what was made of it.

    Args:
        before: as captured.
        after: made from it by passes; tensors are matched as by `planish.ir.compare`.
    """
    shapes = _shapes(before, after)
    if all(new in ((), old) for old, new in shapes.values()):
        return ()  # finding axes takes a while
    found = []
    for group in groups_of(before):
        members = [
            Dimension(member.tensor, member.dim, shapes[member.tensor])
            for member in group.axis.members
            if member.tensor in shapes
        ]
        one = _shortened(group, tuple(members))
        if one is not None:
            found.append((group, one))
    outer = [set(group.axis.members) for group, _ in found if not group.inner]
    return tuple(
        one
        for group, one in found
        # Where whole groups of queries went, each query of a group is still there.
        if not (group.inner and any(set(group.axis.members) <= over for over in outer))
    )


def _shapes(before: Program, after: Program) -> dict[str, tuple[Shape, Shape]]:
    """The stored shape of each tensor, and what became of it; empty where it is gone.

    Left out is what became several, or is neither stored under its name nor read in the shape it
    was stored in, such as the codes of a transposed weight: which dimension is which is not known.
    """
    became = successors(before, after)
    read = {names[0]: _shape(node.meta["val"]) for node, names in weights(before.graph)}
    found = {}
    for name, tensor in before.tensors.items():
        old = _shape(tensor)
        if name in after.tensors:
            new = _shape(after.tensors[name])
        elif name in became and read.get(name) == old:
            new = _shape(became[name].meta["val"])
        elif any(other.startswith(f"{name}_") for other in after.tensors):
            continue
        else:
            new = ()
        if not new or len(new) == len(old):
            found[name] = (old, new)
    return found


def _shape(tensor: Tensor) -> Shape:
    return tuple(tensor.shape)


def _shortened(group: Group, members: tuple[Dimension, ...]) -> Coupled | None:
    """A group that lost indices; None for one that did not.

    A dimension of several digits is shorter if any of these is, so that a digit has lost something
    if all that it runs through is shorter. Only streams may go on beside matrices that change
    their width.
    """
    shares = [one.share for one in members if one.share is not None]
    less = [share for share in shares if share < 1]
    if not less or (len(less) < len(shares) and group.kind != "stream"):
        return None
    left = (round(group.size * min(less)), round(group.size * max(less)))
    return Coupled(group.kind, group.size, left, members)
