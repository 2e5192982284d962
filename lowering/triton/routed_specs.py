"""The specification of products whose rows each choose their weight: mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from planish.lowering.triton.fields import Dtype, Epilogue, NoKernel, Tiling, check_words
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.specs import GroupScaled, Scaled, WeightOnly

MOST_EXPERTS = 1024
"""The largest stack: every program looks its expert up among all."""

Alone = WeightOnly | Scaled | GroupScaled | Floating
"""Products with a single weight."""


@dataclass(frozen=True)
class Routed:
    """y [M, C, N]: row j of token m is epilogue(x · W[e]ᵀ), e the j-th expert that m chose.

    Attributes:
        product: what is done with the rows of one expert; its tiles hold rows of one alone.
        experts: E, the weights in the stack.
        chosen: C, the experts of each token.
        shared: whether a token's experts read one row, x [M, K]; else each its own, x [M, C, K].
    """

    product: Alone
    experts: int
    chosen: int
    shared: bool

    def __post_init__(self) -> None:
        check_words(self)
        if not isinstance(self.product, Alone):
            raise NoKernel("experts are products with a single weight each.")
        if not 0 < self.experts <= MOST_EXPERTS or self.chosen < 1:
            raise NoKernel(
                f"{self.chosen} of {self.experts} experts: at least one is chosen, and of at most "
                f"{MOST_EXPERTS}."
            )

    @property
    def n(self) -> int:
        """Output features of an expert."""
        return self.product.n

    @property
    def k(self) -> int:
        """Input features of an expert."""
        return self.product.k

    @property
    def dtype(self) -> Dtype:
        """Of y and of the epilogue's tensors."""
        return self.product.dtype

    @property
    def epilogue(self) -> Epilogue:
        """What follows the product; its bias [E, N] is the expert's."""
        return self.product.epilogue

    @property
    def tiling(self) -> Tiling:
        """How it is cut."""
        return self.product.tiling

    @property
    def spread(self) -> int:
        """Rows of y that read one row of x."""
        return self.chosen if self.shared else 1

    @cached_property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """The tensors of the stack, in order, and their shapes."""
        return {name: (self.experts, *shape) for name, shape in self.product.stored.items()}

    @property
    def name(self) -> str:
        """For people and for the kernel's function."""
        reads = "of" if self.shared else "own"
        return f"experts{self.experts}_{reads}{self.chosen}_{self.product.name}"
