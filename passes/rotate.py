"""Rotations that leave the function as it is, and no outliers in what is quantized.

Sources: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs" (2024), for what
it is good for; SliceGPT (2024, section 3) for why it may be done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from planish.ir.axes.axes import Axis, find
from planish.ir.axes.rotate import rotate
from planish.ir.program import Change, Program
from planish.passes.contract import OPTIONS, Contract, NotApplicable, Pass
from planish.passes.hadamard import random_orthogonal, randomized_hadamard
from planish.passes.rotatable import prepared, rotatable, why_not

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
        folded, axes = prepared(program)
        turned = rotatable(axes)
        if not turned:
            raise NotApplicable(f"rotate: {why_not(program, find(program))}")
        changes = [_change(folded, axis, self.matrix) for axis in turned]
        changes += _growth(program, folded)
        after = dataclasses.replace(folded, changes=(*folded.changes, *changes))
        if not program.has_data:
            return after
        generator = torch.Generator().manual_seed(self.seed)
        make = MATRICES[self.matrix]
        return rotate(axes, after, {axis: make(int(str(axis.size)), generator) for axis in turned})


def _change(program: Program, axis: Axis, matrix: str) -> Change:
    first = axis.members[0]
    reader = next(node for node in program.graph.nodes if node.target == first.tensor)
    more = f" and {len(axis.members) - 1} more" if len(axis.members) > 1 else ""
    return Change(reader.name, f"{matrix} of {axis.size}: {first.tensor}[{first.dim}]{more}")


def _growth(program: Program, folded: Program) -> list[Change]:
    """What the program now stores besides what it did."""
    bytes_more = folded.nbytes - program.nbytes
    new = [name for name in folded.tensors if name not in program.tensors]
    if not new or bytes_more <= 0:
        return []
    reader = next(node for node in folded.graph.nodes if node.target == new[0])
    return [Change(reader.name, f"{', '.join(new)}: stored besides, {bytes_more:,} bytes more")]
