"""SmolLM2-135M-Instruct as stacks of blocks, in narrow pairs, and with shared layers: perplexity.

    python benchmarks/stacks.py [--parts bitstack low_rank share] [--samples 64] [--windows 8]
                                [--results FILE]

`bitstack`: all blocks of the recipe's stacks, and as many as fit budgets, by the bytes of the
model's tensors. `low_rank`: two factors in the place of each weight, by their share of its numbers.
`share`: layers that take the weights of the layer before them. Calibrated on WikiText-2 validation
(samples of 512 tokens), judged on windows of 1,024 tokens of its test set that do not overlap, each
beginning as the model's texts do; programs run eagerly. Figures go to
`benchmarks/results/stacks.json`; rows measured before, under the same conditions, stay.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from depth import batches, perplexity, rows

from planish import api, assets
from planish.ir.program import Program
from planish.passes import BitStack, LowRank, ShareBlocks
from planish.passes.bitstack import Budget
from planish.runtime.machine import this_machine

RESULTS = Path(__file__).parent / "results" / "stacks.json"
LENGTH, WINDOW = 512, 1024

BUDGETS = (0.5, 0.45, 0.4, 0.35, 0.3)
"""Shares of the float32 model's bytes; those that hold all blocks are left out."""

SHARES = (0.9, 0.8)
"""Which share of a weight's numbers its two factors have."""

COUNTS = (1, 3, 5)
"""How many layers take another's weights."""

Made = Iterator[tuple[dict[str, Any], Callable[[], Program]]]
"""What a row is, and how its program is made."""


def bitstack(program: Program) -> Made:
    """All blocks, and then fewer of the same."""
    whole: list[Program] = []

    def stacked() -> Program:
        whole.append(BitStack(blocks=8)(program))
        return whole[0]

    yield {"part": "bitstack", "budget": None}, stacked
    for share in BUDGETS:
        size = int(share * program.nbytes)
        if size < whole[0].nbytes:
            fit = BitStack(budget=Budget(bytes=size))
            yield {"part": "bitstack", "budget": share}, lambda fit=fit: fit(whole[0])


def low_rank(program: Program) -> Made:
    """Each linear layer as two."""
    for share in SHARES:
        one = LowRank(ratio=share)
        yield {"part": "low_rank", "ratio": share}, lambda one=one: one(program)


def share(program: Program) -> Made:
    """Fewer layers with weights of their own."""
    for count in COUNTS:
        one = ShareBlocks(layers=count)
        yield {"part": "share", "layers": count}, lambda one=one: one(program)


PARTS: dict[str, Callable[[Program], Made]] = {
    "bitstack": bitstack,
    "low_rank": low_rank,
    "share": share,
}


def measured(
    what: dict[str, Any], make: Callable[[], Program], windows: torch.Tensor
) -> dict[str, Any]:
    """One row."""
    load, start = os.getloadavg()[0], time.perf_counter()
    after = make()
    return {
        **what,
        "load_at_start": round(load, 2),
        "seconds": round(time.perf_counter() - start, 1),
        "bytes": after.nbytes,
        "parameters": after.parameters,
        "perplexity": perplexity(after, windows),
    }


def main() -> None:
    """Measure what was asked for, print it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    model = assets.smollm2()
    plain = api.capture(model)
    learned = batches(plain, rows(model, "validation", given.samples, LENGTH), 4)
    program = replace(plain, samples=(), calibration=learned)
    windows = rows(model, "test", given.windows, WINDOW)
    asked = {"samples": given.samples, "sample_tokens": LENGTH}
    asked |= {"windows": given.windows, "window": WINDOW}
    before = json.loads(given.results.read_text()) if given.results.exists() else {}
    kept = before if before.get("asked") == asked else {}
    base = kept.get("float32") or {
        "bytes": plain.nbytes,
        "parameters": plain.parameters,
        "perplexity": perplexity(plain, windows),
    }
    found: list[dict[str, Any]] = kept.get("rows", [])
    print(f"float32: {base}", flush=True)
    for part in given.parts:
        for what, make in PARTS[part](program):
            row = measured(what, make, windows)
            print(f"{row['perplexity'] / base['perplexity']:.3f} {row}", flush=True)
            found = [one for one in found if not what.items() <= one.items()] + [row]
            said = {"machine": asdict(this_machine()), "asked": asked, "float32": base}
            given.results.write_text(json.dumps({**said, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
