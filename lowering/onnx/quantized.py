"""Quantized weights: repacked as ONNX Runtime's kernels read them, or as the standard says.

`MatMulNBits` and `GatherBlockQuantized` (ONNX Runtime's contrib operators) share one layout: for
each row of the weight, blocks of codes as unsigned integers, low bits first, with a scale a block.
The standard `DequantizeLinear` takes signed codes with a scale a block of one dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from torch import Tensor, fx
from torch.nn import functional

from planish.ir.quant import QuantizedTensor, dequantize
from planish.lowering.onnx.builder import Builder, Emitter
from planish.lowering.onnx.target import CONTRIB

KERNEL = "MatMulNBits"
"""The kernel for products with such weights."""

GATHER_KERNEL = "GatherBlockQuantized"
"""The kernel that reads rows of such weights."""

BLOCKS = (256, 128, 64, 32, 16)
"""The block sizes that the kernels know."""

PADDED_BLOCK = 32
"""The block size for rows that no block size divides; their last block is filled up."""

STORED_BITS = {1: 2, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
"""The bits that a code takes in a file: the least that the kernels know and that suffice."""


@dataclass(frozen=True)
class Blocks:
    """A weight [N, K] in the kernels' layout.

    Attributes:
        rows: N.
        columns: K.
        bits: of a code.
        size: the codes in a block.
        codes: uint8 [N, ⌈K / size⌉, size · bits / 8].
        scales: [N, ⌈K / size⌉].
        zeros: uint8 [N, ⌈⌈K / size⌉ · bits / 8⌉]; None where every zero point is the middle.
    """

    rows: int
    columns: int
    bits: int
    size: int
    codes: ir.Value
    scales: ir.Value
    zeros: ir.Value | None

    @property
    def form(self) -> tuple[object, ...]:
        """What two weights must have in common to stand one below the other."""
        return self.columns, self.bits, self.size, self.zeros is None, self.scales.dtype


def read(b: Builder, node: fx.Node) -> tuple[str, QuantizedTensor]:
    """The name and the weight of a node that dequantizes one, in codes that the kernels know."""
    name, weight = QuantizedTensor.read_by(node, b.program.tensors)
    return name, weight.as_integers()


def blocks(b: Builder, argument: Any, kernel: str) -> Blocks | None:
    """The weight that a node dequantizes, as a kernel of `com.microsoft` reads it.

    None for an argument that is not dequantized, and where the target or the group size rules
    the kernel out.
    """
    if not isinstance(argument, fx.Node) or argument.target is not dequantize:
        return None
    name, weight = read(b, argument)
    return None if name in b.target.dense else blocks_of(b, name, weight, kernel)


def blocks_of(b: Builder, name: str, weight: QuantizedTensor, kernel: str) -> Blocks | None:
    """A weight of this name as a kernel reads it; None where that is ruled out."""
    size = _block_size(weight)
    fits = len(weight.shape) == 2 and size is not None and not weight.scheme.floating
    if kernel not in b.target.contrib or not fits or size is None:
        return None
    rows, columns = weight.shape
    bits, count = STORED_BITS[weight.scheme.bits], -(-columns // size)
    repeats = _group_size(weight) // size if weight.scale.shape[-1] > 1 else count
    scales = _scales(b, name, weight, repeats)
    zeros = None
    if weight.zero_point is not None:
        zeros = stored(
            b,
            f"{name}_zero_point.nbits",
            lambda: _packed_zeros(weight, bits, repeats),
            (rows, -(-count * bits // 8)),
        )
    packed = stored(
        b,
        f"{name}_packed.nbits",
        lambda: _packed_blocks(weight, bits, size),
        (rows, count, size * bits // 8),
    )
    return Blocks(rows, columns, bits, size, packed, scales, zeros)


def _group_size(weight: QuantizedTensor) -> int:
    return weight.shape[-1] // weight.scale.shape[-1]


def _block_size(weight: QuantizedTensor) -> int | None:
    group = _group_size(weight)
    fitting = next((size for size in BLOCKS if group % size == 0), None)
    return fitting or (PADDED_BLOCK if weight.scale.shape[-1] == 1 else None)


def _scales(b: Builder, name: str, weight: QuantizedTensor, repeats: int) -> ir.Value:
    """One scale a block, in the dtype that the product is computed in."""
    dtype = b.result_dtype
    if repeats == 1:
        # Scales that were no numbers in the program are stored beside what its reads may have left.
        own = b.program.tensors.get(f"{name}_scale", weight.scale) is weight.scale
        label = f"{name}_scale{'' if own else '.nbits'}"
        return b.initializer(label, TorchTensor(weight.scale.to(dtype)))
    repeated = weight.scale.to(dtype).repeat_interleave(repeats, 1)
    return b.initializer(f"{name}_scale.nbits", TorchTensor(repeated))


def stored(
    b: Builder, name: str, make: Callable[[], Tensor], shape: Sequence[int], bits: int = 0
) -> ir.Value:
    """A tensor made only when the file is written: uint8, or int4 or int8 codes of so many bits."""

    def contents() -> ir.TensorProtocol:
        made = make().contiguous()
        if kind != ir.DataType.INT4:
            return TorchTensor(made)
        packed = _fill_bytes((made.flatten() & 15).to(torch.uint8), 4)
        return ir.PackedTensor(packed.numpy(), kind, shape=shape)

    kind = {0: ir.DataType.UINT8, 8: ir.DataType.INT8}.get(bits, ir.DataType.INT4)
    return b.initializer(name, ir.LazyTensor(contents, kind, ir.Shape(shape)))


def _zeros(weight: QuantizedTensor) -> Tensor:
    assert weight.zeros is not None
    return weight.zeros


def _unsigned(codes: Tensor, bits: int) -> Tensor:
    return (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)


def _packed_blocks(weight: QuantizedTensor, bits: int, size: int) -> Tensor:
    unsigned = _unsigned(weight.codes, bits)
    filled = functional.pad(unsigned, (0, -unsigned.shape[1] % size), value=1 << (bits - 1))
    return _fill_bytes(filled.unflatten(1, (-1, size)), bits)


def _packed_zeros(weight: QuantizedTensor, bits: int, repeats: int) -> Tensor:
    return _fill_bytes(_unsigned(_zeros(weight).repeat_interleave(repeats, 1), bits), bits)


def _fill_bytes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., K], several to a byte, low bits first: uint8 [..., ⌈K · bits / 8⌉]."""
    each = 8 // bits
    apart = functional.pad(codes, (0, -codes.shape[-1] % each)).unflatten(-1, (-1, each))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    filled: Tensor = (apart << shifts).sum(-1, dtype=torch.uint8)
    return filled


