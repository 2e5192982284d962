"""Smaller dense models on the CPU: are they as much faster as the work that they save?

    python benchmarks/smaller.py [--only NAME ...] [--batch 1 4 16] [--rounds 7]

SmolLM2-135M-Instruct, pruned and sliced by recipes of the zoo and beside them, is lowered to ONNX;
each reads prompts of 256 tokens and is then given 32 tokens one by one, in turns with the float32
model in one process. What is promised is the model's floating-point operations over those that are
left, of the same prompt and of a token behind it, head and adapters counted. Which weights go is
learned from 16 samples of 512 tokens of WikiText-2's validation set; speed does not depend on it.
Figures go to `benchmarks/results/smaller.json`.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from depth import LENGTH, batches, rows
from serving import BATCHES, NEW, PROMPT, speeds

import planish
from planish import api, assets
from planish.ir.cost import costs, total
from planish.ir.program import Program
from planish.runtime.machine import recent_load, this_machine

RESULTS = Path(__file__).parent / "results" / "smaller.json"
SAMPLES = 16


def sliced(ratio: float, **options: Any) -> dict[str, Any]:
    """A stream narrower by so much."""
    return {"passes": [{"slice": {"ratio": ratio, **options}}]}


RECIPES: dict[str, Any] = {
    "compact": "compact",
    "prune-depth": "prune-depth",
    "slice-10": "slice-10",
    "slice-25": "slice-25",
    "slice 25%, per block": sliced(0.25, bases="per_block"),
    "slice 25%, two tables": sliced(0.25, tied="split"),
}


def work(program: Program) -> dict[str, int]:
    """Floating-point operations of a prompt, and of one token behind it, for one request."""
    lengths = {"prefill": {"B": 1, "P": 0}, "decode": {"B": 1, "T": 1}}
    found = {}
    for phase, known in lengths.items():
        sizes = {size.name: known.get(size.name, PROMPT) for size in program.sizes}
        found[phase] = total(costs(program, sizes).values()).flops
    return found


def main() -> None:
    """Convert, time, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--batch", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    model = assets.smollm2()
    plain = api.capture(model)
    learned = batches(plain, rows(model, "validation", SAMPLES, LENGTH), 1)
    program = replace(plain, samples=(), calibration=learned)
    kept: dict[str, Any] = {"float32": {"work": work(program), "parameters": program.parameters}}
    with tempfile.TemporaryDirectory() as made:
        folders = {"float32": Path(made) / "float32"}
        planish.optimize(plain, {"passes": []}, output=folders["float32"])
        for name in given.only:
            print(f"convert {name}", flush=True)
            folders[name] = Path(made) / name.replace(" ", "-")
            result = planish.optimize(program, RECIPES[name])
            result.save(folders[name])
            after = result.program
            kept[name] = {"work": work(after), "parameters": after.parameters}
        timed = speeds(folders, None, given.rounds, given.batch)
    for row in timed:
        whole, left = (kept[name]["work"][row["phase"]] for name in ("float32", row["side"]))
        row["promised"] = whole / left
        row["of_promise"] = row["times_float32"] / row["promised"]
        print(
            f"{row['side']:24} batch {row['batch']:2} {row['phase']:8} {row['times_float32']:.2f}x "
            f"of {row['promised']:.2f}x promised: {row['of_promise']:.2f}"
        )
    found = {
        "machine": asdict(this_machine()),
        "asked": {"rounds": given.rounds, "prompt": PROMPT, "new": NEW, "samples": SAMPLES},
        "load_at_end": recent_load(),
        "models": kept,
        "rows": timed,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
