"""Fewer layers: what leaving them out costs, by how they are chosen, and what healing gives back.

    python benchmarks/depth.py [--counts 1 2 3 5] [--choose perplexity influence even]
                               [--unit block branch] [--tokens 2048] [--windows 16]
                               [--heal MINUTES] [--results FILE]

SmolLM2-135M-Instruct, calibrated on WikiText-2 validation (128 samples of 512 tokens) and judged on
windows of 1,024 tokens of its test set that do not overlap, each beginning as the model's texts do.
Of branches as many are left out as make the parameters of so many layers at least. With `--heal`,
what was chosen by perplexity is then distilled for so many minutes.

Figures go to `benchmarks/results/depth.json`; rows of other choices measured under the same
conditions stay.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from planish import api, assets
from planish.ir.program import Program, Sample
from planish.passes import name_of
from planish.passes.blocks import find_blocks
from planish.passes.distill import Distill
from planish.passes.pipeline import apply
from planish.passes.prune_depth import PruneDepth
from planish.passes.skipping import Losses
from planish.passes.work import Work
from planish.runtime.machine import this_machine
from planish.runtime.texts import read_text
from planish.runtime.tokenizer import Tokenizer
from planish.samples import as_samples

RESULTS = Path(__file__).parent / "results" / "depth.json"
SAMPLES, LENGTH, WINDOW = 128, 512, 1024


def rows(model: Path, split: str, count: int, length: int) -> torch.Tensor:
    """The first tokens of WikiText-2, [count, length]."""
    tokenizer = Tokenizer(model)
    tokens = tokenizer.encode(read_text(assets.fetch("wikitext2") / f"{split}.parquet"))
    return torch.tensor(tokenizer.rows(tokens, count, length))


def batches(program: Program, tokens: torch.Tensor, size: int) -> tuple[Sample, ...]:
    """Inputs for rows of tokens, so many together."""
    return as_samples([{"input_ids": part} for part in tokens.split(size)], program)


def perplexity(program: Program, windows: torch.Tensor) -> float:
    """Over windows [count, length], each by itself."""
    loss, _ = Losses(program, batches(program, windows, 1))([])
    return math.exp(loss)


def measured(
    program: Program, windows: torch.Tensor, choose: str, unit: str, count: int, tokens: int
) -> tuple[dict[str, Any], Program]:
    """One row of the table, and the program."""
    size = find_blocks(program)[1].parameters(program)
    share = 0.9999 * count * size / program.parameters
    amount: dict[str, Any] = {"layers": count} if unit == "block" else {"ratio": share}
    start = time.perf_counter()
    one = PruneDepth(**amount, choose=choose, unit=unit, tokens=tokens)  # type: ignore[arg-type]
    after, _ = apply(program, [one], names=name_of, isolation=False)
    row = {
        "choose": choose,
        "unit": unit,
        "count": count,
        "tokens": tokens,
        "seconds": time.perf_counter() - start,
        "parameters": after.parameters / program.parameters,
        "left_out": [change.what for change in after.changes],
        "perplexity": perplexity(after, windows),
    }
    return row, after


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--choose", nargs="+", default=["perplexity", "influence", "even"])
    parser.add_argument("--unit", nargs="+", default=["block", "branch"])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--heal", type=float)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def healed(
    program: Program, original: Program, windows: torch.Tensor, minutes: float
) -> dict[str, Any]:
    """What so many minutes of training give back."""
    start = time.perf_counter()
    one = Distill(steps=100_000, minutes=minutes, learning_rate=2e-4)
    after = one(program, Work(original=original))
    return {
        "seconds": time.perf_counter() - start,
        "said": after.changes[-1].what,
        "perplexity": perplexity(after, windows),
    }


def main() -> None:
    """Measure what was asked for, print it, and keep it."""
    given = arguments()
    model = assets.smollm2()
    plain = api.capture(model)
    learned = batches(plain, rows(model, "validation", SAMPLES, LENGTH), 4)
    program = replace(plain, samples=(), calibration=learned)
    windows = rows(model, "test", given.windows, WINDOW)
    base = perplexity(program, windows)
    print(f"float32: {base:.3f}", flush=True)
    for unit in given.unit:
        for choose in given.choose:
            for count in given.counts:
                row, after = measured(program, windows, choose, unit, count, given.tokens)
                if given.heal and choose == "perplexity":
                    row["healed"] = healed(after, program, windows, given.heal)
                times = row["perplexity"] / base
                print(f"{unit} {choose} {count}: {times:.3f} times", flush=True)
                keep(given, base, row)


def keep(given: argparse.Namespace, base: float, row: dict[str, Any]) -> None:
    """Write a row; others that were measured under the same conditions stay."""
    asked = {
        "samples": SAMPLES,
        "sample_tokens": LENGTH,
        "windows": given.windows,
        "window": WINDOW,
    }
    before = json.loads(given.results.read_text()) if given.results.exists() else {}
    rows_before = before.get("rows", []) if before.get("asked") == asked else []
    same = ("choose", "unit", "count", "tokens")
    others = [one for one in rows_before if any(one[key] != row[key] for key in same)]
    found = {
        "machine": asdict(this_machine()),
        "asked": asked,
        "float32": base,
        "rows": [*others, row],
    }
    given.results.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
