"""The tilings that are worth timing for a product; `benchmarks/gpu.py --tune` times them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product as combinations

from planish.lowering.triton.fields import NoKernel, Scaling, Tiling
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.plans import Product
from planish.lowering.triton.routed_specs import Alone, Routed
from planish.lowering.triton.specs import GroupScaled, Scaled, WeightOnly
from planish.lowering.triton.tilings import (
    MOST_SLICES,
    PROCESSORS,
    RESIDENT,
    SHARED,
    SPILLING,
    TALLEST,
    bucket,
    tile,
)

SCALINGS: tuple[Scaling, ...] = ("sums", "weights")
IN_FLIGHT = 24_000
"""Bytes of the weight that a multiprocessor has to have under way to hide the memory's latency:
4.3 TB/s times 0.7 microseconds (Little's law), by 132 multiprocessors."""


def candidates(product: Product, rows: int) -> Iterator[Product]:
    """What may be fast for a number of rows, the model's own choice first.

    Left out is what does not fit shared memory, has too few bytes in flight, or cuts the reduction
    into more programs than the chip runs at once.
    """
    yield (first := tile(product, rows, bitwise=False))
    yield (fixed := tile(product, rows, bitwise=True))
    seen = {first, fixed}
    for alone in _others(product.product if isinstance(product, Routed) else product, rows):
        made = replace(product, product=alone) if isinstance(product, Routed) else alone
        if made not in seen:
            seen.add(made)
            yield made


def _others(product: Alone, rows: int) -> Iterator[Alone]:
    """Products with a single weight in all tilings that have a chance."""
    tall = min(bucket(rows), TALLEST.get(getattr(product, "bits", 0), rows + SPILLING))
    choices = combinations((64, 128, 256), (1, 2, 4, MOST_SLICES), (2, 3, 4, 5), SCALINGS)
    for columns, slices, stages, scaling in choices:
        warps = 8 if tall >= 128 or columns == 256 else 4
        spilling = tall >= SPILLING and scaling == "sums" and isinstance(product, WeightOnly)
        if spilling or (columns == 256 and isinstance(product, WeightOnly)):
            continue
        try:
            parallel = slices > 1 and tall < SPILLING
            tiling = Tiling(tall, columns, slices, parallel, warps, stages)
            made = _with(product, tiling, scaling)
        except NoKernel:
            continue
        if _fits(made):
            yield made


def _with(product: Alone, tiling: Tiling, scaling: Scaling) -> Alone:
    if isinstance(product, WeightOnly):
        return replace(product, tiling=tiling, scaling=scaling)
    return replace(product, tiling=tiling)


def _fits(product: Alone) -> bool:
    """Whether a tiling can run, and has a chance."""
    tiling = product.tiling
    weight, x = _stage(product)
    if tiling.stages * (weight + x) > SHARED:
        return False
    tiles = -(-product.n // tiling.columns) * (tiling.slices if tiling.parallel else 1)
    if tiling.parallel and tiles > PROCESSORS * RESIDENT:
        return False
    resident = min(RESIDENT, SHARED // (tiling.stages * (weight + x)))
    return tiling.rows >= SPILLING or (tiling.stages - 1) * weight * resident >= IN_FLIGHT


def _stage(product: Alone) -> tuple[int, int]:
    """Bytes of the weight and of x that one step of the reduction loads."""
    tiling = product.tiling
    if isinstance(product, Scaled):
        return tiling.columns * product.step, tiling.rows * product.step
    if isinstance(product, GroupScaled):
        return tiling.columns * product.lanes, tiling.rows * product.block
    wide = 4 if product.dtype == "float32" else 2
    if isinstance(product, Floating):
        return tiling.columns * product.step * wide, tiling.rows * product.step * wide
    words = product.words // product.blocks
    return tiling.columns * words * 2, tiling.rows * product.block * wide
