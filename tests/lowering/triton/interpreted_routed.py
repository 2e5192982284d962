"""Products whose rows choose their weight, against float64; run by `test_interpreter.py`."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from planish.lowering.triton import layout, reference
from planish.lowering.triton.fields import Dtype, Epilogue, Tiling
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.launch import run_routed
from planish.lowering.triton.routed_specs import Alone, Routed
from planish.lowering.triton.routes import routes, tiles
from planish.lowering.triton.specs import GroupScaled, Scaled, WeightOnly, best_lanes, byte_lanes
from support.quantized import distance, exactly, random_weight

LIMIT = 4e-6


def stack(spec: Routed, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """A random weight for each expert: as it is stored, and [E, N, K] in float64."""
    product, draw = spec.product, torch.Generator().manual_seed(seed)
    if isinstance(product, Floating):
        shape = (spec.experts, product.n, product.k)
        whole = torch.randn(shape, generator=draw).to(getattr(torch, product.dtype))
        return {"weight": whole}, whole.double()
    if isinstance(product, Scaled):
        shape = (spec.experts, product.n, product.k)
        codes = torch.randint(-128, 128, shape, generator=draw, dtype=torch.int8)
        scales = torch.rand(shape[:2], generator=draw) / 100
        return {"codes": codes, "scales": scales}, codes.double() * scales.double()[..., None]
    weights = [random_weight(product, seed + number) for number in range(spec.experts)]
    each = [
        layout.stored(weight, product)
        if isinstance(product, WeightOnly)
        else layout.stored_nibbles(weight, product)
        for weight in weights
    ]
    kept = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    return kept, torch.stack([exactly(weight) for weight in weights])


def operands(spec: Routed, chosen: Tensor, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """X, and what the kernel reads besides the stack."""
    draw, dtype = torch.Generator().manual_seed(seed + 99), getattr(torch, spec.dtype)
    lead = chosen.shape[:1] if spec.shared else chosen.shape
    x = torch.randn(*lead, spec.k, generator=draw)
    shapes = {"bias": (spec.experts, spec.n)}
    given = {
        name: torch.randn(shapes.get(name, (*chosen.shape, spec.n)), generator=draw).to(dtype)
        for name in spec.epilogue.operands
    }
    if isinstance(spec.product, Scaled | GroupScaled):
        given["row_scales"] = torch.rand(x.numel() // spec.k, generator=draw) / 100
        return (x * 50).clamp(-127, 127).to(torch.int8), given
    return x.to(dtype), given


def error(spec: Routed, chosen: Tensor, seed: int = 0) -> float:
    """How far the kernel is from float64, beyond the rounding of the result to its dtype."""
    kept, weight = stack(spec, seed)
    x, given = operands(spec, chosen, seed)
    found = run_routed(spec, x, chosen, {**kept, **given})
    rows = x.double()
    if "row_scales" in given:
        rows = rows * given["row_scales"].double().reshape(*x.shape[:-1], 1)
    if spec.shared:
        rows = rows[:, None].expand(*chosen.shape, spec.k)
    exact = (weight[chosen] @ rows[..., None])[..., 0]
    if "bias" in given:
        exact = exact + given["bias"].double()[chosen]
    wide = {name: each.double() for name, each in given.items()}
    return distance(found, reference.finish(spec.epilogue, exact, wide))


def alone(draw: random.Random) -> Alone:
    """A random product, every third of codes."""
    dtype: Dtype = draw.choice(["float32", "bfloat16", "float16"])
    epilogue = Epilogue(
        draw.random() < 0.5, draw.choice([None, "silu"]), draw.random() < 0.5, draw.random() < 0.5
    )
    group, n = draw.choice([32, 64, 96]), draw.randint(1, 90)
    k = group * draw.randint(1, 5)
    tiling = Tiling(draw.choice([16, 32]), draw.choice([16, 32, 64]))
    kind = draw.choice(["packed", "packed", "dense", "dense", "int8", "w4a8"])
    if kind == "dense":
        return Floating(n, draw.randint(1, 300), dtype, 32, epilogue, tiling)
    if kind == "int8":
        return Scaled(n, k, dtype, epilogue=epilogue, tiling=tiling)
    if kind == "w4a8":
        lanes = byte_lanes(k, group)
        return GroupScaled(n, k, dtype, "float32", group, lanes, epilogue, tiling)
    bits, zeros = draw.choice([2, 3, 4, 8]), draw.random() < 0.5
    lanes = best_lanes(k, bits, group)
    return WeightOnly(
        n, k, dtype, dtype, bits, group, zeros, lanes, epilogue=epilogue, tiling=tiling
    )


def drawn(seed: int) -> tuple[Routed, Tensor]:
    """A random specification, and which experts some tokens chose; often not all."""
    draw = random.Random(seed)
    experts = draw.randint(1, 9)
    spec = Routed(alone(draw), experts, draw.randint(1, min(3, experts)), draw.random() < 0.5)
    some = draw.sample(range(experts), draw.randint(1, experts))
    tokens = draw.choice([1, 2, 7, 16, 33])
    chosen = [[draw.choice(some) for _ in range(spec.chosen)] for _ in range(tokens)]
    return spec, torch.tensor(chosen)


@pytest.mark.parametrize("seed", range(8))
def test_random_products(seed: int) -> None:
    spec, chosen = drawn(seed)
    assert error(spec, chosen, seed) < LIMIT, spec


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 120))
def test_more_random_products(seed: int) -> None:
    spec, chosen = drawn(seed)
    assert error(spec, chosen, seed) < LIMIT, spec


W4 = WeightOnly(40, 96, "float32", "float32", group=32, lanes=16, tiling=Tiling(columns=32))


@pytest.mark.parametrize(
    "chosen",
    [
        torch.full((37, 2), 3),
        torch.tensor([[4, 0]]),
        torch.arange(80).reshape(40, 2) % 5,
        torch.tensor([[0, 1]] * 8 + [[4, 4]] * 9),
        torch.zeros((0, 2), dtype=torch.int64),
    ],
    ids=["all to one", "one token", "in turns", "none to some", "no tokens"],
)
def test_however_rows_are_dealt(chosen: Tensor) -> None:
    for shared in (True, False):
        spec = Routed(W4, 5, 2, shared)
        if chosen.numel():
            assert error(spec, chosen) < LIMIT
        else:
            kept, _ = stack(spec, 0)
            x, _ = operands(spec, chosen, 0)
            assert run_routed(spec, x, chosen, kept).shape == (0, 2, 40)


@pytest.mark.parametrize("parallel", [False, True])
def test_parts_of_the_reduction(parallel: bool) -> None:
    tiling = Tiling(columns=32, slices=2, parallel=parallel)
    product = WeightOnly(40, 320, "float32", "float32", group=64, lanes=16, tiling=tiling)
    spec = Routed(product, 5, 2, shared=True)
    for seed in (0, 1):  # counters are zero again
        assert error(spec, drawn_numbers(21, seed), seed) < LIMIT


def drawn_numbers(tokens: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(5, generator=draw)[:2] for _ in range(tokens)])


def test_numbers_of_no_expert_give_zeros() -> None:
    """Whatever lay in the memory before belonged to someone else."""
    product = replace(W4, epilogue=Epilogue(residual=True))
    spec, chosen = Routed(product, 5, 2, shared=True), drawn_numbers(9)
    kept, _ = stack(spec, 0)
    x, given = operands(spec, chosen, 0)
    kept |= {name: each.flatten(0, 1) for name, each in given.items()}
    wanted = run_routed(spec, x, chosen, kept)
    odd = chosen.clone()
    odd[2, 0], odd[5, 1] = -1, 5
    for found in (run_routed(spec, x, odd, kept), reference.routed(spec, x, odd, kept)):
        assert not found[2, 0].any()
        assert not found[5, 1].any()
    gone = odd != chosen
    assert torch.equal(run_routed(spec, x, odd, kept)[~gone], wanted[~gone])


def test_rows_beside_do_not_matter() -> None:
    """Nor does what they choose."""
    spec, chosen = Routed(W4, 5, 2, shared=True), drawn_numbers(19)
    kept, _ = stack(spec, 0)
    x, _ = operands(spec, chosen, 0)
    wanted = run_routed(spec, x, chosen, kept)
    x[1:] = torch.tensor([float("nan"), float("inf"), 0.0]).repeat(6)[:, None]
    chosen[1:] = chosen[:1]
    assert torch.equal(run_routed(spec, x, chosen, kept)[0], wanted[0])


@pytest.mark.parametrize("tile", [16, 32])
@pytest.mark.parametrize("experts", [1, 3, 8])
def test_there_are_programs_for_all_tiles(experts: int, tile: int) -> None:
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        chosen = torch.randint(experts, (int(torch.randint(1, 99, (1,), generator=draw)),))
        found = routes(chosen, experts)
        counts = found["bounds"].diff()
        assert torch.equal(counts, torch.bincount(chosen, minlength=experts).int())
        assert torch.equal(chosen[found["order"]], chosen.sort().values)
        assert int(((counts + tile - 1) // tile).sum()) <= tiles(len(chosen), experts, tile)
