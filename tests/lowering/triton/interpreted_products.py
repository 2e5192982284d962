"""Run by `test_interpreter.py` in a process of its own, in Triton's interpreter."""

import random

import pytest
import torch

from planish.ir.ops import ACTIVATIONS
from planish.lowering.triton import layout, reference
from planish.lowering.triton.fields import Dtype, Epilogue, Tiling
from planish.lowering.triton.launch import run
from planish.lowering.triton.specs import WeightOnly, best_lanes
from support.quantized import distance, exactly, random_operands, random_weight

LIMIT = 4e-6
"""What the order of float32 sums may change, relative to the root mean square of the result."""


def error(spec: WeightOnly, rows: int, seed: int = 0) -> float:
    """How far the kernel is from float64, beyond the rounding of the result to its dtype."""
    weight, given = random_weight(spec, seed), random_operands(spec, rows, seed)
    x = given.pop("x")
    found = run(spec, x, {**layout.stored(weight, spec), **given})
    wide = {name: tensor.double() for name, tensor in given.items()}
    exact = torch.nn.functional.linear(x.double(), exactly(weight), wide.get("bias"))
    return distance(found, reference.finish(spec.epilogue, exact, wide))


def drawn(seed: int) -> tuple[WeightOnly, int]:
    """A random specification and a number of rows."""
    draw = random.Random(seed)
    bits, group = draw.choice([2, 3, 4, 8]), draw.choice([16, 32, 48, 64, 96, 128, 256])
    k = group * draw.randint(1, max(1, 500 // group))
    if draw.random() < 0.2:
        group = k = draw.randint(1, 400)
    dtype: Dtype = draw.choice(["float32", "float32", "bfloat16", "float16"])
    kinds = [None, *ACTIVATIONS]
    flags = [draw.random() < 0.5 for _ in range(3)]
    epilogue = Epilogue(flags[0], draw.choice(kinds), flags[1], flags[2])
    tiles = Tiling(rows=draw.choice([16, 32]), columns=draw.choice([16, 32, 64]))
    spec = WeightOnly(
        n=draw.randint(1, 90),
        k=k,
        dtype=dtype,
        scale_dtype=dtype,
        bits=bits,
        group=group,
        zeros=draw.random() < 0.5,
        lanes=best_lanes(k, bits, group),
        scaling="sums" if dtype == "bfloat16" else draw.choice(["weights", "sums"]),
        epilogue=epilogue,
        tiling=tiles,
    )
    return spec, draw.choice([1, 2, 8, 15, 16, 17, 33])


@pytest.mark.parametrize("seed", range(6))
def test_random_products(seed: int) -> None:
    spec, rows = drawn(seed)
    assert error(spec, rows, seed) < LIMIT, spec


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 150))
def test_more_random_products(seed: int) -> None:
    spec, rows = drawn(seed)
    assert error(spec, rows, seed) < LIMIT, spec


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("slices", [2, 3])
def test_parts_of_the_reduction(slices: int, parallel: bool) -> None:
    """Five blocks in two or three parts, the last one shorter."""
    tiling = Tiling(columns=32, slices=slices, parallel=parallel)
    spec = WeightOnly(40, 320, "float32", "float32", group=64, lanes=16, tiling=tiling)
    assert spec.blocks == 5
    assert error(spec, 18) < LIMIT
    assert error(spec, 3, seed=1) < LIMIT  # counters are zero again


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_code_at_every_place(bits: int) -> None:
    """Against a unit matrix a product gives the weight itself."""
    spec = WeightOnly(1 << bits, 256, "float32", "float32", bits, 32, lanes=16, tiling=Tiling(128))
    codes = torch.arange(1 << bits)[:, None] + torch.arange(256)[None]
    codes = (codes % (1 << bits) - layout.offset(bits)).to(torch.int8)
    scale = torch.ones(spec.n, spec.groups)
    stored = {"words": layout.pack(codes, spec), "scales": scale.mT.contiguous()}
    assert torch.equal(run(spec, torch.eye(256), stored), codes.float().mT)


def test_rows_beside_do_not_matter() -> None:
    spec = WeightOnly(24, 128, "float32", "float32", group=64, lanes=16)
    stored = layout.stored(random_weight(spec), spec)
    x = torch.randn(5, 128)
    alone = run(spec, x[:1], stored)
    x[1:] = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0])[:, None]
    beside = run(spec, x, stored)
    assert torch.equal(beside[:1], alone)
    assert beside[1:4].isnan().any(1).all()


def test_views_are_taken_as_they_are() -> None:
    spec = WeightOnly(24, 128, "float32", "float32", group=64, lanes=16)
    stored = layout.stored(random_weight(spec), spec)
    x = torch.randn(4, 257)[:, 1:129]
    assert torch.equal(run(spec, x, stored), run(spec, x.clone(), stored))
    assert run(spec, x[:0], stored).shape == (0, 24)
