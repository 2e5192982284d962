"""A quantized tensor: what its numbers mean, how they are packed, and how it stands in a graph.

The layout is `pack-quantized` of compressed-tensors, which vLLM and transformers load: the weight
`X.weight` becomes the tensors `X.weight_packed`, `X.weight_scale` and, for asymmetric schemes,
`X.weight_zero_point`, so writing a checkpoint is writing a program's tensors. Codes that are
floating-point numbers of 8 bits (FP8) are stored as such, those of 4 bits (MXFP4) two to a byte.
In a graph the tensors are read through `planish::dequantize`, whose result an ordinary operator
consumes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.library import Library
from torch.nn import functional

from planish.ir import microscaling
from planish.ir.edit import Edit

WORD = 32
"""Bits of the integers that values are packed into."""

FP8 = torch.float8_e4m3fn
"""Floating-point codes (E4M3): 4 bits of exponent, 3 of mantissa, up to 448 (Micikevicius et al.,
"FP8 Formats for Deep Learning", 2022)."""

PER_ROW = -1
"""The group size that stands for one group a row."""


@dataclass(frozen=True)
class QuantScheme:
    """How the numbers of a tensor are rounded to codes: value = (code - zero point) · scale.

    Codes are integers, or floating-point numbers of 8 bits (E4M3) or of 4 (E2M1, whose scales are
    powers of two: MXFP4). Codes and zero points are signed: from `low` to `high`. A group is a run
    of neighbours along the last dimension, the input features of a linear layer; it has one scale.
    Codes of 1 bit are -1 and 1, without a zero point: 0 is no code.

    Attributes:
        bits: of one code, 1 to 8; 8 or 4 if floating, and then of groups of 32.
        group_size: the numbers in a group; None for one group a row (per-channel).
        symmetric: whether every zero point is 0 and none is stored; true if floating.
        floating: whether codes are floating-point numbers.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = True
    floating: bool = False

    @property
    def microscaled(self) -> bool:
        """Whether it is MXFP4 (`planish.ir.microscaling`)."""
        return self.floating and self.bits == 4

    @property
    def low(self) -> float:
        """The smallest code."""
        return -self.high if self.floating else -(1 << (self.bits - 1))

    @property
    def high(self) -> float:
        """The largest code."""
        if self.floating:
            return microscaling.LARGEST if self.microscaled else torch.finfo(FP8).max
        return 1 if self.bits == 1 else (1 << (self.bits - 1)) - 1

    @property
    def dtype(self) -> torch.dtype:
        """What codes are before they are packed; 8 bits hold floats of 4 bits exactly."""
        return FP8 if self.floating else torch.int8

    def scale_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What scales are rounded to for a tensor of a dtype; powers of two need no rounding."""
        return torch.float32 if self.microscaled else dtype

    def groups(self, width: int) -> int:
        """How many groups a row of `width` numbers has; the group size must divide the width."""
        return 1 if self.group_size is None else width // self.group_size

    def grouped(self, rows: Tensor) -> Tensor:
        """A view [..., N, G, K/G] of a tensor [..., N, K]."""
        view: Tensor = rows.unflatten(-1, (self.groups(rows.shape[-1]), -1))
        return view

    def nearest(self, grouped: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        """The nearest codes, still in floating point, of a tensor [..., N, G, K/G].

        Args:
            grouped: a floating-point tensor.
            scale: [..., N, G], not zero.
            zero_point: [..., N, G] for asymmetric schemes.
        """
        codes = grouped / scale.unsqueeze(-1)
        if zero_point is not None:
            codes += zero_point.unsqueeze(-1)
        return self.rounded_(codes)

    def rounded_(self, codes: Tensor) -> Tensor:
        """Round numbers to the nearest codes, in place; they stay in floating point."""
        if self.microscaled:
            return microscaling.round_(codes)
        if self.floating:
            return codes.copy_(codes.clamp_(self.low, self.high).to(FP8))
        if self.bits == 1:
            return codes.copy_(torch.where(codes < 0, -1.0, 1.0))
        return codes.round_().clamp_(self.low, self.high)

    def __str__(self) -> str:
        """The scheme in words: `int4 symmetric, groups of 64`."""
        extent = "per channel" if self.group_size is None else f"groups of {self.group_size}"
        if self.floating:
            return f"{'mxfp4 (E2M1)' if self.microscaled else 'fp8 (E4M3)'}, {extent}"
        if self.bits == 1:
            return f"binary, {extent}"
        return f"int{self.bits} {'symmetric' if self.symmetric else 'asymmetric'}, {extent}"


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes int8 [..., K] as int32 [..., ⌈K · bits / 32⌉].

    Each code plus 2^(bits-1) fills the next `bits` bits, low bits first; where `bits` does not
    divide 32, a code may straddle two words (compressed-tensors, `pack_to_int32`).
    """
    lanes, words = _period(bits)
    length = codes.shape[-1]
    shifted = codes.to(torch.int32) + (1 << (bits - 1))
    lane = functional.pad(shifted, (0, -length % lanes)).unflatten(-1, (-1, lanes)).unbind(-1)
    packed: Tensor = lane[0].new_zeros((*lane[0].shape, words))
    for index, value in enumerate(lane):
        word, offset = divmod(index * bits, WORD)
        packed[..., word] |= value << offset
        if offset + bits > WORD:
            packed[..., word + 1] |= value >> (WORD - offset)
    return packed.flatten(-2)[..., : math.ceil(length * bits / WORD)].contiguous()


