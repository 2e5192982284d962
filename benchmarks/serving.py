"""One artifact on the CPU, prompts and tokens: 8 bits beside float32, 4 bits and onnxruntime-genai.

    python benchmarks/serving.py [--rounds 7] [--artifacts FOLDER]
    python benchmarks/serving.py --only prefill-decode-cpu w4a16-cpu --batch 1 --rounds 25 --speed

SmolLM2-135M-Instruct reads a prompt of 256 tokens and is then given 32 tokens one by one, at batch
1, 4 and 16; all sides take turns in one process. Where `onnxruntime_genai` can be imported, its own
int4 model of the same weights (`onnxruntime_genai.models.builder -p int4 -e cpu`) takes part, at
batch 1. Perplexity is of the first 8,192 tokens of WikiText-2's test set, windows of 1,024, by the
ONNX models themselves, read whole and a token at a time. Figures go to
`benchmarks/results/serving.json`, those of some recipes only to a file named for them; with
--artifacts the folders made on the way are kept, and found again.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

import planish
from planish import assets
from planish.runtime.causal import Cache, Tokens
from planish.runtime.evaluate import evaluate, perplexity
from planish.runtime.machine import recent_load, this_machine
from planish.runtime.session import Session
from planish.runtime.texts import read_text
from planish.runtime.timing import Phase, in_turns, language_round, random_tokens
from planish.runtime.values import Array

RESULTS = Path(__file__).parent / "results"
RECIPES: dict[str, Any] = {
    "float32": [],
    "w8a8": "w8a8",
    "w8a8-cpu": "w8a8-cpu",
    "w7a8-cpu": "w7a8-cpu",
    "w4a16": "w4a16",
    "w4a16-cpu": "w4a16-cpu",
    "prefill-decode-cpu": "prefill-decode-cpu",
}
BATCHES, PROMPT, NEW = (1, 4, 16), 256, 32
TOKENS, WINDOW = 8192, 1024
GENAI_FILES = ("model.onnx", "model.onnx.data")


def artifacts(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Convert with each recipe, unless that was done before."""
    text = assets.fetch("wikitext2") / "validation.parquet"
    for name, recipe in ((name, RECIPES[name]) for name in names):
        if not (folder / name / "planish.json").is_file():
            print(f"convert {name}", flush=True)
            planish.optimize(assets.smollm2(), recipe, samples=text, output=folder / name)
    return {name: folder / name for name in names}


class Genai:
    """onnxruntime-genai's own int4 model of the same weights, made unless that was done before."""

    label, takes_padding = "onnxruntime-genai int4", False

    def __init__(self, folder: Path) -> None:
        import onnxruntime_genai as genai  # noqa: PLC0415

        if not (folder / "genai_config.json").is_file():
            builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
            options = ["-i", str(assets.smollm2()), "-o", str(folder), "-p", "int4", "-e", "cpu"]
            subprocess.run([*builder, *options], check=True, stdout=subprocess.DEVNULL)
        self._genai, self._model = genai, genai.Model(str(folder))

    def generator(self, length: int) -> Any:
        """With room for so many tokens of one text; it keeps its cache itself."""
        options = self._genai.GeneratorParams(self._model)
        options.set_search_options(max_length=length + 1, batch_size=1)
        return self._genai.Generator(self._model, options)

    def extend(
        self, input_ids: Tokens, mask: Tokens | None = None, cache: Cache | None = None
    ) -> tuple[Array, Cache]:
        """The logits of a whole text, for its perplexity; see `LanguageModel.extend`."""
        if mask is not None or cache is not None:
            raise NotImplementedError("only whole texts are scored")
        generator = self.generator(input_ids.shape[1])
        generator.append_tokens(input_ids.astype(np.int32))
        return generator.get_output("logits"), Cache(np.ones_like(input_ids), None)

    def round(self, tokens: Tokens) -> dict[Phase, float]:
        """As `language_round`, but that room for the cache is made before the clock starts."""
        given = tokens.astype(np.int32)
        self.generator(1).append_tokens(given[:, :1])
        generator = self.generator(given.shape[1])
        started = perf_counter()
        generator.append_tokens(given[:, :PROMPT])
        read = perf_counter()
        for at in range(PROMPT, given.shape[1]):
            generator.append_tokens(given[:, at : at + 1])
        return {"prefill": read - started, "decode": perf_counter() - read}


