"""Specifications: everything that one generated kernel is made for, as a frozen value.

A specification decides its source: the same one gives the same text, whose hash names it. Shapes
of weights are part of it; the number of rows (tokens) is not, beyond the bucket it was made for.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from planish.ir.errors import PlanishError
from planish.ir.ops import ACTIVATIONS

Dtype = Literal["bfloat16", "float16", "float32"]
"""What activations are; sums are float32 whatever they are."""

Codes = Literal["int8", "float8_e4m3fn"]
"""What both operands of a product of codes are."""

Scaling = Literal["weights", "sums"]
"""Where a group's scale is multiplied in: with each weight, rounded to the activations' dtype as a
dequantized weight is, or with the group's float32 sum, which is more accurate and cheaper, and
takes more registers."""

SMALL_DOT = 16
"""The least extent that a tile of `tl.dot` has in any dimension."""

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


EXACT = (2**31 - 1) // 128**2
"""The longest row whose sums of products of int8 fit 32 bits."""

WIDEST_ROW = 32_768
"""The longest row that a program keeps in registers."""


class NoKernel(PlanishError):
    """No kernel can be generated for this shape or format."""


def check_words(spec: Any) -> None:
    """Make sure that a specification's fields have the types and words that they are declared with.

    Specifications are read from files and end up in source text.

    Raises:
        NoKernel: naming the field.
    """
    dtypes = get_args(Dtype)
    words = {"dtype": dtypes, "scale_dtype": dtypes, "scaling": get_args(Scaling)}
    words["codes"] = get_args(Codes)
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name == "codes" and value is None and "None" in str(field.type):
            continue
        if field.name in words and value not in words[field.name]:
            raise NoKernel(f"{field.name} is {value!r}; it may be {', '.join(words[field.name])}.")
        kind = {"int": int, "bool": bool, "float": float}.get(str(field.type))
        if kind is not None and type(value) is not kind:
            raise NoKernel(f"{field.name} is {value!r}, which is no {field.type}.")


@dataclass(frozen=True)
class Epilogue:
    """What happens to a sum before it is stored, in this order.

    Attributes:
        bias: whether a vector [N] is added.
        activation: a name of `planish.ir.ops.ACTIVATIONS`, or None.
        multiply: whether it is multiplied by a tensor [M, N], as in gated feed-forwards.
        residual: whether a tensor [M, N] is added.
    """

    bias: bool = False
    activation: str | None = None
    multiply: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        check_words(self)
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise NoKernel(f"{self.activation!r} is no activation; there are {list(ACTIVATIONS)}.")

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors it reads."""
        each = {"bias": self.bias, "multiply": self.multiply, "residual": self.residual}
        return tuple(name for name, taken in each.items() if taken)

    def __str__(self) -> str:
        """`bias, silu, multiply`, or `none`."""
        named = (self.activation,) if self.activation else ()
        parts = [*self.operands[: int(self.bias)], *named, *self.operands[int(self.bias) :]]
        return ", ".join(parts) or "none"


@dataclass(frozen=True)
class Tiling:
    """How a product is cut into programs of the grid; all but `slices` leaves its bits alone.

    Attributes:
        rows: rows of x (tokens) that one program computes.
        columns: output features that one program computes.
        slices: parts into which the reduction is cut, each summed by itself; the sums are added
            in order. Fixed for a weight whatever the number of rows, so that bits stay the same.
        parallel: whether each slice is a program of its own, the last of which to end adds up
            all; otherwise one program walks them one after another. Same bits.
        warps: of a program.
        stages: tiles in flight.
    """

    rows: int = 16
    columns: int = 128
    slices: int = 1
    parallel: bool = False
    warps: int = 4
    stages: int = 4

    def __post_init__(self) -> None:
        check_words(self)
        for name in ("rows", "columns", "warps"):
            value, least = getattr(self, name), 1 if name == "warps" else SMALL_DOT
            if value < least or value & (value - 1):
                raise NoKernel(f"{name} is {value}; a tile takes powers of two from {least} on.")
        if min(self.slices, self.stages) < 1:
            raise NoKernel("a tiling has at least one slice and one stage.")
        if self.parallel and self.slices == 1:
            raise NoKernel("a single slice is not summed in parallel.")