def unpack(packed: Tensor, bits: int, length: int) -> Tensor:
    """The first `length` codes, int8 [..., K], of what `pack` made."""
    lanes, words = _period(bits)
    padded = functional.pad(packed, (0, -packed.shape[-1] % words)).unflatten(-1, (-1, words))
    codes: Tensor = torch.empty((*padded.shape[:-1], lanes), dtype=torch.int8, device=packed.device)
    for index in range(lanes):
        word, offset = divmod(index * bits, WORD)
        value = padded[..., word] >> offset
        if offset + bits > WORD:
            # The shift before dragged the sign along; only the low bits are this code's.
            value = value & ((1 << (WORD - offset)) - 1)
            value = value | (padded[..., word + 1] << (WORD - offset))
        codes[..., index] = (value & ((1 << bits) - 1)) - (1 << (bits - 1))
    return codes.flatten(-2).narrow(-1, 0, length)


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Codes of a scheme, packed: of 1 bit, -1 and 1 lie there as -1 and 0."""
    return pack(codes >> 1 if bits == 1 else codes, bits)


def _unpacked(packed: Tensor, bits: int, length: int) -> Tensor:
    codes = unpack(packed, bits, length)
    return codes * 2 + 1 if bits == 1 else codes


def _period(bits: int) -> tuple[int, int]:
    """How many codes and how many words it takes until both end at the same bit."""
    common = math.lcm(bits, WORD)
    return common // bits, common // WORD


def _dequantize(
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bits: int,
    group_size: int,  # noqa: ARG001  (the shape of `scale` says it; lowerings read it)
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    if packed.dtype == torch.uint8:
        blocks: Tensor = microscaling.unpack(packed).unflatten(-1, (-1, microscaling.BLOCK))
        return (blocks * microscaling.powers_of(scale).unsqueeze(-1)).flatten(-2).to(dtype)
    stored = packed if packed.is_floating_point() else _unpacked(packed, bits, shape[-1])
    codes = stored.to(scale.dtype)
    grouped: Tensor = codes.unflatten(-1, (scale.shape[-1], -1))
    if zero_point is not None:
        zeros = unpack(zero_point.transpose(-1, -2), bits, shape[-2]).transpose(-1, -2)
        grouped = grouped - zeros.to(scale.dtype).unsqueeze(-1)
    return (grouped * scale.unsqueeze(-1)).flatten(-2).to(dtype)


def _dequantize_fake(
    packed: Tensor,
    scale: Tensor,  # noqa: ARG001
    zero_point: Tensor | None,  # noqa: ARG001
    bits: int,  # noqa: ARG001
    group_size: int,  # noqa: ARG001
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    return packed.new_empty(shape, dtype=dtype)


_LIBRARY = Library("planish", "FRAGMENT")
_LIBRARY.define(
    "dequantize(Tensor packed, Tensor scale, Tensor? zero_point, int bits, int group_size, "
    "int[] shape, ScalarType dtype) -> Tensor"
)
_LIBRARY.impl("dequantize", _dequantize, "CompositeExplicitAutograd")
torch.library.register_fake("planish::dequantize", _dequantize_fake, lib=_LIBRARY)

dequantize = torch.ops.planish.dequantize.default
"""`dequantize(packed i32 [..., N, W] or f8 [..., N, K], scale [..., N, G], zero_point i32
[..., Z, G]?, bits, group_size, shape [..., N, K], dtype)`: (code - zero point) · scale, computed in
the scale's dtype as compressed-tensors does, then cast. Zero points are packed along the rows. A
`group_size` of `PER_ROW` means one group a row. MXFP4 is `packed u8 [..., N, K/2]` with exponents,
`scale u8 [..., N, G]`, and exact in float32."""


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor of N rows and K columns (and leading dimensions) in packed form.

    Attributes:
        scheme: how it was rounded.
        shape: of the tensor it stands for, [..., N, K].
        dtype: of the tensor it stands for.
        packed: codes, int32 [..., N, ⌈K · bits / 32⌉]; float8_e4m3fn [..., N, K] if floating, in
            4 bits uint8 [..., N, K/2].
        scale: [..., N, G]; of MXFP4 exponents, uint8 (E8M0).
        zero_point: int32 [..., ⌈N · bits / 32⌉, G] for asymmetric schemes, packed along the rows.
    """

    scheme: QuantScheme
    shape: tuple[int, ...]
    dtype: torch.dtype
    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None = None

    @classmethod
    def from_codes(
        cls,
        scheme: QuantScheme,
        dtype: torch.dtype,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor | None = None,
    ) -> QuantizedTensor:
        """Pack codes [..., N, K] and, if there are any, zero points int8 [..., N, G]."""
        if scheme.microscaled:
            packed, exponents = microscaling.pack(codes), microscaling.exponents_of(scale)
            return cls(scheme, tuple(codes.shape), dtype, packed, exponents)
        zeros = None
        if zero_point is not None:
            zeros = pack(zero_point.transpose(-1, -2), scheme.bits).transpose(-1, -2).contiguous()
        packed = codes if scheme.floating else _packed(codes, scheme.bits)
        return cls(scheme, tuple(codes.shape), dtype, packed, scale, zeros)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by the suffix that is added to the name of the tensor."""
        stored = {"_packed": self.packed, "_scale": self.scale, "_zero_point": self.zero_point}
        return {suffix: tensor for suffix, tensor in stored.items() if tensor is not None}

    @property
    def codes(self) -> Tensor:
        """The codes as they are, [..., N, K]: int8, or float8_e4m3fn if floating."""
        if self.scheme.microscaled:
            return microscaling.unpack(self.packed).to(self.scheme.dtype)
        if self.scheme.floating:
            return self.packed
        return _unpacked(self.packed, self.scheme.bits, self.shape[-1])

    @property
    def zeros(self) -> Tensor | None:
        """The zero points as they are, int8 [..., N, G], for asymmetric schemes."""
        if self.zero_point is None:
            return None
        return unpack(self.zero_point.mT, self.scheme.bits, self.shape[-2]).mT

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments of `dequantize` after its tensors."""
        group_size = PER_ROW if self.scheme.group_size is None else self.scheme.group_size
        return self.scheme.bits, group_size, list(self.shape), self.dtype

    def __getitem__(self, index: int) -> QuantizedTensor:
        """One of a stack [E, N, K], without the leading dimension."""
        zeros = None if self.zero_point is None else self.zero_point[index]
        parts = self.packed[index], self.scale[index], zeros
        return QuantizedTensor(self.scheme, self.shape[1:], self.dtype, *parts)

    def rows(self, chosen: slice) -> QuantizedTensor:
        """Some of the N rows, of every matrix of a stack."""
        zeros = self.zeros
        return self.from_codes(
            self.scheme,
            self.dtype,
            self.codes[..., chosen, :].contiguous(),
            self.scale[..., chosen, :].contiguous(),
            None if zeros is None else zeros[..., chosen, :],
        )

    def widened(self, bits: int) -> QuantizedTensor:
        """The same codes, each in more bits, for formats that lack codes of so few."""
        scheme = replace(self.scheme, bits=bits)
        return self.from_codes(scheme, self.dtype, self.codes, self.scale, self.zeros)

    def as_integers(self) -> QuantizedTensor:
        """The same numbers in codes for which there are kernels: MXFP4 in int8, others as they are.

        Elements of MXFP4 are halves of integers up to 12.
        """
        if not self.scheme.microscaled:
            return self
        codes = (microscaling.unpack(self.packed) * 2).to(torch.int8)
        halved = (microscaling.powers_of(self.scale) / 2).to(self.dtype)
        return self.from_codes(QuantScheme(8, microscaling.BLOCK), self.dtype, codes, halved)

    def dequantize(self) -> Tensor:
        """The tensor it stands for."""
        value: Tensor = dequantize(self.packed, self.scale, self.zero_point, *self.arguments)
        return value

    def insert(self, edit: Edit, name: str, *, before: fx.Node) -> fx.Node:
        """Add the stored tensors as `name_packed` and so on, and a node that reads them."""
        reads = {
            suffix: edit.read(name + suffix, tensor, before=before)
            for suffix, tensor in self.tensors.items()
        }
        return edit.call(
            dequantize,
            reads["_packed"],
            reads["_scale"],
            reads.get("_zero_point"),
            *self.arguments,
            before=before,
        )

    @staticmethod
    def read_by(node: fx.Node, tensors: Mapping[str, Tensor]) -> tuple[str, QuantizedTensor]:
        """The name and the contents of what a `dequantize` node reads."""
        packed, scale, zero_point, bits, group_size, shape, dtype = node.args
        stored = [
            None if read is None else tensors[str(read.target)]  # type: ignore[union-attr]
            for read in (packed, scale, zero_point)
        ]
        scheme = QuantScheme(
            bits=bits,  # type: ignore[arg-type]
            group_size=None if group_size == PER_ROW else group_size,  # type: ignore[arg-type]
            symmetric=zero_point is None,
            floating=tensors[str(packed.target)].dtype in {FP8, torch.uint8},  # type: ignore[union-attr]
        )
        name = str(packed.target).removesuffix("_packed")  # type: ignore[union-attr]
        return name, QuantizedTensor(scheme, tuple(shape), dtype, *stored)  # type: ignore[arg-type]
