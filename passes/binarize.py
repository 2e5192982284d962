"""Weights of two or three levels, with a correction of low rank in floating point.

Sources: Qin et al., "BiBench: Benchmarking and Analyzing Network Binarization" (2023), for which
binarizations there are and what they cost; "Hybrid Gated Flow (HGF): Stabilizing 1.58-bit LLMs via
Selective Low-Rank Correction", for a ternary model with a path of low rank beside it, which is
trained there, and here fitted to a trained model, without gates. The arithmetic is in
`planish.passes.levels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, fx

from planish.ir.edit import Edit
from planish.ir.program import Program
from planish.ir.quant import QuantScheme
from planish.passes.compensation import Curvature
from planish.passes.contract import OPTIONS, Contract, LongPass
from planish.passes.inputs import samples_of
from planish.passes.layers import Layer, Patterns, noted
from planish.passes.levels import Levels, Seen, Split, planned, scheme_of, split
from planish.passes.selection import check_widths, selected
from planish.passes.sequential import second_moments, walk
from planish.passes.work import UNSEEN, Work

aten = torch.ops.aten

_CALLED = "binarize"

LEFT = "as it is unless quantize_weights rounds it"
"""What is said of the weights of experts."""


@dataclass(frozen=True, config=OPTIONS)
class Binarize(LongPass):
    """Store the weights of linear layers as -s and s, or -s, 0 and s, each group with its own s.

    Binary weights take 1 bit and ternary ones 2, and a scale a group. Beside them a product of two
    thin matrices may make up for the worst of what that loses (`rank`). The model is not trained to
    have such weights: expect it to be badly damaged, small ones beyond use, and measure.

    The projection that makes the logits, the embeddings, experts and their routers are left alone.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    levels: Levels
    """2: a weight is -s or s. 3: or 0."""

    group_size: Literal[32, 64, 128] | None
    """How many neighbouring input features share a scale; it must divide the number of input
    features. null: one scale for each output feature (per-channel)."""

    rank: int = Field(default=0, ge=0, le=1024)
    """Of the product that is added to each layer, in the model's own dtype; 0 for none."""

    rounds: int = Field(default=3, ge=1, le=20)
    """How often codes and product are found in turns, each for what the other leaves."""

    calibration: Literal["none", "inputs", "compensated"] = "compensated"
    """Whether errors of weights count alike, or by the second moments of what layers read, which
    takes samples of text like the text to be served. "compensated": columns also make up for each
    other's errors, as in GPTQ."""

    dampening: float = Field(default=0.01, gt=0, le=1)
    """What is added to the diagonal of the second moments, as a share of its mean."""

    targets: Patterns = ("Linear",)
    """Which layers, as for `quantize_weights`."""

    ignore: Patterns = ()
    """Which of these to leave alone."""

    @property
    def scheme(self) -> QuantScheme:
        """How codes are stored."""
        return scheme_of(self.levels, self.group_size)

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Replace every chosen weight.

        Raises:
            NotApplicable: if there is no linear layer, a pattern matches nothing, nothing is left
                to replace, the group size does not divide a width, or samples are missing.
        """
        with program.edit() as edit:
            layers = self._chosen(edit.graph, program)
            found = self._found(program, work)
            for layer in layers:
                _insert(edit, layer, *found[layer.name])
        return noted(edit.program, program, self.targets, self.ignore, LEFT)

    def _chosen(self, graph: fx.Graph, program: Program) -> list[Layer]:
        layers = selected(_CALLED, graph, program, self.targets, self.ignore, {})
        check_widths(_CALLED, self.group_size, layers)
        return layers

    def _found(self, program: Program, work: Work) -> Mapping[str, tuple[Split, str]]:
        """What becomes of each layer's weight, and what to say of it, by its name."""
        layers = self._chosen(program.graph, program)
        if not program.has_data:
            return {layer.name: (self._planned(layer, program), "") for layer in layers}
        found = {}
        if self.calibration == "none":
            for done, layer in enumerate(layers, start=1):
                found[layer.name] = self._split(layer.matrix(program.tensors))
                work.tell(done, len(layers))
            return found
        read_by = {layer.first_reader: layer for layer in layers}
        samples = samples_of(program, _CALLED)
        for visit in walk(program, samples, list(read_by), tell=work.tell):
            moments, rows = second_moments(visit.inputs)
            few = f"; only {rows} calibration tokens for {len(moments)} inputs"
            curvature = Curvature.of(moments, self.dampening, by_size=True)
            seen = Seen(curvature, self.calibration == "compensated") if curvature else None
            for layer in (read_by[node] for node in visit.layers):
                made, note = self._split(layer.matrix(program.tensors), seen)
                note += "" if seen else "; its inputs' second moments are singular: not calibrated"
                found[layer.name] = (
                    made,
                    note + layer.by_first + (few if rows < len(moments) else ""),
                )
                visit.weights[layer.node] = made.value
        return found

    def _planned(self, layer: Layer, program: Program) -> Split:
        matrix = layer.matrix(program.tensors)
        return planned(matrix, self.scheme, self._rank(matrix))

    def _split(self, matrix: Tensor, seen: Seen | None = None) -> tuple[Split, str]:
        """A matrix, split, and how far off that is."""
        made = split(matrix, self.scheme, self._rank(matrix), self.rounds, seen)
        wide = matrix.float()
        wrong = made.value.float() - wide
        error = float(wrong.norm() / wide.norm().clamp_min(1e-30))
        product = f"; rank {self._rank(matrix)}" if self.rank else ""
        note = f"{self.scheme}{product}; relative error {error:.4f}"
        if seen is None:
            return made, note
        return made, f"{note}; of its output {seen.error(wrong) / max(seen.error(wide), 1e-30):.4f}"

    def _rank(self, matrix: Tensor) -> int:
        return min(self.rank, len(matrix), matrix.shape[-1])


def _insert(edit: Edit, layer: Layer, made: Split, note: str) -> None:
    """Let the readers of a layer's weight read its codes, and add the product to what they give."""
    first, readers = layer.first_reader, list(layer.node.users)
    edit.replace(layer.node, layer.insert(edit, made.codes), f"{layer.name}: {note}")
    if not made.left.shape[1]:
        return
    left = edit.read(f"{layer.name}_left", made.left, before=first)
    right = edit.read(f"{layer.name}_right", made.right, before=first)
    for reader in readers:
        # Whole before it is put in place: what the reader gives, and the product beside it.
        coarse = edit.call(aten.linear.default, *reader.args, before=reader, **reader.kwargs)
        inner = edit.call(aten.linear.default, reader.args[0], right, before=reader)
        outer = edit.call(aten.linear.default, inner, left, before=reader)
        both = edit.call(aten.add.Tensor, coarse, outer, before=reader)
        reader.replace_all_uses_with(both)
