"""SmoothQuant: what is hard to quantize in a layer's inputs, moved into its weights.

Source: Xiao, Lin, Seznec, Wu, Demouth and Han, "SmoothQuant: Accurate and Efficient Post-Training
Quantization for Large Language Models" (2022), equation 4.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from planish.ir.program import Program
from planish.passes.contract import OPTIONS, Contract, LongPass
from planish.passes.layers import Patterns
from planish.passes.smoothing import Smoothing, chosen, smooth
from planish.passes.work import UNSEEN, Work


@dataclass(frozen=True, config=OPTIONS)
class SmoothQuant(LongPass):
    """Scale channels so that neither the inputs of linear layers nor their weights have outliers.

    Each channel that linear layers read is divided by s = max|x|^alpha / max|w|^(1 - alpha), and
    their weights are multiplied by it (SmoothQuant). What wrote the channel takes the division:
    the weight of a norm, rows of the layer before. The function stays the same. Helps where
    activations are to be quantized. Learns max|x| from samples: `samples`.
    """

    contract: ClassVar[Contract] = Contract(numerics="exact", isolation="kept")

    alpha: float = Field(default=0.5, ge=0, le=1)
    """How much of the difference goes to the weights: with 1 all channels of an input are equally
    large, with 0 all those of a weight."""

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

        def decide(way: Smoothing, seen: list[tuple[int, Tensor]]) -> tuple[Tensor, str]:
            inputs = way.largest(seen)
            weights = way.largest(
                (place, layer.matrix(program.tensors).abs().amax(0))
                for place, layer in enumerate(way.layers)
            )
            factors = smoothing_factors(inputs, weights, self.alpha)
            return (
                factors,
                f"{len(factors)} factors from {factors.min():.3g} to {factors.max():.3g}",
            )

        return smooth(program, "smooth_quant", layers, _largest, decide, work)


def _largest(inputs: list[Tensor]) -> Tensor:
    """The largest size of each channel, [K]."""
    return torch.stack([value.abs().flatten(0, -2).amax(0) for value in inputs]).amax(0)


def smoothing_factors(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Equation 4; 1 for a channel whose inputs or weights are all 0, or not finite.

    Args:
        inputs: the largest size of each channel's inputs, float64 [n].
        weights: and of its weights.
        alpha: of equation 4.
    """
    factors = inputs**alpha / weights ** (1 - alpha)
    return torch.where((inputs > 0) & (weights > 0) & factors.isfinite(), factors, 1.0)
