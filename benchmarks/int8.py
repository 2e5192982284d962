"""int8 on the CPU: Planish's recipes beside float32 and beside ONNX Runtime's `quantize_dynamic`.

    python benchmarks/int8.py [--rounds 7] [--artifacts FOLDER]

all-MiniLM-L6-v2 reads 8 x 128 tokens and SmolLM2-135M-Instruct 1 x 256 (prefill), of WikiText-2's
test set. The ONNX files of a model, of which float32 is Planish's own export and what
`quantize_dynamic` is given, are timed in turns in one run, all with integer kernels that do not
saturate (`runtime/saturation.py`). Of MiniLM it is a published `quantize_dynamic` model of the
same weights, since that tool cannot read the fused attention of our export. Errors are relative, of
the first output to that of float32; verdicts are those of `planish audit`. Figures go to
`benchmarks/results/int8.json`; with --artifacts the folders made on the way are kept, and found
again, those of SmolLM2 as `serving.py` names them.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic

import planish
from planish import assets
from planish.ir.program import Program
from planish.runtime.machine import this_machine
from planish.runtime.ort_backend import OnnxBackend
from planish.runtime.texts import read_text
from planish.runtime.timing import forward_round, in_turns
from planish.runtime.tokenizer import Tokenizer
from planish.samples import as_samples

RESULTS = Path(__file__).parent / "results" / "int8.json"
RECIPES = ("w8a8", "w8a8-cpu", "w7a8-cpu")
SHAPES = {"all-MiniLM-L6-v2": (8, 128), "SmolLM2-135M-Instruct": (1, 256)}


def files(model: Path, folder: Path) -> tuple[Program, dict[str, Path]]:
    """The program as captured, and the ONNX files by what made them."""
    text = assets.fetch("wikitext2") / "validation.parquet"
    program = planish.capture(model)
    recipes: dict[str, Any] = {"float32": [], **{name: name for name in RECIPES}}
    for name, recipe in recipes.items():
        if not (folder / name / "planish.json").is_file():
            print(f"convert {model.name} with {name}", flush=True)
            planish.optimize(program, recipe, samples=text, output=folder / name)
    paths = {name: folder / name / "onnx" / "model.onnx" for name in recipes}
    if program.source.task == "encoder":
        paths["quantize_dynamic"] = assets.fetch("onnx-minilm-dynamic") / "model_quantized.onnx"
    else:
        paths["quantize_dynamic"] = dynamic(paths["float32"], folder)
    return program, paths


def feeds_of(program: Program, model: Path, shape: tuple[int, int]) -> dict[str, Any]:
    """Inputs by name: the first tokens of the test set, no padding, no cache."""
    tokens = Tokenizer(model).encode(read_text(assets.fetch("wikitext2") / "test.parquet"))
    rows = torch.tensor(tokens[: shape[0] * shape[1]]).reshape(shape)
    (sample,) = as_samples([{"input_ids": rows}], program)
    return {name: tensor.numpy() for name, tensor in sample.items()}


def dynamic(path: Path, folder: Path) -> Path:
    """What `quantize_dynamic` makes of a file, once ONNX Runtime has turned its weights around.

    Products by weights that are transposed in the graph it leaves alone. Attention it takes for
    BERT's operator of that name, which makes the standard one invalid; so that stays.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "turned.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    made = folder / "dynamic.onnx"
    kinds = ["MatMul", "Gather"]
    quantize_dynamic(folder / "turned.onnx", made, op_types_to_quantize=kinds)
    return made


def measure(paths: Mapping[str, Path], feeds: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds in turns, errors and verdicts."""
    zeros = np.zeros_like(feeds["input_ids"])  # token types, where a model asks for them
    calls: dict[str, Callable[[], dict[str, Any]]] = {}
    for name, path in paths.items():
        model = OnnxBackend(path, "cpu")
        calls[name] = partial(
            model.run, {one.name: feeds.get(one.name, zeros) for one in model.inputs}
        )
    sides = [partial(forward_round, call) for call in calls.values()]
    times = dict(zip(calls, in_turns(sides, rounds, lambda: None), strict=True))
    seconds = {name: [one["forward"] for one in found] for name, found in times.items()}
    first = {
        name: np.asarray(next(iter(call().values())), np.float64) for name, call in calls.items()
    }
    base = first["float32"]
    return {
        name: {
            "seconds": seconds[name],
            "faster_than_float32": median(
                one / own for one, own in zip(seconds["float32"], seconds[name], strict=True)
            ),
            "error": float(np.linalg.norm(first[name] - base) / np.linalg.norm(base)),
            "bytes": sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*")),
            "verdict": planish.audit(path).verdict,
        }
        for name, path in paths.items()
    }


def main() -> None:
    """Measure both models, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--artifacts", type=Path, help="a folder to keep, and find, artifacts in")
    given = parser.parse_args()
    models = {
        "all-MiniLM-L6-v2": assets.fetch("minilm"),
        "SmolLM2-135M-Instruct": assets.smollm2(),
    }
    result: dict[str, Any] = {"machine": asdict(this_machine()), "models": {}}
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) if given.artifacts is None else given.artifacts / name
            program, paths = files(model, folder)
            found = measure(paths, feeds_of(program, model, SHAPES[name]), given.rounds)
        result["models"][name] = found
        for kind, row in found.items():
            print(
                f"{name:24} {kind:18} {row['faster_than_float32']:5.2f}x  error {row['error']:.4f}"
                f"  {row['bytes'] / 1e6:7.1f} MB  {row['verdict']}",
                flush=True,
            )
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
