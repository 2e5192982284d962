"""AWQ: factors of input channels, so that what large inputs meet is rounded finer.

Source: Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan and Han, "AWQ: Activation-aware Weight
Quantization for LLM Compression and Acceleration" (2023), section 3.2. The term of the weights is
that of its authors' program (github.com/mit-han-lab/llm-awq).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from planish.ir.program import Program
from planish.ir.quant import QuantScheme
from planish.passes.contract import OPTIONS, Contract, LongPass
from planish.passes.layers import Patterns, noted
from planish.passes.rounding import round_to_nearest
from planish.passes.selection import check_widths
from planish.passes.sequential import second_moments
from planish.passes.smoothing import ALONG, Smoothing, chosen, smooth
from planish.passes.work import UNSEEN, Work

TRIED = 128
"""Of how many rows of a matrix the error is measured to choose among factors; rows are rounded each
by itself, so that some tell of all. What was chosen is then measured on all of them."""

TINY = torch.finfo(torch.float32).tiny


class Inputs(NamedTuple):
    """What is kept of what layers read: the mean size of each channel [K], Σ x xᵀ [K, K]."""

    size: Tensor
    moments: Tensor


@dataclass(frozen=True, config=OPTIONS)
class Awq(LongPass):
    """Scale input channels of linear layers so that rounding their weights loses less (AWQ).

    A channel whose inputs are large takes a factor above 1 into the weights: it is rounded finer
    for it, and what wrote the channel is divided by it. Factors are s = |x|^a / |w|^(1 - a), or
    |x|^a; the power a is that which leaves the least squared error of what the layers give once
    rounded, and none at all where no power helps. Nothing is rounded yet: the function stays the
    same. `quantize_weights` or `gptq` with the same bits and groups comes next. Learns from
    samples of text like the text to be served: `samples`.
    """

    contract: ClassVar[Contract] = Contract(numerics="exact", isolation="kept")

    bits: Literal[8, 4, 3, 2]
    """Bits that the weights will be rounded to."""

    group_size: Literal[32, 64, 128] | None
    """How many neighbouring input features will share a scale; null: per channel."""

    symmetric: bool = True
    """Whether zero will be the middle of each range."""

    targets: Patterns = ("Linear",)
    """Which layers will be rounded, as for `quantize_weights`."""

    ignore: Patterns = ()
    """Which of these will not be; they are scaled along where they read what others do."""

    clip_search: Literal[True, False, "inputs"] = True
    """How the scale of each group will be searched for, as for `quantize_weights`."""

    grid: int = Field(default=20, ge=1, le=100)
    """How many powers to try."""

    duo_scaling: bool = True
    """Whether to try factors with the weights' part too; twice as many tries."""

    def __call__(self, program: Program, work: Work = UNSEEN) -> Program:
        """Scale every channel that allows it; say which layers do not.

        Raises:
            NotApplicable: if no layer can be scaled, there are no samples, a pattern matches
                nothing, or the group size does not divide a width.
        """
        layers = chosen(program, "awq", self.targets, self.ignore)
        check_widths("awq", self.group_size, layers)

        def decide(way: Smoothing, seen: list[tuple[int, Inputs]]) -> tuple[Tensor, str]:
            return self._best(program, way, seen)

        after = smooth(program, "awq", layers, _observed, decide, work)
        return noted(after, program, self.targets, self.ignore, ALONG)

    def _best(
        self, program: Program, way: Smoothing, seen: list[tuple[int, Inputs]]
    ) -> tuple[Tensor, str]:
        """The factors with the least error, and what they do to it."""
        matrices = [layer.matrix(program.tensors) for layer in way.layers]
        some = [matrix[:: -(-len(matrix) // TRIED)] for matrix in matrices]

        def error(rows: list[Tensor], factors: Tensor) -> float:
            return sum(
                self._error(rows[place], way.spread(factors, place), one.moments)
                for place, one in seen
            )

        inputs = way.largest((place, one.size) for place, one in seen)
        weights = way.largest((n, self._typical(matrix)) for n, matrix in enumerate(matrices))
        tried = self._candidates(inputs, weights)
        best, said = min(tried, key=lambda one: error(some, one[0]))
        none = torch.ones_like(best)
        before, after = error(matrices, none), error(matrices, best)
        if not after < before:
            return none, "no factors lower the error of its output"
        return best, f"{said}; squared error of its output {after / before:.3f} of what it was"

    def _candidates(self, inputs: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, str]]:
        """Factors to try, with how they came about."""
        for step in range(self.grid + 1):
            power = step / self.grid
            yield _balanced(inputs**power), f"|x|^{power:g}"
            if self.duo_scaling:
                factors = inputs**power / weights ** (1 - power)
                yield _balanced(factors), f"|x|^{power:g} / |w|^{1 - power:g}"

    def _typical(self, matrix: Tensor) -> Tensor:
        """How large the weights of each channel are, as a share of the largest of their group."""
        groups = self._scheme.grouped(matrix.abs().float())
        share = groups / groups.amax(-1, keepdim=True).clamp_min(TINY)
        return share.flatten(-2).mean(0)

    def _error(self, matrix: Tensor, factors: Tensor, moments: Tensor) -> float:
        """tr(E H Eᵀ) of the error E that rounding a matrix [N, K] leaves once it took factors."""
        scaled = (matrix * factors).to(matrix.dtype)
        squares = moments.diagonal() / factors**2 if self.clip_search == "inputs" else None
        rounded, _ = round_to_nearest(
            scaled, self._scheme, search=bool(self.clip_search), squares=squares
        )
        wrong = (rounded.dequantize().float() - scaled.float()) / factors.float()
        return float(((wrong @ moments) * wrong).sum())

    @property
    def _scheme(self) -> QuantScheme:
        return QuantScheme(self.bits, self.group_size, self.symmetric)


def _observed(inputs: list[Tensor]) -> Inputs:
    """The sizes and moments of values [..., K]."""
    moments, rows = second_moments(inputs)
    sizes = [value.abs().flatten(0, -2).sum(0, dtype=torch.float64) for value in inputs]
    return Inputs(torch.stack(sizes).sum(0) / rows, moments)


def _balanced(factors: Tensor) -> Tensor:
    """Factors whose smallest is the inverse of the largest; 1 where they are no numbers."""
    fine = factors.isfinite() & (factors > 0)
    if not fine.any():
        return torch.ones_like(factors)
    middle = (factors[fine].max() * factors[fine].min()).sqrt()
    return torch.where(fine, factors / middle, 1.0)
