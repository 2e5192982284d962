"""Source text of a product's reduction, which is cut into parts.

The parts of a reduction are fixed for a weight: where they begin and the order in which their sums
are added. One program may walk them all, or each may be a program of its own, the last of which to
arrive adds the stored sums, in the same order. So both give the same bits for a row of x, and
neither depends on how many rows there are. Sums are never added atomically, whose order is chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planish.lowering.triton.frames import Frame
from planish.lowering.triton.text import indented

SCRATCH = ("partial", "arrived")
"""Tensors that parallel parts need: their sums, and how many of a tile's parts are done."""


def tile_constants(spec: Any) -> dict[str, tuple[int, str]]:
    """The numbers that every product's kernel names."""
    return {
        "N": (spec.n, "output features"),
        "K": (spec.k, "input features"),
        "ROWS": (spec.tiling.rows, "rows of x in a tile"),
        "COLUMNS": (spec.tiling.columns, "output features in a tile"),
        "BLOCKS": (spec.blocks, "steps of the reduction"),
        "PARTS": (spec.tiling.slices, "parts of the reduction, summed one by one"),
        "PER_PART": (spec.per_slice, "steps in a part; the last may have fewer"),
    }


def reduction(
    spec: Any,
    frame: Frame,
    before: Callable[[str], list[str]],
    step: list[str],
    finish: list[str],
    kind: str = "float32",
) -> list[str]:
    """The loop over K, in as many parts as the tiling says, and what is done with the sums.

    Args:
        spec: of the product.
        frame: says where its rows lie.
        before: lines that go before a loop which starts at a step.
        step: lines that add step `b` to `total`.
        finish: lines that turn the float32 sums `y` into the result.
        kind: dtype of `total`.
    """
    end = [*finish, "tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)"]
    place = frame.place
    told = "total" if kind == "float32" else "total.to(tl.float32)"

    def loop(start: str, stop: str, more: list[str]) -> list[str]:
        head = f"for b in range({start}, {stop}):"
        return [*before(start), head, *indented([*step, *more], 1)]

    if spec.tiling.slices == 1:
        return [*loop("0", "BLOCKS", []), f"y = {told}", *place, *end]
    if spec.tiling.parallel:
        return _parallel(loop, told, [*place], end)
    add = [
        "if (b + 1) % PER_PART == 0:",
        f"    y += {told}",
        f"    total = tl.zeros((COLUMNS, ROWS), tl.{kind})",
    ]
    rest = [f"y += {told}"] if spec.blocks % spec.per_slice else []
    zeros = "y = tl.zeros((COLUMNS, ROWS), tl.float32)"
    return [zeros, *loop("0", "BLOCKS", add), *rest, *place, *end]


def _parallel(
    loop: Callable[..., list[str]], told: str, place: list[str], end: list[str]
) -> list[str]:
    """A program a part; the last to arrive adds the sums of all, in order, and finishes."""
    return [
        "part_id = tl.program_id(2)",
        "start = part_id * PER_PART",
        *loop("start", "tl.minimum(start + PER_PART, BLOCKS)", []),
        *place,
        "size = rows.to(tl.int64) * N",
        f"tl.store(partial_ptr + part_id * size + place, {told}, mask=inside)",
        "tl.debug_barrier()  # every thread's sums are stored before the arrival is told",
        "tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)",
        'before = tl.atomic_add(arrived_ptr + tile, 1, sem="acq_rel")',
        "if before == PARTS - 1:",
        *indented(
            [
                "y = tl.zeros((COLUMNS, ROWS), tl.float32)",
                "for part_number in range(0, PARTS):",
                "    there = partial_ptr + part_number * size + place",
                '    y += tl.load(there, mask=inside, other=0.0, cache_modifier=".cg")',
                "tl.store(arrived_ptr + tile, 0)  # for the next launch",
                *end,
            ],
            1,
        ),
    ]
