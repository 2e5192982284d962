"""How kernels find a weight in memory: int16 words whose codes come apart by shift and mask.

A row of W is cut into blocks, a block into slices of `lanes` neighbouring columns. Word j of a
block holds, from its low bits up, the code of column j of the first slice, of column j of the
second, and so on. So one tile of words gives one tile a slice by the same shift of every word, to
be multiplied with a contiguous part of x: nothing moves between threads. Codes of 3 bits lie in
two planes: first their low 2 bits (the first 8 slices, then the last 8), then their high bits.

Codes and zero points are stored unsigned: 2^(bits-1) is added to both. Scales and zero points are
stored transposed, [groups, N], neighbours in N being what a program reads together. Codes of 4
bits that are multiplied by codes of 8 are signed, and lie two to a byte; see `pack_nibbles`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from planish.ir.quant import QuantizedTensor
from planish.lowering.triton.specs import SLICES, WORD, GroupScaled, WeightOnly

VERSION = 1
"""Of the layout; an artifact names the one it was written with."""


def offset(bits: int) -> int:
    """What is added to a signed code to store it."""
    return 1 << (bits - 1)


def _planes(codes: Tensor, bits: int, each: int) -> Tensor:
    """Codes int32 [N, blocks, each, lanes] of so many bits, as words [N, blocks, lanes]."""
    shifts = torch.arange(0, each * bits, bits, dtype=torch.int32, device=codes.device)
    return (codes << shifts[:, None]).sum(-2, dtype=torch.int32)


def pack(codes: Tensor, spec: WeightOnly) -> Tensor:
    """Signed codes [N, K] as int16 words [N, `spec.words`]; columns beyond K hold code 0."""
    filled = functional.pad(codes.int(), (0, spec.blocks * spec.block - codes.shape[1]))
    blocks = (filled + offset(spec.bits)).unflatten(1, (spec.blocks, SLICES[spec.bits], spec.lanes))
    if spec.bits == 3:
        low, high = blocks & 3, blocks >> 2
        parts = [_planes(low[:, :, :8], 2, 8), _planes(low[:, :, 8:], 2, 8), _planes(high, 1, 16)]
    else:
        parts = [_planes(blocks, spec.bits, SLICES[spec.bits])]
    return torch.cat(parts, -1).flatten(1).to(torch.int16).contiguous()


def pack_nibbles(codes: Tensor, spec: GroupScaled) -> Tensor:
    """Signed codes [N, K] as int8 bytes [N, blocks · lanes]; columns beyond K hold code 0.

    Byte j of a block holds the code of column j in its lower half, and that of column
    lanes + j in its upper half, both in two's complement.
    """
    filled = functional.pad(codes.to(torch.int8), (0, spec.blocks * spec.block - codes.shape[1]))
    low, high = filled.unflatten(1, (spec.blocks, 2, spec.lanes)).unbind(2)
    packed: Tensor = low & 15 | high << 4
    return packed.flatten(1).contiguous()


def unpack_nibbles(nibbles: Tensor, spec: GroupScaled) -> Tensor:
    """The signed codes, int8 [N, K], that `pack_nibbles` packed."""
    halves = nibbles.unflatten(1, (spec.blocks, 1, spec.lanes))
    codes: Tensor = torch.cat([halves << 4 >> 4, halves >> 4], 2)
    return codes.flatten(1)[:, : spec.k]


def unpack(words: Tensor, spec: WeightOnly) -> Tensor:
    """The signed codes, int16 [N, K], that `pack` packed."""
    blocks = words.int().unflatten(1, (spec.blocks, -1, 1, spec.lanes)) & 0xFFFF
    if spec.bits == 3:
        two, one = torch.arange(0, WORD, 2), torch.arange(WORD)
        low = torch.cat([blocks[:, :, part] >> two[:, None].to(words.device) for part in (0, 1)], 2)
        codes = (low & 3) | ((blocks[:, :, 2] >> one[:, None].to(words.device) & 1) << 2)
    else:
        shifts = torch.arange(0, WORD, spec.bits, device=words.device)[:, None]
        codes = (blocks[:, :, 0] >> shifts) & ((1 << spec.bits) - 1)
    signed: Tensor = (codes - offset(spec.bits)).flatten(1)[:, : spec.k].to(torch.int16)
    return signed


def stored(weight: QuantizedTensor, spec: WeightOnly) -> dict[str, Tensor]:
    """A weight as the kernels of a specification read it: `words`, `scales` and maybe `zeros`."""
    dtype = getattr(torch, spec.scale_dtype)
    found = {
        "words": pack(weight.codes, spec),
        "scales": _transposed(weight.scale.to(dtype), spec, 1),
    }
    if weight.zeros is not None:
        found["zeros"] = _transposed((weight.zeros.short() + offset(spec.bits)).to(dtype), spec, 0)
    return found


def stored_nibbles(weight: QuantizedTensor, spec: GroupScaled) -> dict[str, Tensor]:
    """A symmetric weight of up to 4 bits as the kernels of a specification read it."""
    scales = weight.scale.to(getattr(torch, spec.scale_dtype))
    return {
        "nibbles": pack_nibbles(weight.codes, spec),
        "scales": _transposed(scales, spec, 1),
    }


def _transposed(groups: Tensor, spec: WeightOnly | GroupScaled, fill: int) -> Tensor:
    """[N, G] as [`spec.groups`, N]."""
    padded = functional.pad(groups, (0, spec.groups - groups.shape[1]), value=fill)
    return padded.mT.contiguous()


def dense(tensors: dict[str, Tensor], spec: WeightOnly) -> Tensor:
    """What a stored weight stands for, [N, K], computed in the dtype of its scales."""
    scales = tensors["scales"]
    codes = unpack(tensors["words"], spec).to(scales.dtype)
    grouped = codes.unflatten(1, (-1, spec.group))
    count = grouped.shape[1]
    if "zeros" in tensors:
        grouped = grouped - (tensors["zeros"][:count] - offset(spec.bits)).mT.unsqueeze(-1)
    whole: Tensor = (grouped * scales[:count].mT.unsqueeze(-1)).flatten(1)
    return whole
