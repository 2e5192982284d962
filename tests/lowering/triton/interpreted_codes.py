"""Products of 8-bit codes and row-wise kernels; run by `test_interpreter.py`."""

import dataclasses
import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from planish.ir import ops
from planish.ir.activations import INT8, fake_quantize
from planish.ir.quant import FP8
from planish.lowering.triton import layout, reference
from planish.lowering.triton.fields import Codes, Dtype, Epilogue, Norm, Tiling
from planish.lowering.triton.launch import run, run_rows
from planish.lowering.triton.row_specs import RowWise
from planish.lowering.triton.specs import CodesProduct, GroupScaled, Scaled, byte_lanes
from support.quantized import distance, exactly, random_operands, random_weight

NAN, INF = float("nan"), float("inf")


def operands(spec: CodesProduct, rows: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Codes over their whole range, and scales; the weight [N, K] in float64."""
    draw = torch.Generator().manual_seed(seed)

    def codes(*shape: int) -> Tensor:
        if spec.codes == "int8":
            return torch.randint(-128, 128, shape, generator=draw, dtype=torch.int8)
        return (torch.randn(shape, generator=draw) * 100).clamp(-448, 448).to(FP8)

    given = {name: each for name, each in random_operands(spec, rows).items() if name != "x"}
    given |= {"x": codes(rows, spec.k), "row_scales": torch.rand(rows, generator=draw) / 100}
    if isinstance(spec, GroupScaled):
        weight = random_weight(spec, seed)
        return given | layout.stored_nibbles(weight, spec), exactly(weight)
    given |= {"codes": codes(spec.n, spec.k), "scales": torch.rand(spec.n, generator=draw) / 100}
    return given, given["codes"].double() * given["scales"].double()[:, None]


def product_error(spec: CodesProduct, rows: int, seed: int = 0) -> float:
    given, weight = operands(spec, rows, seed)
    found = run(spec, given["x"], {name: each for name, each in given.items() if name != "x"})
    wide = {name: each.double() for name, each in given.items()}
    exact = wide["x"] @ weight.mT * wide["row_scales"][:, None]
    if spec.epilogue.bias:
        exact = exact + wide["bias"]
    return distance(found, reference.finish(spec.epilogue, exact, wide))


def drawn(seed: int) -> tuple[CodesProduct, int]:
    """A random specification and a number of rows; of every second seed with weights of 4 bits."""
    draw = random.Random(seed)
    kinds: list[Codes] = ["int8", "float8_e4m3fn"]
    dtypes: list[Dtype] = ["float32", "bfloat16", "float16"]
    k, slices = draw.randint(1, 700), 1
    if k > 256:
        slices = draw.choice([1, 2] if -(-k // 128) == 4 else [1, 2, 3])  # 4 steps make no 3 parts
    parallel = slices > 1 and draw.random() < 0.5
    epilogue = Epilogue(draw.random() < 0.5, draw.choice([None, "silu"]), draw.random() < 0.5)
    rows = draw.choice([1, 7, 16, 33])
    if seed % 2:
        tiles = Tiling(draw.choice([16, 32]), draw.choice([32, 64]))
        return grouped(draw, draw.choice(dtypes), epilogue, tiles), rows
    spec = Scaled(
        n=draw.randint(1, 90),
        k=k,
        dtype=draw.choice(dtypes),
        codes=draw.choice(kinds),
        accurate=draw.random() < 0.5,
        epilogue=epilogue,
        tiling=Tiling(draw.choice([16, 32]), draw.choice([32, 64]), slices, parallel),
    )
    return spec, rows


def grouped(draw: random.Random, dtype: Dtype, epilogue: Epilogue, tiles: Tiling) -> GroupScaled:
    """Groups that share a block, fill it, span several, or are a whole row of any length."""
    group = draw.choice([32, 64, 96, 128, 256])
    k = group * draw.randint(1, max(1, 700 // group))
    if draw.random() < 0.25:
        group = k = draw.randint(1, 400)
    lanes = byte_lanes(k, group)
    slices = draw.choice([1, 2]) if k > 2 * lanes else 1
    tiles = dataclasses.replace(tiles, slices=slices, parallel=slices > 1 and draw.random() < 0.5)
    scales: Dtype = draw.choice(["float32", "bfloat16"])
    return GroupScaled(draw.randint(1, 90), k, dtype, scales, group, lanes, epilogue, tiles)


@pytest.mark.parametrize("seed", range(6))
def test_random_products(seed: int) -> None:
    spec, rows = drawn(seed)
    assert product_error(spec, rows, seed) < 4e-6, spec


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 100))
def test_more_random_products(seed: int) -> None:
    spec, rows = drawn(seed)
    assert product_error(spec, rows, seed) < 4e-6, spec


def test_every_code_of_four_bits_at_every_place() -> None:
    """Against a unit matrix a product gives the weight itself."""
    spec = GroupScaled(16, 128, "float32", "float32", 32, 32)
    codes = (torch.arange(16)[:, None] + torch.arange(128)[None]) % 16 - 8
    given = {
        "nibbles": layout.pack_nibbles(codes, spec),
        "scales": torch.ones(spec.groups, 16),
        "row_scales": torch.ones(128),
    }
    assert torch.equal(layout.unpack_nibbles(given["nibbles"], spec).long(), codes)
    assert torch.equal(run(spec, torch.eye(128).to(INT8), given), codes.float().mT)


def test_sums_of_integers_are_exact_to_the_last_bit() -> None:
    """Of the largest codes, in a row so long that float32 would round their partial sums."""
    spec = Scaled(16, 4096, "float32", tiling=Tiling(columns=16))
    x, codes = torch.full((1, 4096), 127).to(INT8), torch.full((16, 4096), 127).to(INT8)
    x[0, 0] = 1
    found = run(spec, x, {"codes": codes, "row_scales": torch.ones(1), "scales": torch.ones(16)})
    assert torch.equal(found, torch.tensor(127 * 127 * 4095 + 127).float().expand(1, 16))


ROWS = [
    RowWise(96, "float32", norm="rms", weight=True),
    RowWise(1000, "float32", norm="rms", eps=1e-5),
    RowWise(577, "bfloat16", norm="rms", weight=True),
    RowWise(96, "float32", norm="layer", weight=True, bias=True),
    RowWise(1000, "bfloat16", norm="layer", weight=True),
    RowWise(577, "float16", norm="layer", bias=True, eps=1e-5),
    RowWise(1, "float32", norm="layer"),
    RowWise(96, "float32", activation="silu"),
    RowWise(100, "float16", activation="gelu_tanh"),
    RowWise(1, "float32", activation="relu"),
]


def normed(spec: RowWise, given: dict[str, Tensor]) -> Tensor:
    x, weight, bias = (given.get(name) for name in ("x", "weight", "bias"))
    assert x is not None
    if spec.norm == "layer":
        return functional.layer_norm(x, (spec.width,), weight, bias, spec.eps)
    return ops.rms_norm(x, weight, spec.eps) if spec.norm else x


@pytest.mark.parametrize("spec", ROWS, ids=str)
def test_rows_are_normed_and_gated(spec: RowWise) -> None:
    draw, dtype = torch.Generator().manual_seed(0), getattr(torch, spec.dtype)
    given = {"x": torch.randn(5, spec.width, generator=draw)}
    given |= {"up": torch.randn(5, spec.width, generator=draw)} if spec.activation else {}
    vectors = [name for name in ("weight", "bias") if name in spec.operands]
    given |= {name: torch.rand(spec.width, generator=draw) + 0.5 for name in vectors}
    given["x"][3] = 0
    given = {name: each.to(dtype) for name, each in given.items()}
    (found,) = run_rows(spec, given)
    wide = {name: each.double() for name, each in given.items()}
    exact = normed(spec, wide)
    if spec.activation:
        exact = ops.gated(wide["x"], wide["up"], spec.activation)
    assert found.dtype == dtype
    assert distance(found, exact) < 2e-6


@pytest.mark.parametrize("codes", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("norm", [None, "rms", "layer"])
def test_rows_are_rounded_as_the_program_rounds_them(codes: Codes, norm: Norm | None) -> None:
    spec = RowWise(200, "float32", norm, weight=norm is not None, bias=norm == "layer", codes=codes)
    x = torch.randn(40, 200, generator=torch.Generator().manual_seed(0)) * 3
    x[1], x[2, 7], x[3, 9], x[4, :4] = 0, NAN, INF, torch.tensor([1e4, -1e4, 5e3, 1e-3])
    vectors = {"weight": torch.linspace(0.5, 2, 200), "bias": torch.linspace(-1, 1, 200)}
    vectors = {name: each for name, each in vectors.items() if name in spec.operands}
    found, scale = run_rows(spec, {"x": x, **vectors})
    source = normed(spec, {"x": x, **vectors})
    wanted = fake_quantize(source, None, getattr(torch, codes), True)
    restored = found.float() * scale[:, None]
    finite = wanted.isfinite().all(1)
    assert restored[~finite].isnan().all()
    assert finite.sum() == 38
    if norm:  # a last bit of the norm may round to the neighbouring code
        differing = ((restored - wanted).abs() > 1e-5 * wanted.abs())[finite]
        assert differing.double().mean() < 1e-3
        torch.testing.assert_close(restored[finite], wanted[finite], rtol=1 / 8, atol=0.1)
    else:
        assert torch.equal(restored[finite], wanted[finite])


def test_the_largest_number_of_a_row_is_the_largest_code() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 0.0, 3e-38, 0.0]])
    codes, scale = run_rows(RowWise(4, "float32", codes="int8"), {"x": x})
    assert codes.tolist() == [[64, -127, 32, 0], [0, 0, 127, 0]]
    assert torch.equal(scale, x.abs().amax(1) / 127)
