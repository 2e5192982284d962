"""The generator of products with weights of a few bits.

The product is computed as yᵀ = W · xᵀ: Hopper's tensor cores (`wgmma`) read their first operand
from registers, which is where codes become numbers, and take as few as 8 columns of the second, so
that few rows of x cost no padding. See `planish.lowering.triton.layout` for the words.
"""

from __future__ import annotations

from planish.lowering.triton.codes import decoders
from planish.lowering.triton.frames import Frame, Neighbours
from planish.lowering.triton.groups import Run, ahead, loads, moves, runs, shared
from planish.lowering.triton.parts import SCRATCH, reduction, tile_constants
from planish.lowering.triton.specs import SLICES, WORDS, WeightOnly
from planish.lowering.triton.text import (
    Source,
    epilogue,
    indented,
    module,
    signature,
)


def generate(spec: WeightOnly, frame: Frame | None = None) -> Source:
    """The kernel of a specification, of neighbouring rows or of those that a frame gives it."""
    frame = frame or Neighbours(spec)
    tensors = ("x", *frame.tensors, *spec.stored, *spec.epilogue.operands, "y")
    if spec.tiling.parallel:
        tensors += SCRATCH
    about = (
        f"{frame.about}y [rows, {spec.n}] = x [rows, {spec.k}] · Wᵀ, W of {spec.bits} bits; "
        f"epilogue: {spec.epilogue}."
    )
    parts = [*decoders(spec), _kernel(spec, frame, tensors)]
    return Source(frame.spec.name, module(about, frame.spec, parts), tensors)


def _constants(spec: WeightOnly) -> dict[str, tuple[int, str]]:
    return {
        **tile_constants(spec),
        "LANES": (spec.lanes, "columns of W in a slice of a block"),
        "BLOCK": (spec.block, "columns of W in a block"),
        "WORDS": (WORDS[spec.bits] * spec.lanes, "words in a row of a block"),
        "ROW": (spec.words, "words in a row of W"),
    }


def _step(spec: WeightOnly) -> list[str]:
    """One block: words, numbers, products."""
    lines = []
    planes = ("low_0", "low_1", "high") if spec.bits == 3 else ("words",)
    for place, plane in enumerate(planes):
        start = f"b * WORDS + {place} * LANES" if place else "b * WORDS"
        lines += [
            f"{plane} = tl.load(",
            f"    words_ptr + n[:, None] * ROW + ({start} + lane)[None, :],",
            '    mask=n[:, None] < N, other=0, eviction_policy="evict_first",',
            ")",
        ]
    if runs(spec):
        lines += [
            *ahead(spec),
        ]
        for place, run in enumerate(runs(spec)):
            lines += _run_lines(spec, place, run)
        lines += moves(spec)
    else:
        lines += _run_lines(spec, None, Run(range(SLICES[spec.bits]), "0"))
    return lines


def _run_lines(spec: WeightOnly, place: int | None, run: Run) -> list[str]:
    """The products of slices that share a scale; of all slices if a row has only one."""
    name = "" if place is None else f"_{place}"
    sums = place is not None and spec.scaling == "sums"
    precise = ', input_precision="ieee"' if spec.dtype == "float32" else ""
    lines = []
    for index in run.slices:
        planes = f"low_{index // 8}, high" if spec.bits == 3 else "words"
        column = f"b * BLOCK + {index} * LANES + lane"
        mask = "live[None, :]"
        if spec.k % spec.block:
            mask += f" & ({column} < K)[:, None]"
        lines += [
            "x = tl.load(",
            f"    x_ptr + m[None, :] * K + ({column})[:, None],",
            f'    mask={mask}, other=0.0, eviction_policy="evict_last",',
            ")",
            f"w = slice_{index}({planes}, dtype, PLAIN)",
        ]
        if spec.zeros:
            lines.append(f"w -= zero{name}.to(dtype)[:, None]")
        if place is not None and not sums:
            lines.append(f"w *= scale{name}.to(dtype)[:, None]")
        first = sums and index == run.slices[0]
        into = "part" if sums else "total"
        tail = precise if first else f", {into}{precise}"
        lines.append(f"{into} = tl.dot(w, x{tail})")
    if sums:
        lines.append(f"total += part * scale{name}.to(tl.float32)[:, None]")
    return lines


def _kernel(spec: WeightOnly, frame: Frame, tensors: tuple[str, ...]) -> list[str]:
    large = spec.n * spec.words >= 1 << 31
    scale = ["y *= scale.to(tl.float32)[:, None]"] if not runs(spec) else []
    head = [
        "dtype: tl.constexpr = x_ptr.dtype.element_ty",
        *frame.head(wide=large),
        "lane = tl.arange(0, LANES)",
    ]
    if not runs(spec):
        head += [
            f"{name[:-1]} = tl.load({name}_ptr + n, mask=n < N, other=0.0)" for name in shared(spec)
        ]
    body = reduction(
        spec,
        frame,
        before=lambda start: loads(spec, start, ""),
        step=_step(spec),
        finish=[*scale, *epilogue(spec.epilogue, "n", "[:, None]")],
    )
    constants = {**_constants(spec), **frame.constants}
    return [*signature(frame.spec.name, tensors, constants), *indented([*head, *body], 1)]
