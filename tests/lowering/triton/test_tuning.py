"""What is chosen by which times: simulated tables, and tables that cannot be used."""

import dataclasses
import json
from pathlib import Path

import pytest

from planish.lowering.triton import tuning
from planish.lowering.triton.candidates import candidates
from planish.lowering.triton.fields import Epilogue, Tiling
from planish.lowering.triton.float_specs import Floating
from planish.lowering.triton.plans import Choice, Product, modelled
from planish.lowering.triton.routed_specs import Routed
from planish.lowering.triton.specs import GroupScaled, Scaled, WeightOnly
from planish.lowering.triton.tilings import tile, tiled
from planish.lowering.triton.tuning import (
    MODEL,
    TABLE,
    BadTable,
    Table,
    Timed,
    key,
    planned,
    read,
    write,
)

PRODUCT = WeightOnly(14336, 4096)
SMALL, LARGE = Tiling(16), Tiling(128, warps=8, stages=2)
FIXED = tiled(PRODUCT, 1, bitwise=True)


def kernel(rows: int, tiling: Tiling, us: float, scaling: str = "sums") -> Timed:
    return Timed(Choice(rows, "kernel", tiling, scaling), us)  # type: ignore[arg-type]


def other(rows: int, how: str, us: float) -> Timed:
    return Timed(Choice(rows, how), us)  # type: ignore[arg-type]


TIMES = {
    16: (kernel(16, SMALL, 8.0), other(16, "dequantize", 60.0), other(16, "dense", 27.0)),
    64: (kernel(64, LARGE, 14.0), kernel(64, SMALL, 20.0), other(64, "dense", 28.0)),
    512: (kernel(512, LARGE, 100.0), other(512, "dequantize", 96.0), other(512, "dense", 76.0)),
    4096: (kernel(4096, LARGE, 700.0), other(4096, "dequantize", 64e1), other(4096, "dense", 62e1)),
}  # fmt: skip
SIMULATED = Table({key(PRODUCT): TIMES})


def test_the_fastest_way_is_taken_for_each_number_of_rows() -> None:
    plan, source = planned(PRODUCT, SIMULATED)
    assert source == TABLE
    chosen = {rows: plan.choice(rows) for rows in (1, 16, 17, 64, 65, 512, 513, 10**5)}
    assert [choice.how for choice in chosen.values()] == ["kernel"] * 4 + ["dequantize"] * 4
    assert chosen[16].tiling == SMALL
    assert chosen[17].tiling == LARGE
    assert [choice.rows for choice in plan.choices] == [16, 64, 512, 0]


def test_a_dense_copy_is_taken_only_where_it_may_be_kept() -> None:
    plan, _ = planned(PRODUCT, SIMULATED, dense=True)
    assert [plan.choice(rows).how for rows in (1, 64, 512, 4096)] == [
        "kernel", "kernel", "dense", "dense",
    ]  # fmt: skip
    assert plan.keeps_dense
    assert not planned(PRODUCT, SIMULATED)[0].keeps_dense


@pytest.mark.parametrize("dense", [False, True])
def test_no_choice_is_slower_than_another_that_is_allowed(dense: bool) -> None:
    plan, _ = planned(PRODUCT, SIMULATED, dense=dense)
    for bound, timed in TIMES.items():
        allowed = [one for one in timed if one.choice.how != "dense" or dense]
        chosen = dataclasses.replace(plan.choice(bound), rows=bound)
        assert [one.us for one in allowed if one.choice == chosen] == [
            min(one.us for one in allowed)
        ]


