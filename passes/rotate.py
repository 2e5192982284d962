"""Rotations that leave the function as it is, and no outliers in what is quantized.

Sources: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs" (2024), for what
it is good for; SliceGPT (2024, section 3) for why it may be done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from planish.ir.axes.axes import Axes, Axis, find
from planish.ir.axes.fold import center, fold_norms
from planish.ir.axes.rotate import rotate
from planish.ir.program import Change, Program
from planish.passes.contract import OPTIONS, Contract, NotApplicable, Pass
from planish.passes.hadamard import random_orthogonal, randomized_hadamard

MATRICES: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "hadamard": randomized_hadamard,
    "orthogonal": random_orthogonal,
}
"""How the matrix of an axis is made, by the name of the option."""


@dataclass(frozen=True, config=OPTIONS)
class Rotate(Pass):
    """Rotate every axis that allows it, so that outliers are spread over all channels (QuaRot).

    The weights and biases of norms go into what reads them where that lets an axis rotate, such as
    the residual stream of a decoder; layer norms become RMS norms of centred coordinates. What
    writes along an axis is then multiplied by an orthogonal matrix, what reads by its inverse.
    The function and the speed stay the same. Embeddings that are tied to the head become two
    tensors, so that the model grows. No calibration samples are needed.
    """

    contract: ClassVar[Contract] = Contract(numerics="exact", isolation="kept")

    matrix: Literal["hadamard", "orthogonal"] = "hadamard"
    """By what: Hadamard matrices with random signs, which spread most evenly, or orthogonal
    matrices drawn at random."""

    seed: int = Field(default=0, ge=0)
    """Of the random signs or matrices."""

    def __call__(self, program: Program) -> Program:
        """Rotate, and say which axes, and by how much the model grew.

        Raises:
            NotApplicable: if no axis rotates, naming what keeps the one that occurs most often.
        """
        folded, axes = _prepared(program)
        turned = _rotatable(axes)
        if not turned:
            raise NotApplicable(f"rotate: {_why_not(program, find(program))}")
        changes = [_change(folded, axis, self.matrix) for axis in turned]
        changes += _growth(program, folded)
        after = dataclasses.replace(folded, changes=(*folded.changes, *changes))
        if any(tensor.is_meta for tensor in program.tensors.values()):
            return after
        generator = torch.Generator().manual_seed(self.seed)
        make = MATRICES[self.matrix]
        return rotate(axes, after, {axis: make(int(str(axis.size)), generator) for axis in turned})


def _change(program: Program, axis: Axis, matrix: str) -> Change:
    first = axis.members[0]
    reader = next(node for node in program.graph.nodes if node.target == first.tensor)
    more = f" and {len(axis.members) - 1} more" if len(axis.members) > 1 else ""
    return Change(reader.name, f"{matrix} of {axis.size}: {first.tensor}[{first.dim}]{more}")


def _prepared(program: Program) -> tuple[Program, Axes]:
    """The program with norms folded and centred, if more of it rotates then; else as it is."""
    axes = find(program)
    folded = fold_norms(program)
    more = find(folded)
    while centred := _centred(more, folded):
        folded, more = centred, find(centred)
    return (folded, more) if _places(more) > _places(axes) else (program, axes)


def _centred(axes: Axes, program: Program) -> Program | None:
    """The program with the layer norms along one more axis turned to RMS norms, where one is."""
    for axis in axes.all:
        limits = {site.kind for site in axis.limits("rotate")}
        if limits == {"layer norm"} and isinstance(axis.size, int):
            with suppress(ValueError):  # something reads the axis without a norm
                return center(axes, program, axis)
    return None


def _rotatable(axes: Axes) -> list[Axis]:
    return [axis for axis in axes.all if isinstance(axis.size, int) and axis.allows("rotate")]


def _places(axes: Axes) -> int:
    """In how many dimensions of stored tensors there is an axis that rotates."""
    return sum(len(axis.members) for axis in _rotatable(axes))


def _why_not(program: Program, axes: Axes) -> str:
    wide = [axis for axis in axes.all if isinstance(axis.size, int)]
    if not wide:
        return f"{program.source.name} stores nothing that has an axis."
    axis = max(wide, key=lambda one: len(one.members))
    return (
        f"no axis of {program.source.name} rotates. The one that occurs most often, of size "
        f"{axis.size} in {axis.members[0].tensor} and {len(axis.members) - 1} other places, "
        f"cannot: {axis.limits('rotate')[0]}. Leave this pass out."
    )


def _growth(program: Program, folded: Program) -> list[Change]:
    """What the program now stores besides what it did."""
    bytes_more = folded.nbytes - program.nbytes
    new = [name for name in folded.tensors if name not in program.tensors]
    if not new or bytes_more <= 0:
        return []
    reader = next(node for node in folded.graph.nodes if node.target == new[0])
    return [Change(reader.name, f"{', '.join(new)}: stored besides, {bytes_more:,} bytes more")]
