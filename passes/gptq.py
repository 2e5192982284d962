"""GPTQ: rounding column by column, each error made up for by the columns that are still free.

Source: Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers" (2022). The arithmetic is in `planish.passes.compensation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, fx

from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor
from planish.passes.compensation import Curvature, compensated, fitted, revisited
from planish.passes.contract import OPTIONS, Contract, NotApplicable
from planish.passes.layers import LINEAR, Layer, layers_of
from planish.passes.quantize_weights import QuantizeWeights, Rounded
from planish.passes.rounding import FACTORS, parameters, round_to_nearest
from planish.passes.sequential import second_moments, walk


@dataclass(frozen=True, config=OPTIONS)
class Gptq(QuantizeWeights):
    """Store the weights of linear layers in codes of few bits that calibration chose (GPTQ).

    Layers are rounded in the order of the model; each sees what the ones before it give once
    rounded. Within a layer, columns are rounded one by one, and what each gets wrong is made up
    for by those that follow, by the second moments of the layer's inputs. Needs samples of text
    like the text to be served: `samples`, some 60,000 tokens are plenty.

    Layers whose moments are singular even when dampened are rounded to nearest, and say so.
    """

    contract: ClassVar[Contract] = Contract(numerics="lossy", isolation="kept")

    called: ClassVar[str] = "gptq"

    dampening: float = Field(default=0.01, gt=0, le=1)
    """What is added to the diagonal of the second moments, as a share of its mean."""

    activation_order: bool = True
    """Whether columns with large inputs are rounded first, while there are others left to make up
    for them. Groups stay neighbours either way."""

    sweeps: int = Field(default=1, ge=0, le=10)
    """How often, once all columns are rounded, scales are fitted anew to the codes and each code
    is visited once more (coordinate descent, as in QuantEase)."""

    def _rounded(self, program: Program, layers: list[Layer]) -> Mapping[str, Rounded]:
        if any(tensor.is_meta for tensor in program.tensors.values()):
            return super()._rounded(program, layers)  # only sizes are asked for
        samples = program.calibration or program.samples
        if not samples:
            raise NotApplicable(
                "gptq: there are no calibration samples; pass --samples FILE or samples=."
            )
        names = {layer.name for layer in layers}
        own = [layer for layer in layers_of(program.graph, program) if layer.name in names]
        read_by = {layer.first_reader: layer for layer in own if LINEAR in layer.roles}
        others = [layer for layer in own if LINEAR not in layer.roles]
        found = dict(super()._rounded(program, others))

        def visit(group: list[fx.Node], inputs: list[Tensor]) -> Mapping[fx.Node, Tensor]:
            moments, rows = second_moments(inputs)
            together = [read_by[node] for node in group]
            few = rows < together[0].width
            note = f"; only {rows} calibration tokens for {len(moments)} inputs" if few else ""
            matrices = [layer.matrix(program.tensors) for layer in together]
            made: dict[fx.Node, Tensor] = {}
            for layer, one in zip(together, self._solved(matrices, moments), strict=True):
                found[layer.name] = one._replace(note=one.note + note)
                made[layer.node] = one.tensor.dequantize()
            return made

        walk(program, samples, list(read_by), visit)
        return found

    def _solved(self, matrices: list[Tensor], moments: Tensor) -> list[Rounded]:
        """Layers that read one value: matrices [N, K], rounded as one with all their rows."""
        curvature = Curvature.of(moments, self.dampening, self.activation_order)
        if curvature is None:
            note = "; its inputs' second moments are singular: rounded to nearest"
            return [
                Rounded(*round_to_nearest(one, self.scheme, search=self.clip_search), note)
                for one in matrices
            ]
        dead = moments.diagonal() == 0  # inputs that are always 0: their weights do not matter
        wide = torch.cat([one.float() for one in matrices]).masked_fill_(dead, 0)
        dtype = matrices[0].dtype
        weights = self.scheme.grouped(moments.diagonal()[None])
        factors = FACTORS if self.clip_search else (1.0,)
        start = parameters(self.scheme.grouped(wide), weights, self.scheme, factors, dtype)
        rounding = compensated(wide, curvature, self.scheme, *start)
        for _ in range(self.sweeps):
            rounding = revisited(fitted(rounding, curvature, dtype), curvature)
        stored = None if self.scheme.symmetric else rounding.zeros.to(torch.int8)
        parts = [len(one) for one in matrices]
        zeros = [None] * len(parts) if stored is None else stored.split(parts)
        codes = rounding.codes.to(self.scheme.dtype).split(parts)
        scales = rounding.scale.to(dtype).split(parts)
        return [
            _judged(QuantizedTensor.from_codes(self.scheme, dtype, *each), matrix, moments)
            for matrix, *each in zip(wide.split(parts), codes, scales, zeros, strict=True)
        ]


def _judged(tensor: QuantizedTensor, matrix: Tensor, moments: Tensor) -> Rounded:
    """A rounded matrix, with what that does to the matrix and to the layer's output."""
    wrong = tensor.dequantize().float() - matrix
    output = _size(wrong, moments) / max(_size(matrix, moments), 1e-30)
    error = float(wrong.norm() / matrix.norm().clamp_min(1e-30))
    return Rounded(tensor, error, f"; of its output {output:.4f}")


def _size(matrix: Tensor, moments: Tensor) -> float:
    """The root of the sum of squares of what a matrix gives for the samples."""
    return float(((matrix @ moments) * matrix).sum().clamp_min(0).sqrt())
