"""Specifications: everything that one generated kernel is made for, as a frozen value.

A specification decides its source: the same one gives the same text, whose hash names it. Shapes
of weights are part of it; the number of rows (tokens) is not, beyond the bucket it was made for.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.lowering.triton.fields import (
    FEW_ROWS,
    NO_EPILOGUE,
    Codes,
    Cut,
    Dtype,
    Epilogue,
    NoKernel,
    Packed,
    Scaling,
    Tiling,
    check_words,
)

WORD = 16
"""Bits of the words that weight codes are packed into: the width of a 16-bit float, so that
compiled kernels load tiles of words in the very layout that the tensor cores read floats in."""

SLICES = {2: 8, 3: 16, 4: 4, 8: 2}
"""By bits of a code, the slices of a block: parts of its columns that one word holds a code of.
Codes of 3 bits lie in two planes, of 2 bits and of 1; 16 codes take 3 words."""

WORDS = {2: 1, 3: 3, 4: 1, 8: 1}
"""By bits of a code, the words that hold one code of each slice."""

LANES = (64, 32, 16)
"""Widths of a slice, best first: 64 words are a line of the cache."""

WIDEST = {2: 32, 3: 32, 4: 64, 8: 64}
"""By bits of a code, the widest slice: with more, the part of x that meets a block of many slices
outgrows shared memory."""


BYTE_LANES = (64, 32)
"""The same of products of 4 bits by 8, whose tensor cores multiply 32 columns at a time."""

EXACT = (2**31 - 1) // 128**2
"""The longest row whose sums of products of int8 fit 32 bits."""


@dataclass(frozen=True)
class WeightOnly(Packed):
    """y [M, N] = epilogue(x [M, K] · Wᵀ), where W is stored as codes of a few bits.

    Attributes:
        n: output features.
        k: input features.
        dtype: of x, y and the epilogue's tensors.
        scale_dtype: of scales and zero points.
        bits: of a code.
        group: neighbours in a row of W that share a scale; `k` for one scale a row.
        zeros: whether groups have zero points.
        lanes: columns in a slice of the packed layout; see `planish.lowering.triton.layout`.
        scaling: where scales are multiplied in; a row's only scale always multiplies its sum.
        epilogue: what follows the product.
        tiling: how it is cut.
    """

    n: int
    k: int
    dtype: Dtype = "bfloat16"
    scale_dtype: Dtype = "bfloat16"
    bits: int = 4
    group: int = 128
    zeros: bool = False
    lanes: int = 64
    scaling: Scaling = "sums"
    epilogue: Epilogue = NO_EPILOGUE
    tiling: Tiling = FEW_ROWS

    def __post_init__(self) -> None:
        check_words(self)
        if self.bits not in SLICES:
            raise NoKernel(f"codes of {self.bits} bits have no kernel; {[*SLICES]} have.")
        if min(self.n, self.k) < 1 or self.k % self.group:
            raise NoKernel(f"groups of {self.group} do not divide rows of {self.k}.")
        if self.group != self.k and self.group % self.lanes:
            raise NoKernel(
                f"groups of {self.group} are no multiples of {self.lanes}, the width of a slice."
            )
        self.check_slices()

    @property
    def folds(self) -> int:
        """Slices of a block: codes that a word, or three words of planes, hold for each lane."""
        return SLICES[self.bits]

    @property
    def words(self) -> int:
        """Words in one row of the packed weight."""
        return self.blocks * WORDS[self.bits] * self.lanes

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """The tensors of the weight, in order, and their shapes."""
        shared = (self.groups, self.n)
        found: dict[str, tuple[int, ...]] = {"words": (self.n, self.words), "scales": shared}
        return {**found, "zeros": shared} if self.zeros else found

    @property
    def name(self) -> str:
        """For people and for the kernel's function."""
        scheme = f"g{self.group}{'z' if self.zeros else ''}"
        return f"w{self.bits}a16_n{self.n}_k{self.k}_{scheme}_m{self.tiling.rows}"


def best_lanes(k: int, bits: int, group: int) -> int:
    """The widest slices that fit the groups and pad rows of K by at most an eighth.

    Raises:
        NoKernel: if groups are no multiples of the narrowest slice.
    """
    usable = tuple(lanes for lanes in LANES if lanes <= WIDEST[bits])
    return _widest(k, group, usable, SLICES[bits])


