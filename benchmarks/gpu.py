"""Generated kernels on a GPU: every one checked, then timed beside cuBLAS.

    python benchmarks/gpu.py [--tune] [--only checks]

Each kernel of `benchmarks/results/kernels.json` is compared with plain torch on the device, and
rows with themselves in batches of 1 to 257. Then, as CUDA graphs whose weights rotate over 256 MB:
W4A16 beside the best of `F.linear` and `torch.mm` in bfloat16, under `enforce` and under `bitwise`;
FP8 and int8 products; norms and gates beside a copy. Each time stands with its share of the floor.
`--tune` first times tilings and writes the tuning table. Figures go to
`benchmarks/results/gpu.json`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from compile_kernels import specs
from gpu_timing import Call, copies, timed
from torch import Tensor
from torch.nn import functional

from planish.lowering.triton import layout, tuning
from planish.lowering.triton.candidates import candidates
from planish.lowering.triton.check import operands, wrong
from planish.lowering.triton.launch import run_rows
from planish.lowering.triton.operators import compute
from planish.lowering.triton.plans import Choice, Plan, modelled
from planish.lowering.triton.row_specs import RowWise, rowwise
from planish.lowering.triton.specs import CodesProduct, GroupScaled, Scaled, WeightOnly
from planish.lowering.triton.tuning import Table, Timed
from planish.runtime.machine import this_machine

RESULTS = Path(__file__).parent / "results" / "gpu.json"
BANDWIDTH = 4.3e12
"""Bytes a second: what an H200's memory gives a copy."""

SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336), (8192, 8192), (28672, 8192), (8192, 28672))
ROWS = (1, 4, 16, 32, 64, 128, 192, 256, 512, 1024, 4096)
TUNED = (16, 32, 64, 128, 256, 512, 1024, 4096)
CUDA = torch.device("cuda")

Product = WeightOnly | CodesProduct
"""What is timed: products with a single weight."""


def checks() -> dict[str, Any]:
    """Every kernel beside plain torch, and rows in batches of other sizes."""
    failed, every = {}, list(specs())
    for spec in every:
        if why := wrong(spec, CUDA):
            failed[f"{spec.name} {spec}"] = why
            print(f"WRONG  {spec.name}: {why}", flush=True)
    print(f"{len(every) - len(failed)} of {len(every)} kernels are right", flush=True)
    apart = {
        product.name: unequal(product)
        for product in (
            WeightOnly(4096, 4096),
            WeightOnly(1536, 576, group=64, lanes=32),
            Scaled(4096, 4096, codes="float8_e4m3fn"),
            Scaled(4096, 4096),
            GroupScaled(4096, 4096),
        )
    }
    print(f"batch sizes of 1 to 257 that change a row's bits: {apart}", flush=True)
    return {"kernels": len(every), "wrong": failed, "bits differ at": apart}


def unequal(product: Product) -> list[int]:
    """Batch sizes up to 257 at which rows differ from those of the largest batch."""
    plan, given = modelled(product, bitwise=True), tensors_of(product, 257)
    x = given.pop("x")

    def first(rows: int) -> Tensor:
        cut = {name: t[:rows] if name == "row_scales" else t for name, t in given.items()}
        return compute(product, plan.choice(rows), x[:rows], cut)

    whole = first(257)
    return [rows for rows in range(1, 258) if not torch.equal(first(rows), whole[:rows])]


def tensors_of(product: Product | RowWise, rows: int) -> dict[str, Tensor]:
    """Random operands, made on the device."""
    with CUDA:
        return operands(product, rows)


def weights_of(product: Product) -> list[dict[str, Tensor]]:
    """Copies of a random weight as it is stored, enough to rotate through."""
    first = tensors_of(product, 1)
    weight = {name: first[name] for name in product.stored}
    many = copies(sum(tensor.nbytes for tensor in weight.values()))
    return [weight, *({name: t.clone() for name, t in weight.items()} for _ in range(many - 1))]


