"""Which axes of a program rotate, once its norms are folded and centred.

What `rotate` and `slice` begin with.
"""

from __future__ import annotations

from contextlib import suppress

from planish.ir.axes.axes import Axes, Axis, find
from planish.ir.axes.fold import center, fold_norms
from planish.ir.program import Program


def prepared(program: Program, *, untie: bool = True) -> tuple[Program, Axes]:
    """The program with norms folded and centred, if more of it rotates then; else as it is.

    Args:
        program: stays as it is.
        untie: whether a table that is looked up and multiplied by becomes two tensors.
    """
    axes = find(program)
    folded = fold_norms(program, untie=untie)
    more = find(folded)
    while centred := _centred(more, folded):
        folded, more = centred, find(centred)
    return (folded, more) if _places(more) > _places(axes) else (program, axes)


def rotatable(axes: Axes) -> list[Axis]:
    """The axes that allow a rotation."""
    return [axis for axis in axes.all if isinstance(axis.size, int) and axis.allows("rotate")]


def why_not(program: Program, axes: Axes, what: str = "no axis", mendable: str = "") -> str:
    """Why nothing rotates: the axis that occurs most often, and the first site that forbids it.

    Args:
        program: for its name.
        axes: of it.
        what: does not rotate.
        mendable: a kind of site that is named only where there is no other.
    """
    wide = [axis for axis in axes.all if isinstance(axis.size, int)]
    if not wide:
        return f"{program.source.name} stores nothing that has an axis."
    axis = max(wide, key=lambda one: len(one.members))
    limits = sorted(axis.limits("rotate"), key=lambda site: site.kind == mendable)
    because = f"cannot: {limits[0]}" if limits else "takes no sum of itself and what reads it"
    return (
        f"{what} of {program.source.name} rotates. The one that occurs most often, of size "
        f"{axis.size} in {axis.members[0].tensor} and {len(axis.members) - 1} other places, "
        f"{because}. Leave this pass out."
    )


def _centred(axes: Axes, program: Program) -> Program | None:
    """The program with the layer norms along one more axis turned to RMS norms, where one is."""
    for axis in axes.all:
        limits = {site.kind for site in axis.limits("rotate")}
        if limits == {"layer norm"} and isinstance(axis.size, int):
            with suppress(ValueError):  # something reads the axis without a norm
                return center(axes, program, axis)
    return None


def _places(axes: Axes) -> int:
    """In how many dimensions of stored tensors there is an axis that rotates."""
    return sum(len(axis.members) for axis in rotatable(axes))
