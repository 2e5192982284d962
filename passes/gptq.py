"""GPTQ: rounding column by column, each error made up for by the columns that are still free.

Source: Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers" (2022), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, fx

from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, QuantScheme
from planish.passes.contract import OPTIONS, Contract, NotApplicable
from planish.passes.layers import LINEAR, Layer, layers_of
from planish.passes.quantize_weights import QuantizeWeights, Rounded
from planish.passes.rounding import FACTORS, parameters, round_to_nearest
from planish.passes.sequential import second_moments, walk

BLOCK = 128
"""Columns whose errors are collected before they are passed on to all others at once."""

DAMPENINGS = (1.0, 10.0, 100.0)
"""What the dampening is multiplied by, one after the other, where the moments are singular."""


@dataclass(frozen=True, config=OPTIONS)
class Gptq(QuantizeWeights):
    """Store the weights of linear layers as 4- or 8-bit integers that calibration chose (GPTQ).

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
            dead = moments.diagonal() == 0  # inputs that are always 0: their weights do not matter
            solved = factor(moments, self.dampening, self.activation_order)
            made: dict[fx.Node, Tensor] = {}
            for layer in map(read_by.__getitem__, group):
                matrix = layer.matrix(program.tensors).masked_fill(dead, 0)
                rounded, made[layer.node] = self._layer(matrix, moments, solved)
                few = rows < layer.width
                note = f"; only {rows} calibration tokens for {layer.width} inputs" if few else ""
                found[layer.name] = rounded._replace(note=rounded.note + note)
            return made

        walk(program, samples, list(read_by), visit)
        return found

    def _layer(
        self, matrix: Tensor, moments: Tensor, solved: Factor | None
    ) -> tuple[Rounded, Tensor]:
        """One layer's matrix [N, K], and what stands for it from now on."""
        if solved is None:
            tensor, error = round_to_nearest(matrix, self.scheme, search=self.clip_search)
            note = "; its inputs' second moments are singular: rounded to nearest"
            return Rounded(tensor, error, note), tensor.dequantize()
        factors = FACTORS if self.clip_search else (1.0,)
        wide = matrix.float()
        groups = self.scheme.grouped(wide)
        weights = self.scheme.grouped(moments.diagonal()[None])
        scale, zeros = parameters(groups, weights, self.scheme, factors, matrix.dtype)
        codes = compensated(wide, solved, self.scheme, scale, zeros)
        stored = None if self.scheme.symmetric else zeros.to(torch.int8)
        tensor = QuantizedTensor.from_codes(
            self.scheme, matrix.dtype, codes, scale.to(matrix.dtype), stored
        )
        value = tensor.dequantize()
        wrong = value.float() - wide
        output = _size(wrong, moments) / max(_size(wide, moments), 1e-30)
        error = float(wrong.norm() / wide.norm().clamp_min(1e-30))
        return Rounded(tensor, error, f"; of its output {output:.4f}"), value


@plain_dataclass(frozen=True)
class Factor:
    """What compensation needs of second moments.

    Attributes:
        order: the columns in the order in which they are rounded, [K].
        upper: the upper Cholesky factor of the inverse of the dampened moments in that order.
    """

    order: Tensor
    upper: Tensor


def factor(moments: Tensor, dampening: float, by_size: bool) -> Factor | None:
    """Invert second moments [K, K]; None if they are not finite or stay singular."""
    if not bool(torch.isfinite(moments).all()):
        return None
    diagonal = moments.diagonal()
    filled = moments + torch.diag((diagonal == 0).to(moments.dtype))
    columns = len(moments)
    order = diagonal.argsort(descending=True) if by_size else torch.arange(columns)
    sorted_ = filled[order][:, order]
    mean = float(diagonal.mean())
    for times in DAMPENINGS:
        damped = sorted_ + torch.eye(columns) * (dampening * times * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return Factor(order, upper)
    return None


def compensated(
    matrix: Tensor, solved: Factor, scheme: QuantScheme, scale: Tensor, zeros: Tensor
) -> Tensor:
    """Codes int8 [N, K] of a float32 matrix, by GPTQ's algorithm 1.

    Args:
        matrix: [N, K].
        solved: of the second moments of the inputs.
        scheme: of the codes.
        scale: [N, G], as stored.
        zeros: zero points, [N, G].
    """
    width = matrix.shape[1]
    group = solved.order // (width // scale.shape[1])
    columns = matrix.T[solved.order]  # [K, N]: a column to be rounded is a row in memory
    scales, zero_points = scale.float().T[group], zeros.float().T[group]
    codes = torch.empty_like(columns)
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = torch.empty_like(columns[start:stop])
        for k in range(start, stop):
            code = (
                (columns[k] / scales[k] + zero_points[k]).round_().clamp_(scheme.low, scheme.high)
            )
            codes[k] = code
            wrong = columns[k] - (code - zero_points[k]) * scales[k]
            errors[k - start] = wrong / solved.upper[k, k]
            columns[k + 1 : stop] -= torch.outer(solved.upper[k, k + 1 : stop], errors[k - start])
        columns[stop:] -= solved.upper[start:stop, stop:].T @ errors
    result = torch.empty_like(codes)
    result[solved.order] = codes
    return result.T.to(torch.int8).contiguous()


def _size(matrix: Tensor, moments: Tensor) -> float:
    """The root of the sum of squares of what a matrix gives for the samples."""
    return float(((matrix @ moments) * matrix).sum().clamp_min(0).sqrt())