def calls(
    product: Product, choice: Choice, rows: int, weights: list[dict[str, Tensor]]
) -> list[Call]:
    """A call a copy of the weight."""
    of_codes = not isinstance(product, WeightOnly)
    kind = getattr(torch, product.codes if of_codes else product.dtype)
    x = torch.randn(rows, product.k, device=CUDA).mul(40).clamp(-127, 127).to(kind)
    more = {"row_scales": torch.rand(rows, device=CUDA)} if of_codes else {}
    made = []
    for weight in weights:
        given = {**weight, **more}
        if choice.how == "dense" and isinstance(product, WeightOnly):
            given["dense"] = layout.dense(given, product)
        made.append(_call(product, choice, x, given))
    return made


def _call(product: Product, choice: Choice, x: Tensor, given: Mapping[str, Tensor]) -> Call:
    return lambda: compute(product, choice, x, given)


def dense_calls(weights: list[Tensor], k: int, rows: int) -> tuple[list[Call], list[Call]]:
    """In bfloat16, by cuBLAS: `F.linear`, and `torch.mm` with a weight that lies transposed."""
    x = torch.randn(rows, k, device=CUDA, dtype=torch.bfloat16)
    turned = [weight.mT.contiguous() for weight in weights]
    return (
        [(lambda weight=weight: functional.linear(x, weight)) for weight in weights],
        [(lambda weight=weight: torch.mm(x, weight)) for weight in turned],
    )


