"""The generator of products of 8-bit codes with 4-bit weights, scaled by group and by row.

Two weights lie in a byte, and become bytes where they are: moved to its upper half they are 16
times themselves, sign and all. Sums of integers are exact, so the 16 is divided out at the very
end, which is exact too. Each group's sum becomes a float and meets its scale inside the loop; Lin
et al. ("QServe", 2024, section 4) keep that out of it by two scales, which checkpoints do not have.
"""

from __future__ import annotations

from planish.lowering.triton.frames import Frame, Neighbours
from planish.lowering.triton.groups import Run, ahead, loads, moves, runs
from planish.lowering.triton.parts import SCRATCH, reduction, tile_constants
from planish.lowering.triton.specs import GroupScaled
from planish.lowering.triton.text import Source, epilogue, indented, module, signature

UPPER = "0xF0F0F0F0"
"""The upper halves of four bytes."""

ASSEMBLY = (
    ["{ .reg .b32 t;", "shl.b32 t, $1, 4;", f"and.b32 $0, t, {UPPER}; }}"],
    [f"and.b32 $0, $1, {UPPER};"],
)
"""PTX that takes the lower, or the upper, codes of four bytes, each 16 times as large."""

PLAIN = ("nibbles << 4", "nibbles & -16")
"""The same for one byte."""


def generate(spec: GroupScaled, frame: Frame | None = None) -> Source:
    """The kernel of a specification, of neighbouring rows or of those that a frame gives it."""
    frame = frame or Neighbours(spec)
    tensors = ("x", "row_scales", *frame.tensors, *spec.stored, *spec.epilogue.operands, "y")
    if spec.tiling.parallel:
        tensors += SCRATCH
    about = (
        f"{frame.about}y [rows, {spec.n}] = x [rows, {spec.k}] · Wᵀ, x of int8 with a scale a row, "
        f"W of 4 bits; epilogue: {spec.epilogue}."
    )
    parts = [*map(_decoder, (0, 1)), _kernel(spec, frame, tensors)]
    return Source(frame.spec.name, module(about, frame.spec, parts), tensors)


def _decoder(index: int) -> list[str]:
    """A function for a half of each byte."""
    *first, last = ASSEMBLY[index]
    return [
        "@triton.jit",
        f"def slice_{index}(nibbles, PLAIN: tl.constexpr):",
        *indented([f'"""16 times the codes of columns {index} · LANES and on of a block."""'], 1),
        "    if PLAIN:",
        f"        return {PLAIN[index]}",
        "    return tl.inline_asm_elementwise(  # four bytes at once",
        *indented([*(f'"{line} "' for line in first), f'"{last}",'], 2),
        '        "=r,r", [nibbles], dtype=tl.int8, is_pure=True, pack=4,',
        "    )",
    ]


def _kernel(spec: GroupScaled, frame: Frame, tensors: tuple[str, ...]) -> list[str]:
    grouped = bool(runs(spec))
    kind = "float32" if grouped else "int32"
    row = [] if grouped else ["scale = tl.load(scales_ptr + n, mask=n < N, other=0.0)"]
    constants = {
        **tile_constants(spec),
        "LANES": (spec.lanes, "columns of W in a slice of a block, and bytes in a row of it"),
        "BLOCK": (spec.block, "columns of W in a block"),
        "ROW": (spec.stored["nibbles"][1], "bytes in a row of W"),
        **frame.constants,
    }
    body = [
        *frame.head(wide=spec.n * spec.blocks * spec.lanes >= 1 << 31, kind=kind),
        "lane = tl.arange(0, LANES)",
        *row,
        *reduction(
            spec,
            frame,
            before=lambda start: loads(spec, start, ""),
            step=_step(spec),
            finish=[
                *([] if grouped else ["y *= scale.to(tl.float32)[:, None]"]),
                f"row_scale = tl.load(row_scales_ptr + {frame.row}, mask=live, other=0.0)",
                "y *= row_scale[None, :] * 0.0625  # codes were 16 times themselves",
                *epilogue(spec.epilogue, "n", "[:, None]"),
            ],
            kind=kind,
        ),
    ]
    return [*signature(frame.spec.name, tensors, constants), *indented(body, 1)]


def _step(spec: GroupScaled) -> list[str]:
    """One block: bytes, codes, products."""
    lines = [
        "nibbles = tl.load(",
        "    nibbles_ptr + n[:, None] * ROW + (b * LANES + lane)[None, :],",
        '    mask=n[:, None] < N, other=0, eviction_policy="evict_first",',
        ")",
    ]
    if not runs(spec):
        return [*lines, *_products(spec, Run(range(spec.folds), ""), "total")]
    lines += ahead(spec)
    for place, run in enumerate(runs(spec)):
        lines += [
            *_products(spec, run, "part"),
            f"total += part.to(tl.float32) * scale_{place}.to(tl.float32)[:, None]",
        ]
    return [*lines, *moves(spec)]


def _products(spec: GroupScaled, run: Run, into: str) -> list[str]:
    """The products of slices that share a scale, added to those before if there are any."""
    lines = []
    for index in run.slices:
        column = f"b * BLOCK + {index} * LANES + lane"
        mask = "live[None, :]"
        if spec.k % spec.block:
            mask += f" & ({column} < K)[:, None]"
        fresh = into == "part" and index == run.slices[0]
        lines += [
            "x = tl.load(",
            f"    x_ptr + m[None, :] * K + ({column})[:, None],",
            f"    mask={mask},",
            '    other=0, eviction_policy="evict_last",',
            ")",
            f"w = slice_{index}(nibbles, PLAIN)",
            f"{into} = tl.dot(w, x, {'' if fresh else f'{into}, '}out_dtype=tl.int32)",
        ]
    return lines
