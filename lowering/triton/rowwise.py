"""The generator of kernels that work on one row at a time: norms, gates, and rounding to codes.

A program holds a whole row in registers and reads it once. Roundings to the activations' dtype
stand where `planish.ir.ops` has them, so that a fused kernel gives what its operators give.
"""

from __future__ import annotations

from planish.ir.activations import reach
from planish.ir.quant import FP8
from planish.lowering.triton.row_specs import RowWise
from planish.lowering.triton.text import (
    ACTIVATION_LINES,
    Source,
    indented,
    module,
    signature,
)

ROUND = "12582912.0"
"""1.5 · 2^23: adding and subtracting it rounds small float32 numbers to the nearest integer, ties
to even, where a conversion to integers would cut off."""


NORMED = {
    "rms": "normed by their root mean square",
    "layer": "normed by mean and standard deviation",
}
"""In words."""


def generate(spec: RowWise) -> Source:
    """The kernel of a specification."""
    tensors = ["x", *spec.operands, "y", *(["row_scales"] if spec.codes else [])]
    block = 1 << (spec.width - 1).bit_length()
    constants = {
        "K": (spec.width, "numbers in a row"),
        "BLOCK": (block, "the next power of two"),
        "EPS": (spec.eps, "added below the root"),
    }
    body = [
        "row = tl.program_id(0).to(tl.int64)  # offsets may exceed 32 bits",
        "dtype: tl.constexpr = x_ptr.dtype.element_ty",
        "k = tl.arange(0, BLOCK)",
        "inside = k < K",
        "y = tl.load(x_ptr + row * K + k, mask=inside, other=0.0).to(tl.float32)",
        *(_norm(spec) if spec.norm == "rms" else []),
        *(_layer_norm(spec) if spec.norm == "layer" else []),
        *(_gate(spec) if spec.activation else []),
        *(_codes(spec) if spec.codes else ["codes = y.to(dtype)"]),
        "tl.store(y_ptr + row * K + k, codes, mask=inside)",
    ]
    kernel = [*signature(spec.name, tensors, constants), *indented(body, 1)]
    return Source(spec.name, module(_about(spec), spec, [kernel]), tuple(tensors))


def _about(spec: RowWise) -> str:
    what = NORMED[spec.norm] if spec.norm else "as they are"
    if spec.activation:
        what = f"as {spec.activation}(x) · up"
    return f"Rows of {spec.width}, {what}{f', as codes of {spec.codes}' if spec.codes else ''}."


def _norm(spec: RowWise) -> list[str]:
    lines = [
        "mean = tl.sum(y * y, 0) / K",
        "y = (y * tl.rsqrt(mean + EPS)).to(dtype).to(tl.float32)",
    ]
    if spec.weight:
        lines += [
            "weight = tl.load(weight_ptr + k, mask=inside, other=0.0).to(tl.float32)",
            "y = (y * weight).to(dtype).to(tl.float32)",
        ]
    return lines


def _layer_norm(spec: RowWise) -> list[str]:
    """Rounded once, at the end, as torch's own kernels do."""
    lines = [
        "centred = tl.where(inside, y - tl.sum(y, 0) / K, 0.0)",
        "variance = tl.sum(centred * centred, 0) / K",
        "y = centred * tl.rsqrt(variance + EPS)",
    ]
    for name, operation in (("weight", "*"), ("bias", "+")):
        if name in spec.operands:
            load = f"tl.load({name}_ptr + k, mask=inside, other=0.0)"
            lines.append(f"y {operation}= {load}.to(tl.float32)")
    return [*lines, "y = y.to(dtype).to(tl.float32)"]


def _gate(spec: RowWise) -> list[str]:
    return [
        *ACTIVATION_LINES[str(spec.activation)],
        "up = tl.load(up_ptr + row * K + k, mask=inside, other=0.0).to(tl.float32)",
        "y = (y.to(dtype).to(tl.float32) * up).to(dtype).to(tl.float32)",
    ]


def _codes(spec: RowWise) -> list[str]:
    """Round to the scale of the row's largest magnitude; see `planish.ir.activations.scales`."""
    limit = reach(FP8) if spec.codes != "int8" else 127.0
    lines = [
        "size = tl.where(inside, tl.abs(y), 0.0)",
        "# A maximum passes over NaN: a row that is not finite has the scale NaN instead.",
        "odd = tl.sum(tl.where(size < float('inf'), 0, 1), 0) > 0",
        f"scale = tl.div_rn(tl.max(size, 0), {limit})",
        "scale = tl.where(scale == 0.0, 1.1920928955078125e-07, scale)",
        "tl.store(row_scales_ptr + row, tl.where(odd, float('nan'), scale))",
        "y = tl.where(odd, 0.0, tl.div_rn(y, scale))",
        f"y = tl.minimum(tl.maximum(y, -{limit}), {limit})",
    ]
    if spec.codes == "int8":
        return [*lines, f"codes = ((y + {ROUND}) - {ROUND}).to(tl.int8)  # ties to even"]
    return [
        *lines,
        "if PLAIN:  # the interpreter's conversion loses carries: leave it nothing to round",
        "    bits = y.to(tl.int32, bitcast=True)",
        "    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF",
        "    small = (y + 24576.0) - 24576.0  # below 2^-6 codes are multiples of 2^-9",
        "    y = tl.where(tl.abs(y) < 0.015625, small, bits.to(tl.float32, bitcast=True))",
        "codes = y.to(tl.float8e4nv)",
    ]
