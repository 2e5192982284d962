"""What the instructions in kernels compute, which the interpreter cannot run."""

import re

import pytest
import torch

from planish.lowering.triton import layout
from planish.lowering.triton.codes import LARGEST, MAGIC
from planish.lowering.triton.fields import Dtype
from planish.lowering.triton.generators import generate
from planish.lowering.triton.specs import SLICES, WeightOnly

MASK = 0xFFFFFFFF


def evaluate(assembly: str, words: list[int]) -> int:
    """The output of a few instructions on 32-bit registers: `shr`, `shl`, and `lop3`."""
    registers = {f"${place + 1}": word for place, word in enumerate(words)}

    def value(operand: str) -> int:
        return registers[operand] if operand in registers else int(operand, 0)

    body = re.sub(r"[{}]|\.reg \.b32 [^;]*;", "", assembly)
    for instruction in filter(None, (part.strip() for part in body.split(";"))):
        name, _, rest = instruction.partition(" ")
        into, *operands = (operand.strip() for operand in rest.split(","))
        if name == "shr.u32":
            registers[into] = value(operands[0]) >> value(operands[1])
        elif name == "shl.b32":
            registers[into] = value(operands[0]) << value(operands[1]) & MASK
        else:
            assert name == "lop3.b32"
            a, b, c, table = map(value, operands)
            registers[into] = lop3(a, b, c, table)
    return registers["$0"]


def lop3(a: int, b: int, c: int, table: int) -> int:
    """The bits of a table at the numbers that the bits of three words spell (PTX ISA, `lop3`)."""
    return sum(
        (table >> ((a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)) & 1) << bit
        for bit in range(32)
    )


def halves(word: int, dtype: torch.dtype) -> list[float]:
    """The two 16-bit floats in a register."""
    parts = [word & 0xFFFF, word >> 16]
    signed = torch.tensor([part - (part >> 15 << 16) for part in parts], dtype=torch.int16)
    return [float(each) for each in signed.view(dtype)]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_instructions_give_the_codes(bits: int, dtype: Dtype, zeros: bool) -> None:
    spec = WeightOnly(1, 64 * 16, dtype, dtype, bits, 64 * 16, zeros, lanes=64)
    source = generate(spec).text
    found = [
        ("".join(re.findall(r'"(.*?)"', call)), int(minus))
        for call, minus in re.findall(
            r"inline_asm_elementwise\(\n(.*?)\"=r.*?return number - (\d+)", source, re.DOTALL
        )
    ]
    if bits > LARGEST[dtype]:
        assert found == []  # bfloat16 cannot hold 128 and a code of 8 bits
        return
    assert len(found) == SLICES[bits]
    low = -layout.offset(bits)
    codes = torch.randint(low, -low, (1, spec.k), dtype=torch.int8)
    words = layout.pack(codes, spec)[0].int() & 0xFFFF
    wanted = codes[0].unflatten(0, (-1, 64)).float() - (low if zeros else 0)
    for index, (assembly, minus) in enumerate(found):
        assert minus == MAGIC[dtype][1] + (0 if zeros else -low)
        for lane in range(0, 64, 2):
            starts = (64 * (index // 8) + lane, 128 + lane) if bits == 3 else (lane,)
            pairs = [int(words[at]) | int(words[at + 1]) << 16 for at in starts]
            decoded = [
                each - minus for each in halves(evaluate(assembly, pairs), getattr(torch, dtype))
            ]
            assert decoded == wanted[index, lane : lane + 2].tolist()
