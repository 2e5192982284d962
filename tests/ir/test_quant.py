from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import (
    PackedQuantizationCompressor,
    pack_to_int32,
    unpack_from_int32,
)
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization import QuantizationScheme as TheirScheme
from torch import Tensor

from planish.ir.capture.export import from_module
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, QuantScheme, dequantize, pack, unpack

BITS = range(1, 9)
SCHEMES = [
    QuantScheme(bits, group_size, symmetric)
    for bits in (2, 3, 4, 8)
    for group_size in (32, None)
    for symmetric in (True, False)
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def codes_of(bits: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(bits)
    low = -(1 << (bits - 1))
    return torch.randint(low, -low, shape, dtype=torch.int8, generator=generator)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("width", [1, 31, 64, 70])
def test_packing_is_that_of_compressed_tensors(bits: int, width: int) -> None:
    codes = codes_of(bits, 5, width)
    packed = pack(codes, bits)
    assert torch.equal(packed, pack_to_int32(codes, bits))
    assert torch.equal(unpack(packed, bits, width), codes)
    assert torch.equal(unpack_from_int32(packed, bits, codes.shape), codes)


@pytest.mark.parametrize("bits", BITS)
def test_packing_keeps_leading_dimensions(bits: int) -> None:
    codes = codes_of(bits, 3, 5, 40)
    assert torch.equal(pack(codes, bits)[1], pack(codes[1], bits))
    assert torch.equal(unpack(pack(codes, bits), bits, 40), codes)


def quantized(scheme: QuantScheme, dtype: torch.dtype) -> QuantizedTensor:
    """Random codes, scales and zero points of a [24, 96] tensor."""
    codes = codes_of(scheme.bits, 24, 96)
    groups = scheme.groups(96)
    scale = torch.rand(24, groups).to(dtype) + 0.1
    zero_point = None if scheme.symmetric else codes_of(scheme.bits, 24, groups + 1)[:, 1:]
    return QuantizedTensor.from_codes(scheme, dtype, codes, scale, zero_point)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_dequantizing_gives_the_bits_of_compressed_tensors(
    scheme: QuantScheme, dtype: torch.dtype
) -> None:
    tensor = quantized(scheme, dtype)
    arguments = QuantizationArgs.model_validate(
        {
            "num_bits": scheme.bits,
            "symmetric": scheme.symmetric,
            "strategy": "channel" if scheme.group_size is None else "group",
            "group_size": scheme.group_size,
        }
    )
    state = {f"weight{suffix}": stored for suffix, stored in tensor.tensors.items()}
    state["weight_shape"] = torch.tensor(tensor.shape)
    theirs = PackedQuantizationCompressor.decompress(
        state, TheirScheme(targets=["Linear"], weights=arguments)
    )
    assert torch.equal(tensor.dequantize(), theirs["weight"])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_survive_a_round_trip(scheme: QuantScheme) -> None:
    tensor = quantized(scheme, torch.float32)
    zeros = None
    if tensor.zero_point is not None:
        zeros = unpack(tensor.zero_point.T, scheme.bits, 24).T
    codes = scheme.nearest(scheme.grouped(tensor.dequantize()), tensor.scale, zeros).flatten(-2)
    assert torch.equal(codes, unpack(tensor.packed, scheme.bits, 96).float())


def test_codes_of_one_bit_are_signs() -> None:
    scheme = QuantScheme(1, 32)
    weight = torch.randn(4, 64)
    codes = scheme.nearest(scheme.grouped(weight), torch.full((4, 2), 0.5)).flatten(-2)
    assert codes.unique().tolist() == [-1, 1]
    scale = torch.full((4, 2), 0.5)
    tensor = QuantizedTensor.from_codes(scheme, torch.float32, codes.to(torch.int8), scale)
    assert tensor.packed.nbytes == weight.numel() / 8
    assert torch.equal(tensor.codes, codes.to(torch.int8))
    assert torch.equal(tensor.dequantize(), torch.where(weight < 0, -0.5, 0.5))
    wide = tensor.widened(2)
    assert wide.scheme == QuantScheme(2, 32)
    assert torch.equal(wide.dequantize(), tensor.dequantize())
    assert str(scheme) == "binary, groups of 32"


def test_codes_are_rounded_to_the_nearest_and_clamped() -> None:
    scheme = QuantScheme(4, group_size=2)
    grouped = torch.tensor([[[0.4, -0.6], [9.0, -9.0]]])
    assert scheme.nearest(grouped, torch.ones(1, 2)).tolist() == [[[0, -1], [7, -8]]]


def test_a_cast_follows_when_the_dtypes_differ() -> None:
    tensor = quantized(QuantScheme(4, 32), torch.float16)
    wide = dequantize(tensor.packed, tensor.scale, None, 4, 32, [24, 96], torch.float32)
    assert wide.dtype == torch.float32
    assert torch.equal(wide, tensor.dequantize().float())


@pytest.fixture
def linear() -> Program:
    return from_module(torch.nn.Linear(96, 24).eval(), torch.randn(2, 96))


@pytest.mark.parametrize("scheme", SCHEMES[:8:3], ids=str)
def test_a_program_reads_it_prints_it_and_keeps_it_on_disk(
    linear: Program, scheme: QuantScheme, tmp_path: Path
) -> None:
    tensor = quantized(scheme, torch.float32)
    with linear.edit() as edit:
        for node in edit.nodes(torch.ops.aten.linear.default):
            weight = tensor.insert(edit, "weight", before=node)
            node.args = (node.args[0], weight, *node.args[2:])
    program = edit.program
    expected = torch.nn.functional.linear(
        program.samples[0]["input"], tensor.dequantize(), program.tensors["bias"]
    )
    assert torch.equal(program.run(**program.samples[0])["output"], expected)
    assert sorted(program.tensors) == sorted(["bias", *(f"weight{end}" for end in tensor.tensors)])

    (node,) = program.nodes(dequantize)
    name, found = QuantizedTensor.read_by(node, program.tensors)
    assert (name, found.scheme, found.shape) == ("weight", scheme, tensor.shape)
    assert torch.equal(found.dequantize(), tensor.dequantize())

    program.save(tmp_path)
    assert str(Program.load(tmp_path)) == str(program)


def test_the_text_names_bits_group_and_shape(linear: Program) -> None:
    tensor = quantized(QuantScheme(4, 32), torch.float32)
    with linear.edit() as edit:
        (node,) = edit.nodes(torch.ops.aten.linear.default)
        node.args = (node.args[0], tensor.insert(edit, "weight", before=node))
    assert (
        "planish.dequantize(@weight_packed, @weight_scale, None, 4, 32, [24, 96], f32)"
        in edit.program.text()
    )


@pytest.mark.parametrize("function", [pack, unpack])
def test_nothing_is_written_into_the_argument(function: Callable[..., Tensor]) -> None:
    codes = codes_of(3, 2, 40) if function is pack else pack(codes_of(3, 2, 40), 3)
    before = codes.clone()
    function(codes, 3, *([40] if function is unpack else []))
    assert torch.equal(codes, before)