def _widest(k: int, group: int, usable: tuple[int, ...], folds: int) -> int:
    fitting = [lanes for lanes in usable if group == k or group % lanes == 0]
    if not fitting:
        raise NoKernel(f"groups of {group} are no multiples of {usable[-1]}.")
    padded = {lanes: -(-k // (lanes * folds)) * lanes * folds for lanes in fitting}
    return next((each for each in fitting if padded[each] <= 1.125 * k), fitting[-1])


@dataclass(frozen=True)
class Scaled(Cut):
    """y [M, N] = epilogue(x [M, K] · Wᵀ · row scales · column scales) of codes of 8 bits.

    Both operands are codes; each row of x has a scale, and each output feature has. Sums of
    integers are exact; those of FP8 are float32 as far as the tensor cores keep them.

    Attributes:
        n: output features.
        k: input features.
        dtype: of y and of the epilogue's tensors; scales are float32.
        codes: of x and W.
        accurate: for FP8, whether sums leave the tensor cores every 128 terms: inside, Hopper
            keeps about 14 bits of them (DeepSeek-AI, "DeepSeek-V3", 2024, section 3.3.2).
        step: columns that one step of the reduction reads.
        epilogue: what follows the product.
        tiling: how it is cut.
    """

    n: int
    k: int
    dtype: Dtype = "bfloat16"
    codes: Codes = "int8"
    accurate: bool = False
    step: int = 128
    epilogue: Epilogue = NO_EPILOGUE
    tiling: Tiling = FEW_ROWS

    def __post_init__(self) -> None:
        check_words(self)
        if self.n < 1 or not 0 < self.k <= EXACT:
            raise NoKernel(
                f"a product of codes takes rows of 1 to {EXACT} columns, whose integer sums fit "
                f"32 bits, not {self.k}."
            )
        if self.step not in {64, 128, 256} or (self.accurate and self.step != 128):
            raise NoKernel(f"steps of {self.step} columns are none of 64, 128 and 256.")
        self.check_slices()

    @property
    def block(self) -> int:
        """Columns of W that one step of the reduction reads."""
        return self.step

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """The tensors of the weight, in order, and their shapes."""
        return {"codes": (self.n, self.k), "scales": (self.n,)}

    @property
    def name(self) -> str:
        """For people and for the kernel's function."""
        scheme = "w8a8" if self.codes == "int8" else "fp8"
        return f"{scheme}_n{self.n}_k{self.k}_m{self.tiling.rows}"


@dataclass(frozen=True)
class GroupScaled(Packed):
    """y [M, N] = epilogue(x [M, K] · Wᵀ · row scales), x codes of 8 bits and W of 4, in groups.

    Both are integers: the sums of a group are exact, then multiplied by the group's scale and
    added in float32; each row of x has a scale, which comes last.

    Attributes:
        n: output features.
        k: input features.
        dtype: of y and of the epilogue's tensors.
        scale_dtype: of the groups' scales; those of rows are float32.
        group: neighbours in a row of W that share a scale; `k` for one scale a row.
        lanes: columns in a slice of the packed layout; see `planish.lowering.triton.layout`.
        epilogue: what follows the product.
        tiling: how it is cut.
    """

    n: int
    k: int
    dtype: Dtype = "bfloat16"
    scale_dtype: Dtype = "bfloat16"
    group: int = 64
    lanes: int = 64
    epilogue: Epilogue = NO_EPILOGUE
    tiling: Tiling = FEW_ROWS

    def __post_init__(self) -> None:
        check_words(self)
        if self.n < 1 or not 0 < self.k <= EXACT or self.group < 1 or self.k % self.group:
            raise NoKernel(
                f"groups of {self.group} do not divide rows of {self.k}, or these are longer than "
                f"{EXACT}, whose integer sums fit 32 bits."
            )
        if self.lanes not in BYTE_LANES:
            raise NoKernel(f"slices of {self.lanes} columns are none of {[*BYTE_LANES]}.")
        if self.group != self.k and self.group % self.lanes:
            raise NoKernel(f"groups of {self.group} are no multiples of slices of {self.lanes}.")
        self.check_slices()

    @property
    def codes(self) -> Codes:
        """What x is."""
        return "int8"

    @property
    def zeros(self) -> bool:
        """Whether groups have zero points."""
        return False

    @property
    def folds(self) -> int:
        """Slices of a block: codes that a byte holds."""
        return 2

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """The tensors of the weight, in order, and their shapes."""
        return {"nibbles": (self.n, self.blocks * self.lanes), "scales": (self.groups, self.n)}

    @property
    def name(self) -> str:
        """For people and for the kernel's function."""
        return f"w4a8_n{self.n}_k{self.k}_g{self.group}_m{self.tiling.rows}"


CodesProduct = Scaled | GroupScaled
"""Products both of whose operands are codes."""


def byte_lanes(k: int, group: int) -> int:
    """The widest slices that fit the groups and pad rows of K by at most an eighth.

    Raises:
        NoKernel: if groups are no multiples of the narrowest slice.
    """
    return _widest(k, group, BYTE_LANES, 2)
