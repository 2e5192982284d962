"""4-bit weights: Planish beside llm-compressor and GPTQModel, in one run.

    python benchmarks/quantization.py [--model smollm2|gemma3]
                                      [--llmcompressor PYTHON] [--gptqmodel PYTHON]
                                      [--samples 128] [--windows 16] [--questions 400]
                                      [--only TOOL/METHOD ...] [--untimed] [--results FILE]

PYTHON is the interpreter of a virtual environment that has the tool. All start from the same
float32 checkpoint and the same samples (WikiText-2 validation, 512 tokens each), are asked for
symmetric int4 of all linear layers but the head, in groups of 64 for SmolLM2-135M and of 128 for
Gemma 3 270M, and are judged on windows of 1,024 tokens of WikiText-2's test set, which no tool saw,
and on four-choice questions (`questions.py`). Samples and windows begin as the model's texts do.
Planish's `gptq-plain` is its `gptq` without drift correction, the algorithm that the others have.
Each runs in a process of its own, one after the other: seconds are those of the quantization alone,
memory is the process's peak. With --untimed no seconds are kept: for machines that do other work
beside, where they would say nothing.

Figures go to `benchmarks/results/quantization.json`, by model; those of a run without some tool
stay.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import questions

from planish import assets
from planish.runtime.machine import this_machine
from planish.runtime.texts import read_text
from planish.runtime.tokenizer import Tokenizer

RESULTS = Path(__file__).parent / "results" / "quantization.json"
DRIVER = Path(__file__).parent / "quantization_tools.py"

MODELS: Mapping[str, tuple[Callable[[], Path], int]] = {
    "smollm2": (assets.smollm2, 64),
    "gemma3": (assets.gemma3, 128),
}
"""The models, and in groups of how many weights each is rounded: what divides its widths."""

METHODS = {
    "planish": ("rtn", "rtn+search", "gptq", "gptq-plain", "awq", "awq+gptq"),
    "llmcompressor": ("gptq", "awq"),
    "gptqmodel": ("gptq",),
}
LENGTH, WINDOW = 512, 1024

ENVIRONMENT = {"GPTQMODEL_CPU_WORKERS": "2", **os.environ}
"""For all tools: GPTQModel takes two cores for one, and wants two threads."""


@dataclass(frozen=True)
class Trial:
    """What every tool is given, and judged by.

    Attributes:
        model: the float32 checkpoint.
        group: how many weights share a scale.
        samples: a file of token lists to calibrate on.
        windows: a file of token lists whose perplexity is measured.
        prompts: a file of the questions' tokens.
        rows: the questions.
    """

    model: Path
    group: int
    samples: Path
    windows: Path
    prompts: Path
    rows: list[dict[str, Any]]

    def quantize(self, tool: str, method: str, python: str, out: Path) -> dict[str, Any]:
        """What quantizing took."""
        given = (str(self.group), str(self.model), str(self.samples), str(out))
        return run(python, "quantize", tool, method, *given)

    def evaluate(self, tool: str, python: str, folder: Path) -> dict[str, Any]:
        """The perplexity of a model, and how probable it finds each answer."""
        return run(python, "evaluate", tool, str(folder), str(self.windows), str(self.prompts))


def prepare(given: argparse.Namespace, folder: Path) -> Trial:
    """Write the files that a run needs."""
    fetch, group = MODELS[given.model]
    model = fetch()
    tokenizer = Tokenizer(model)
    wikitext = assets.fetch("wikitext2")

    def cut(name: str, count: int, length: int) -> Any:
        tokens = tokenizer.encode(read_text(wikitext / f"{name}.parquet"))
        return tokenizer.rows(tokens, count, length)

    def written(name: str, content: Any) -> Path:
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content))
        return path

    rows = questions.evenly(given.questions)
    return Trial(
        model=model,
        group=group,
        samples=written("samples", cut("validation", given.samples, LENGTH)),
        windows=written("windows", cut("test", given.windows, WINDOW)),
        prompts=written("questions", questions.as_tokens(tokenizer, rows)),
        rows=rows,
    )


def run(python: str, *arguments: str) -> dict[str, Any]:
    """What the driver's last line says; its other output goes to the error stream."""
    done = subprocess.run(
        [python, "-P", str(DRIVER), *arguments],  # no file beside it stands in for a package
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measured(
    trial: Trial, tool: str, method: str, python: str, answers: list[int]
) -> dict[str, Any]:
    """One row of the table; `answers` are the float model's."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "out"
        made = trial.quantize(tool, method, python, folder)
        found = trial.evaluate(tool, python, folder)
    given = questions.answers(found.pop("letter_scores"))
    judged = questions.judged(given, trial.rows, answers)
    return {"tool": tool, "method": method, **made, **found, **judged}


def show(row: dict[str, Any], base: float, plain: float | None) -> None:
    """Print one row, with its share of the log-perplexity that plain rounding costs."""
    rise = math.log(row["perplexity"] / base)
    share = f"{100 * rise / math.log(plain / base):5.0f}%" if plain else "     -"
    seconds = "      -" if row["seconds"] is None else f"{row['seconds']:7.0f}"
    cost = f"{seconds} s {row['peak_memory_mb']:7.0f} MB"
    start = f"{row['tool']:14} {row['method']:12} {cost} {row['perplexity']:8.3f} {share}"
    print(f"{start} {answered(row)}", flush=True)


def answered(found: dict[str, float]) -> str:
    """Accuracy and agreement, for people to read."""
    return "  ".join(
        f"{name} {100 * found[name]:.1f}% ± {100 * found[f'{name}_error']:.1f}"
        for name in ("accuracy", "agreement")
    )


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), default="smollm2")
    parser.add_argument("--llmcompressor", help="a Python that has llm-compressor")
    parser.add_argument("--gptqmodel", help="a Python that has GPTQModel")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--only", nargs="*", default=[], metavar="TOOL/METHOD")
    parser.add_argument("--untimed", action="store_true", help="keep no seconds")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for, print it, and keep it."""
    given = arguments()
    pythons = {
        "planish": sys.executable,
        "llmcompressor": given.llmcompressor,
        "gptqmodel": given.gptqmodel,
    }
    wanted = [
        (tool, method, python)
        for tool, methods in METHODS.items()
        for method in methods
        if (python := pythons[tool]) and (not given.only or f"{tool}/{method}" in given.only)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        trial = prepare(given, Path(scratch))
        base = trial.evaluate("planish", sys.executable, trial.model)
        answers = questions.answers(base.pop("letter_scores"))
        base |= questions.judged(answers, trial.rows, answers)
        print(f"float32: {base['perplexity']:.3f} {answered(base)}")
        rows, plain = [], None
        for tool, method, python in wanted:
            row = measured(trial, tool, method, python, answers)
            row |= {"seconds": None} if given.untimed else {}
            plain = row["perplexity"] if (tool, method) == ("planish", "rtn") else plain
            show(row, base["perplexity"], plain)
            rows.append(row)
            keep(given, trial.group, base, rows)


def keep(
    given: argparse.Namespace, group: int, base: dict[str, float], rows: list[dict[str, Any]]
) -> None:
    """Write the figures; rows measured before, under the same conditions, stay.

    Each row says itself how many questions it was asked: some were measured without any.
    """
    asked = {
        "samples": given.samples,
        "sample_tokens": LENGTH,
        "windows": given.windows,
        "window": WINDOW,
        "group_size": group,
    }
    models = json.loads(given.results.read_text()) if given.results.exists() else {}
    before = models.get(given.model, {})
    if before.get("asked") != asked:
        before = {}
    new = {(row["tool"], row["method"]) for row in rows}
    kept = [row for row in before.get("rows", []) if (row["tool"], row["method"]) not in new]
    models[given.model] = {
        "machine": asdict(this_machine()),
        "asked": asked,
        "float32": base,
        "rows": kept + rows,
    }
    given.results.write_text(json.dumps(models, indent=2) + "\n")


if __name__ == "__main__":
    main()
