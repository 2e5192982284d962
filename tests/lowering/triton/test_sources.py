"""Specifications and the sources that they decide."""

import ast
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.lowering.triton import layout
from planish.lowering.triton.fields import Epilogue, NoKernel, Tiling
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.generators import Spec, generate, spec_json, spec_of
from planish.lowering.triton.routed_specs import Routed
from planish.lowering.triton.row_specs import RowWise, rowwise
from planish.lowering.triton.specs import GroupScaled, Scaled, WeightOnly, best_lanes, byte_lanes
from planish.lowering.triton.tilings import tile, tiled, tiled_codes
from support.quantized import random_weight

GOLDEN = Path(__file__).parent / "golden"

SPECS: dict[str, Spec] = {
    "w4": WeightOnly(4096, 4096),
    "w4-parallel-gated": WeightOnly(
        14336,
        4096,
        zeros=True,
        epilogue=Epilogue(bias=True, activation="silu", multiply=True),
        tiling=Tiling(columns=64, slices=4, parallel=True),
    ),
    "w3-ragged": WeightOnly(
        577, 576, "float16", "float16", bits=3, group=64, lanes=16, scaling="weights",
        tiling=Tiling(rows=64, slices=2), epilogue=Epilogue(residual=True),
    ),
    "w8a8": Scaled(4096, 4000, epilogue=Epilogue(bias=True, residual=True)),
    "fp8-accurate": tiled_codes(Scaled(4096, 4096, codes="float8_e4m3fn", accurate=True), 64),
    "w4a8": GroupScaled(1536, 576, group=64, epilogue=Epilogue(bias=True)),
    "norm-int8": rowwise(576, norm="rms", weight=True, codes="int8"),
    "layer-norm": rowwise(768, norm="layer", weight=True, bias=True),
    "gate-fp8": rowwise(14336, activation="silu", codes="float8_e4m3fn"),
    "w8-per-row": WeightOnly(100, 1000, bits=8, group=1000, lanes=64),
    "experts-w4": Routed(
        WeightOnly(14336, 4096, epilogue=Epilogue(activation="silu", multiply=True)), 8, 2,
        shared=True,
    ),
    "experts-dense": tile(
        Routed(Floating(1000, 600, epilogue=Epilogue(bias=True)), 60, 4, shared=False), 1,
        bitwise=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_the_source_is_the_golden_one(name: str) -> None:
    """To accept a change, write the new text to the file and read the difference."""
    golden = (GOLDEN / f"{name}.py.txt").read_text()
    assert generate(SPECS[name]).text == golden


@pytest.mark.parametrize("name", SPECS)
def test_a_specification_decides_its_source(name: str) -> None:
    spec = SPECS[name]
    again = spec_of(json.loads(json.dumps(spec_json(spec))))
    assert again == spec
    source = generate(again)
    assert source.sha256 == generate(spec).sha256
    (kernel,) = (
        node
        for node in ast.parse(source.text).body
        if isinstance(node, ast.FunctionDef) and node.name == source.function
    )
    arguments = [argument.arg for argument in kernel.args.args]
    assert arguments[: len(source.tensors)] == [f"{each}_ptr" for each in source.tensors]
    assert all(len(line) <= 120 for line in source.text.splitlines())


def test_any_change_of_a_specification_changes_the_source() -> None:
    spec = SPECS["w4"]
    assert isinstance(spec, WeightOnly)
    changes: dict[str, Any] = {
        "n": 4095, "k": 8192, "dtype": "float16", "scale_dtype": "float32", "bits": 8,
        "group": 64, "zeros": True, "lanes": 32, "scaling": "weights",
        "epilogue": Epilogue(bias=True), "tiling": Tiling(warps=8),
    }  # fmt: skip
    others = [dataclasses.replace(spec, **{name: value}) for name, value in changes.items()]
    assert len({generate(each).sha256 for each in (spec, *others)}) == len(others) + 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 5}, "codes of 5 bits have no kernel"),
        ({"group": 100}, "groups of 100 do not divide rows of 4096"),
        ({"group": 32}, "no multiples of 64, the width of a slice"),
        ({"dtype": "os.system"}, "dtype is 'os.system'; it may be bfloat16"),
        ({"n": "1); import os"}, "n is '1\\); import os', which is no int"),
        ({"zeros": 1}, "zeros is 1, which is no bool"),
        ({"tiling": {"rows": 24}}, "rows is 24; a tile takes powers of two from 16 on"),
        ({"tiling": {"slices": 15}}, "16 blocks cannot be cut into 15 slices"),
        ({"tiling": {"rows": "16"}}, "rows is '16', which is no int"),
        ({"epilogue": {"activation": "tanh"}}, "'tanh' is no activation"),
        ({"epilogue": {"bias": "x"}}, "bias is 'x', which is no bool"),
        ({"operator": "Softmax"}, "'Softmax' is no operator"),
        ({"more": 1}, "no specification of WeightOnly"),
    ],
)
def test_what_a_file_may_not_say_is_refused(changed: Mapping[str, Any], message: str) -> None:
    with pytest.raises(NoKernel, match=message):
        spec_of({**spec_json(SPECS["w4"]), **changed})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scaled(16, 1 << 20), "rows of 1 to 131071 columns"),
        (lambda: Scaled(16, 64, step=100), "steps of 100 columns"),
        (lambda: Scaled(16, 64, codes="int4"), "codes is 'int4'; it may be int8"),  # type: ignore[arg-type]
        (lambda: GroupScaled(16, 1 << 20), "longer than 131071"),
        (lambda: GroupScaled(16, 640, group=96), "groups of 96 do not divide rows of 640"),
        (lambda: GroupScaled(16, 960, group=96), "groups of 96 are no multiples of slices of 64"),
        (lambda: GroupScaled(16, 64, lanes=16), r"slices of 16 columns are none of \[64, 32\]"),
        (lambda: Floating(16, 64, step=48), "steps of 48 columns are none of 32, 64 and 128"),
        (lambda: Floating(0, 64), "nothing to multiply by"),
        (lambda: Routed(WeightOnly(16, 64, group=64), 0, 1, True), "1 of 0 experts"),
        (lambda: Routed(WeightOnly(16, 64, group=64), 9, 1, 1), "shared is 1, which is no bool"),  # type: ignore[arg-type]
        (lambda: Routed(RowWise(64, norm="rms"), 9, 1, True), "a single weight each"),  # type: ignore[arg-type]
        (lambda: RowWise(64), "would do nothing"),
        (lambda: RowWise(64, weight=True, codes="int8"), "only normed rows have a weight"),
        (lambda: RowWise(64, norm="rms", bias=True), "only layer norms a bias"),
        (lambda: RowWise(64, norm="batch"), "norm is 'batch'; it may be rms, layer"),  # type: ignore[arg-type]
        (lambda: RowWise(64, norm="rms", activation="silu"), "either norms rows or gates"),
        (lambda: RowWise(1 << 16, norm="rms"), "those up to 32768 do"),
        (lambda: RowWise(64, norm="rms", warps=3), "3 warps are out of range"),
        (lambda: Tiling(parallel=True), "a single slice is not summed in parallel"),
    ],
)
def test_what_has_no_kernel_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(NoKernel, match=message):
        make()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("k", "group"), [(576, 64), (960, 96), (1000, 1000), (4096, 128)])