def linear(b: Builder, x: ir.Value, weight: Blocks, bias: ir.Value | None) -> ir.Value:
    """X · weightᵀ + bias by `MatMulNBits`."""
    return b.op(
        f"{CONTRIB}.{KERNEL}",
        x,
        weight.codes,
        weight.scales,
        weight.zeros,
        None,
        bias,
        K=weight.columns,
        N=weight.rows,
        bits=weight.bits,
        block_size=weight.size,
        accuracy_level=b.target.accuracy_level,
    )


def embedding(b: Builder, weight: Blocks, ids: ir.Value) -> ir.Value:
    """Rows of a weight by `GatherBlockQuantized`, from the tensors that `linear` reads."""
    return b.op(
        f"{CONTRIB}.{GATHER_KERNEL}",
        b.op("Reshape", weight.codes, [weight.rows, weight.columns * weight.bits // 8]),
        ids,
        weight.scales,
        weight.zeros,
        bits=weight.bits,
        block_size=weight.size,
        gather_axis=0,
        quantize_axis=1,
    )


def _dequantize(b: Builder, *_: Any) -> ir.Value:
    name, weight = read(b, b.node)
    return standard(b, name, weight, turned=False)


def turned(b: Builder, argument: Any) -> ir.Value | None:
    """The weight [N, K] that a node dequantizes, as [K, N] by the standard operator.

    ONNX Runtime recognizes this before a product. None for an argument that is not dequantized,
    and for a weight that is also read in another way, which is stored once, as it is.
    """
    if not isinstance(argument, fx.Node) or argument.target is not dequantize:
        return None
    name, weight = read(b, argument)
    alone = all(user.target is torch.ops.aten.linear.default for user in argument.users)
    return standard(b, name, weight, turned=True) if alone else None


def standard(b: Builder, name: str, weight: QuantizedTensor, *, turned: bool) -> ir.Value:
    """A weight, or its transpose, dequantized by `DequantizeLinear` along the blocked dimension.

    Blocks have the sizes that ONNX Runtime's kernels know, where those divide the groups.
    """
    if name in b.target.dense:
        return _dense(b, name, weight, turned=turned)
    if weight.scheme.floating:
        return _widened(b, name, weight, turned=turned)
    group = _group_size(weight)
    size = next((size for size in BLOCKS if group % size == 0), group)
    bits, dtype = STORED_BITS[weight.scheme.bits], b.result_dtype
    suffix = f".int{max(bits, 4)}" + (".T" if turned else "")

    def placed(tensor: Tensor) -> Tensor:
        return tensor.mT.contiguous() if turned else tensor

    def each_block(grouped: Tensor) -> Tensor:
        return placed(grouped.repeat_interleave(group // size, -1))

    shape = placed(torch.empty(weight.shape, device="meta")).shape
    blocks = each_block(torch.empty(weight.scale.shape, device="meta")).shape
    packed = stored(b, f"{name}_packed{suffix}", lambda: placed(weight.codes), shape, bits)
    scales = each_block(weight.scale.to(dtype))
    zeros = None
    if weight.zero_point is not None:
        label = f"{name}_zero_point{suffix}"
        zeros = stored(b, label, lambda: each_block(_zeros(weight)), blocks, bits)
    elif bits == 8:
        # ONNX Runtime would add one of the wrong rank where it avoids int8 (`x64quantprecision`).
        label = f"{name}_zero_point{suffix}"
        zeros = stored(b, label, lambda: torch.zeros(blocks, dtype=torch.int8), blocks, bits)
    made = b.op(
        "DequantizeLinear",
        packed,
        b.initializer(f"{name}_scale{suffix}", TorchTensor(scales)),
        zeros,
        axis=len(shape) - (2 if turned else 1),
        block_size=size,
    )
    return b.typed(made, weight.dtype, shape)


def _dense(b: Builder, name: str, weight: QuantizedTensor, *, turned: bool) -> ir.Value:
    """What a weight, or its transpose, stands for, in floating point."""
    dtype = b.result_dtype

    def contents() -> ir.TensorProtocol:
        whole = weight.dequantize().to(dtype)
        return TorchTensor(whole.mT.contiguous() if turned else whole)

    kind = from_torch_dtype(dtype)
    shape = (*weight.shape[:-2], *weight.shape[:-3:-1]) if turned else weight.shape
    stored_dense = ir.LazyTensor(contents, kind, ir.Shape(shape))
    return b.initializer(f"{name}.dense{'.T' if turned else ''}", stored_dense)


def _widened(b: Builder, name: str, weight: QuantizedTensor, *, turned: bool) -> ir.Value:
    """A weight of 8-bit floats, or its transpose, widened and scaled by ordinary operators."""
    dtype, suffix = b.result_dtype, ".T" if turned else ""
    *leading, rows, columns = weight.shape
    group = _group_size(weight)
    if turned:
        codes, scale = weight.packed.mT.contiguous(), weight.scale.mT.unsqueeze(-2)
        split = [*leading, columns // group, group, rows]
    else:
        codes, scale = weight.packed, weight.scale.unsqueeze(-1)
        split = [*leading, rows, columns // group, group]
    stored_codes = b.initializer(f"{name}_packed{suffix}", TorchTensor(codes))
    wide = b.op("Cast", stored_codes, to=from_torch_dtype(dtype).value)
    apart = b.reshape(b.typed(wide, dtype, codes.shape), split)
    factors = b.initializer(f"{name}_scale{suffix}", TorchTensor(scale.to(dtype).contiguous()))
    scaled = b.typed(b.op("Mul", apart, factors), dtype, split)
    return b.typed(b.reshape(scaled, codes.shape), weight.dtype, codes.shape)


QUANTIZED: dict[Callable[..., Any], Emitter] = {dequantize: _dequantize}
"""How a quantized weight is read where no kernel takes it as it is."""