def test_bitwise_takes_only_kernels_that_add_in_one_order() -> None:
    same = dataclasses.replace(LARGE, slices=FIXED.tiling.slices)
    more = dataclasses.replace(LARGE, slices=FIXED.tiling.slices + 1)
    times = {
        16: (kernel(16, FIXED.tiling, 9.0, "weights"), kernel(16, SMALL, 8.0)),
        512: (
            kernel(512, same, 110.0, "weights"),
            kernel(512, same, 105.0, "sums"),
            kernel(512, more, 90.0, "weights"),
            other(512, "dequantize", 96.0),
            other(512, "dense", 76.0),
        ),
    }  # fmt: skip
    plan, source = planned(PRODUCT, Table({key(PRODUCT): times}), bitwise=True, dense=True)
    assert source == TABLE
    assert [choice.how for choice in plan.choices] == ["kernel", "kernel"]
    assert {choice.scaling for choice in plan.choices} == {"weights"}
    assert {choice.tiling.slices for choice in plan.choices if choice.tiling} == {
        FIXED.tiling.slices
    }
    nothing = Table({key(PRODUCT): {16: (other(16, "dense", 1.0),)}})
    assert planned(PRODUCT, nothing, bitwise=True) == (modelled(PRODUCT, bitwise=True), MODEL)


def test_what_was_not_measured_is_chosen_by_the_model() -> None:
    assert planned(PRODUCT, Table()) == (modelled(PRODUCT, bitwise=False), MODEL)
    wider = dataclasses.replace(PRODUCT, n=8192)
    assert planned(wider, SIMULATED)[1] == MODEL
    fused = dataclasses.replace(PRODUCT, epilogue=Epilogue(bias=True))
    assert planned(fused, SIMULATED)[1] == TABLE
    codes = Scaled(4096, 4096)
    assert key(codes) != key(dataclasses.replace(codes, codes="float8_e4m3fn"))


@pytest.mark.parametrize("rows", [1, 32, 64, 512])
@pytest.mark.parametrize(
    "product",
    [
        PRODUCT,
        WeightOnly(4096, 4096, bits=3, lanes=32),
        Scaled(4096, 4096),
        GroupScaled(4096, 4096),
        Routed(WeightOnly(4096, 4096), 8, 2, shared=True),
        Routed(Floating(4096, 4096), 8, 2, shared=False),
    ],
)
def test_candidates_are_few_and_can_run(product: Product, rows: int) -> None:
    found = list(candidates(product, rows))
    assert found[0] == tile(product, rows, bitwise=False)
    assert found[1] == tile(product, rows, bitwise=True)
    assert len(set(found[1:])) == len(found) - 1
    assert 4 <= len(found) <= 60
    shapes = {(each.n, each.k, each.dtype) for each in found}
    assert shapes == {(product.n, product.k, product.dtype)}
    assert all(rows > 16 or each.tiling.rows == 16 for each in found)


def test_a_table_is_stored_and_read(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "tuning.json"
    write(path, "H200", "3.6.0", SIMULATED)
    write(path, "H100", "3.6.0", Table())
    assert read(path, "H200", "3.6.0") == SIMULATED
    assert read(path, "H200", "3.9.0") == Table()  # bits and speeds change with the compiler
    assert read(path, "A100", "3.6.0") == Table()
    assert read(tmp_path / "none.json", "H200", "3.6.0") == Table()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 2, "devices": {}}',
        '{"format": 1}',
        '{"format": 1, "devices": {"H200": {}}}',
        '{"format": 1, "devices": {"H200": {"triton": "3.6.0", "products": {"p": {"x": []}}}}}',
        '{"format": 1, "devices": {"H200": {"triton": "3.6.0", "products": {"p": {"16": [{"how": '
        '"magic", "us": 1}]}}}}}',
        '{"format": 1, "devices": {"H200": {"triton": "3.6.0", "products": {"p": {"16": [{"how": '
        '"dense", "us": -1}]}}}}}',
        '{"format": 1, "devices": {"H200": {"triton": "3.6.0", "products": {"p": {"16": [{"how": '
        '"kernel", "tiling": {"rows": 7}, "us": 1}]}}}}}',
    ],
)
def test_a_damaged_table_is_told_of_and_not_used(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(text)
    with pytest.warns(BadTable, match="model of the chip"):
        assert read(path, "H200", "3.6.0") == Table()
    write(path, "H200", "3.6.0", SIMULATED)  # and is replaced by the next that is whole
    assert read(path, "H200", "3.6.0") == SIMULATED


def test_the_table_is_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
    write(tuning.default_path(), "H200", "3.6.0", SIMULATED)
    (found,) = tmp_path.rglob("*.json")
    assert json.loads(found.read_text())["devices"]["H200"]["triton"] == "3.6.0"
