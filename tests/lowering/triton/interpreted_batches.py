"""Rows apart, self-checks and whole programs; run by `test_interpreter.py`."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from planish.lowering.triton import build, check, layout
from planish.lowering.triton.check import Record, WrongKernel, wrong, wrong_ones
from planish.lowering.triton.fields import Epilogue, Tiling
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.generators import Spec, generate
from planish.lowering.triton.load import load, prepared
from planish.lowering.triton.lower import kernels_of, lower
from planish.lowering.triton.operators import compute, compute_routed
from planish.lowering.triton.plans import modelled
from planish.lowering.triton.routed_specs import Alone, Routed
from planish.lowering.triton.row_specs import RowWise, rowwise
from planish.lowering.triton.specs import (
    CodesProduct,
    GroupScaled,
    Scaled,
    WeightOnly,
    best_lanes,
    byte_lanes,
)
from planish.lowering.triton.tuning import Table
from planish.passes import name_of
from planish.passes.contract import Pass
from planish.passes.pipeline import apply
from planish.passes.quantize_activations import QuantizeActivations
from planish.passes.quantize_weights import QuantizeWeights
from support.captured import captured
from support.quantized import distance, random_weight

CPU = torch.device("cpu")
Single = WeightOnly | CodesProduct
FEW = (*range(1, 10), 16, 17, 33)


def weight_only(k: int) -> WeightOnly:
    spec = WeightOnly(80, k, "float32", "float32", group=64, lanes=best_lanes(k, 4, 64))
    return dataclasses.replace(spec, epilogue=Epilogue(activation="silu"))


def four_bits(k: int) -> GroupScaled:
    return GroupScaled(80, k, "float32", "float32", 64, byte_lanes(k, 64))


def stored(product: Single) -> dict[str, Tensor]:
    if isinstance(product, WeightOnly):
        return layout.stored(random_weight(product), product)
    if isinstance(product, GroupScaled):
        return layout.stored_nibbles(random_weight(product), product)
    draw = torch.Generator().manual_seed(0)
    codes = torch.randn(product.n, product.k, generator=draw) * 100
    scales = torch.rand(product.n, generator=draw) / 100
    kind = getattr(torch, product.codes)
    return {"codes": codes.clamp(-127, 127).to(kind), "scales": scales}


def same_bits(product: Single, counts: tuple[int, ...]) -> None:
    """Each row of a batch is what it is in any other batch, under a plan for `bitwise`."""
    draw = torch.Generator().manual_seed(1)
    tensors, plan = stored(product), modelled(product, bitwise=True)
    x = torch.randn(max(counts), product.k, generator=draw)
    scales = torch.rand(max(counts), generator=draw)
    if not isinstance(product, WeightOnly):
        x = (x * 50).clamp(-127, 127).to(getattr(torch, product.codes))

    def given(rows: int) -> Tensor:
        more = {} if isinstance(product, WeightOnly) else {"row_scales": scales[:rows]}
        return compute(product, plan.choice(rows), x[:rows], {**tensors, **more})

    whole = given(max(counts))
    assert whole.isfinite().all()
    assert [rows for rows in counts if not torch.equal(given(rows), whole[:rows])] == []


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let products of tiles add in one order: numpy's own depends on the shapes of matrices.

    Tensor cores add a tile's terms in an order that depends on the instruction alone.
    """

    def matmul(a: Any, b: Any, dtype: Any) -> Any:
        total = np.zeros((a.shape[0], b.shape[1]), dtype)
        for k in range(a.shape[1]):
            total += a[:, k, None].astype(dtype) * b[k].astype(dtype)
        return total

    monkeypatch.setattr(np, "matmul", matmul)


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("k", [512, 576])
def test_a_row_has_the_same_bits_in_any_batch(k: int) -> None:
    product = weight_only(k)
    plan = modelled(product, bitwise=True)
    assert {choice.of(product).tiling.slices for choice in plan.choices} == {2}
    same_bits(product, FEW)


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("k", [pytest.param(512, marks=pytest.mark.slow), 480])
def test_a_row_of_codes_has_the_same_bits_in_any_batch(k: int) -> None:
    same_bits(Scaled(80, k, "float32", "float8_e4m3fn"), FEW)


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("k", [512, 576])
def test_a_row_of_codes_times_four_bits_has_the_same_bits_in_any_batch(k: int) -> None:
    product = four_bits(k)
    plan = modelled(product, bitwise=True)
    (slices,) = {choice.of(product).tiling.slices for choice in plan.choices}
    assert slices > 1
    same_bits(product, FEW)