@dataclass(frozen=True)
class WeightOnly:
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
    epilogue: Epilogue = Epilogue()
    tiling: Tiling = Tiling()

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
        if (self.tiling.slices - 1) * self.per_slice >= self.blocks:
            raise NoKernel(f"{self.blocks} blocks cannot be cut into {self.tiling.slices} slices.")

    @property
    def block(self) -> int:
        """Columns of W that one step of the reduction reads."""
        return self.lanes * SLICES[self.bits]

    @property
    def blocks(self) -> int:
        """Steps of the reduction; what lies beyond column K is multiplied by zeros."""
        return math.ceil(self.k / self.block)

    @property
    def per_slice(self) -> int:
        """Steps in a slice of the reduction; the last may have fewer."""
        return math.ceil(self.blocks / self.tiling.slices)

    @property
    def words(self) -> int:
        """Words in one row of the packed weight."""
        return self.blocks * WORDS[self.bits] * self.lanes

    @property
    def groups(self) -> int:
        """Rows of the scales as they are stored: enough for every column of every block."""
        return 1 if self.group == self.k else math.ceil(self.blocks * self.block / self.group)

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
    usable = [lanes for lanes in LANES if lanes <= WIDEST[bits]]
    fitting = [lanes for lanes in usable if group == k or group % lanes == 0]
    if not fitting:
        raise NoKernel(f"groups of {group} are no multiples of {LANES[-1]}.")
    padded = {lanes: -(-k // (lanes * SLICES[bits])) * lanes * SLICES[bits] for lanes in fitting}
    return next((each for each in fitting if padded[each] <= 1.125 * k), fitting[-1])


@dataclass(frozen=True)
class Scaled:
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
    epilogue: Epilogue = Epilogue()
    tiling: Tiling = Tiling()

    def __post_init__(self) -> None:
        check_words(self)
        if self.n < 1 or not 0 < self.k <= EXACT:
            raise NoKernel(
                f"a product of codes takes rows of 1 to {EXACT} columns, whose integer sums fit "
                f"32 bits, not {self.k}."
            )
        if self.step not in {64, 128, 256} or (self.accurate and self.step != 128):
            raise NoKernel(f"steps of {self.step} columns are none of 64, 128 and 256.")
        if (self.tiling.slices - 1) * self.per_slice >= self.blocks:
            raise NoKernel(f"{self.blocks} blocks cannot be cut into {self.tiling.slices} slices.")

    @property
    def blocks(self) -> int:
        """Steps of the reduction."""
        return math.ceil(self.k / self.step)

    @property
    def per_slice(self) -> int:
        """Steps in a slice of the reduction; the last may have fewer."""
        return math.ceil(self.blocks / self.tiling.slices)

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
class RowWise:
    """What is done to each row [K] by itself: norm or gate, then maybe rounding to codes.

    Without codes the result is y [M, K]; with them it is codes [M, K] and a scale a row.

    Attributes:
        width: K.
        dtype: of x, y, the weight and `up`.
        norm: whether rows are divided by their root mean square.
        eps: what is added to the mean of squares.
        weight: whether the normed row is multiplied by a vector [K].
        activation: of gated units: the row becomes activation(x) · up; None for no gate.
        codes: what rows are rounded to, if they are.
        warps: of a program.
    """

    width: int
    dtype: Dtype = "bfloat16"
    norm: bool = False
    eps: float = 1e-6
    weight: bool = False
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
        if self.weight and not self.norm:
            raise NoKernel("only normed rows have a weight.")
        if not 0 <= self.eps < 1 or self.warps not in {1, 2, 4, 8, 16}:
            raise NoKernel(f"eps {self.eps} or {self.warps} warps are out of range.")

    @property
    def operands(self) -> tuple[str, ...]:
        """The tensors it reads besides x."""
        each = {"up": self.activation is not None, "weight": self.weight}
        return tuple(name for name, taken in each.items() if taken)

    @property
    def name(self) -> str:
        """For people and for the kernel's function."""
        kinds = ["rms"] if self.norm else []
        kinds += [self.activation, "gate"] if self.activation else []
        kinds += [self.codes] if self.codes else []
        return f"{'_'.join(kinds)}_k{self.width}"


def rowwise(width: int, **more: Any) -> RowWise:
    """A row-wise kernel with as many warps as keep a row in registers without spills."""
    return RowWise(width, warps=4 if width <= 4096 else 8 if width <= 8192 else 16, **more)
