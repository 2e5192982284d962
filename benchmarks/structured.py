"""Smaller dense models: Planish beside Torch-Pruning and SliceGPT, in one run.

    python benchmarks/structured.py [--model smollm2|gemma3|smollm2-healed]
                                    [--torchpruning PYTHON] [--slicegpt PYTHON]
                                    [--samples 64] [--windows 8]
                                    [--only TOOL/METHOD[@RATIO] ...] [--results FILE]

PYTHON is the interpreter of a virtual environment that has the tool: torch-pruning with
transformers; or SliceGPT's own code (microsoft/TransformerCompression, which wants transformers
4.41.0). All start from the same float32 checkpoint and the same samples (WikiText-2 validation, 512
tokens each), and are judged on windows of 1,024 tokens of WikiText-2's test set, which no tool saw
and which do not overlap. Samples and windows begin as the model's texts do.

Each runs in a process of its own, one after the other: seconds are those of the compression alone,
memory is the process's peak up to then. Parameters count a table that embeds and gives logits once
if the result still shares it; multiply-adds are those for one token. `load_at_start` says what else
the machine was doing: seconds of rows where it is not near 0 are too high.

Figures go to `benchmarks/results/structured.json`, by model; rows measured before, under the same
conditions, stay.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planish import assets
from planish.runtime.machine import this_machine
from planish.runtime.texts import read_text
from planish.runtime.tokenizer import Tokenizer

RESULTS = Path(__file__).parent / "results" / "structured.json"
DRIVER = Path(__file__).parent / "structured_tools.py"
LENGTH, WINDOW = 512, 1024

MODELS: Mapping[str, Callable[[], Path]] = {
    "smollm2": assets.smollm2,
    "gemma3": assets.gemma3,
    "smollm2-healed": assets.smollm2,
}
"""The models; of those that are healed, for 20 to 30 minutes each, more samples should be given."""

Row = tuple[str, str, float]
"""A tool, its method, and the ratio that it is asked for."""

PRUNING: tuple[Row, ...] = (
    ("planish", "compact", 0.22),
    ("planish", "channels", 0.1),
    ("planish", "channels", 0.3),
    ("planish", "channels/as-cut", 0.22),
    ("planish", "channels/taylor", 0.22),
    ("planish", "channels/global", 0.22),
    ("planish", "queries", 0.33),
    ("planish", "depth/perplexity", 0.13),
    ("torchpruning", "mlp-magnitude", 0.21),
    ("torchpruning", "mlp-activation", 0.21),
    ("torchpruning", "mlp-taylor", 0.21),
    ("torchpruning", "example", 0.08),
    ("torchpruning", "example", 0.2),
)
SLICING: tuple[Row, ...] = (
    ("planish", "slice/shared", 0.1),
    ("planish", "slice/shared", 0.2),
    ("planish", "slice-25", 0.25),
    ("planish", "slice-w4", 0.1),
    ("planish", "slice/per_block", 0.1),
    ("planish", "slice/per_block+repair", 0.1),
    ("planish", "slice/per_block+repair", 0.2),
    ("slicegpt", "random", 0.1),
    ("slicegpt", "random", 0.25),
    ("slicegpt", "random", 0.4),
)
HEALED: tuple[Row, ...] = (
    ("planish", "compact-healed", 0.22),
    ("planish", "slice/shared+healed", 0.1),
    ("planish", "slice/shared+healed", 0.2),
)
ROWS: Mapping[str, tuple[Row, ...]] = {
    "smollm2": (*PRUNING, *SLICING),
    "gemma3": PRUNING,
    "smollm2-healed": HEALED,
}
"""By model what is measured; the ratio of a recipe of the zoo is what is written in it.

