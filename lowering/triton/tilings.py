"""Which tilings are worth considering, from a model of the chip; nothing here is measured.

What a tiling must do on Hopper (H200): keep all multiprocessors busy, keep enough bytes in flight
to hide the memory's latency, fit into shared memory, and leave its sums in registers. Registers
are known from kernels compiled ahead of time; see `benchmarks/results/kernels.json`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from planish.lowering.triton.fields import Cut, Scaling, Tiling
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.routed_specs import Alone, Routed
from planish.lowering.triton.specs import CodesProduct, GroupScaled, WeightOnly

PROCESSORS = 132
"""Multiprocessors of an H100 or H200."""

RESIDENT = 2
"""Programs that a multiprocessor holds at once, so that one loads while another multiplies."""

SHARED = 232_448
"""Bytes of shared memory of a multiprocessor that programs can use."""

MOST_SLICES = 8
"""Above it the partial sums' traffic outweighs what more programs win."""

ROWS = (16, 32, 64, 128)
"""Tiles' rows; a number of rows takes the first that holds it, more rows take several tiles."""

TALLEST = {3: 64}
"""By bits of a code, the most rows of a tile, where the part of x that meets a block of more rows
outgrows shared memory."""

SPILLING = 64
"""From so many rows on, a tile that keeps group sums apart needs more registers than there are."""


def bucket(rows: int) -> int:
    """The tile for a number of rows."""
    return next((each for each in ROWS if rows <= each), ROWS[-1])


def columns(spec: WeightOnly) -> int:
    """Output features of a tile: fewer where codes take many registers or there are few tiles."""
    few = -(-spec.n // 128) * MOST_SLICES < PROCESSORS * RESIDENT
    return 64 if few or spec.bits == 3 or spec.dtype == "float32" else 128


def slices(spec: Cut, tiles: int) -> int:
    """Parts of the reduction, by the weight alone: as many as fill the chip with one wave.

    Args:
        spec: of the product.
        tiles: that a single row of x takes.
    """
    found = 1
    for count in (2, 4, MOST_SLICES):
        per = -(-spec.blocks // count)
        if tiles * count <= PROCESSORS * RESIDENT and (count - 1) * per < spec.blocks:
            found = count
    return found


def tile(product: Any, rows: int, *, bitwise: bool) -> Any:
    """A product with the tiling of the model for so many rows, of a routed one of each expert."""
    if isinstance(product, Routed):
        alone = product.product
        # Finding a tile's rows takes registers, and sums of groups that are kept apart leave none.
        most = SPILLING if isinstance(alone, GroupScaled) else ROWS[-1]
        return replace(product, product=_alone(alone, min(rows, most), bitwise, product.chosen))
    return _alone(product, rows, bitwise, 1)


def _alone(product: Alone, rows: int, bitwise: bool, weights: int) -> Alone:
    if isinstance(product, WeightOnly):
        return tiled(product, rows, bitwise=bitwise, weights=weights)
    return tiled_codes(product, rows, bitwise=bitwise, weights=weights)


def tiled(spec: WeightOnly, rows: int, *, bitwise: bool = False, weights: int = 1) -> WeightOnly:
    """A specification with the tiling that the model gives for a number of rows.

    Args:
        spec: of the product; its tiling and scaling are replaced.
        rows: of x.
        bitwise: whether the bits of a row may not depend on `rows`. Then reduction and scaling
            are those of the weight; otherwise many rows are reduced at one go.
        weights: that a token is multiplied by at once, as those of its experts are.
    """
    tile = min(bucket(rows), TALLEST.get(spec.bits, ROWS[-1]))
    count = slices(spec, -(-spec.n // columns(spec)) * weights)
    if tile >= SPILLING and not bitwise:
        count = 1
    scaling: Scaling = "weights" if bitwise or tile >= SPILLING else "sums"
    tiling = Tiling(
        rows=tile,
        columns=columns(spec),
        slices=count,
        parallel=count > 1 and tile < SPILLING,
        warps=8 if tile == 128 else 4,
        stages=stages(spec, tile),
    )
    return replace(spec, tiling=tiling, scaling=scaling)


def stages(spec: WeightOnly, rows: int) -> int:
    """Blocks in flight: as many as shared memory holds for two programs, from 2 to 4."""
    block = spec.words // spec.blocks
    each = columns(spec) * block * 2 + rows * spec.block * (4 if spec.dtype == "float32" else 2)
    return max(2, min(4, SHARED // RESIDENT // each))


def tiled_codes(
    spec: CodesProduct | Floating, rows: int, *, bitwise: bool = False, weights: int = 1
) -> CodesProduct | Floating:
    """The same for a product whose weight is read as it is multiplied; see `tiled`."""
    tile = bucket(rows)
    count = slices(spec, -(-spec.n // 64) * weights)
    if tile >= SPILLING and not bitwise:
        count = 1
    # Sums of a group, of a part and of all are kept apart: more threads hold them.
    wide = SPILLING if isinstance(spec, GroupScaled) else ROWS[-1]
    tiling = Tiling(
        rows=tile,
        columns=64 if tile < SPILLING else 128,
        slices=count,
        parallel=count > 1 and tile < SPILLING,
        warps=8 if tile >= wide else 4,
        stages=4 if tile < SPILLING else 3,
    )
    return replace(spec, tiling=tiling)