def test_packed_weights_come_back(bits: int, zeros: bool, k: int, group: int) -> None:
    lanes = best_lanes(k, bits, group)
    spec = WeightOnly(17, k, "float32", "float32", bits, group, zeros, lanes)
    weight = random_weight(spec)
    stored = layout.stored(weight, spec)
    assert stored["words"].shape == (17, spec.words)
    assert torch.equal(layout.unpack(stored["words"], spec), weight.codes.short())
    assert torch.equal(layout.dense(stored, spec), weight.dequantize())


@pytest.mark.parametrize(("k", "group"), [(576, 64), (960, 96), (1000, 1000), (4096, 128)])
def test_packed_halves_of_bytes_come_back(k: int, group: int) -> None:
    spec = GroupScaled(17, k, "float32", "float32", group, byte_lanes(k, group))
    weight = random_weight(spec)
    stored = layout.stored_nibbles(weight, spec)
    assert {name: tuple(each.shape) for name, each in stored.items()} == spec.stored
    assert torch.equal(layout.unpack_nibbles(stored["nibbles"], spec), weight.codes)


def test_slices_are_as_wide_as_groups_and_padding_allow() -> None:
    assert best_lanes(4096, 4, 128) == 64
    assert best_lanes(4096, 4, 32) == 32
    assert best_lanes(576, 4, 64) == 32  # 640 columns; 768 would be a third more
    assert best_lanes(576, 3, 64) == 16
    with pytest.raises(NoKernel, match="groups of 8 are no multiples of 16"):
        best_lanes(4096, 4, 8)


@pytest.mark.parametrize("rows", [1, 16, 17, 64, 100, 5000])
def test_the_bits_of_a_row_depend_on_the_weight_alone(rows: int) -> None:
    """Under `bitwise` all that decides bits is the same; see kernels' order of sums."""
    for spec in (WeightOnly(1024, 4096), WeightOnly(50257, 768, bits=8, group=768)):
        one, other = tiled(spec, 1, bitwise=True), tiled(spec, rows, bitwise=True)
        assert one.scaling == other.scaling
        assert one.tiling.slices == other.tiling.slices
