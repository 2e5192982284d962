"""What specifications of kernels are made of, and what refuses those that have no kernel."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

from planish.ir.errors import PlanishError
from planish.ir.ops import ACTIVATIONS

Dtype = Literal["bfloat16", "float16", "float32"]
"""What activations are; sums are float32 whatever they are."""

Codes = Literal["int8", "float8_e4m3fn"]
"""What both operands of a product of codes are."""

Norm = Literal["rms", "layer"]
"""How rows are normed: divided by their root mean square, or, after their mean was taken off, by
their standard deviation."""

Scaling = Literal["weights", "sums"]
"""Where a group's scale is multiplied in: with each weight, rounded to the activations' dtype as a
dequantized weight is, or with the group's float32 sum, which is more accurate and cheaper, and
takes more registers."""

SMALL_DOT = 16
"""The least extent that a tile of `tl.dot` has in any dimension."""


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
    words |= {"codes": get_args(Codes), "norm": get_args(Norm)}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if value is None and "None" in str(field.type):
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


NO_EPILOGUE = Epilogue()
"""Sums are stored as they are."""


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


FEW_ROWS = Tiling()
"""The smallest tile of rows."""


class Cut(ABC):
    """A product whose reduction runs in blocks of columns, and these in slices."""

    k: int
    tiling: Tiling

    @property
    @abstractmethod
    def block(self) -> int:
        """Columns of W that one step of the reduction reads."""

    @property
    def blocks(self) -> int:
        """Steps of the reduction; what lies beyond column K is multiplied by zeros."""
        return math.ceil(self.k / self.block)

    @property
    def per_slice(self) -> int:
        """Steps in a slice of the reduction; the last may have fewer."""
        return math.ceil(self.blocks / self.tiling.slices)

    def check_slices(self) -> None:
        """Make sure that each slice has a block.

        Raises:
            NoKernel: if one would have none.
        """
        if (self.tiling.slices - 1) * self.per_slice >= self.blocks:
            raise NoKernel(f"{self.blocks} blocks cannot be cut into {self.tiling.slices} slices.")


class Packed(Cut):
    """A cut product whose weight is packed: words and bytes hold the codes of several slices."""

    group: int
    lanes: int

    @property
    @abstractmethod
    def folds(self) -> int:
        """Slices of a block."""

    @property
    def block(self) -> int:
        """Columns of W that one step of the reduction reads."""
        return self.lanes * self.folds

    @property
    def groups(self) -> int:
        """Rows of the scales as they are stored: enough for every column of every block."""
        return 1 if self.group == self.k else math.ceil(self.blocks * self.block / self.group)