def speeds(
    folders: dict[str, Path], genai: Genai | None, rounds: int, batches: Sequence[int]
) -> list[dict[str, Any]]:
    """Seconds of each side, by batch and phase, and how often float32's speed each has."""
    found = []
    for batch in batches:
        sessions = {name: Session.open(path) for name, path in folders.items()}
        tokens = random_tokens(sessions["float32"], batch, PROMPT + NEW)
        sides: dict[str, Callable[[], dict[Phase, float]]] = {
            name: partial(language_round, one, tokens, PROMPT) for name, one in sessions.items()
        }
        if genai is not None and batch == 1:
            sides[genai.label] = partial(genai.round, tokens)
        times = dict(zip(sides, in_turns([*sides.values()], rounds, lambda: None), strict=True))
        phases: tuple[tuple[Phase, int], ...] = (("prefill", PROMPT), ("decode", NEW))
        for phase, count in phases:
            base = [one[phase] for one in times["float32"]]
            for name, taken in times.items():
                seconds = [one[phase] for one in taken]
                ratios = [float32 / own for float32, own in zip(base, seconds, strict=True)]
                row = {
                    "batch": batch,
                    "phase": phase,
                    "side": name,
                    "tokens_per_second": batch * count / median(seconds),
                    "times_float32": median(ratios),
                    "lowest": min(ratios),
                    "highest": max(ratios),
                    "seconds": seconds,
                }
                print(
                    f"batch {batch:2} {phase:8} {name:24} {row['tokens_per_second']:8.1f} tokens/s "
                    f"{row['times_float32']:5.2f}x ({row['lowest']:.2f} to {row['highest']:.2f})",
                    flush=True,
                )
                found.append(row)
    return found


def main() -> None:
    """Convert, time, judge, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--artifacts", type=Path, help="a folder to keep, and find, artifacts in")
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), default=[], help="and float32")
    parser.add_argument("--batch", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--speed", action="store_true", help="time alone, judge no perplexity")
    given = parser.parse_args()
    names = list(dict.fromkeys(["float32", *given.only])) if given.only else list(RECIPES)
    file = RESULTS / f"{'-'.join(['serving', *given.only])}.json"
    has_genai = importlib.util.find_spec("onnxruntime_genai") is not None
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.artifacts or Path(scratch)
        folders = artifacts(folder, names)
        genai = Genai(folder / "genai") if has_genai else None
        load = recent_load()
        found: dict[str, Any] = {
            "machine": asdict(this_machine()),
            "load_at_start": load,
            "rows": speeds(folders, genai, given.rounds, given.batch),
            "artifacts": {},
        }
        keep(file, found)
        if given.speed:
            return
        for name, path in folders.items():
            found["artifacts"][name] = judged(path)
            print(name, json.dumps(found["artifacts"][name]), flush=True)
            keep(file, found)
        if genai is not None:
            found["artifacts"][genai.label] = judged_genai(genai, folder / "genai", folders)
            print(genai.label, json.dumps(found["artifacts"][genai.label]), flush=True)
            keep(file, found)


def judged(folder: Path) -> dict[str, Any]:
    """Perplexity of an artifact, read whole and a token at a time, its size and its isolation."""
    session = Session.open(folder)
    text = assets.fetch("wikitext2") / "test.parquet"
    whole, by_token = (
        evaluate(session, text, WINDOW, max_tokens=TOKENS, one_by_one=one).perplexity.value
        for one in (False, True)
    )
    return {
        "perplexity": whole,
        "perplexity_one_by_one": by_token,
        "onnx_bytes": sum(one.stat().st_size for one in (folder / "onnx").iterdir()),
        "isolation": session.manifest["isolation"],
    }


def judged_genai(genai: Genai, folder: Path, folders: dict[str, Path]) -> dict[str, Any]:
    """Perplexity of onnxruntime-genai's model, read whole, and its size."""
    text = assets.fetch("wikitext2") / "test.parquet"
    tokenizer = Session.open(folders["float32"]).tokenizer
    tokens = np.array(tokenizer.first(read_text(text), TOKENS, plain=True), np.int64)
    return {
        "perplexity": perplexity(genai, tokens, WINDOW, WINDOW, tokenizer.prefix).value,
        "onnx_bytes": sum((folder / one).stat().st_size for one in GENAI_FILES),
    }


def keep(file: Path, found: dict[str, Any]) -> None:
    """Write what was measured so far."""
    file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
