"""Language models on a GPU, prompts and tokens: generated kernels beside torch.compile in bfloat16.

    python benchmarks/gpu_models.py [--models smollm2 llama] [--rounds 7] [--artifacts FOLDER]
    python benchmarks/gpu_models.py --models tiny --provider cpu --eager      # a trial without one

Each model reads a prompt of 256 tokens and is then given 32 tokens one by one, at batch 1, 4 and
16; all sides take turns in one process. The baseline is the same program in bfloat16, compiled by
torch.compile; W4A16 and FP8 are artifacts of target triton, the rest of which is compiled, too.
`llama` has random weights (1.1 billion) and says nothing of quality. Figures go to
`benchmarks/results/gpu-models.json`, on the CPU nowhere.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

import planish
from planish import assets
from planish.runtime.machine import recent_load, this_machine
from planish.runtime.session import Session
from planish.runtime.timing import Phase, in_turns, language_round, random_tokens

RESULTS = Path(__file__).parent / "results" / "gpu-models.json"
BATCHES, PROMPT, NEW = (1, 4, 16), 256, 32
PHASES: tuple[tuple[Phase, int], ...] = (("prefill", PROMPT), ("decode", NEW))

BASE = "bfloat16"
NARROW: list[Any] = [{"cast": {"dtype": "bfloat16"}}]
FP8: dict[str, Any] = {"bits": 8, "group_size": None, "type": "float"}
SIDES: dict[str, tuple[list[Any], Any]] = {
    BASE: (NARROW, "torch"),
    "w4a16": ([*NARROW, {"quantize_weights": {"bits": 4, "group_size": 64}}], "triton"),
    "fp8": (
        [*NARROW, {"quantize_weights": FP8}, {"quantize_activations": {"type": "float"}}],
        "triton",
    ),
}
"""The passes and the target of each side."""

SIZES = {
    "llama": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22},
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2},
}
"""Of Llamas with random weights."""


def checkpoint(model: str, folder: Path) -> Path:
    """The folder of a model, made unless it is there."""
    if model == "smollm2":
        return assets.smollm2()
    if not (folder / "config.json").is_file():
        sizes: dict[str, Any] = {**SIZES[model], "num_attention_heads": 32, "vocab_size": 32000}
        heads = {"num_key_value_heads": 4, "head_dim": 64}
        torch.manual_seed(0)
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
        made.save_pretrained(folder)
    return folder


def artifacts(model: str, folder: Path) -> dict[str, Path]:
    """Convert for each side, unless that was done before."""
    source = checkpoint(model, folder / "checkpoint")
    for name, (passes, target) in SIDES.items():
        if not (folder / name / "planish.json").is_file():
            print(f"{model}: convert to {name}", flush=True)
            planish.optimize(source, {"passes": passes}, target=target, output=folder / name)
    return {name: folder / name for name in SIDES}


def rows_of(
    model: str, sessions: dict[str, Session], batches: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Seconds of each side, by batch and phase, and how often the baseline's speed each has."""
    found = []
    for batch in batches:
        tokens = random_tokens(sessions[BASE], batch, PROMPT + NEW)
        sides: list[Callable[[], dict[Phase, float]]] = [
            partial(language_round, one, tokens, PROMPT) for one in sessions.values()
        ]
        for side in sides:
            side()  # torch.compile works at the first calls, and again where sizes change
        times = dict(zip(sessions, in_turns(sides, rounds, lambda: None), strict=True))
        for phase, count in PHASES:
            for name, taken in times.items():
                seconds = [one[phase] for one in taken]
                ratios = [base[phase] / own for base, own in zip(times[BASE], seconds, strict=True)]
                row = {
                    "model": model,
                    "batch": batch,
                    "phase": phase,
                    "side": name,
                    "tokens_per_second": batch * count / median(seconds),
                    "times_bfloat16": median(ratios),
                    "seconds": seconds,
                }
                print(
                    f"{model} batch {batch:2} {phase:8} {name:10} "
                    f"{row['tokens_per_second']:10.1f} tokens/s {row['times_bfloat16']:5.2f}x",
                    flush=True,
                )
                found.append(row)
    return found


def main() -> None:
    """Convert, time, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", choices=["smollm2", *SIZES], default=["smollm2", "llama"]
    )
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--artifacts", type=Path, help="a folder to keep, and find, artifacts in")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    asked = parser.parse_args()
    if asked.provider == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "PyTorch finds no CUDA device, so nothing can be measured; "
            "--models tiny --provider cpu --eager is a trial without one."
        )
    rows: list[dict[str, Any]] = []
    load = recent_load()
    with tempfile.TemporaryDirectory() as scratch:
        for model in asked.models:
            folders = artifacts(model, (asked.artifacts or Path(scratch)) / model)
            sessions = {
                name: Session.open(folder, provider=asked.provider, compile=not asked.eager)
                for name, folder in folders.items()
            }
            rows += rows_of(model, sessions, asked.batch, asked.rounds)
    if asked.provider == "cuda":
        device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        found = {"machine": asdict(this_machine()), **device, "load_at_start": load, "rows": rows}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
