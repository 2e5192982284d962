"""The generator of products of codes of 8 bits with a scale a row and a scale a column.

The weight's tile is the first operand here too: with few rows of x, tensor cores that multiply
64 rows at a time would be idle for most of them. Scales are applied to the sums alone.
"""

from __future__ import annotations

from planish.lowering.triton.frames import Frame, Neighbours
from planish.lowering.triton.parts import SCRATCH, reduction, tile_constants
from planish.lowering.triton.specs import Scaled
from planish.lowering.triton.text import Source, epilogue, indented, module, signature


def generate(spec: Scaled, frame: Frame | None = None) -> Source:
    """The kernel of a specification, of neighbouring rows or of those that a frame gives it."""
    frame = frame or Neighbours(spec)
    tensors = ("x", "row_scales", *frame.tensors, *spec.stored, *spec.epilogue.operands, "y")
    if spec.tiling.parallel:
        tensors += SCRATCH
    about = (
        f"{frame.about}y [rows, {spec.n}] = x [rows, {spec.k}] · Wᵀ of {spec.codes} with a scale "
        f"a row and a scale a column; epilogue: {spec.epilogue}."
    )
    kind = "int32" if spec.codes == "int8" else "float32"
    finish = [
        "scale = tl.load(scales_ptr + n, mask=n < N, other=0.0)",
        f"row_scale = tl.load(row_scales_ptr + {frame.row}, mask=live, other=0.0)",
        "y *= scale[:, None]",
        "y *= row_scale[None, :]",
        *epilogue(spec.epilogue, "n", "[:, None]"),
    ]
    body = [
        *frame.head(wide=spec.n * spec.k >= 1 << 31, kind=kind),
        "column = tl.arange(0, STEP)",
        *reduction(spec, frame, lambda _: [], _step(spec), finish, kind),
    ]
    constants = {
        **tile_constants(spec),
        "STEP": (spec.step, "columns in a step"),
        **frame.constants,
    }
    kernel = [*signature(frame.spec.name, tensors, constants), *indented(body, 1)]
    return Source(frame.spec.name, module(about, frame.spec, [kernel]), tensors)


def _step(spec: Scaled) -> list[str]:
    """One step: a tile of each operand, and their product."""
    tail = spec.k % spec.step
    rows, columns = "n[:, None] < N", "live[None, :]"
    if tail:
        rows, columns = f"({rows}) & (k < K)[None, :]", f"{columns} & (k < K)[:, None]"
    zero = "0" if spec.codes == "int8" else "0.0"
    how = ", out_dtype=tl.int32" if spec.codes == "int8" else ""
    if spec.accurate and spec.codes != "int8":
        how = ", max_num_imprecise_acc=STEP"
    return [
        "k = b * STEP + column",
        "w = tl.load(",
        f"    codes_ptr + n[:, None] * K + k[None, :], mask={rows}, other={zero},",
        ")",
        "x = tl.load(",
        f"    x_ptr + m[None, :] * K + k[:, None], mask={columns}, other={zero},",
        ")",
        f"total = tl.dot(w, x, total{how})",
    ]