Of SmolLM2, `compact`, Torch-Pruning's rows but the last, and SliceGPT at 0.4 have equally many
parameters: SliceGPT gives the head a table of its own. At 0.25 it has as many multiply-adds.
"""


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), default="smollm2")
    parser.add_argument("--torchpruning", help="a Python that has Torch-Pruning")
    parser.add_argument("--slicegpt", help="a Python that has SliceGPT's code")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=[], metavar="TOOL/METHOD[@RATIO]")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def wanted(given: argparse.Namespace) -> Iterator[tuple[Row, str]]:
    """The rows to measure, in the order asked for, and the Python of each."""
    pythons = {
        "planish": sys.executable,
        "torchpruning": given.torchpruning,
        "slicegpt": given.slicegpt,
    }
    rows = ROWS[given.model]
    if given.only:
        rows = tuple(row for one in given.only for row in rows if one in names(row))
    for row in rows:
        if python := pythons[row[0]]:
            yield row, python


def names(row: Row) -> tuple[str, str]:
    """What a row is asked for by."""
    tool, method, ratio = row
    return f"{tool}/{method}", f"{tool}/{method}@{ratio}"


def prepare(given: argparse.Namespace, folder: Path) -> list[str]:
    """The model, and files of token lists: to calibrate on, and to be judged by."""
    model = MODELS[given.model]()
    tokenizer, wikitext = Tokenizer(model), assets.fetch("wikitext2")
    made = [str(model)]
    for name, count, length in (
        ("validation", given.samples, LENGTH),
        ("test", given.windows, WINDOW),
    ):
        tokens = tokenizer.encode(read_text(wikitext / f"{name}.parquet"))
        path = folder / f"{name}.json"
        path.write_text(json.dumps(tokenizer.rows(tokens, count, length)))
        made.append(str(path))
    return made


def measured(row: Row, python: str, files: list[str]) -> dict[str, Any]:
    """One row of the table: the driver's last line."""
    tool, method, ratio = row
    done = subprocess.run(
        # -P: no file beside the driver stands in for a package
        [python, "-P", str(DRIVER), tool, method, str(ratio), *files],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"tool": tool, "method": method, "ratio": ratio, **found}


def show(row: dict[str, Any], base: dict[str, Any]) -> None:
    """Print one row, as shares of the original."""
    what = f"{row['tool']:13} {row['method']:24} {row['ratio']:5}"
    sizes = "  ".join(
        f"{name} {row[name] / base[name]:.3f}" for name in ("parameters", "multiply_adds")
    )
    times = f"perplexity {row['perplexity']:.2f} ({row['perplexity'] / base['perplexity']:.3f})"
    cost = f"{row['seconds']:.0f} s  {row['peak_memory_mb']} MB  load {row['load_at_start']}"
    print(f"{what}  {sizes}  {times}  {cost}", flush=True)


def main() -> None:
    """Measure what was asked for, print it, and keep it."""
    given = arguments()
    asked = {"samples": given.samples, "sample_tokens": LENGTH}
    asked |= {"windows": given.windows, "window": WINDOW}
    with tempfile.TemporaryDirectory() as scratch:
        files = prepare(given, Path(scratch))
        base = kept(given, asked).get("float32")
        base = base or measured(("planish", "float32", 0.0), sys.executable, files)
        show(base, base)
        for row, python in wanted(given):
            found = measured(row, python, files)
            show(found, base)
            keep(given, asked, base, found)


def kept(given: argparse.Namespace, asked: dict[str, Any]) -> dict[str, Any]:
    """What was measured of the model before, if under the same conditions."""
    models = json.loads(given.results.read_text()) if given.results.exists() else {}
    before: dict[str, Any] = models.get(given.model, {})
    return before if before.get("asked") == asked else {}


def keep(
    given: argparse.Namespace, asked: dict[str, Any], base: dict[str, Any], row: dict[str, Any]
) -> None:
    """Write a row in the place of what was there by its name."""
    same = ("tool", "method", "ratio")
    before = kept(given, asked).get("rows", [])
    others = [one for one in before if any(one[key] != row[key] for key in same)]
    models = json.loads(given.results.read_text()) if given.results.exists() else {}
    models[given.model] = {
        "machine": asdict(this_machine()),
        "asked": asked,
        "float32": base,
        "rows": [*others, row],
    }
    given.results.write_text(json.dumps(models, indent=2) + "\n")


if __name__ == "__main__":
    main()
