"""Specifications of kernels that work on each row by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planish.ir.ops import ACTIVATIONS
from planish.lowering.triton.fields import Codes, Dtype, NoKernel, Norm, check_words

WIDEST_ROW = 32_768
"""The longest row that a program keeps in registers."""


@dataclass(frozen=True)
class RowWise:
    """What is done to each row [K] by itself: norm or gate, then maybe rounding to codes.

    Without codes the result is y [M, K]; with them it is codes [M, K] and a scale a row.

    Attributes:
        width: K.
        dtype: of x, y, the weight, the bias and `up`.
        norm: how rows are normed; None for no norm.
        eps: what is added to the mean of squares, or to the variance.
        weight: whether the normed row is multiplied by a vector [K].
        bias: whether a vector [K] is added then; only layer norms have it.
        activation: of gated units: the row becomes activation(x) · up; None for no gate.
        codes: what rows are rounded to, if they are.
        warps: of a program.
    """

    width: int
    dtype: Dtype = "bfloat16"
    norm: Norm | None = None
    eps: float = 1e-6
    weight: bool = False
    bias: bool = False
    activation: str | None = None
    codes: Codes | None = None
    warps: int = 4

    def __post_init__(self) -> None:
        check_words(self)
        if not 0 < self.width <= WIDEST_ROW:
            raise NoKernel(f"rows of {self.width} do not fit; those up to {WIDEST_ROW} do.")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise NoKernel(f"{self.activation!r} is no activation; there are {list(ACTIVATIONS)}.")
        if self.norm and self.activation:
            raise NoKernel("a kernel either norms rows or gates them.")
        if not (self.norm or self.activation or self.codes):
            raise NoKernel("this kernel would do nothing.")
        if (self.weight and not self.norm) or (self.bias and self.norm != "layer"):
            raise NoKernel("only normed rows have a weight, and only layer norms a bias.")
        if not 0 <= self.eps < 1 or self.warps not in {1, 2, 4, 8, 16}:
            raise NoKernel(f"eps {self.eps} or {self.warps} warps are out of range.")

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors it reads besides x."""
        gated = self.activation is not None
        each = {"up": gated, "weight": self.weight, "bias": self.bias}
        return tuple(name for name, taken in each.items() if taken)

    @property
    def name(self) -> str:
        """For people and for the kernel's function."""
        kinds: list[str] = [self.norm] if self.norm else []
        kinds += [self.activation, "gate"] if self.activation else []
        kinds += [self.codes] if self.codes else []
        return f"{'_'.join(kinds)}_k{self.width}"


def rowwise(width: int, **more: Any) -> RowWise:
    """A row-wise kernel with as many warps as keep a row in registers without spills."""
    return RowWise(width, warps=4 if width <= 4096 else 8 if width <= 8192 else 16, **more)
