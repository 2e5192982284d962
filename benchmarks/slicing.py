"""Slicing SmolLM2-135M-Instruct: perplexity, parameters and work by ratio, bases and repair.

    python benchmarks/slicing.py [--ratios 0.1 0.2 0.25] [--bases shared per_block]
                                 [--repair yes no] [--samples 64] [--windows 4] [--results FILE]

Calibrated on WikiText-2 validation (samples of 512 tokens), judged on windows of 1,024 tokens
of its test set, which begin as the model's texts do and do not overlap; programs run eagerly in
float32.
Work is that of all contractions for one request of 128 tokens without a cache, and of the same
without the projection to logits. Figures go to `benchmarks/results/slicing.json`; rows measured
before, under the same conditions, stay.
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
from planish.ir.cost import costs, parameters, total
from planish.ir.program import Program
from planish.passes.layers import HEAD, layers_of
from planish.passes.slice import Slice
from planish.passes.trials import surprise
from planish.runtime.machine import this_machine
from planish.runtime.texts import read_text
from planish.runtime.tokenizer import Tokenizer
from planish.samples import as_samples

RESULTS = Path(__file__).parent / "results" / "slicing.json"
LENGTH, WINDOW, PROMPT = 512, 1024, 128


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratios", nargs="*", type=float, default=[0.1, 0.2, 0.25])
    parser.add_argument("--bases", nargs="*", default=["shared", "per_block"])
    parser.add_argument("--repair", nargs="*", default=["yes", "no"])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--program", type=Path, help="a folder that keeps the captured program")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def prepared(given: argparse.Namespace) -> tuple[Program, list[dict[str, torch.Tensor]]]:
    """The model with samples to learn from, and the windows it is judged on."""
    folder = assets.smollm2()
    if given.program and (given.program / "program.json").exists():
        program = Program.load(given.program)
    else:
        program = api.capture(str(folder))
        if given.program:
            program.save(given.program)
    tokenizer, wikitext = Tokenizer(folder), assets.fetch("wikitext2")

    def cut(name: str, count: int, length: int) -> torch.Tensor:
        tokens = tokenizer.encode(read_text(wikitext / f"{name}.parquet"))
        return torch.tensor(tokenizer.rows(tokens, count, length))

    def batches(rows: torch.Tensor, size: int) -> list[dict[str, torch.Tensor]]:
        given_rows = [{"input_ids": part} for part in rows.split(size)]
        return [dict(one) for one in as_samples(given_rows, program)]

    learned = batches(cut("validation", given.samples, LENGTH), 4)
    judged = batches(cut("test", given.windows, WINDOW), 1)
    return replace(program, samples=(), calibration=tuple(learned)), judged


def work(program: Program) -> tuple[int, int]:
    """Floating-point operations for a prompt, in all and without the head."""
    sizes = {size.name: {"B": 1, "P": 0}.get(size.name, PROMPT) for size in program.sizes}
    found = costs(program, sizes)
    heads = {
        user
        for layer in layers_of(program.graph, program)
        if HEAD in layer.roles
        for user in layer.node.users
    }
    blocks = (cost for node, cost in found.items() if node not in heads)
    return total(found.values()).flops, total(blocks).flops


def figures(program: Program, judged: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """What a program is and does."""
    whole, blocks = work(program)
    return {
        "perplexity": math.exp(surprise(program, judged)),
        "parameters": parameters(program),
        "flops": whole,
        "flops_without_head": blocks,
    }


def main() -> None:
    """Measure what was asked for, print it, and keep it."""
    given = arguments()
    program, judged = prepared(given)
    asked = {"samples": given.samples, "sample_tokens": LENGTH, "windows": given.windows}
    asked |= {"window": WINDOW, "prompt": PROMPT}
    kept = json.loads(given.results.read_text()) if given.results.exists() else {}
    same = kept.get("asked") == asked
    base = kept["float32"] if same else figures(program, judged)
    rows: list[dict[str, Any]] = kept["rows"] if same else []
    print(f"float32: {base['perplexity']:.3f}", flush=True)
    for ratio in given.ratios:
        for bases in given.bases:
            for repair in given.repair:
                one = Slice(ratio=ratio, bases=bases, repair=repair == "yes")
                start = time.perf_counter()
                after = one(program)
                took = time.perf_counter() - start
                asked_row = {"ratio": ratio, "bases": bases, "repair": one.repair}
                row = {**asked_row, "seconds": round(took, 1), **figures(after, judged)}
                rows = [old for old in rows if not asked_row.items() <= old.items()] + [row]
                show(row, base)
                keep(given.results, asked, base, rows)


def show(row: dict[str, Any], base: dict[str, Any]) -> None:
    """Print one row, everything as a multiple of the original's."""
    shares = "  ".join(f"{name} {row[name] / base[name]:.3f}" for name in base)
    repair = "repaired" if row["repair"] else "as cut"
    print(
        f"{row['ratio']} {row['bases']:9} {repair:8} {row['seconds']:6.0f} s  {shares}", flush=True
    )


def keep(
    file: Path, asked: dict[str, Any], base: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Write the figures."""
    found = {"machine": asdict(this_machine()), "asked": asked, "float32": base, "rows": rows}
    file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
