"""Formats chosen layer by layer beside one format for all, and beside a plain rule of thumb.

    python benchmarks/mixed_precision.py [--windows 4] [--samples 16] [--only NAME ...]

SmolLM2-135M-Instruct, learned from samples of 512 tokens of WikiText-2's validation set and judged
on windows of 1,024 tokens of its test set, by the programs in PyTorch. The rule of thumb keeps the
first and the last block in 8 bits, and takes 2 bits in the middle where 3 are too many. Weights are
rounded to nearest, scales found by what the layers read. Bits are those of the linear layers, with
scales in float32. Figures go to `benchmarks/results/mixed_precision.json`; rows of a run of others
like it stay.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

from depth import LENGTH, WINDOW, batches, perplexity, rows

import planish
from planish import api, assets
from planish.ir.program import Program
from planish.ir.quant import QuantizedTensor, dequantize
from planish.runtime.machine import this_machine

RESULTS = Path(__file__).parent / "results" / "mixed_precision.json"
FIRST_AND_LAST = ("model.layers.0.*", "model.layers.29.*")
MIDDLE = tuple(f"model.layers.{block}.*" for block in range(10, 20))


def uniform(bits: int, *targets: str) -> dict[str, Any]:
    """Some layers in one format; by default all that are left."""
    asked: dict[str, Any] = {"bits": bits, "group_size": 64, "clip_search": "inputs"}
    return {"quantize_weights": asked | ({"targets": [*targets]} if targets else {})}


def mixed(bits: float) -> dict[str, Any]:
    """So many bits a weight, shared out by what each layer costs."""
    return {"mixed_precision": {"target": {"bits": bits}, "clip_search": "inputs"}}


RECIPES: dict[str, list[dict[str, Any]]] = {
    "int4": [uniform(4)],
    "mixed 4.5": [mixed(4.5)],
    "ends in 8 bits, int3": [uniform(8, *FIRST_AND_LAST), uniform(3)],
    "mixed 3.8": [mixed(3.8)],
    "int3": [uniform(3)],
    "ends in 8 bits, int3, middle int2": [
        uniform(8, *FIRST_AND_LAST),
        uniform(2, *MIDDLE),
        uniform(3),
    ],
    "mixed 3.5": [mixed(3.5)],
}


def bits_of(program: Program) -> float:
    """Bits a weight that is quantized, with its scales."""
    read = [QuantizedTensor.read_by(node, program.tensors)[1] for node in program.nodes(dequantize)]
    stored = sum(part.nbytes for one in read for part in one.tensors.values())
    return 8 * stored / sum(prod(one.shape) for one in read)


def main() -> None:
    """Round, judge, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    given = parser.parse_args()
    model = assets.smollm2()
    plain = api.capture(model)
    learned = batches(plain, rows(model, "validation", given.samples, LENGTH), 1)
    program = replace(plain, samples=(), calibration=learned)
    windows = rows(model, "test", given.windows, WINDOW)
    found: dict[str, Any] = {
        "machine": asdict(this_machine()),
        "asked": {"samples": given.samples, "windows": given.windows},
        "float32": perplexity(program, windows),
        "rows": {},
    }
    if RESULTS.is_file() and (before := json.loads(RESULTS.read_text()))["asked"] == found["asked"]:
        found["rows"] = before["rows"]
    print(f"float32: {found['float32']:.2f}", flush=True)
    for name in given.only:
        started = time.perf_counter()
        after = planish.optimize(program, {"passes": RECIPES[name]}).program
        row = {
            "bits": bits_of(after),
            "perplexity": perplexity(after, windows),
            "seconds": time.perf_counter() - started,
        }
        print(f"{name}: {row['bits']:.2f} bits, {row['perplexity']:.2f}", flush=True)
        found["rows"][name] = row
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
