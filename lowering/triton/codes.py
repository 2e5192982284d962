"""Source text that turns words of codes into floating-point numbers.

A word's codes become floating-point numbers without a conversion: put below the exponent of 128
(bfloat16) or 1024 (float16) they are 128 + code, of which the constant is then subtracted, exactly.
One three-input logical instruction does it for two codes (Kim et al., "Who Says Elephants Can't
Run", 2022, section 3.2.3, and Frantar et al., "MARLIN", 2024, section 3.4, for float16).
"""

from __future__ import annotations

from collections.abc import Iterator

from planish.lowering.triton.layout import offset
from planish.lowering.triton.specs import SLICES, WeightOnly
from planish.lowering.triton.text import indented

MAGIC = {"bfloat16": (0x4300, 128), "float16": (0x6400, 1024)}
"""By dtype, the bits of a number whose lowest mantissa bit counts 1, and that number."""

LARGEST = {"bfloat16": 4, "float16": 8}
"""The bits of codes that fit below it, with what is left of the mantissa for the constant."""


def _magic(spec: WeightOnly) -> tuple[int, int] | None:
    """The number to put codes below, where assembly is of use."""
    fits = spec.bits <= LARGEST.get(spec.dtype, 0)
    return MAGIC[spec.dtype] if fits else None


def decoders(spec: WeightOnly) -> Iterator[list[str]]:
    """A function a slice: words to numbers."""
    for index in range(SLICES[spec.bits]):
        planes = "low, high" if spec.bits == 3 else "words"
        taken = offset(spec.bits) if not spec.zeros else 0
        minus = f" - {taken}" if taken else ""
        yield [
            "@triton.jit",
            f"def slice_{index}({planes}, dtype: tl.constexpr, PLAIN: tl.constexpr):",
            *indented([f'"""Codes of columns {index} · LANES and on of a block."""'], 1),
            *indented(_decoder(spec, index, minus, taken), 1),
        ]


def _decoder(spec: WeightOnly, index: int, minus: str, taken: int) -> list[str]:
    if spec.bits == 3:
        plain = f"((low >> {2 * (index % 8)}) & 3) | (((high >> {index}) & 1) << 2)"
    else:
        shift = spec.bits * index
        plain = f"{f'(words >> {shift})' if shift else 'words'} & {(1 << spec.bits) - 1}"
    number = f"({plain}).to(dtype){minus}"
    magic = _magic(spec)
    if magic is None:
        return [f"return {number}"]
    bits, base = magic
    words = "low, high" if spec.bits == 3 else "words"
    kind = f"tl.{spec.dtype}"
    lines = _assembly(spec, index, bits)
    return [
        "if PLAIN:",
        *indented([f"return {number}"], 1),
        f"# Two codes at once, each below the exponent of {base}.",
        "number = tl.inline_asm_elementwise(",
        *indented([*(f'"{line} "' for line in lines[:-1]), f'"{lines[-1]}",'], 1),
        *indented(
            [
                f'"=r,{"r,r" if spec.bits == 3 else "r"}", [{words}],',
                f"dtype={kind}, is_pure=True, pack=2,",
            ],
            1,
        ),
        ")",
        f"return number - {base + taken}",
    ]


def _assembly(spec: WeightOnly, index: int, bits: int) -> list[str]:
    """PTX that selects a code in both halves of a register and sets the exponent's bits.

    0xEA is the table of (a & b) | c.
    """
    exponent = f"0x{bits:04x}{bits:04x}"
    if spec.bits != 3:
        mask = f"{(1 << spec.bits) - 1:04x}"
        return [
            "{ .reg .b32 t;",
            f"shr.u32 t, $1, {spec.bits * index};",
            f"lop3.b32 $0, t, 0x{mask}{mask}, {exponent}, 0xEA; }}",
        ]
    return [
        "{ .reg .b32 l, h;",
        f"shr.u32 l, $1, {2 * (index % 8)};",
        f"shr.u32 h, $2, {index - 2};" if index >= 2 else f"shl.b32 h, $2, {2 - index};",
        f"lop3.b32 l, l, 0x00030003, {exponent}, 0xEA;",
        "lop3.b32 $0, h, 0x00040004, l, 0xEA; }",
    ]