def floor(product: Product, rows: int) -> float:
    """Microseconds that reading and writing everything once takes."""
    if isinstance(product, Scaled):
        weight, x = product.n * product.k + 4 * product.n, rows * product.k
    elif isinstance(product, GroupScaled):
        weight, x = product.n * (product.k // 2 + 2 * product.groups), rows * product.k
    else:
        weight, x = 2 * product.n * (product.words + product.groups), 2 * rows * product.k
    return (weight + x + 2 * rows * product.n) / BANDWIDTH * 1e6


def product_rows(make: Callable[[int, int], Product], table: Table) -> list[dict[str, Any]]:
    """One line a shape and number of rows: cuBLAS, ours, and ours under `bitwise`."""
    lines = []
    for n, k in SHAPES:
        product = make(n, k)
        plans: tuple[Plan, ...] = (
            tuning.planned(product, table)[0],
            tuning.planned(product, table, bitwise=True)[0],
        )
        weights = weights_of(product)
        dense = [torch.randn(n, k, device=CUDA).bfloat16() for _ in range(copies(2 * n * k))]
        for rows in ROWS:
            ours = [calls(product, plan.choice(rows), rows, weights) for plan in plans]
            linear, mm, *mine = timed(*dense_calls(dense, k, rows), *ours)
            best, bf16 = min(linear.us, mm.us), (2 * n * k + 2 * rows * (n + k)) / BANDWIDTH * 1e6
            line = {
                "product": product.name,
                "rows": rows,
                "linear": asdict(linear),
                "mm": asdict(mm),
                "enforce": asdict(mine[0]),
                "bitwise": asdict(mine[1]),
                "how": plans[0].choice(rows).how,
                "speedup": best / mine[0].us,
                "bitwise speedup": best / mine[1].us,
                "share of floor": {"bf16": bf16 / best, "ours": floor(product, rows) / mine[0].us},
            }
            lines.append(line)
            print(
                f"{product.name:32} M {rows:5}  bf16 {best:8.1f} us  ours {mine[0].us:8.1f} us "
                f"{line['speedup']:5.2f}x  bitwise {line['bitwise speedup']:5.2f}x",
                flush=True,
            )
            torch.cuda.empty_cache()
    return lines


def row_wise_rows() -> list[dict[str, Any]]:
    """Norms and gates: bytes a second beside those of a copy."""
    kinds: tuple[dict[str, Any], ...] = ({"norm": "rms", "weight": True}, {"activation": "silu"})
    return [
        row_wise_line(rowwise(width, codes=codes, **kind), rows)
        for width in (4096, 8192, 14336)
        for codes in (None, "int8", "float8_e4m3fn")
        for kind in kinds
        for rows in (64, 8192)
    ]


def row_wise_line(spec: RowWise, rows: int) -> dict[str, Any]:
    """One line: the kernel beside a copy of as many bytes."""
    read = 2 if spec.activation else 1
    nbytes = rows * spec.width * (2 * read + (1 if spec.codes else 2))
    many = copies(nbytes)
    given = [tensors_of(spec, rows) for _ in range(many)]
    half = [torch.empty(nbytes // 2, dtype=torch.int8, device=CUDA) for _ in range(many)]
    made = torch.empty_like(half[0])
    mine, copy = timed(
        [(lambda one=one: run_rows(spec, one)) for one in given],
        [(lambda one=one: made.copy_(one)) for one in half],
    )
    print(f"{spec.name:32} M {rows:5}  {mine.us:8.1f} us  {copy.us / mine.us:5.2f} of a copy")
    return {
        "kernel": spec.name,
        "rows": rows,
        "bytes": nbytes,
        "ours": asdict(mine),
        "copy": asdict(copy),
        "share of copy": copy.us / mine.us,
    }


def tune(product: Product) -> dict[int, tuple[Timed, ...]]:
    """Times of all candidates for a product, by numbers of rows."""
    found, weights = {}, weights_of(product)
    for rows in TUNED:
        choices = [
            Choice(
                rows,
                "kernel",
                each.tiling,
                each.scaling if isinstance(each, WeightOnly) else "sums",
            )
            for each in candidates(product, rows)
        ]
        if isinstance(product, WeightOnly):
            choices += [Choice(rows, "dequantize"), Choice(rows, "dense")]
        timings = []
        for choice in choices:
            try:
                (took,) = timed(calls(product, choice, rows, weights))
            except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
                print(f"left out: {choice}: {error}".splitlines()[0], flush=True)
                torch.cuda.empty_cache()
                continue
            timings.append(Timed(choice, took.us))
        found[rows] = tuple(timings)
        print(f"tuned {product.name} for {rows} rows: {len(timings)} ways", flush=True)
    return found


def weight_only(n: int, k: int) -> Product:
    """W4A16 in groups of 128."""
    return WeightOnly(n, k)


def fp8(n: int, k: int) -> Product:
    """FP8 by FP8."""
    return Scaled(n, k, codes="float8_e4m3fn")


def four_by_eight(n: int, k: int) -> Product:
    """W4A8 in groups of 64."""
    return GroupScaled(n, k)


def main() -> None:
    """Check, tune if asked, time, and write."""
    parser = argparse.ArgumentParser(description="Check and time generated kernels.")
    parser.add_argument("--tune", action="store_true", help="time tilings first")
    parser.add_argument("--only", choices=("checks",), help="leave the timing out")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "PyTorch finds no CUDA device, so nothing can be measured. Without one, "
            "benchmarks/compile_kernels.py compiles every kernel and tells what it takes, and the "
            "tests run them in Triton's interpreter."
        )
    import triton  # noqa: PLC0415

    device, version = torch.cuda.get_device_name(), str(triton.__version__)
    results: dict[str, Any] = {"machine": asdict(this_machine()), "device": device}
    results |= {"triton": version, "checks": checks()}
    path = tuning.default_path()
    table = tuning.read(path, device, version)
    makers = (weight_only, fp8, Scaled, four_by_eight)
    if asked.tune:
        products = [make(n, k) for make in makers for n, k in SHAPES]
        timings = {tuning.key(each): tune(each) for each in products}
        table = replace(table, products={**table.products, **timings})
        tuning.write(path, device, version, table)
    if asked.only is None:
        results["products"] = [line for make in makers for line in product_rows(make, table)]
        results["row-wise"] = row_wise_rows()
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if results["checks"]["wrong"] or any(results["checks"]["bits differ at"].values()):
        sys.exit("some kernels are wrong on this device; see above")


if __name__ == "__main__":
    main()
