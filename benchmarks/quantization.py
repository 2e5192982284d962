"""4-bit weights of SmolLM2-135M: Planish beside llm-compressor and GPTQModel, in one run.

    python benchmarks/quantization.py [--llmcompressor PYTHON] [--gptqmodel PYTHON]
                                      [--samples 128] [--windows 16] [--only TOOL/METHOD ...]

PYTHON is the interpreter of a virtual environment that has the tool. All start from the same
float32 checkpoint and the same samples (WikiText-2 validation, 512 tokens each), are asked for
symmetric int4 in groups of 64 of all linear layers but the head, and are judged on windows of 1,024
tokens of WikiText-2's test set, which no tool saw. Planish's `gptq-plain` is its `gptq` without
drift correction, the algorithm that the others have. Each runs in a process of its own, one after
the other: seconds are those of the quantization alone, memory is the process's peak.

Figures go to `benchmarks/results/quantization.json`; those of a run without some tool stay.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planish import assets
from planish.runtime.machine import this_machine
from planish.runtime.texts import read_text
from planish.runtime.tokenizer import Tokenizer

RESULTS = Path(__file__).parent / "results" / "quantization.json"
DRIVER = Path(__file__).parent / "quantization_tools.py"

METHODS = {
    "planish": ("rtn", "rtn+search", "gptq", "gptq-plain", "awq", "awq+gptq"),
    "llmcompressor": ("gptq", "awq"),
    "gptqmodel": ("gptq",),
}
LENGTH, WINDOW = 512, 1024


def tokens(model: Path, folder: Path, samples: int, windows: int) -> tuple[Path, Path]:
    """Files with the samples and with the windows, as lists of lists."""
    tokenizer = Tokenizer(model)
    wikitext = assets.fetch("wikitext2")
    made = []
    for name, count, length in (("validation", samples, LENGTH), ("test", windows, WINDOW)):
        found = tokenizer.encode(read_text(wikitext / f"{name}.parquet"))
        rows = [found[n * length : (n + 1) * length] for n in range(count)]
        path = folder / f"{name}.json"
        path.write_text(json.dumps(rows))
        made.append(path)
    return made[0], made[1]


def run(python: str, *arguments: str) -> dict[str, float]:
    """What the driver's last line says; its other output goes to the error stream."""
    environment = {"GPTQMODEL_CPU_WORKERS": "2", **os.environ}  # it takes one core for two threads
    done = subprocess.run(
        [python, str(DRIVER), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measured(
    tool: str, method: str, python: str, model: Path, samples: Path, windows: Path
) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(Path(scratch) / "out")
        made = run(python, "quantize", tool, method, str(model), str(samples), folder)
        judged = run(python, "evaluate", tool, folder, str(windows))
    return {"tool": tool, "method": method, **made, **judged}


def show(row: dict[str, Any], base: float, plain: float | None) -> None:
    """Print one row, with its share of the log-perplexity that plain rounding costs."""
    rise = math.log(row["perplexity"] / base)
    share = f"{100 * rise / math.log(plain / base):5.0f}%" if plain else "     -"
    cost = f"{row['seconds']:7.0f} s {row['peak_memory_mb']:7.0f} MB"
    print(
        f"{row['tool']:14} {row['method']:12} {cost} {row['perplexity']:8.3f} {share}", flush=True
    )


def main() -> None:
    """Measure what was asked for, print it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llmcompressor", help="a Python that has llm-compressor")
    parser.add_argument("--gptqmodel", help="a Python that has GPTQModel")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--only", nargs="*", default=[], metavar="TOOL/METHOD")
    given = parser.parse_args()
    pythons = {
        "planish": sys.executable,
        "llmcompressor": given.llmcompressor,
        "gptqmodel": given.gptqmodel,
    }
    model = assets.smollm2()
    wanted = [
        (tool, method)
        for tool, methods in METHODS.items()
        for method in methods
        if pythons[tool] and (not given.only or f"{tool}/{method}" in given.only)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        samples, windows = tokens(model, Path(scratch), given.samples, given.windows)
        base = run(sys.executable, "evaluate", "planish", str(model), str(windows))["perplexity"]
        print(f"float32: {base:.3f}")
        rows, plain = [], None
        for tool, method in wanted:
            row = measured(tool, method, pythons[tool], model, samples, windows)
            plain = row["perplexity"] if (tool, method) == ("planish", "rtn") else plain
            show(row, base, plain)
            rows.append(row)
            keep(base, rows, given.samples, given.windows)


def keep(base: float, rows: list[dict[str, Any]], samples: int, windows: int) -> None:
    """Write the figures; rows measured before, under the same conditions, stay."""
    asked = {"samples": samples, "sample_tokens": LENGTH, "windows": windows, "window": WINDOW}
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if before.get("asked") != asked:
        before = {}
    new = {(row["tool"], row["method"]) for row in rows}
    kept = [row for row in before.get("rows", []) if (row["tool"], row["method"]) not in new]
    result = {
        "machine": asdict(this_machine()),
        "asked": asked,
        "float32": base,
        "rows": kept + rows,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
