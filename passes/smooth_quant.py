"""SmoothQuant: what is hard to quantize in a layer's inputs, moved into its weights.

Source: Xiao, Lin, Seznec, Wu, Demouth and Han, "SmoothQuant: Accurate and Efficient Post-Training
Quantization for Large Language Models" (2022), equation 4.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from planish.ir.activations import INT8, fake_quantize
from planish.ir.program import Program
from planish.ir.quant import QuantScheme
from planish.passes.contract import OPTIONS, Contract, LongPass
from planish.passes.layers import Patterns, noted
from planish.passes.rounding import round_to_nearest
from planish.passes.smoothing import ALONG, Smoothing, chosen, smooth
from planish.passes.work import UNSEEN, Work

ALPHAS = tuple(step / 10 for step in range(11))
"""What a search tries."""

ROWS = 512
"""Rows of an input on which a search compares."""


@dataclass(frozen=True, config=OPTIONS)
class SmoothQuant(LongPass):
    """Scale channels so that neither the inputs of linear layers nor their weights have outliers.

    Each channel that linear layers read is divided by s = max|x|^alpha / max|w|^(1 - alpha), and
    their weights are multiplied by it (SmoothQuant). What wrote the channel takes the division:
    the weight of a norm, rows of the layer before. The function stays the same. Helps where
    activations are to be quantized. Learns max|x| from samples: `samples`.
    """

    contract: ClassVar[Contract] = Contract(numerics="exact", isolation="kept")

    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["search"] = 0.5
    """How much of the difference goes to the weights: with 1 all channels of an input are equally
    large, with 0 all those of a weight. "search": for each input what loses least where inputs are
    rounded to int8 by token and weights by channel, no factors at all included."""

    targets: Patterns = ("Linear",)
    """Which layers, as for `quantize_weights`."""

    ignore: Patterns = ()
    """Which of these not to look at; they are scaled along where they read what others do."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Scale every channel that allows it; say which layers do not.

        Raises:
            NotApplicable: if no layer can be scaled, there are no samples, or a pattern matches
                nothing.
        """
        layers = chosen(program, "smooth_quant", self.targets, self.ignore)

        def decide(way: Smoothing, seen: list[tuple[int, Inputs]]) -> tuple[Tensor, str]:
            matrices = [layer.matrix(program.tensors) for layer in way.layers]
            inputs = way.largest((place, one.largest) for place, one in seen)
            weights = way.largest((n, matrix.abs().amax(0)) for n, matrix in enumerate(matrices))
            if self.alpha == "search":
                factors, found = _searched(way, seen, matrices, inputs, weights)
            else:
                factors, found = smoothing_factors(inputs, weights, self.alpha), ""
            extent = f"{len(factors)} factors from {factors.min():.3g} to {factors.max():.3g}"
            return factors, f"{extent}{found}"

        after = smooth(program, "smooth_quant", layers, _observed, decide, work)
        return noted(after, program, self.targets, self.ignore, ALONG)


class Inputs(NamedTuple):
    """Of a value that layers read the largest size of each channel, [K], and some rows, [R, K]."""

    largest: Tensor
    rows: Tensor


def _observed(inputs: list[Tensor]) -> Inputs:
    largest = torch.stack([value.abs().flatten(0, -2).amax(0) for value in inputs]).amax(0)
    share = -(-ROWS // len(inputs))
    some = [rows[:: -(-len(rows) // share)] for rows in (one.flatten(0, -2) for one in inputs)]
    return Inputs(largest, torch.cat(some))


def _searched(
    way: Smoothing,
    seen: list[tuple[int, Inputs]],
    matrices: list[Tensor],
    inputs: Tensor,
    weights: Tensor,
) -> tuple[Tensor, str]:
    """The factors with the least error of outputs, and what to say of them."""

    def error(factors: Tensor) -> float:
        return sum(
            rounded_error(one.rows, matrices[place], way.spread(factors, place))
            for place, one in seen
        )

    none = torch.ones_like(inputs)
    tried = {alpha: smoothing_factors(inputs, weights, alpha) for alpha in ALPHAS}
    errors = {alpha: error(factors) for alpha, factors in tried.items()}
    best, before = min(errors, key=errors.__getitem__), error(none)
    if not errors[best] < before:
        return none, "; no others lose less"
    return tried[
        best
    ], f"; alpha {best:g}: squared error {errors[best] / before:.3f} of what it was"


def rounded_error(rows: Tensor, matrix: Tensor, factors: Tensor) -> float:
    """The squared error of rows · matrixᵀ by int8 codes once channels took factors.

    Args:
        rows: inputs [R, K]; each row is rounded to a scale of its own.
        matrix: a weight [N, K]; likewise.
        factors: [K].
    """
    given, weight = rows.float(), matrix.float()
    narrow = fake_quantize(given / factors.float(), None, INT8, True)
    rounded, _ = round_to_nearest(weight * factors.float(), QuantScheme(8), search=False)
    return float((narrow @ rounded.dequantize().T - given @ weight.T).square().sum())


def smoothing_factors(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Equation 4; 1 for a channel whose inputs or weights are all 0, or not finite.

    Args:
        inputs: the largest size of each channel's inputs, float64 [n].
        weights: and of its weights.
        alpha: of equation 4.
    """
    factors = inputs**alpha / weights ** (1 - alpha)
    return torch.where((inputs > 0) & (weights > 0) & factors.isfinite(), factors, 1.0)