@pytest.mark.usefixtures("in_order")
def test_without_the_promise_bits_may_differ() -> None:
    """Many rows are reduced at one go there, so the test above can tell."""
    product = weight_only(512)
    tensors, plan = stored(product), modelled(product, bitwise=False)
    x = torch.randn(33, 512, generator=torch.Generator().manual_seed(1))
    few, many = (compute(product, plan.choice(rows), x[:rows], tensors) for rows in (3, 33))
    assert not torch.equal(few, many[:3])
    assert distance(few, many[:3].double()) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("make", [weight_only, four_bits])
@pytest.mark.parametrize("k", [512, 576])
def test_a_row_has_the_same_bits_in_batches_up_to_257(
    make: Callable[[int], Single], k: int
) -> None:
    same_bits(make(k), tuple(range(1, 258)))


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("dense", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_token_has_the_same_bits_in_any_batch(dense: bool) -> None:
    """Whatever the others choose, and however many rows its experts have."""
    alone: Alone = Floating(80, 512, "float32") if dense else weight_only(512)
    product, draw = Routed(alone, 3, 2, shared=True), torch.Generator().manual_seed(1)
    stack = [torch.randn(80, 512, generator=draw) for _ in range(3)]
    kept = {"weight": torch.stack(stack)}
    if isinstance(alone, WeightOnly):
        each = [layout.stored(random_weight(alone, seed), alone) for seed in range(3)]
        kept = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    x = torch.randn(33, 512, generator=draw)
    chosen = torch.tensor([[0, 2], [1, 0]] + [[1, 2]] * 31)
    plan = modelled(product, bitwise=True)

    def given(rows: int) -> Tensor:
        choice = plan.choice(-(-rows * 2 // 3))
        return compute_routed(product, choice, x[:rows], chosen[:rows], kept)

    whole = given(33)
    assert len({plan.choice(rows).tiling for rows in (1, 11, 22)}) == 2
    assert [rows for rows in (1, 2, 8, 17, 25) if not torch.equal(given(rows), whole[:rows])] == []


RIGHT: tuple[Spec, ...] = (
    WeightOnly(40, 192, group=64, lanes=16, zeros=True, epilogue=Epilogue(bias=True)),
    WeightOnly(40, 96, "float16", "float16", bits=3, group=96, lanes=16),
    WeightOnly(40, 96, "float32", "float32", bits=8, group=32, lanes=16, scaling="weights"),
    Scaled(40, 300, epilogue=Epilogue(residual=True), tiling=Tiling(slices=2, parallel=True)),
    Scaled(40, 300, codes="float8_e4m3fn"),
    GroupScaled(40, 192, epilogue=Epilogue(bias=True)),
    Routed(WeightOnly(40, 192, group=64, lanes=16, epilogue=Epilogue(bias=True)), 3, 2, True),
    Routed(Floating(40, 200, "float16", epilogue=Epilogue(multiply=True)), 3, 2, False),
    rowwise(300, norm="rms", weight=True),
    rowwise(300, activation="gelu", codes="int8"),
    rowwise(300, norm="layer", weight=True, bias=True, codes="int8"),
    rowwise(300, codes="float8_e4m3fn"),
)


@pytest.mark.parametrize("spec", RIGHT, ids=lambda spec: spec.name)
def test_right_kernels_pass_their_check(spec: Spec) -> None:
    assert wrong(spec, CPU) == ""


@pytest.fixture
def fresh() -> Iterator[None]:
    build.source_of.cache_clear()
    build.function_of.cache_clear()
    yield
    build.source_of.cache_clear()
    build.function_of.cache_clear()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("spec", "line", "instead"),
    [
        (RIGHT[0], "y = total", "y = total * 1.1"),
        (RIGHT[0], "w -= zero_0", "w += zero_0"),
        (RIGHT[3], "y *= row_scale[None, :]", "y *= 1.0"),
        (RIGHT[5], "nibbles & -16", "nibbles & -8"),
        (RIGHT[6], "last <= tl.program_id(1)", "last < tl.program_id(1)"),
        (RIGHT[6], "scales_ptr += expert", "scales_ptr += 0 * expert"),
        (RIGHT[7], "place = at[None, :]", "place = (first + tl.arange(0, ROWS))[None, :]"),
        (RIGHT[8], "mean + EPS", "mean * 2.0"),
        (RIGHT[10], "y += tl.load(bias_ptr", "y -= tl.load(bias_ptr"),
        (RIGHT[10], "inside, y - tl.sum(y, 0) / K", "inside, y"),
        (RIGHT[9], "tl.max(size, 0)", "tl.max(size, 0) * 2.0 + 1.0 / (rows - rows)"),
    ],
)
def test_wrong_kernels_are_found(
    spec: Spec, line: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = generate(spec)
    assert line in source.text
    broken = dataclasses.replace(source, text=source.text.replace(line, instead))
    monkeypatch.setattr(build, "generate", lambda _: broken)
    with pytest.warns(WrongKernel, match="is not used on cpu: its error is|it fails"):
        assert wrong_ones([spec], CPU) == {spec}


def test_what_passed_is_not_checked_again(tmp_path: Path) -> None:
    """Until device, compiler or source are others."""
    path, seen = tmp_path / "cache" / "checked.json", list[Spec]()

    def judge(spec: Spec, _: torch.device) -> str:
        seen.append(spec)
        return "it is wrong" if spec == RIGHT[1] else ""

    for device, version in (("H200", "3.6"), ("H200", "3.6"), ("H200", "3.7"), ("H100", "3.6")):
        record = Record(path, device, version)
        with pytest.warns(WrongKernel, match="it is wrong"):
            assert wrong_ones(RIGHT[:3], CPU, judge, record) == {RIGHT[1]}
    assert len(seen) == 3 + 1 + 3 + 3
    path.write_text("{")
    with pytest.warns(WrongKernel):
        wrong_ones(RIGHT[:3], CPU, judge, Record(path, "H200", "3.6"))
    assert len(seen) == 13


def test_a_kernel_that_fails_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("out of resources")

    monkeypatch.setattr(check, "run_rows", failing)
    assert wrong(RowWise(64, norm="rms"), CPU) == "it fails: RuntimeError: out of resources"


W4 = (QuantizeWeights(bits=4, group_size=32),)
W4A8 = (QuantizeWeights(bits=4, group_size=32), QuantizeActivations())
FP8 = (
    QuantizeWeights(type="float", bits=8, group_size=None),
    QuantizeActivations(type="float"),
)


@pytest.mark.parametrize(
    ("family", "passes", "bitwise"),
    [
        pytest.param("llama", W4, False, id="w4"),
        pytest.param("llama", W4, True, id="w4-bitwise", marks=pytest.mark.slow),
        pytest.param("llama", W4A8, False, id="w4a8"),
        pytest.param("llama", FP8, False, id="fp8", marks=pytest.mark.slow),
        pytest.param("llama", FP8, True, id="fp8-bitwise"),
        pytest.param("mixtral", W4, False, id="experts", marks=pytest.mark.slow),
        pytest.param("qwen2_moe", W4, True, id="experts-bitwise", marks=pytest.mark.slow),
    ],
)
def test_an_artifact_in_the_interpreter_equals_its_reference(
    family: str, passes: tuple[Pass, ...], bitwise: bool, tmp_path: Path
) -> None:
    program = apply(captured(family, 1)[1], passes, names=name_of)[0]
    lower(program, tmp_path / "triton", bitwise=bitwise)
    loaded, strict = load(tmp_path / "triton")
    assert strict == bitwise
    ready, _ = prepared(loaded, CPU, table=Table(), bitwise=strict)
    assert len(kernels_of(ready)) > 5
    wanted, found = (one.run(**program.samples[0]) for one in (program, ready))
    for name, value in wanted.items():
        assert distance(found[name], value.double()) < 1e-5
