"""The generator of products with weights in floating point, which experts have as they come.

A single such weight is multiplied by torch's own product. The weight's tile is the first operand,
as everywhere here, so that few rows of x cost no padding.
"""

from __future__ import annotations

from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.frames import Frame, Neighbours
from planish.lowering.triton.parts import SCRATCH, reduction, tile_constants
from planish.lowering.triton.text import Source, epilogue, indented, module, signature


def generate(spec: Floating, frame: Frame | None = None) -> Source:
    """The kernel of a specification, of neighbouring rows or of those that a frame gives it."""
    frame = frame or Neighbours(spec)
    tensors = ("x", *frame.tensors, *spec.stored, *spec.epilogue.operands, "y")
    if spec.tiling.parallel:
        tensors += SCRATCH
    about = (
        f"{frame.about}y [rows, {spec.n}] = x [rows, {spec.k}] · Wᵀ in {spec.dtype}; "
        f"epilogue: {spec.epilogue}."
    )
    body = [
        *frame.head(wide=spec.n * spec.k >= 1 << 31),
        "column = tl.arange(0, STEP)",
        *reduction(
            spec,
            frame,
            before=lambda _: [],
            step=_step(spec),
            finish=epilogue(spec.epilogue, "n", "[:, None]"),
        ),
    ]
    constants = {
        **tile_constants(spec),
        "STEP": (spec.step, "columns in a step"),
        **frame.constants,
    }
    kernel = [*signature(frame.spec.name, tensors, constants), *indented(body, 1)]
    return Source(frame.spec.name, module(about, frame.spec, [kernel]), tensors)


def _step(spec: Floating) -> list[str]:
    """One step: a tile of each operand, and their product."""
    rows, columns = "n[:, None] < N", "live[None, :]"
    if spec.k % spec.step:
        rows, columns = f"({rows}) & (k < K)[None, :]", f"{columns} & (k < K)[:, None]"
    precise = ', input_precision="ieee"' if spec.dtype == "float32" else ""
    return [
        "k = b * STEP + column",
        "w = tl.load(",
        f"    weight_ptr + n[:, None] * K + k[None, :], mask={rows}, other=0.0,",
        '    eviction_policy="evict_first",',
        ")",
        "x = tl.load(",
        f"    x_ptr + m[None, :] * K + k[:, None], mask={columns}, other=0.0,",
        '    eviction_policy="evict_last",',
        ")",
        f"total = tl.dot(w, x, total{precise})",
    ]
