"""Kernels compiled for Hopper without one: what they take, beside what they took."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from planish.lowering.triton.compiled import SHARED_LIMIT, compile_for, resources
from planish.lowering.triton.generators import generate, spec_of

triton = pytest.importorskip("triton")

TABLE_FILE = Path(__file__).parents[3] / "benchmarks" / "results" / "kernels.json"
TABLE = json.loads(TABLE_FILE.read_text())
ROWS: list[dict[str, Any]] = TABLE["kernels"]


PACKED = {"WeightOnly", "GroupScaled"}


def name(row: dict[str, Any]) -> str:
    return f"{ROWS.index(row)}-{generate(spec_of(row['spec'])).function}"


def check(row: dict[str, Any]) -> None:
    """What is a compiler's own doing, such as registers, is compared for that of the table only."""
    took = resources(compile_for(spec_of(row["spec"])))
    if triton.__version__ == TABLE["triton"]:
        assert took.spilled <= row["spilled"]
        assert took.registers <= 1.1 * row["registers"]
    assert took.shared <= row["shared"]
    assert (took.product, took.from_registers) == (row["product"], row["from_registers"])


@pytest.mark.parametrize("row", ROWS[:: len(ROWS) // 2], ids=name)
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_kernels_take_what_they_took(row: dict[str, Any]) -> None:
    check(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=name)
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_every_kernel_takes_what_it_took(row: dict[str, Any]) -> None:
    check(row)


def test_the_table_is_of_these_sources() -> None:
    """After a change of a generator, run benchmarks/compile_kernels.py and read the difference."""
    assert [row["source"] for row in ROWS] == [
        generate(spec_of(row["spec"])).sha256 for row in ROWS
    ]


def test_every_kernel_fits_a_processor() -> None:
    assert [name(row) for row in ROWS if row["shared"] > SHARED_LIMIT] == []
    assert [name(row) for row in ROWS if row["spilled"]] == []


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["gpu.py", "gpu_models.py"])
def test_benchmarks_of_a_gpu_say_that_they_need_one(name: str) -> None:
    script = TABLE_FILE.parents[1] / name
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, cwd=script.parent
    )
    assert done.returncode == 1
    assert done.stderr.startswith("PyTorch finds no CUDA device, so nothing can be measured")


def test_products_with_packed_weights_read_them_from_registers() -> None:
    alone = [(row, row["spec"].get("product", row["spec"])["operator"]) for row in ROWS]
    products = [row for row, operator in alone if operator in PACKED]
    assert {operator for _, operator in alone} >= PACKED
    assert {row["spec"]["operator"] for row in products} == {*PACKED, "Routed"}
    assert all(row["product"] == "wgmma" and row["from_registers"] for row in products)
