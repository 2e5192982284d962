"""The specification of products with weights in floating point."""

from __future__ import annotations

from dataclasses import dataclass

from planish.lowering.triton.fields import (
    FEW_ROWS,
    NO_EPILOGUE,
    Cut,
    Dtype,
    Epilogue,
    NoKernel,
    Tiling,
    check_words,
)


@dataclass(frozen=True)
class Floating(Cut):
    """y [M, N] = epilogue(x [M, K] · Wᵀ), all in one dtype.

    Attributes:
        n: output features.
        k: input features.
        dtype: of x, W, y and the epilogue's tensors.
        step: columns that one step of the reduction reads.
        epilogue: what follows the product.
        tiling: how it is cut.
    """

    n: int
    k: int
    dtype: Dtype = "bfloat16"
    step: int = 64
    epilogue: Epilogue = NO_EPILOGUE
    tiling: Tiling = FEW_ROWS

    def __post_init__(self) -> None:
        check_words(self)
        if min(self.n, self.k) < 1:
            raise NoKernel(f"a weight [{self.n}, {self.k}] has nothing to multiply by.")
        if self.step not in {32, 64, 128}:
            raise NoKernel(f"steps of {self.step} columns are none of 32, 64 and 128.")
        self.check_slices()

    @property
    def block(self) -> int:
        """Columns of W that one step of the reduction reads."""
        return self.step

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """The tensors of the weight, in order, and their shapes."""
        return {"weight": (self.n, self.k)}

    @property
    def name(self) -> str:
        """For people and for the kernel's function."""
        return f"dense_n{self.n}_k{self.k}_m{self.tiling.rows}"
