"""Source text that says which rows of x a program multiplies, by which weight, and where they go.

Rows of a plain product are neighbours, and all meet one weight. Rows that a router sends to experts
lie anywhere: sorted by expert they are cut into tiles, each of a single expert, whose rows are read
from where they are and written to where they belong, so that nothing is copied before or after
(Gale et al., "MegaBlocks", 2022, section 5, multiply without padding experts to one size).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from planish.lowering.triton.routed_specs import Routed

ROUTES = ("order", "bounds")
"""Tensors that say who chose which expert; see `planish.lowering.triton.routes`."""

INSIDE = "inside = live[None, :] & (n < N)[:, None]"
"""What there is of a tile."""


class Frame(Protocol):
    """What kernels of products begin with, and what their rows are called.

    Attributes:
        spec: of the whole kernel.
        about: what the kernel does besides the product, in words before it; maybe nothing.
        tensors: that it reads to find its rows.
        constants: its numbers, by name, with what they are.
        row: the numbers of the tile's rows of x, as an expression.
        place: lines that say where the tile lies in a tensor [rows, N], and what of it there is.
    """

    spec: Any
    about: str
    tensors: tuple[str, ...]
    constants: dict[str, tuple[int, str]]
    row: str
    place: Sequence[str]

    def head(self, *, wide: bool, kind: str = "float32") -> list[str]:
        """Which tile a program computes, and its sums, transposed: [COLUMNS, ROWS].

        Args:
            wide: whether offsets into the weight need 64 bits.
            kind: dtype of the sums.
        """
        ...


def _features(*, wide: bool) -> str:
    cast = ".to(tl.int64)" if wide else ""
    return f"n = tl.program_id(0){cast} * COLUMNS + tl.arange(0, COLUMNS)"


def _sums(kind: str) -> str:
    return f"total = tl.zeros((COLUMNS, ROWS), tl.{kind})"


class Neighbours:
    """Rows that follow one another, by one weight."""

    about = ""
    tensors: tuple[str, ...] = ()
    row = "first + m"
    place: Sequence[str] = ("place = first * N + m[None, :] * N + n[:, None]", INSIDE)

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.constants: dict[str, tuple[int, str]] = {}

    def head(self, *, wide: bool, kind: str = "float32") -> list[str]:
        """See `Frame`."""
        return [
            _features(wide=wide),
            "first = tl.program_id(1).to(tl.int64) * ROWS",
            "x_ptr += first * K",
            "m = tl.arange(0, ROWS)",
            "live = m < rows - first",
            _sums(kind),
        ]


class Chosen:
    """Rows that chose one expert, by its weight."""

    tensors: tuple[str, ...] = ROUTES
    row = "m"
    place: Sequence[str] = ("place = at[None, :] * N + n[:, None]", INSIDE)

    def __init__(self, spec: Routed) -> None:
        self.spec: Any = spec
        self.about = f"Each row by its expert of {spec.experts}: "
        self.constants = {
            "EXPERTS": (spec.experts, "weights"),
            "SPAN": (1 << (spec.experts - 1).bit_length(), "the next power of two"),
            "SPREAD": (spec.spread, "rows of y that read one row of x"),
        }

    def head(self, *, wide: bool, kind: str = "float32") -> list[str]:
        """See `Frame`."""
        sizes = {name: math.prod(shape[1:]) for name, shape in self.spec.stored.items()}
        if self.spec.epilogue.bias:
            sizes["bias"] = self.spec.n
        return [
            "# Each expert's rows fill tiles of their own; this program's is the expert before",
            "# whose last tile it comes. There are programs for as many tiles as there can be.",
            "e = tl.arange(0, SPAN)",
            "begin = tl.load(bounds_ptr + e, mask=e < EXPERTS, other=0)",
            "end = tl.load(bounds_ptr + e + 1, mask=e < EXPERTS, other=0)",
            "tiles = (end - begin + ROWS - 1) // ROWS",
            "last = tl.cumsum(tiles, 0)",
            "number = tl.sum((last <= tl.program_id(1)).to(tl.int32), 0)",
            "if number >= EXPERTS:",
            "    return",
            "mine = e == number",
            "earlier = tl.program_id(1) - tl.sum(tl.where(mine, last - tiles, 0), 0)",
            "first = tl.sum(tl.where(mine, begin, 0), 0) + earlier * ROWS",
            "live = tl.arange(0, ROWS) < tl.sum(tl.where(mine, end, 0), 0) - first",
            "at = tl.load(order_ptr + first + tl.arange(0, ROWS), mask=live, other=0)",
            "m = at // SPREAD" if self.spec.spread > 1 else "m = at",
            "expert = number.to(tl.int64)  # offsets may exceed 32 bits",
            *(f"{name}_ptr += expert * {size}" for name, size in sizes.items()),
            _features(wide=wide),
            _sums(kind),
        ]
